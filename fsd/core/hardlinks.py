"""Nodes with several names (link(2)): what is learnt through one name holds for all of them.

A link that is made or removed moves the node's ctime and its number of names, and nobody tells about the other names.
Their rows are told here, in the same transaction, without a look at each; where more differs, which changes etags or
needs a proof, they are marked and looked at. Of a node with more than MANY names not even all rows are touched for each
change of one: some are marked, and when they are looked at, the next ones are.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, ids, index
from fsd.core.index import DIRECTORY, DOUBTED, FILE, NodeRow
from fsd.core.names import join
from fsd.core.observe import Seen, still_at
from fsd.core.syscalls import clamp_ns

if TYPE_CHECKING:
    from fsd.core.commit import Commit

MANY = 64
"""Of a node with more names not all are looked at for each change of one."""
_AT_ONCE = 2000
"""Rows of one node that a transaction tells at most."""
_OWN, _GIVEN = "id=:own AND binding=:binding AND NOT flags & 8", "flags & 8 AND binding=:binding"
_LINKED = (
    f"nlink<>:nlink AND ctime_ns<=:ctime AND ctime_ns<>{DOUBTED} AND size=:size AND mtime_ns=:mtime AND mode=:mode"
    " AND uid=:uid AND gid=:gid AND xattrs=:xattrs"
)
"""Nothing but names came and went since a row was looked at; a ctime that moves is explained by that (classify.py)."""
_RENAMED = (
    "ctime_ns=:old AND size=:size AND mtime_ns=:mtime AND mode=:mode AND uid=:uid AND gid=:gid AND nlink=:nlink"
    " AND xattrs=:xattrs"
)
"""One of the names was moved and nothing else."""


def has_names(seen: Seen) -> bool:
    """Whether a node has several names."""
    return seen.nlink > 1 and seen.kind != DIRECTORY


class Met(NamedTuple):
    """A node with several names that a transaction dealt with. `seen`: as it was last seen, None if a name of it was
    gone; `again`: through a name that was known; `here`: the names in the directory at hand; `moved`: the row of a name
    that was moved, as it was before."""

    seen: Seen | None = None
    again: bool = False
    here: frozenset[bytes] = frozenset()
    moved: NodeRow | None = None


def _of(space_key: bytes, binding: bytes) -> dict[str, object]:
    return {"own": ids.derived_id(space_key, binding), "binding": binding}


def count(db: sqlite3.Connection, space_key: bytes, binding: bytes) -> int:
    """How many rows a node has, those in limbo included; from keys alone."""
    query = f"SELECT (SELECT count(*) FROM node WHERE {_GIVEN}) + (SELECT count(*) FROM node WHERE {_OWN})"
    return int(db.execute(query, _of(space_key, binding)).fetchone()[0])


def _stale(
    db: sqlite3.Connection, space_key: bytes, binding: bytes, ctime_ns: int | None
) -> Iterator[tuple[int, bytes, int]]:
    """(row number of the directory, name, ctime) of a node's rows that hang somewhere and say another ctime."""
    other = "parent IS NOT NULL AND ctime_ns IS NOT :ctime"
    query = (
        f"SELECT parent, name, ctime_ns FROM node WHERE {_OWN} AND {other}"
        f" UNION ALL SELECT parent, name, ctime_ns FROM node WHERE {_GIVEN} AND {other}"
    )
    return iter(db.execute(query, {**_of(space_key, binding), "ctime": ctime_ns}))


def _in_limbo(db: sqlite3.Connection, space_key: bytes, binding: bytes) -> list[NodeRow]:
    query = (
        f"SELECT * FROM node WHERE {_OWN} AND parent IS NULL"
        f" UNION ALL SELECT * FROM node WHERE {_GIVEN} AND parent IS NULL"
    )
    return sorted(map(NodeRow._make, db.execute(query, _of(space_key, binding))))


class Others:
    """The other names of what one `Commit` sees at new places, and whether they are still there."""

    def __init__(self, work: Commit) -> None:
        self._work = work
        self._there: dict[tuple[int, int | None, bytes], bool] = {}
        """By row number, directory and name, what `look` found."""
        self._counts: dict[bytes, int] = {}
        """Rows of nodes with very many names, those included that are made here."""

    def look(self, entries: Iterable[Seen]) -> None:
        """Look for the known names of the nodes among these that are new at their places; each directory is opened
        once."""
        work = self._work
        wanted: dict[int, list[tuple[NodeRow, Seen]]] = {}
        for seen in entries:
            if not has_names(seen):
                continue
            row = index.at(work.db, work.n, seen.name)
            if row is not None and row.binding == seen.binding:
                continue
            if self._all_there(seen):
                continue
            for other in index.by_binding(work.db, work.space.key, seen.binding):
                if other.parent is not None:
                    wanted.setdefault(other.parent, []).append((other, seen))
        for parent, rows in wanted.items():
            self._look_in(parent, rows)

    def _look_in(self, parent: int, rows: list[tuple[NodeRow, Seen]]) -> None:
        path = self._work.head.path_of(parent)
        if path is None:
            return
        try:
            fd = self._work.space.open_dir(path)
        except OSError:
            return  # `alive` says what that means
        try:
            for row, seen in rows:
                try:
                    found = os.stat(row.name, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    continue
                # Two nodes with one number at the same time there are none; any other case is for a closer look.
                same = (found.st_dev, found.st_ino, clamp_ns(found.st_ctime_ns))
                if same == (seen.dev, seen.ino, seen.ctime_ns):
                    self._there[row.n, parent, row.name] = True
        finally:
            os.close(fd)

    def _all_there(self, seen: Seen) -> bool:
        """Whether all known names of a node may be there still without a look at its very many: if it has at least one
        more than the index knows. Then this one is new. (A name that moves at the very moment at which others are made
        unheard gets a new id.)"""
        if seen.nlink <= MANY:
            return False
        known = self._counts.get(seen.binding)
        if known is None:
            known = self._counts[seen.binding] = count(self._work.db, self._work.space.key, seen.binding)
        return MANY < known < seen.nlink

    def of(self, seen: Seen) -> tuple[list[NodeRow], bool]:
        """A node's rows that are to be looked for, and whether it is known already that it has other names."""
        work = self._work
        if has_names(seen) and self._all_there(seen):
            self._counts[seen.binding] += 1
            return _in_limbo(work.db, work.space.key, seen.binding), True
        return index.by_binding(work.db, work.space.key, seen.binding), False

    def alive(self, row: NodeRow, *, unknown: bool = True) -> bool:
        """Whether a row's node is still at its place. Below a directory in limbo it can't be told: `unknown`."""
        if (row.n, row.parent, row.name) in self._there:
            return True
        above = None if row.parent is None else self._work.head.path_of(row.parent)
        return unknown if above is None else still_at(self._work.space, join(above, row.name), row.binding)


def doubt(work: Commit, binding: bytes, nlink: int) -> None:
    """All `nlink` names are known, so the rows in limbo are of names that went. Until one of them comes back the
    content may change through the others, which its size and mtime need not show: it comes back with a higher rev."""
    db = work.db
    query = f"SELECT n, parent FROM node WHERE {_OWN} UNION ALL SELECT n, parent FROM node WHERE {_GIVEN}"
    rows = db.execute(query, _of(work.space.key, binding)).fetchall()
    gone = [(DOUBTED, n) for n, parent in rows if parent is None or work.head.path_of(parent) is None]
    if len(rows) - len(gone) >= nlink:
        db.executemany("UPDATE node SET ctime_ns=? WHERE n=?", gone)


def tell(work: Commit, met: Met, *, few: bool) -> None:
    """Have the other rows of a node say what was learnt; those are marked that need a look. `few`: all at once."""
    seen, old = met.seen, met.moved
    assert seen is not None
    # What the last name of a node tells is that the others are gone: a row that says it has no others would go unheard.
    if has_names(seen) and (few or met.again):
        _told(work, seen, _LINKED, seen, most=_AT_ONCE)
    if old is not None and _but_for_ctime(old) == _but_for_ctime(seen):
        _told(work, seen, _RENAMED, old, most=-1)
    left = MANY if met.again else 1
    marks: dict[int, set[bytes]] = {}
    for parent, name, ctime_ns in _stale(work.db, work.space.key, seen.binding, seen.ctime_ns):
        if ctime_ns > seen.ctime_ns:
            marks.setdefault(work.n, set()).update(met.here)  # somebody looked later than this one
        # What hangs below a directory in limbo is looked at when that is back; it must not keep others from their turn.
        if few or work.head.path_of(parent) is not None:
            marks.setdefault(parent, set()).add(name)
            left -= 1
        if left <= 0 and not few:
            break
    dirty.mark_rows(work.db, marks, work.now, sweep=work.sweep)


def _told(work: Commit, seen: Seen, condition: str, said: Seen | NodeRow, *, most: int) -> None:
    facts = {"size": said.size, "mtime": said.mtime_ns, "mode": said.mode, "uid": said.uid, "gid": said.gid,
             "nlink": said.nlink, "xattrs": said.xattrs, "old": said.ctime_ns, "ctime": seen.ctime_ns,
             "now": seen.nlink, "most": most, **_of(work.space.key, seen.binding)}  # fmt: skip
    places: set[int] = set()
    for rows in (_OWN, _GIVEN):
        query = (
            "UPDATE node SET ctime_ns=:ctime, nlink=:now WHERE n IN"
            f" (SELECT n FROM node WHERE {rows} AND parent IS NOT NULL AND {condition} LIMIT :most) RETURNING parent"
        )
        places.update(parent for (parent,) in work.db.execute(query, facts).fetchall())
    # Whoever compared these directories before this begins anew, with rows that say what is now.
    work.memory.told |= places - {work.n}


def _but_for_ctime(row: NodeRow | Seen) -> tuple[object, ...]:
    return row.binding, row.size, row.mtime_ns, row.mode, row.uid, row.gid, row.nlink, row.xattrs


def is_renamed(old: NodeRow, new: NodeRow) -> bool:
    """Whether a file with several names was moved and nothing else: the others can't tell why their ctime moved."""
    return new.kind == FILE and new.nlink > 1 and _but_for_ctime(old) == _but_for_ctime(new)


def lost(work: Commit, binding: bytes) -> bool:
    """A name is gone, and what the node says now is not known: one of the others is looked at, and tells the rest.
    Whether it has several others."""
    marked, others = False, 0
    for parent, name, _ in _stale(work.db, work.space.key, binding, None):
        others += 1
        if not marked and work.head.path_of(parent) is not None:
            dirty.mark_row(work.db, parent, [name], work.now, sweep=work.sweep)
            marked = True
        if marked and others > 1:
            break
    return others > 1
