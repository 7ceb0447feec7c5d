"""Many new entries of one directory at once: what a sweep of a large tree and a copied tree spend their time on.

Entries whose identity is plain (no row, no rival for the id, one name, nothing remembered about the place)
are inserted together; all others take the way of `Commit.put`. Labels of quiet nodes are written before the
rows, so that the row holds the ctime the label caused and nothing has to be updated: an id that is derived or
already proven is the same whether or not the transaction commits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, labels, lease
from fsd.core.commit import QUIET_S
from fsd.core.index import DIRECTORY, FILE, GIVEN, LABELLED, READY, WRITING
from fsd.core.journal import Change
from fsd.core.names import join

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.commit import Commit
    from fsd.core.observe import Seen
    from fsd.core.space import Space

_FEW = 100
_new = tuple.__new__  # a named tuple's own constructor takes twice as long
_NODE = f"INSERT INTO node VALUES ({'?,' * 16}?)"
_DIR = "INSERT INTO dir VALUES (?,0,?,?,?,0,?,?,?,?,0,0)"
_DIRTY = "INSERT INTO dirty VALUES (?, NULL, 1, ?, ?)"


class Plain(NamedTuple):
    """An entry whose identity is plain, with the flags and the ctime that its row will have."""

    seen: Seen
    id: bytes
    flags: int
    ctime_ns: int


def populate(work: Commit, fd: int, entries: Sequence[Seen], *, label: bool) -> list[Seen]:
    """Insert the plain ones of `entries`; returns the others. `label`: write labels too."""
    space, db = work.space, work.db
    remembered = names_remembered(db, work.n, entries, new=not work.seq)
    taken = spoken_for(space, db, entries)
    plain, others = sort_out(space, entries, work.now, taken, remembered, explicit=work.explicit)
    if label and writes_labels(space):
        plain = write_labels(space, fd, plain)
    insert(work, plain)
    return others


def sort_out(
    space: Space,
    entries: Iterable[Seen],
    now: float,
    taken: set[bytes],
    remembered: set[bytes],
    *,
    explicit: bool,
) -> tuple[list[Plain], list[Seen]]:
    """(plain ones, others). `taken`: as `spoken_for` says; what the plain ones take is added. `remembered`: names.
    `explicit`: fsd made the change itself. The flags are those of `Commit.flags` for a row that is new."""
    quiet_ns = int((now - QUIET_S) * 1e9)
    key = space.key
    plain: list[Plain] = []
    others: list[Seen] = []
    for seen in entries:
        own_id, label = ids.derived_id(key, seen.binding), seen.label
        node_id, flags = own_id, 0
        if label is not None:
            node_id, flags = label.id, READY | LABELLED
        elif seen.ctime_ns < quiet_ns:
            flags = READY
        if seen.kind == FILE and seen.ctime_ns >= quiet_ns and not (explicit and flags & LABELLED):
            flags |= WRITING
        if (
            own_id in taken
            or seen.binding in taken
            or ids.is_weak(seen.binding)
            or seen.name in remembered
            or (label is not None and (node_id in taken or not label.proven))
            or (seen.nlink > 1 and seen.kind != DIRECTORY)
        ):
            others.append(seen)
            continue
        taken.add(own_id)
        if node_id != own_id:
            taken.add(node_id)
            flags |= GIVEN
        plain.append(_new(Plain, (seen, node_id, flags, seen.ctime_ns)))
    return plain, others


def spoken_for(space: Space, db: sqlite3.Connection, entries: Sequence[Seen]) -> set[bytes]:
    """Ids that these derive or carry and that have rows, and bindings of theirs that another id is known for."""
    bindings = [seen.binding for seen in entries]
    wanted = [ids.derived_id(space.key, binding) for binding in bindings]
    wanted += [seen.label.id for seen in entries if seen.label is not None]
    return _present(db, "id", wanted) | bindings_known(space, db, bindings)


def bindings_known(space: Space, db: sqlite3.Connection, bindings: list[bytes]) -> set[bytes]:
    """Bindings that an id is known for which doesn't derive from them: all those, or those of `bindings`."""
    known = {row[0] for row in db.execute("SELECT binding FROM node WHERE flags & 8 LIMIT ?", (_FEW,))}
    if len(known) == _FEW:
        known = _present(db, "binding", bindings, "flags & 8 AND ")
    return known | space.state.remembered(bindings)


def names_remembered(db: sqlite3.Connection, n: int, entries: Sequence[Seen], *, new: bool) -> set[bytes]:
    """Names among these that have, or lately had, a row in directory `n`. `new`: it has no rows."""
    found: set[bytes] = set()
    for table in ("limbo", "recent") if new else ("limbo", "recent", "node"):
        if db.execute(f"SELECT 1 FROM {table} WHERE parent=? LIMIT 1", (n,)).fetchone():
            found |= _present(db, "name", [seen.name for seen in entries], f"parent={n} AND ", table)
    return found


def writes_labels(space: Space) -> bool:
    """Whether nodes of this space are labelled as soon as they are seen quiet, by this host."""
    return space.record.label == "now" and not space.record.read_only and lease.may_write(space)


def write_labels(space: Space, fd: int, plain: Sequence[Plain]) -> list[Plain]:
    """Label those that are quiet and have none. One that can't be labelled, or is not what was seen any more, stays
    as it is."""
    secret, encode, put, lstat, may_write = (
        space.secret, labels.encode, labels.set_on_entry, os.stat, lease.may_write,
    )  # fmt: skip
    done = []
    for each in plain:
        seen, node_id, flags, _ = each
        name, kind = seen[0], seen[1]
        if flags & (READY | LABELLED) == READY and kind <= DIRECTORY:
            try:
                if may_write(space) and put(fd, name, encode(secret, node_id, seen[2], 0)):
                    after = lstat(name, dir_fd=fd, follow_symlinks=False)
                    same = after.st_ino == seen[3] and after.st_mtime_ns == seen[5]
                    if same and (kind == DIRECTORY or after.st_size == seen[4]):
                        each = _new(Plain, (seen, node_id, flags | LABELLED, after.st_ctime_ns))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EIO, errno.ESTALE):
                    raise
        done.append(each)
    return done


def insert(work: Commit, plain: Sequence[Plain]) -> None:
    """Insert rows, with their sums, etags and labels that are due."""
    if not plain:
        return
    first = work.head.rows(len(plain))
    parent = work.n
    nodes: list[tuple[object, ...]] = []
    dirs: list[tuple[Seen, int, int]] = []
    for n, (seen, node_id, flags, ctime_ns) in enumerate(plain, first):
        name, kind, binding, ino, size, mtime_ns, _, mode, uid, gid, nlink, _, _, xattrs, label, _ = seen
        if kind == DIRECTORY:
            dirs.append((seen, n, ctime_ns))
        nodes.append((n, node_id, parent, name, kind, binding, ino, size, mtime_ns, ctime_ns, mode, uid, gid, nlink,
                      label.rev if label is not None else 0, flags, xattrs))  # fmt: skip
        if not flags & LABELLED:
            work.note_label(n, seen, flags, urgent=False)
    work.db.executemany(_NODE, nodes)
    if dirs:
        _insert_dirs(work, dirs)
    _account(work, plain)


def _account(work: Commit, plain: Sequence[Plain]) -> None:
    """Sums, etags and journal. At a first look the sums are taken at its end, and entries older than the index are not
    news: whoever read the etag of this directory has seen them."""
    if work.first_look:
        work.deltas.add(work.n, visible=any(each.seen.ctime_ns > work.head.born_ns for each in plain))
        work.tell_look()
        return
    own = sum(each.seen.size for each in plain)
    work.deltas.add(work.n, own, own + sum(each.seen.assumed for each in plain))
    work.changes += [
        Change("created", node_id, seen.kind, work.id, seen.name) for seen, node_id, _, _ in plain
    ]


def _present(
    db: sqlite3.Connection, column: str, values: list[bytes], also: str = "", table: str = "node"
) -> set[bytes]:
    marks = ",".join("?" * len(values))
    query = f"SELECT {column} FROM {table} WHERE {also}{column} IN ({marks})"
    return {value for (value,) in db.execute(query, values)}


def _insert_dirs(work: Commit, dirs: Sequence[tuple[Seen, int, int]]) -> None:
    counter = work.head.numbers(len(dirs))
    rows = [
        (n, seen.assumed, seen.assumed, number, seen.mtime_ns, ctime_ns, seen.dev, seen.mount != work.mount)
        for number, (seen, n, ctime_ns) in enumerate(dirs, counter)
    ]
    work.db.executemany(_DIR, rows)
    work.db.executemany(_DIRTY, ((n, work.now, int(work.sweep)) for _, n, _ in dirs))
    work.result.new_dirs += [join(work.path, seen.name) for seen, _, _ in dirs]
