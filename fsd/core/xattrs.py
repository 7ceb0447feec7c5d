"""Extended attributes of an entry of an open directory, links not followed. Each call raises OSError with the
kernel's errno; ENODATA: no such attribute.

Linux 6.13 has calls for this: setxattrat(2), getxattrat(2), listxattrat(2). Older kernels are asked through
/proc/self/fd, which takes about three times as long, because /proc makes an inode for each descriptor it shows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_SETXATTRAT: Final = 463  # the same numbers on every architecture but alpha
_GETXATTRAT: Final = 464
_LISTXATTRAT: Final = 465
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_ROOM: Final = 4096


class _Value(ctypes.Structure):
    """struct xattr_args: a value to set, its length, flags."""

    _fields_ = [("value", ctypes.c_char_p), ("size", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _Room(ctypes.Structure):
    """struct xattr_args: room for a value, its length, flags."""

    _fields_ = [("value", ctypes.c_void_p), ("size", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _Buffers(threading.local):
    """What the calls of one thread pass to the kernel, made once."""

    def __init__(self) -> None:
        self.bytes = ctypes.create_string_buffer(_ROOM)
        self.room = ctypes.byref(_Room(ctypes.addressof(self.bytes), _ROOM, 0))
        self.value = _Value()
        self.to_set = ctypes.byref(self.value)


_buffers = _Buffers()
_LENGTH: Final = ctypes.c_size_t(ctypes.sizeof(_Value))


def _detour(dirfd: int, name: bytes) -> bytes:
    return b"/proc/self/fd/%d/%b" % (dirfd, name)


def _probe() -> bool:
    """Whether the kernel has the calls; a sandbox may refuse them with EPERM."""
    if _syscall(_LISTXATTRAT, -100, b"/", _AT_SYMLINK_NOFOLLOW, None, ctypes.c_size_t(0)) >= 0:
        return True
    return ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)


def _raised(name: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)


def list_names(dirfd: int, name: bytes) -> list[bytes]:
    """Names of all attributes that may be seen."""
    if not _direct:
        return [os.fsencode(found) for found in os.listxattr(_detour(dirfd, name), follow_symlinks=False)]
    room = _buffers.bytes
    length = _syscall(_LISTXATTRAT, dirfd, name, _AT_SYMLINK_NOFOLLOW, room, _ROOM)
    if length == 0:
        return []
    if length < 0:
        if ctypes.get_errno() != errno.ERANGE:
            raise _raised(name)
        room = ctypes.create_string_buffer(65536)  # XATTR_LIST_MAX
        length = _syscall(_LISTXATTRAT, dirfd, name, _AT_SYMLINK_NOFOLLOW, room, 65536)
        if length < 0:
            raise _raised(name)
    names: bytes = room[:length]  # type: ignore[assignment]
    return names.split(b"\0")[:-1]


def get(dirfd: int, name: bytes, attribute: bytes) -> bytes:
    """The value of one attribute."""
    if not _direct:
        return os.getxattr(_detour(dirfd, name), attribute, follow_symlinks=False)
    buffers = _buffers
    room, reference = buffers.bytes, buffers.room
    length = _syscall(_GETXATTRAT, dirfd, name, _AT_SYMLINK_NOFOLLOW, attribute, reference, _LENGTH)
    if length < 0:
        if ctypes.get_errno() != errno.ERANGE:
            raise _raised(name)
        room = ctypes.create_string_buffer(65536)  # XATTR_SIZE_MAX
        reference = ctypes.byref(_Room(ctypes.addressof(room), 65536, 0))
        length = _syscall(_GETXATTRAT, dirfd, name, _AT_SYMLINK_NOFOLLOW, attribute, reference, _LENGTH)
        if length < 0:
            raise _raised(name)
    value: bytes = room[:length]  # type: ignore[assignment]
    return value


def put(dirfd: int, name: bytes, attribute: bytes, value: bytes) -> None:
    """Set one attribute, whether or not it was there; all of the value or nothing (setxattr(2))."""
    if not _direct:
        os.setxattr(_detour(dirfd, name), attribute, value, follow_symlinks=False)
        return
    buffers = _buffers
    buffers.value.value, buffers.value.size = value, len(value)
    if _syscall(_SETXATTRAT, dirfd, name, _AT_SYMLINK_NOFOLLOW, attribute, buffers.to_set, _LENGTH) < 0:
        raise _raised(name)


_direct = _probe()
