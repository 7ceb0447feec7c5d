"""A listing to which one can come back: is it still what the disk and the index say?

`holds` asks the disk about every entry, one lstat each, as a new listing would; it spares what is made of the answers.
What follows from the entries of a snapshot that holds (a page, an XML document) therefore holds as well.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fsd.core import disk, tree
from fsd.core.announced import settle
from fsd.core.tree import Entry, RowsOf

if TYPE_CHECKING:
    from fsd.core.space import Space


class Snapshot:
    """The entries of one directory, sorted by name. Immutable but for what it remembers of the index."""

    __slots__ = ("_path", "_rows", "_signatures", "_token", "entries")

    def __init__(self, path: bytes, entries: list[Entry], rows: RowsOf) -> None:
        self.entries = entries
        self._path = path
        self._rows = rows
        self._token: object = None
        self._signatures = {entry.name: _signature(entry) for entry in entries}

    def holds(self, space: Space) -> bool:
        """Whether `tree.listing` would give the same entries now. Errors of the directory itself as there."""
        settle(space)
        token = space.index.answers().setdefault("snapshots", object())
        if token is not self._token:
            # Something was committed, most often about another directory.
            if tree.rows_of(space, self._path) != self._rows:
                return False
            self._token = token
        return self._fits(space)

    def _fits(self, space: Space) -> bool:
        known = self._signatures
        fd = tree.open_dir(space, self._path)
        try:
            found = disk.lstat_all(fd, sizes_of_all=False)
            for name in found.keys() - known.keys():
                if not found[name] or not space.hides(fd, name):
                    return False
                del found[name]
        except OSError:
            return False  # the directory can't be read: the listing itself knows what that means
        finally:
            os.close(fd)
        return found == known


def _signature(entry: Entry) -> bytes:
    """All that an entry takes from lstat; a directory's size is not among it."""
    size = entry.size if entry.kind == "f" else 0
    return disk.PACKED.pack(
        entry.mode, entry.ino, entry.nlink, entry.uid, entry.gid, size, entry.mtime_ns, entry.ctime_ns
    )


def take(space: Space, path: bytes) -> tuple[Entry, list[Entry], Snapshot | None]:
    """`tree.listing`, and a snapshot of it; None where entries were shown that the index could not take in."""
    own, entries, rows = tree.listing_with_rows(space, path)
    return own, entries, Snapshot(path, entries, rows) if rows is not None else None
