"""Single questions to the index and the disk about one directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fsd.core.dirty import waiting_at
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


def differing(space: Space, path: bytes, names: set[bytes]) -> set[bytes]:
    """Those of the names that are not on disk as their rows say; all of them if that can't be told."""
    try:
        fd = space.open_dir(path)
    except OSError:
        return names
    try:
        n, _ = waiting_at(space, path)
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
                and not space.is_hidden(entry.stat(follow_symlinks=False), os.fsencode(entry.name))
            ]
    except OSError:
        return []
    finally:
        os.close(fd)
