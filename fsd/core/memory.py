"""What one transaction has the state database remember of nodes: ids and revs that they can't carry themselves, or not
yet. Links and special files, each name of a hard-linked node by its place, files whose label could not be written.

It is written before the transaction is committed, so what a reader was told survives the index, whenever both the
process and the index are lost. What is remembered of a node counts more than its label, and is never the older one.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, index
from fsd.core.index import DIRECTORY, DOUBTED, FILE, NodeRow

if TYPE_CHECKING:
    from fsd.core.commit import Commit
    from fsd.core.observe import Seen

SETTLE_S = 5.0
"""A closed node is labelled when it has been quiet for so long. Seconds."""


class Recalled(NamedTuple):
    """`known`: the (id, rev) of a node at this place. `linked`: other names of it are known, each with its id."""

    known: tuple[bytes, int] | None
    linked: bool


def place_key(parent_id: bytes, name: bytes) -> bytes:
    """Names one place of a hard-linked node in the state database."""
    return blake2b(parent_id + name, digest_size=8).digest()


def has_names(seen: Seen) -> bool:
    """Whether a node has several names."""
    return seen.nlink > 1 and seen.kind != DIRECTORY


class Memory:
    """Collects for one `Commit`."""

    def __init__(self, work: Commit) -> None:
        self._work = work
        self._rows: list[tuple[bytes, bytes, bytes, int]] = []
        self._linked: dict[bytes, tuple[int, int]] = {}
        """Hard-linked nodes that were met, with the ctime and the number of names they have now (0: not known)."""
        self._renamed: dict[bytes, NodeRow] = {}
        """Hard-linked files of which a name was moved and nothing else: what its row said."""
        self.taken: dict[bytes, int] = {}
        """Nodes whose remembered id somebody else has now, with the rev that they had under it."""

    @property
    def _any(self) -> bool:
        """Whether the state database remembers any node's id: asked once in a transaction."""
        head = self._work.head
        if head.remembers is None:
            with self._work.space.state.read() as db:
                head.remembers = db.execute("SELECT 1 FROM binding LIMIT 1").fetchone() is not None
        return head.remembers

    def recall(self, seen: Seen) -> Recalled:
        """What is remembered of a node that has no row at its place."""
        if not self._any:
            return Recalled(None, False)
        state = self._work.space.state
        known = state.bound(seen.binding, place_key(self._work.id, seen.name))
        if known is None:
            return Recalled(None, has_names(seen) and state.remembered([seen.binding]) != set())
        if index.by_id(self._work.db, known[0]) is not None:
            self.taken[seen.binding] = known[1]
            return Recalled(None, False)
        return Recalled(known, False)

    def met(self, seen: Seen) -> None:
        """A node that has, or had, several names was looked at."""
        self._linked[seen.binding] = seen.ctime_ns, seen.nlink

    def renamed(self, old: NodeRow, new: NodeRow) -> None:
        """A row came to another place. Of a file with several names the others can't tell why their ctime moved."""
        if new.kind == FILE and new.nlink > 1 and _but_for_ctime(old) == _but_for_ctime(new):
            self._renamed[new.binding] = old

    def lose_name(self, row: NodeRow) -> None:
        """A row is no longer one of its node's names: the others are looked at."""
        if row.nlink > 1 and row.kind != DIRECTORY:
            self._linked.setdefault(row.binding, (0, 0))

    def keep(self, binding: bytes, node_id: bytes, rev: int) -> None:
        """Remember a node with one name."""
        self._rows.append((binding, b"", node_id, rev))

    def keep_row(self, row: NodeRow) -> None:
        """Remember a row's id: for its place, where it is one name of several."""
        if row.nlink == 1 or row.kind == DIRECTORY:
            self.keep(row.binding, row.id, row.rev)
            return
        parent = index.node(self._work.db, row.parent) if row.parent is not None else None
        if parent is not None:
            self._rows.append((row.binding, place_key(parent.id, row.name), row.id, row.rev))

    def correct(self, seen: Seen, node_id: bytes, rev: int) -> None:
        """What is remembered of a node that gets a row says the same."""
        if not self._any or has_names(seen):
            return
        state = self._work.space.state
        if state.remembered([seen.binding]) and state.bound(seen.binding, b"") != (node_id, rev):
            self.keep(seen.binding, node_id, rev)

    def write(self) -> None:
        """At the end of the transaction, before it is committed. Durable when it returns."""
        for binding, (ctime_ns, nlink) in self._linked.items():
            self._settle_names(binding, ctime_ns, nlink)
        if self._rows:
            self._work.space.state.bind(self._rows)
            self._work.head.remembers = True

    def _settle_names(self, binding: bytes, ctime_ns: int, nlink: int) -> None:
        """Remember which name of a hard-linked node has which id: the one label on the inode can't tell."""
        work = self._work
        db = work.db
        rows = index.by_binding(db, work.space.key, binding)
        if 0 < nlink < len(rows):
            self._doubt(rows, nlink)
        names = [row for row in rows if row.parent is not None]
        for row in names:
            parent = index.node(db, row.parent) if row.parent is not None else None
            if parent is None:
                continue
            old = self._renamed.get(binding)
            if (
                old is not None
                and old.ctime_ns == row.ctime_ns
                and _but_for_ctime(old) == _but_for_ctime(row)
            ):
                db.execute("UPDATE node SET ctime_ns=? WHERE n=?", (ctime_ns, row.n))
            elif row.ctime_ns != ctime_ns:
                # What happened through one name holds for all, but nobody tells about the others.
                dirty.mark_row(db, parent.n, [row.name], work.now, sweep=work.sweep)
            single = len(names) == 1 and row.nlink == 1
            place = b"" if single else place_key(parent.id, row.name)
            self._rows.append((binding, place, row.id, row.rev))
        if names and names[0].nlink > len(names):
            # Through a name that was never seen here its content may change unheard: look once more when quiet.
            due = (names[0].n, work.now + SETTLE_S)
            db.execute("INSERT OR IGNORE INTO pending VALUES (?, ?, 0)", due)
        elif len(names) == 1 and names[0].kind == FILE:
            db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 1)", (names[0].n, work.now))

    def _doubt(self, rows: Sequence[NodeRow], nlink: int) -> None:
        """All `nlink` names are known, so the rows in limbo are of names that went. Until one of them comes back the
        content may change through the others, which its size and mtime need not show: it comes back with a higher rev.
        """
        db = self._work.db
        gone = [(DOUBTED, row.n) for row in rows if index.path_of(db, row.n) is None]
        if len(rows) - len(gone) >= nlink:
            db.executemany("UPDATE node SET ctime_ns=? WHERE n=?", gone)


def _but_for_ctime(row: NodeRow) -> tuple[object, ...]:
    return row.binding, row.size, row.mtime_ns, row.mode, row.uid, row.gid, row.nlink, row.xattrs
