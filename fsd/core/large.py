"""A directory of very many entries, compared by a sweep in batches of names: what is held in memory does not grow with
it, and others get the writers' lock between any two of them.

Crash: what was committed stays; the directory stays dirty, or without the sweep's epoch, and is compared again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from fsd.core import index
from fsd.core.commit import Result
from fsd.core.names import INTERNAL
from fsd.core.reconcile import close_full, reconcile
from fsd.core.scan import Scan
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.dirty import Item
    from fsd.core.space import Space

LARGE = 100_000
"""Entries, on disk or in the index."""
_BATCH = 2_000
_PAGE = "SELECT n, name FROM node WHERE parent=? AND name>? ORDER BY name LIMIT ?"


def is_large(space: Space, item: Item) -> bool:
    """Whether a dirty directory is one to be compared in batches. False if it can't be read."""
    if item.names is not None:
        return False
    if has_many(space, item.n):
        return True
    try:
        fd = space.open_dir(item.path)
    except OSError:
        return False
    try:
        return sum(1 for _ in islice(_names(space, fd), LARGE)) >= LARGE
    finally:
        os.close(fd)


def has_many(space: Space, n: int) -> bool:
    """Whether the index knows so many entries."""
    query = "SELECT 1 FROM node WHERE parent=? LIMIT 1 OFFSET ?"
    with space.index.read() as db:
        return db.execute(query, (n, LARGE - 1)).fetchone() is not None


def compare(space: Space, item: Item) -> None:
    """Compare the whole directory. If it moved meanwhile it is left dirty. Raises as reconcile does."""
    fd = space.open_dir(item.path)
    try:
        before = statx(fd, b"")
        with space.index.read() as db:
            known = index.directory_row(db, item.n)
        seen = bytearray()
        names = _names(space, fd)
        while batch := list(islice(names, _BATCH)):
            # The stamp is nobody's: only the whole comparison ends what the directory waits for.
            reconcile(space, item.path, batch, item=item._replace(names=frozenset(batch), stamp=-1))
            _mark(space, item.n, batch, seen)
        for batch in _unseen(space, item.n, seen):
            reconcile(space, item.path, batch, item=item._replace(names=frozenset(batch), stamp=-1))
        after = statx(fd, b"")
    finally:
        os.close(fd)
    if known is None:
        return
    steady = (before.mtime_ns, before.ctime_ns) == (after.mtime_ns, after.ctime_ns)
    scan = Scan(*known[2], before, steady, [], [], [], [], 0, {})
    with space.index.write() as db:
        if index.path_of(db, item.n) != item.path or index.directory(db, item.n) is None:
            return
        close_full(space, db, item.n, scan, Result(), item.path)
        if steady:
            db.execute("DELETE FROM dirty WHERE n=? AND stamp=?", (item.n, item.stamp))


def _names(space: Space, fd: int) -> Iterator[bytes]:
    hidden = space.fsd_ident[1]
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            suspect = entry.inode() == hidden or name == INTERNAL
            if not (suspect and space.is_hidden(entry.stat(follow_symlinks=False), name)):
                yield name


def _mark(space: Space, n: int, names: list[bytes], seen: bytearray) -> None:
    """Set the bits of the rows that these names have."""
    marks = ",".join("?" * len(names))
    with space.index.read() as db:
        rows = db.execute(f"SELECT n FROM node WHERE parent=? AND name IN ({marks})", (n, *names)).fetchall()
    for (row,) in rows:
        if row >> 3 >= len(seen):
            seen.extend(bytes((row >> 3) + 4096 - len(seen)))
        seen[row >> 3] |= 1 << (row & 7)


def _unseen(space: Space, n: int, seen: bytearray) -> Iterator[list[bytes]]:
    """Names of rows that no listed name has, in batches."""
    last = b""
    while True:
        with space.index.read() as db:
            page = db.execute(_PAGE, (n, last, _BATCH)).fetchall()
        if not page:
            return
        last = page[-1][1]
        gone = [name for row, name in page if row >> 3 >= len(seen) or not seen[row >> 3] >> (row & 7) & 1]
        if gone:
            yield gone
