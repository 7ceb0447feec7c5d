"""A directory of very many entries, compared in batches of names: what is held in memory does not grow with it, others
get the writers' lock between any two of them, and whoever compares may do something else meanwhile.

Crash: what was committed stays; the directory stays dirty, or without the sweep's epoch, and is compared again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from fsd.core import dirty, index
from fsd.core.commit import Result
from fsd.core.names import INTERNAL
from fsd.core.reconcile import close_full, reconcile
from fsd.core.scan import ROWS, Scan, judge
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.dirty import Item
    from fsd.core.space import Space

LARGE = 100_000
"""Entries, on disk or in the index."""
_BATCH = 500
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
    comparing = Comparison(space, item)
    try:
        while not comparing.step(float("inf")):
            pass
    finally:
        comparing.close()


class Comparison:
    """A comparison under way. Whoever makes one closes it."""

    def __init__(self, space: Space, item: Item) -> None:
        """Raises OSError if the directory can't be opened."""
        self.item = item
        self._space = space
        if not item.sweep:
            dirty.begin(space, item)
        with space.index.read() as db:
            self._known = index.directory_row(db, item.n)
        self._fd = space.open_dir(item.path)
        try:
            self._before = statx(self._fd, b"")
        except OSError:
            os.close(self._fd)
            raise
        self._seen = bytearray()
        """A bit for each row that a listed name has."""
        self._batches = self._work()

    def step(self, deadline: float) -> bool:
        """Go on until about `deadline` (monotonic seconds), for a batch at least; True when all was compared.

        Names that were hinted meanwhile come first. Raises as reconcile does; the directory is still dirty then.
        """
        if not self.item.sweep:
            self._serve_hinted()
        for _ in self._batches:
            if time.monotonic() >= deadline:
                return False
        self._end()
        return True

    def close(self) -> None:
        """Harmless when closed already."""
        if self._fd >= 0:
            self._batches.close()
            os.close(self._fd)
            self._fd = -1

    def _work(self) -> Generator[None, None, None]:
        names = _names(self._space, self._fd)
        while batch := list(islice(names, _BATCH)):
            self._compare(batch)
            yield
        for batch in _unseen(self._space, self.item.n, self._seen):
            self._reconcile(batch)
            yield

    def _reconcile(self, names: list[bytes]) -> None:
        # The stamp is nobody's: only the whole comparison ends what the directory waits for.
        item = self.item._replace(names=frozenset(names), stamp=-1)
        reconcile(self._space, item.path, names, item=item)

    def _compare(self, batch: list[bytes]) -> None:
        rows = self._rows(batch)
        differing, stale = [], []
        for name in batch:
            row = rows.get(name)
            if row is None:
                differing.append(name)
                continue
            self._mark(row[0])
            try:
                found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            except OSError:
                differing.append(name)
                continue
            differs, inside = judge(row, found)
            if differs:
                differing.append(name)
            if inside:
                stale.append(row[0])
        if differing:
            self._reconcile(differing)
            for row in self._rows([name for name in differing if name not in rows]).values():
                self._mark(row[0])
        if stale:
            now = time.time()
            with self._space.index.write() as db:
                for n in stale:
                    dirty.mark_row(db, n, None, now, sweep=self.item.sweep)

    def _rows(self, names: list[bytes]) -> dict[bytes, tuple[Any, ...]]:
        marks = ",".join("?" * len(names))
        with self._space.index.read() as db:
            found = db.execute(f"{ROWS} AND name IN ({marks})", (self.item.n, *names)).fetchall()
        return {row[3]: row for row in found}

    def _mark(self, n: int) -> None:
        if n >> 3 >= len(self._seen):
            self._seen.extend(bytes((n >> 3) + 4096 - len(self._seen)))
        self._seen[n >> 3] |= 1 << (n & 7)

    def _serve_hinted(self) -> None:
        hinted = dirty.apart(self._space, self.item.n)
        if hinted is not None:
            names, stamp = hinted
            self._reconcile(sorted(names))
            dirty.apart_done(self._space, self.item.n, stamp)

    def _end(self) -> None:
        space, item = self._space, self.item
        after = statx(self._fd, b"")
        self.close()
        if self._known is None:
            return
        before = self._before
        steady = (before.mtime_ns, before.ctime_ns) == (after.mtime_ns, after.ctime_ns)
        scan = Scan(*self._known[2], before, steady, [], [], [], [], 0, {})
        with space.index.write() as db:
            if index.path_of(db, item.n) != item.path or index.directory(db, item.n) is None:
                return
            close_full(space, db, item.n, scan, Result(), item.path)
            if not item.sweep:
                dirty.served(db, item)  # what came in between was marked by itself
            elif steady:
                db.execute("DELETE FROM dirty WHERE n=? AND stamp=?", (item.n, item.stamp))


def _names(space: Space, fd: int) -> Iterator[bytes]:
    hidden = space.fsd_ident[1]
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            suspect = entry.inode() == hidden or name == INTERNAL
            if not (suspect and space.is_hidden(entry.stat(follow_symlinks=False), name)):
                yield name


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
