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
from typing import TYPE_CHECKING

from fsd.core import ids, labels
from fsd.core.index import DIRECTORY, FILE, LABELLED, READY
from fsd.core.journal import Change
from fsd.core.names import join

if TYPE_CHECKING:
    from fsd.core.commit import Commit
    from fsd.core.observe import Seen

_NODE = f"INSERT INTO node VALUES ({'?,' * 16}?)"
_DIR = "INSERT INTO dir VALUES (?,0,?,?,?,0,?,?,?,?,0,0)"
_DIRTY = "INSERT INTO dirty VALUES (?, NULL, 1, ?, ?)"


def populate(work: Commit, fd: int, entries: Sequence[Seen], *, label: bool) -> list[Seen]:
    """Insert the plain ones of `entries`; returns the others. `label`: write labels too."""
    if work.bindings_exist:
        return list(entries)
    plain, others = _sort_out(work, entries)
    first = work.head.rows(len(plain))
    label = label and work.space.record.label == "now" and not work.space.record.read_only
    nodes: list[tuple[object, ...]] = []
    dirs: list[tuple[Seen, int]] = []
    for n, (seen, node_id) in enumerate(plain, first):
        ours = seen.label
        rev = ours.rev if ours is not None else 0
        flags = work.flags(seen, node_id, rev)
        ctime_ns = seen.ctime_ns
        if flags == READY and label and seen.kind in (FILE, DIRECTORY):
            after = _write(work, fd, seen, node_id, rev)
            if after:
                flags, ctime_ns = READY | LABELLED, after
        if seen.kind == DIRECTORY:
            dirs.append((seen._replace(ctime_ns=ctime_ns), n))
        nodes.append((n, node_id, work.n, seen.name, seen.kind, seen.binding, seen.ino, seen.size, seen.mtime_ns,
                      ctime_ns, seen.mode, seen.uid, seen.gid, seen.nlink, rev, flags, seen.xattrs))  # fmt: skip
        if not flags & LABELLED:
            work.note_label(n, seen, flags, urgent=False)
    work.db.executemany(_NODE, nodes)
    if dirs:
        _insert_dirs(work, dirs)
    if plain:
        _account(work, plain)
    return others


def _sort_out(work: Commit, entries: Sequence[Seen]) -> tuple[list[tuple[Seen, bytes]], list[Seen]]:
    """(plain ones with their ids, others)."""
    db, key = work.db, work.space.key
    known = _present(work, "binding", [seen.binding for seen in entries])
    names = [seen.name for seen in entries]
    rows = _present(work, "name", names, f"parent={work.n} AND ") if work.seq else set()
    query = "SELECT name FROM limbo WHERE parent=? UNION SELECT name FROM recent WHERE parent=?"
    remembered = {name for (name,) in db.execute(query, (work.n, work.n))}
    wanted: list[tuple[Seen, bytes]] = []
    others: list[Seen] = []
    for seen in entries:
        ours = seen.label
        unclear = (
            seen.binding in known
            or seen.name in remembered
            or seen.name in rows
            or (ours is not None and not ours.proven)
        )
        if unclear or (seen.nlink > 1 and seen.kind != DIRECTORY):
            others.append(seen)
        else:
            wanted.append((seen, ours.id if ours is not None else ids.derived_id(key, seen.binding)))
    taken = _present(work, "id", [node_id for _, node_id in wanted])
    plain: list[tuple[Seen, bytes]] = []
    for seen, node_id in wanted:
        if node_id in taken:
            others.append(seen)
        else:
            taken.add(node_id)
            plain.append((seen, node_id))
    return plain, others


def _account(work: Commit, plain: list[tuple[Seen, bytes]]) -> None:
    """Sums, etags and journal. At a first look the sums are taken at its end, and entries older than the index are not
    news: whoever read the etag of this directory has seen them."""
    if work.first_look:
        work.deltas.add(work.n, visible=any(seen.ctime_ns > work.head.born_ns for seen, _ in plain))
        return
    own = sum(seen.size for seen, _ in plain)
    work.deltas.add(work.n, own, own + sum(seen.assumed for seen, _ in plain))
    work.changes += [Change("created", node_id, seen.kind, work.id, seen.name) for seen, node_id in plain]


def _present(work: Commit, column: str, values: list[bytes], also: str = "") -> set[bytes]:
    marks = ",".join("?" * len(values))
    query = f"SELECT {column} FROM node WHERE {also}{column} IN ({marks})"
    return {value for (value,) in work.db.execute(query, values)}


def _write(work: Commit, fd: int, seen: Seen, node_id: bytes, rev: int) -> int:
    """Label one node; its ctime afterwards, 0 if it could not be labelled or is not what was seen."""
    value = labels.encode(work.space.secret, node_id, seen.binding, rev)
    try:
        if not labels.set_xattr(b"/proc/self/fd/%d/%b" % (fd, seen.name), labels.ID_ATTRIBUTE, value):
            return 0
        after = os.stat(seen.name, dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO, errno.ESTALE):
            return 0
        raise
    if (after.st_ino, after.st_mtime_ns) != (seen.ino, seen.mtime_ns) or (
        seen.kind == FILE and after.st_size != seen.size
    ):
        return 0
    return after.st_ctime_ns


def _insert_dirs(work: Commit, dirs: Iterable[tuple[Seen, int]]) -> None:
    dirs = list(dirs)
    counter = work.head.numbers(len(dirs))
    rows = [
        (
            n,
            seen.assumed,
            seen.assumed,
            counter + turn,
            seen.mtime_ns,
            seen.ctime_ns,
            seen.dev,
            seen.mount != work.mount,
        )
        for turn, (seen, n) in enumerate(dirs)
    ]
    work.db.executemany(_DIR, rows)
    work.db.executemany(_DIRTY, ((n, work.now, int(work.sweep)) for _, n in dirs))
    work.result.new_dirs += [join(work.path, seen.name) for seen, _ in dirs]
