"""`<space>.index.db`: a cache of the tree, rebuilt from it when lost. Deleting it is legal at any time.

One row of `node` is one *entry*: a name in a directory. Several names of one file are several rows with one binding
and ids of their own. Children hang on their parent's row, so renaming a directory of millions is one row. A row
whose `parent` is NULL and that is not the root is in limbo: gone from its place, perhaps about to reappear.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, journal, labels, totals
from fsd.core.store import Database
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space

ROOT = 1
FILE, DIRECTORY, SYMLINK, OTHER = 0, 1, 2, 3
KIND_LETTERS = "fdlo"

READY = 1
"""Flag: the node was seen closed and quiet, or fsd wrote it; a save-by-rename no longer gives it another's id."""
LABELLED = 2
"""Flag: `user.fsd.id` on disk says what the row says."""
GIVEN = 8
"""Flag: the id is not the one that derives from the binding. Only these rows have a key on the binding: the others
are found by their id, and a key of random bytes is what a sweep would spend most of its time on."""
WRITING = 16
"""Flag: the content was not yet seen closed and quiet since it changed (ready.py)."""
CLAIMING = 32
"""Flag: it carries a label of another node, and whether that one is gone can't be told yet (claims.py)."""

DOUBTED = 0
"""In `node.ctime_ns`: of a file's name that went while the file lived on under others, so that its content may be
another one although size and mtime are the same."""

DUBIOUS = -1
"""In `dir.mtime_ns`: the tree was put back, so its entries may be other nodes with all their numbers the same, as those
of a snapshot are; each is looked at closely once."""

SCHEMA = """
CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1), next_n INTEGER NOT NULL, number INTEGER NOT NULL,
    number_limit INTEGER NOT NULL, boot TEXT NOT NULL, epoch INTEGER NOT NULL,
    complete INTEGER NOT NULL, incarnation BLOB NOT NULL, born_ns INTEGER NOT NULL,
    swept_at REAL NOT NULL, moves INTEGER NOT NULL);
CREATE TABLE node (
    n INTEGER PRIMARY KEY, id BLOB NOT NULL, parent INTEGER, name BLOB NOT NULL,
    kind INTEGER NOT NULL, binding BLOB NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, mode INTEGER NOT NULL,
    uid INTEGER NOT NULL, gid INTEGER NOT NULL, nlink INTEGER NOT NULL, rev INTEGER NOT NULL,
    flags INTEGER NOT NULL, xattrs INTEGER NOT NULL);
CREATE UNIQUE INDEX node_place ON node (parent, name);
CREATE UNIQUE INDEX node_id ON node (id);
CREATE INDEX node_binding ON node (binding) WHERE flags & 8;
CREATE INDEX node_writing ON node (n) WHERE flags & 16;
CREATE INDEX node_marked ON node (n) WHERE xattrs & 1;
CREATE TABLE dir (
    n INTEGER PRIMARY KEY, own INTEGER NOT NULL, total INTEGER NOT NULL, assumed INTEGER NOT NULL,
    counter INTEGER NOT NULL, seq INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, dev INTEGER NOT NULL, mounted INTEGER NOT NULL,
    epoch INTEGER NOT NULL, published INTEGER NOT NULL);
CREATE INDEX dir_untold ON dir (n) WHERE NOT published;
CREATE INDEX dir_mounted ON dir (n) WHERE mounted;
CREATE TABLE dirty (
    n INTEGER PRIMARY KEY, names BLOB, stamp INTEGER NOT NULL, since REAL NOT NULL,
    sweep INTEGER NOT NULL);
CREATE INDEX dirty_order ON dirty (sweep, since);
CREATE TABLE limbo (
    n INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, since REAL NOT NULL);
CREATE INDEX limbo_place ON limbo (parent, name);
CREATE TABLE recent (
    parent INTEGER NOT NULL, name BLOB NOT NULL, n INTEGER NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TABLE pending (
    n INTEGER PRIMARY KEY, due REAL NOT NULL, force INTEGER NOT NULL);
CREATE INDEX pending_due ON pending (due);
CREATE TABLE journal (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, node BLOB NOT NULL, node_kind INTEGER NOT NULL,
    parent BLOB NOT NULL, name BLOB NOT NULL, at REAL NOT NULL);
CREATE TABLE cursor (source TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID
"""

VERSION = 7
_MAX_PATHS = 65_536
_FEW = 8
_AT_ONCE = 500
"""Names that one statement asks for; so few are asked for one by one, as that statement is prepared already."""
_DEEPEST = 65_536
"""Directories above each other: of more than anybody makes it is taken that they hang on themselves."""
_OF_NODE = (
    "SELECT * FROM node WHERE id=? AND binding=? AND NOT flags & 8"
    " UNION ALL SELECT * FROM node WHERE flags & 8 AND binding=?"
)


class NodeRow(NamedTuple):
    """A row of `node`, columns in order."""

    n: int
    id: bytes
    parent: int | None
    name: bytes
    kind: int
    binding: bytes
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rev: int
    flags: int
    xattrs: int


class DirRow(NamedTuple):
    """A row of `dir`: own = sum of the listed files' sizes, total = own + children's totals + assumed; bytes.

    `published`: whether the directory itself carries this total. It changes once a second, so that its key is not
    written with each commit.
    """

    n: int
    own: int
    total: int
    assumed: int
    counter: int
    seq: int
    mtime_ns: int
    ctime_ns: int
    dev: int
    mounted: int
    epoch: int
    published: int


def boot_id() -> str:
    """Changes with each boot of the machine; a commit that is older than it may have been lost."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


class Index(Database):
    """The index database of one space. A new one holds the root, dirty in full."""

    def __init__(self, path: Path, lock: Path, space: Space) -> None:
        super().__init__(
            path,
            SCHEMA,
            version=VERSION,
            synchronous="NORMAL",
            lock=lock,
            rebuildable=True,
            checkpointed=True,
        )
        self._space = space
        self.paths: tuple[int, dict[bytes, int]] = (-1, {})
        """`head.moves` and the row numbers of directories by path that were true then; see `resolve`."""
        self.chains: tuple[int, dict[int, list[int]]] = (-1, {})
        """Likewise the row numbers of each directory and all above it, the root last; see `chain`."""

    def created(self, db: sqlite3.Connection) -> None:
        """Fill a new index with the root's row. Raises StorageUnavailable while the root can't be proven."""
        space = self._space
        now = time.time_ns()
        first, behind = space.state.reserve(1, apart=True)
        db.execute(
            "INSERT INTO head VALUES (1, 2, ?, ?, ?, 1, 0, ?, ?, 0, ?)",
            (first + 1, behind, boot_id(), space.state.incarnation(), now, random.getrandbits(48)),
        )
        fd = space.root_fd()
        found = statx(fd, b"")
        binding = ids.node_binding(fd, b"", found)
        assumed = published_size(fd, space.secret, binding)
        row = (ROOT, space.key, None, b"", DIRECTORY, binding, found.ino, 0, found.mtime_ns, found.ctime_ns, found.mode,
               found.uid, found.gid, found.nlink, 0, READY | GIVEN, 0)  # fmt: skip
        db.execute(f"INSERT INTO node VALUES ({'?,' * 16}?)", row)
        db.execute(
            "INSERT INTO dir VALUES (?,0,?,?,?,0,?,?,?,0,0,0)",
            (ROOT, assumed, assumed, first, found.mtime_ns, found.ctime_ns, found.dev),
        )
        db.execute("INSERT INTO dirty VALUES (?, NULL, 1, ?, 1)", (ROOT, now / 1e9))
        journal.set_floor(db, first)

    def opened(self, db: sqlite3.Connection) -> None:
        """In an index of an earlier release `published` was the counter at which a directory was published."""
        if db.execute("SELECT 1 FROM sqlite_schema WHERE name='dir_unpublished'").fetchone() is None:
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("DROP INDEX dir_unpublished")
            db.execute("UPDATE dir SET published=(published=counter)")
            db.execute("CREATE INDEX dir_untold ON dir (n) WHERE NOT published")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def published_size(fd: int, secret: bytes, binding: bytes) -> int:
    """The tree size a directory carries itself, 0 if none."""
    try:
        raw = os.getxattr(fd, labels.TREE_ATTRIBUTE)
    except OSError:
        return 0
    return labels.parse_tree(raw, secret, binding) or 0


def node(db: sqlite3.Connection, n: int) -> NodeRow | None:
    """The row with this number."""
    row = db.execute("SELECT * FROM node WHERE n=?", (n,)).fetchone()
    return NodeRow._make(row) if row else None


def at(db: sqlite3.Connection, parent: int, name: bytes) -> NodeRow | None:
    """The entry `name` of a directory's row."""
    row = db.execute("SELECT * FROM node WHERE parent=? AND name=?", (parent, name)).fetchone()
    return NodeRow._make(row) if row else None


def by_id(db: sqlite3.Connection, node_id: bytes) -> NodeRow | None:
    """The row that owns an id."""
    row = db.execute("SELECT * FROM node WHERE id=?", (node_id,)).fetchone()
    return NodeRow._make(row) if row else None


def by_binding(db: sqlite3.Connection, space_key: bytes, binding: bytes) -> list[NodeRow]:
    """All rows of one node on disk, those in limbo included."""
    rows = db.execute(_OF_NODE, (ids.derived_id(space_key, binding), binding, binding)).fetchall()
    return sorted(map(NodeRow._make, rows))


def children(db: sqlite3.Connection, parent: int, names: Sequence[bytes] | None = None) -> Iterator[NodeRow]:
    """The entries of a directory: all, or the named ones."""
    if names is None:
        yield from map(NodeRow._make, db.execute("SELECT * FROM node WHERE parent=?", (parent,)))
        return
    if len(names) < _FEW:
        for name in names:
            row = db.execute("SELECT * FROM node WHERE parent=? AND name=?", (parent, name)).fetchone()
            if row:
                yield NodeRow._make(row)
        return
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        query = f"SELECT * FROM node WHERE parent=? AND name IN ({','.join('?' * len(some))})"
        yield from map(NodeRow._make, db.execute(query, (parent, *some)))


def given(space_key: bytes, node_id: bytes, binding: bytes) -> int:
    """GIVEN if an id does not derive from the binding, else 0."""
    return 0 if node_id == ids.derived_id(space_key, binding) else GIVEN


def directory(db: sqlite3.Connection, n: int) -> DirRow | None:
    """The directory part of a row."""
    row = db.execute("SELECT * FROM dir WHERE n=?", (n,)).fetchone()
    return DirRow._make(row) if row else None


def seq_of(db: sqlite3.Connection, n: int) -> int | None:
    """How often a directory's row was committed to; None if it has none any more."""
    row = db.execute("SELECT seq FROM dir WHERE n=?", (n,)).fetchone()
    return row[0] if row else None


class Generation(NamedTuple):
    """What must not have changed when a difference is committed: `dir.seq`, the sweep's epoch, `head.moves`."""

    seq: int
    epoch: int
    moves: int


_WHOLE = (
    "SELECT node.*, dir.*, head.epoch, head.moves FROM node JOIN dir ON dir.n=node.n, head WHERE node.n=?"
)
_NODE, _DIR = len(NodeRow._fields), len(DirRow._fields)


def directory_row(db: sqlite3.Connection, n: int) -> tuple[NodeRow, DirRow, Generation] | None:
    """Both parts of a directory's row, and the generation, read at once."""
    found = db.execute(_WHOLE, (n,)).fetchone()
    if found is None:
        return None
    parts = DirRow._make(found[_NODE : _NODE + _DIR])
    return NodeRow._make(found[:_NODE]), parts, Generation(parts.seq, *found[-2:])


def directory_at(
    known: Index, db: sqlite3.Connection, path: bytes
) -> tuple[NodeRow, DirRow, Generation] | None:
    """The directory at a path as the index knows it, both parts of its row and the generation read at once."""
    moves, paths = known.paths
    found = db.execute(_WHOLE, (paths.get(path) if path else ROOT,)).fetchone()
    if found is None or (path and found[-1] != moves):
        n, _ = resolve(known, db, path)
        found = db.execute(_WHOLE, (n,)).fetchone()
    if found is None:
        return None
    parts = DirRow._make(found[_NODE : _NODE + _DIR])
    return NodeRow._make(found[:_NODE]), parts, Generation(parts.seq, *found[-2:])


def path_of(db: sqlite3.Connection, n: int) -> bytes | None:
    """The path of a row below the root; None if it, or something above it, is in limbo."""
    parts: list[bytes] = []
    here: int | None = n
    while here != ROOT:
        row = db.execute("SELECT parent, name FROM node WHERE n=?", (here,)).fetchone()
        if row is None or row[0] is None:
            return None
        parts.append(row[1])
        here = row[0]
        if len(parts) > _DEEPEST:
            return None  # rows that hang on themselves: `fsd check` tells
    return b"/".join(reversed(parts))


def resolve(known: Index, db: sqlite3.Connection, path: bytes) -> tuple[int | None, bytes]:
    """(row number of the directory at a path, incarnation); paths are remembered until one moves (`head.moves`).

    Only for readers: within a write transaction `moves` is not settled yet.
    """
    moves, incarnation = db.execute("SELECT moves, incarnation FROM head").fetchone()
    if not path:
        return ROOT, incarnation
    paths = known.paths
    if paths[0] != moves or len(paths[1]) > _MAX_PATHS:
        paths = known.paths = (moves, {})
    n = paths[1].get(path)
    if n is None:
        row = find(db, path)
        if row is None or row.kind != DIRECTORY:
            return None, incarnation
        n = paths[1][path] = row.n
    return n, incarnation


def resolve_many(
    known: Index, db: sqlite3.Connection, wanted: Iterable[bytes]
) -> tuple[int, dict[bytes, int]]:
    """`resolve` for many paths: (`head.moves`, the row numbers of those that are known). They hold in a later
    transaction that begins with the same `moves`."""
    (moves,) = db.execute("SELECT moves FROM head").fetchone()
    found: dict[bytes, int] = {}
    for path in wanted:
        at, paths = known.paths
        n = ROOT if not path else paths.get(path) if at == moves else None
        if n is None:
            n, _ = resolve(known, db, path)
        if n is not None:
            found[path] = n
    return moves, found


def chain(known: Index, db: sqlite3.Connection, n: int, moves: int) -> list[int]:
    """The row numbers of a directory and all above it, the root last, remembered while `head.moves` is `moves`.

    Within a write transaction: before it moves anything itself.
    """
    if known.chains[0] != moves or len(known.chains[1]) > _MAX_PATHS:
        known.chains = (moves, {})
    found = known.chains[1].get(n)
    if found is None:
        found = known.chains[1][n] = totals.above(db, n)
    return found


def find(db: sqlite3.Connection, path: bytes) -> NodeRow | None:
    """The row at a path, as far as the index knows."""
    n = ROOT
    if path:
        for name in path.split(b"/"):
            row = db.execute("SELECT n FROM node WHERE parent=? AND name=?", (n, name)).fetchone()
            if row is None:
                return None
            n = row[0]
    return node(db, n)


class Head:
    """The index's counters within one write transaction: read once, written once by `save`.

    `moves` is as it was when the transaction began.
    """

    def __init__(self, space: Space, db: sqlite3.Connection) -> None:
        self._space, self._db = space, db
        query = "SELECT next_n, number, number_limit, boot, epoch, born_ns, moves FROM head"
        found: tuple[int, int, int, str, int, int, int] = db.execute(query).fetchone()
        self._next_n, self._number, self._limit, self._boot, self.epoch, self.born_ns, self._moves = found
        self.moves = self._moves
        self.remembers: bool | None = None
        """Whether the state database remembers any node's id; None: nobody asked yet."""
        self._before = self._state()
        self._paths: tuple[int, dict[int, bytes | None]] = self._moves, {}

    def _state(self) -> tuple[int, int, int, str, int]:
        return self._next_n, self._number, self._limit, self._boot, self._moves

    def rows(self, count: int) -> int:
        """The first of `count` fresh row numbers."""
        self._next_n += count
        return self._next_n - count

    def numbers(self, count: int) -> int:
        """The first of `count` fresh journal numbers."""
        # After a boot the index may have lost commits whose numbers were seen by clients: skip past all of them.
        if self._number + count > self._limit or self._boot != _BOOT:
            self._number, self._limit = self._space.state.reserve(self._limit, apart=self._boot != _BOOT)
            self._boot = _BOOT
        self._number += count
        return self._number - count

    def moved(self) -> None:
        """A directory changed its place: remembered paths don't hold any more."""
        self._moves += 1

    def path_of(self, n: int) -> bytes | None:
        """`path_of` a directory's row, remembered until a directory moves."""
        if self._paths[0] != self._moves:
            self._paths = self._moves, {}
        paths = self._paths[1]
        if n not in paths:
            paths[n] = path_of(self._db, n)
        return paths[n]

    def has_moved(self, since: int) -> bool:
        """Whether a directory changed its place after `moves` was `since`, this transaction included."""
        return self._moves != since

    def save(self) -> None:
        """Write what changed."""
        if self._state() != self._before:
            self._db.execute(
                "UPDATE head SET next_n=?, number=?, number_limit=?, boot=?, moves=?", self._state()
            )
            self._before = self._state()


def take_numbers(space: Space, db: sqlite3.Connection, count: int) -> int:
    """The first of `count` fresh journal numbers, within a write transaction."""
    head = Head(space, db)
    first = head.numbers(count)
    head.save()
    return first


_BOOT = boot_id()
