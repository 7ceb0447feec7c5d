"""Many directories that were never looked into, at once: what the sweep of a new tree consists of.

The same steps as reconcile for the simplest case, a directory without rows. The disk is read and labels are written
with no lock held; then one transaction takes in several directories, because a commit writes every page of the ids'
key that it touched, and ids are spread evenly. Whoever wants to write meanwhile is let in between two directories.

Crash: a directory is committed whole or not at all. The labels written before say what the next look derives.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, index, relabel
from fsd.core.commit import Commit
from fsd.core.hardlinks import has_names
from fsd.core.names import INTERNAL
from fsd.core.populate import (
    Plain,
    bindings_known,
    insert,
    names_remembered,
    sort_out,
    write_labels,
    writes_labels,
)
from fsd.core.reconcile import close_full, look_closer
from fsd.core.scan import Scan
from fsd.core.syscalls import Statx, statx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.core.dirty import Item
    from fsd.core.index import DirRow, Generation, Head, NodeRow
    from fsd.core.observe import Seen
    from fsd.core.space import Space

ENTRIES = 2000
"""Taken in by one transaction, about. A larger directory is left to reconcile, which commits it in parts."""
_LINKED = 10
"""For how many entries one with several names counts: its others are asked for, and told."""
_CACHE_KIB = 16_000
_USUAL_CACHE_KIB = 2_000


class _Look(NamedTuple):
    """An open directory that was looked into."""

    item: Item
    row: NodeRow
    parts: DirRow
    generation: Generation
    fd: int
    found: Statx
    seen: list[Seen]


class _Ready(NamedTuple):
    """The same, closed, its entries sorted out and labelled."""

    look: _Look
    plain: list[Plain]
    others: list[Seen]


def first_looks(space: Space, items: list[Item], deadline: float) -> list[Item]:
    """Take in dirty directories until about the deadline (monotonic), but some; returns those that reconcile has to do.

    What it comes to is popped from the end of `items`. Raises OSError of the state disk: what was popped is still in
    the dirty set then.
    """
    left: list[Item] = []
    with space.index.read() as db, _large_cache(db):
        while items:
            version = _version(db)
            looks: list[_Look] = []
            try:
                entries = 0
                while items and entries < ENTRIES and (not looks or time.monotonic() < deadline):
                    item = items.pop()
                    look = _look(space, db, item)
                    if look is None:
                        left.append(item)
                    else:
                        looks.append(look)
                        entries += sum(_LINKED if has_names(entry) else 1 for entry in look.seen)
                ready = _sorted_out(space, db, looks, left)
            finally:
                for look in looks:
                    os.close(look.fd)
            left += _commit(space, ready, version)
            if time.monotonic() >= deadline:
                break
    return left


@contextmanager
def _large_cache(db: sqlite3.Connection) -> Iterator[None]:
    db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    try:
        yield
    finally:
        db.execute(f"PRAGMA cache_size=-{_USUAL_CACHE_KIB}")


def _version(db: sqlite3.Connection) -> int:
    """Changes with each commit of any other connection."""
    version: int = db.execute("PRAGMA data_version").fetchone()[0]
    return version


def _look(space: Space, db: sqlite3.Connection, item: Item) -> _Look | None:
    """Look into a directory; None if it isn't simple: it has rows, it is large, or can't be read."""
    known = _unknown_inside(db, item)
    if known is None:
        return None
    try:
        fd = space.open_dir(item.path)
    except OSError:
        return None
    seen = None
    try:
        found = statx(fd, b"")
        if ids.node_binding(fd, b"", found) == known[0].binding:
            names = _names(space, fd)
            seen = look_closer(space, fd, names) if names is not None else None
    except OSError:
        pass
    finally:
        if seen is None:
            os.close(fd)
    return _Look(item, *known, fd, found, seen) if seen is not None else None


def _sorted_out(space: Space, db: sqlite3.Connection, looks: list[_Look], left: list[Item]) -> list[_Ready]:
    """Decide who the entries are and label them; directories that moved meanwhile are `left`."""
    ready: list[_Ready] = []
    now = time.time()
    # Whether an id has a row already the key on ids says when the row is inserted.
    taken = bindings_known(space, db, [entry.binding for look in looks for entry in look.seen])
    for look in looks:
        remembered = names_remembered(db, look.item.n, look.seen, new=True)
        plain, others = sort_out(space, look.seen, now, taken, remembered, explicit=False)
        try:
            if writes_labels(space):
                plain = write_labels(space, look.fd, plain)
            after = statx(look.fd, b"")
        except OSError:
            left.append(look.item)
            continue
        if (look.found.mtime_ns, look.found.ctime_ns) == (after.mtime_ns, after.ctime_ns):
            ready.append(_Ready(look, plain, others))
        else:
            left.append(look.item)
    return ready


def _unknown_inside(db: sqlite3.Connection, item: Item) -> tuple[NodeRow, DirRow, Generation] | None:
    known = index.directory_row(db, item.n) if item.names is None else None
    if known is None or known[1].epoch:
        return None
    return None if db.execute("SELECT 1 FROM node WHERE parent=? LIMIT 1", (item.n,)).fetchone() else known


def _names(space: Space, fd: int) -> list[bytes] | None:
    """What the directory lists; None if that is much."""
    names: list[bytes] = []
    hidden = space.fsd_ident[1]
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            suspect = entry.inode() == hidden or name == INTERNAL
            if not (suspect and space.is_hidden(entry.stat(follow_symlinks=False), name)):
                names.append(name)
            if len(names) > ENTRIES:
                return None
    return names


def _commit(space: Space, looks: list[_Ready], version: int) -> list[Item]:
    """Commit the looks, in as many transactions as others leave us; returns those that somebody was faster with."""
    left: list[Item] = []
    looks.reverse()
    while looks:
        turn = list(looks)
        space.index.give_way()
        try:
            with space.index.write() as db:
                head, now = index.Head(space, db), time.time()
                fresh = _version(db) == version
                while looks:
                    ready = looks.pop()
                    if not fresh and not _holds(space, db, ready):
                        left.append(ready.look.item)
                        continue
                    _take_in(space, db, head, ready, now)
                    fresh = fresh and not ready.others
                    if space.index.wanted():
                        break
        except sqlite3.IntegrityError:
            # A node that has a row elsewhere: moved here, or seen twice. Nothing was committed.
            return left + [ready.look.item for ready in turn]
        version = -1
    return left


def _holds(space: Space, db: sqlite3.Connection, ready: _Ready) -> bool:
    """Whether what was decided holds after commits of others."""
    item, generation = ready.look.item, ready.look.generation
    known = index.directory_row(db, item.n)
    if known is None or known[2][:2] != generation[:2] or index.path_of(db, item.n) != item.path:
        return False
    entries = [each.seen for each in ready.plain]
    given = bindings_known(space, db, [entry.binding for entry in entries])
    return given.isdisjoint(entry.binding for entry in entries) and not names_remembered(
        db, item.n, entries, new=False
    )


def _take_in(space: Space, db: sqlite3.Connection, head: Head, ready: _Ready, now: float) -> None:
    """Insert what a directory holds."""
    look = ready.look
    n, path = look.item.n, look.item.path
    work = Commit(
        space, db, head, look.row, look.parts, look.found.mnt_id, path, now,
        explicit=False, sweep=look.item.sweep, first_look=True, defer_labels=True,
    )  # fmt: skip
    insert(work, ready.plain)
    work.put_all(ready.others)
    result = relabel.kept(space, db, None, work.finish())
    scan = Scan(*look.generation, look.found, True, [], [], [], [], 0, {})
    close_full(space, db, n, scan, result, path)
    db.execute("DELETE FROM dirty WHERE n=? AND stamp=?", (n, look.item.stamp))
