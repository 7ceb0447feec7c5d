"""Looking at all entries of a directory at once. Compiled where that was possible (`_disk.c`), which takes a third of
the time and gives the interpreter's lock away meanwhile; else in Python, with the same answers."""

from __future__ import annotations

import os
import stat
import struct
from typing import Final, Protocol

from fsd.core.syscalls import clamp_ns

Fact = tuple[
    int, int, int, int, int, int, int, int, int, int, int, bytes | int, bytes | int | None, bytes | None
]
"""As `syscalls.Statx`; then the handle, the names of all attributes (None: not asked), each with a NUL behind it, or an
error number instead (ERANGE: too many); then the value of the label."""


class Compiled(Protocol):
    """What `_disk.c` has."""

    def lstat_all(self, fd: int, sizes_of_all: bool, /) -> dict[bytes, bytes]: ...
    def facts(self, fd: int, names: tuple[bytes, ...], /) -> list[Fact | int]: ...


def _load() -> Compiled | None:
    try:
        from fsd.core import _disk
    except ImportError:
        return None
    return _disk


compiled = _load()
PACKED: Final = struct.Struct("=IQIIIQqq")
"""An lstat: mode, inode number, links, uid, gid, size, mtime and ctime in nanoseconds (`clamp_ns`)."""
_INODE: Final = struct.Struct("=4xQ36x")


def lstat_all(fd: int, *, sizes_of_all: bool = True) -> dict[bytes, bytes]:
    """The packed lstat of every entry, by name, in any order; empty for one that can't be looked at.

    One that vanishes meanwhile is left out. `sizes_of_all` False: what is no regular file has size 0. OSError of the
    directory itself. The descriptor's position does not matter.
    """
    if compiled is not None:
        return compiled.lstat_all(fd, sizes_of_all)
    found: dict[bytes, bytes] = {}
    with os.scandir(fd) as scan:
        for item in scan:
            name = os.fsencode(item.name)
            try:
                found[name] = packed(item.stat(follow_symlinks=False), sizes_of_all=sizes_of_all)
            except FileNotFoundError:
                continue
            except OSError:
                found[name] = b""
    return found


def packed(found: os.stat_result, *, sizes_of_all: bool = True) -> bytes:
    """One lstat, as `lstat_all` has it."""
    return PACKED.pack(
        found.st_mode,
        found.st_ino,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size if sizes_of_all or stat.S_ISREG(found.st_mode) else 0,
        clamp_ns(found.st_mtime_ns),
        clamp_ns(found.st_ctime_ns),
    )


def inode_of(packed: bytes) -> int:
    """The inode number of a packed lstat."""
    number: int = _INODE.unpack(packed)[0]
    return number
