"""Room for the notes without which nothing can be deleted: `.fsd/spare`, some blocks that are given back to the disk
when a full one refuses a .trashinfo. So who has filled a disk can delete, and then empty the trash.

The jobs process makes it, within a minute after less than 8 GiB are left, and fills it up again. A disk that is fuller
than full (other programs take the blocks first) refuses as before. Read-only spaces have none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from fsd.core.places import internal

if TYPE_CHECKING:
    from fsd.core.space import Space

T = TypeVar("T")
NAME: Final = b"spare"
SIZE: Final = 64 << 10
"""Bytes: the .trashinfo files of 16 deletions in blocks of 4 KiB. One of them may hold gigabytes."""
_LOW: Final = 8 << 30
"""Only where a disk has less than this left it is made: there may be thousands of spaces. Bytes."""
_LOWEST: Final = 16 * SIZE
"""Below this it would be missed elsewhere."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FLAGS: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def keep(space: Space) -> None:
    """Have the spare room, if the disk is getting full. OSError of the disk; what was begun then stays, and is less."""
    with internal(space, ".") as top:
        disk = os.fstatvfs(top)
        if not _LOWEST <= disk.f_bavail * disk.f_frsize < _LOW:
            return
        fd = os.open(NAME, _FLAGS | os.O_CREAT, 0o600, dir_fd=top)
        try:
            if os.fstat(fd).st_blocks * 512 < SIZE:
                # Written, not only allocated: also where fallocate(2) is missing or is no promise.
                os.pwrite(fd, os.urandom(SIZE), 0)
                os.fsync(fd)
        finally:
            os.close(fd)


def using(space: Space, action: Callable[[], T]) -> T:
    """Do something that leaves nothing behind when it fails; once more with the spare room if the disk is full."""
    try:
        return action()
    except OSError as error:
        if error.errno not in _FULL or not _give(space):
            raise
    return action()


def _give(space: Space) -> bool:
    """Give the room back to the disk. False: there was none."""
    with internal(space, ".") as top:
        try:
            fd = os.open(NAME, _FLAGS, dir_fd=top)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR):
                return False
            raise
        try:
            if not os.fstat(fd).st_blocks:
                return False
            os.ftruncate(fd, 0)
            return True
        finally:
            os.close(fd)
