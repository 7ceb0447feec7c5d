"""Single questions to the index and the disk about one directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fsd.core import dirty, index
from fsd.core.errors import StorageUnavailable
from fsd.core.scan import scan_names

if TYPE_CHECKING:
    from fsd.core.space import Space


def root_is_there(space: Space) -> bool:
    """Whether the space as a whole is available."""
    try:
        space.root_fd()
    except StorageUnavailable:
        return False
    return True


def known(space: Space, path: bytes) -> tuple[int | None, dirty.Item | None]:
    """The row number of the directory at a path, None if the index has none there, and its dirty row, if any."""
    with space.index.read() as db:
        row = index.find(db, path)
        if row is None or row.kind != index.DIRECTORY:
            return None, None
        found = db.execute("SELECT names, stamp, since, sweep FROM dirty WHERE n=?", (row.n,)).fetchone()
    if found is None:
        return row.n, None
    packed, stamp, since, rank = found
    names = None if packed is None else frozenset(packed.split(b"/"))
    return row.n, dirty.Item(row.n, path, names, stamp, since, bool(rank))


def differing(space: Space, path: bytes, names: set[bytes]) -> set[bytes]:
    """Those of the names that are not on disk as their rows say; all of them if that can't be told."""
    try:
        fd = space.open_dir(path)
    except OSError:
        return names
    try:
        n, _ = known(space, path)
        if n is None:
            return names
        found = scan_names(space, fd, n, names)
    except OSError:
        return names
    finally:
        os.close(fd)
    return {*found.candidates, *(row.name for row in found.vanished)}


def subdirectories(space: Space, path: bytes) -> list[bytes]:
    """Names of the directories in a directory of the space; none if it is gone or cannot be read."""
    try:
        fd = space.open_dir(path)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                os.fsencode(entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and not space.is_hidden(entry.stat(follow_symlinks=False))
            ]
    except OSError:
        return []
    finally:
        os.close(fd)
