"""The pass of a sweep over files: directories that were not compared in this epoch are compared, read only.

What is as its rows say costs no transaction of its own: the epochs of many directories are written together. What
differs is left to reconcile.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, index, large
from fsd.core.dirty import Item
from fsd.core.errors import StorageUnavailable
from fsd.core.scan import scan_all
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space

_PAGE = 64
_NOT_YET = (
    "SELECT dir.n FROM dir, head WHERE dir.n>? AND dir.epoch<>head.epoch"
    " AND NOT EXISTS (SELECT 1 FROM dirty WHERE dirty.n=dir.n AND dirty.sweep=0) ORDER BY dir.n LIMIT ?"
)


class _Same(NamedTuple):
    """A directory that is as its rows say: its epoch may be written while its seq is this."""

    epoch: int
    n: int
    seq: int


class Verifier:
    """Goes through the directories once, in the order of their rows. Which are done is in the index itself."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._after = 0
        self._away: list[bytes] = []
        self._why: StorageUnavailable | None = None

    def restart(self) -> None:
        """Begin again with the first directory that is not done."""
        self._after = 0
        self._away.clear()
        self._why = None

    def leave(self, path: bytes, why: StorageUnavailable) -> None:
        """A filesystem inside the space is away: what is at and below `path` is left, and the pass does not end
        before it is back."""
        self._away.append(path + b"/")
        self._why = why

    def run(self, deadline: float) -> tuple[bool, list[Item]]:
        """Work until about the deadline (monotonic), but do something: (whether more may be left, what differs).

        Raises StorageUnavailable if all is compared but what is in a filesystem that is away, or if the root is.
        """
        same: list[_Same] = []
        differing: list[Item] = []
        try:
            while not differing:
                with self._space.index.read() as db:
                    page = [n for (n,) in db.execute(_NOT_YET, (self._after, _PAGE))]
                if not page:
                    self._end()
                    return False, differing
                for n in page:
                    self._after = n
                    found = self._compare(n)
                    if isinstance(found, Item):
                        differing.append(found)
                    elif found is not None:
                        same.append(found)
                    if time.monotonic() >= deadline:
                        return True, differing
            return True, differing
        finally:
            if same:
                with self._space.index.write() as db:
                    db.executemany("UPDATE dir SET epoch=? WHERE n=? AND seq=?", same)

    def _end(self) -> None:
        why = self._why
        self.restart()
        if why is not None:
            raise why

    def _compare(self, n: int) -> _Same | Item | None:
        """None: in limbo, or in a filesystem that is away."""
        space = self._space
        with space.index.read() as db:
            known = index.directory_row(db, n)
            path = index.path_of(db, n) if known is not None else None
        if known is None or path is None or any((path + b"/").startswith(above) for above in self._away):
            return None
        row, parts, _ = known
        differs = Item(n, path, None, 0, time.time(), True)
        if parts.epoch == 0 or parts.assumed or large.has_many(space, n):
            return differs
        try:
            fd = space.open_dir(path)
        except StorageUnavailable:
            raise
        except OSError:
            return differs
        try:
            if ids.node_binding(fd, b"", statx(fd, b"")) != row.binding:
                return differs
            scan = scan_all(space, fd, n)
        except OSError:
            return differs
        finally:
            os.close(fd)
        assert scan.found is not None
        touched = scan.candidates or scan.vanished or scan.stale_dirs or scan.to_label or not scan.steady
        times = (scan.found.mtime_ns, scan.found.ctime_ns) == (parts.mtime_ns, parts.ctime_ns)
        if touched or not times or scan.own != parts.own or scan.seq != parts.seq:
            return differs
        return _Same(scan.epoch, n, scan.seq)
