"""fanotify(7) as it is called: two system calls through ctypes, and the layout of the records.

Through ctypes, because the one binding on PyPI has a single maintainer and does not know FAN_RENAME; this is
all that is needed. Sources: fanotify_init(2), fanotify_mark(2), fanotify(7), open_by_handle_at(2),
include/uapi/linux/fanotify.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
import time
from struct import Struct
from typing import Final

from fsd.core import hosts

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = [
    ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
]  # fmt: skip
_libc.mount.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
]  # fmt: skip

_PAUSES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.03, 0.0)

_CLOEXEC, _NONBLOCK = 0x1, 0x2
_UNLIMITED_MARKS = 0x20
_REPORT_DFID_NAME = 0x400 | 0x800
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_AT_FDCWD = -100
_MNT_DETACH = 2

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
CREATE: Final = 0x100
DELETE: Final = 0x200
OVERFLOW: Final = 0x4000
RENAME: Final = 0x10000000
ONDIR: Final = 0x40000000
MASK: Final = CREATE | DELETE | RENAME | CLOSE_WRITE | ATTRIB | MODIFY | ONDIR

HEAD: Final = Struct("=IBBHQiiBBHQI")
"""event_len, version, -, metadata_len, mask, fd, pid; then of the first information record: type, -, len,
fsid and the length of the handle. The handle's own 8 bytes of head begin with that length, at `HANDLE_AT`."""
URGENCY: Final = Struct("=I4xQ4xi")
"""event_len, mask and pid of the same."""
METADATA: Final = 24
HANDLE_AT: Final = METADATA + 12
INFO: Final = Struct("=BBHQI")
INFO_HANDLE_AT: Final = 12
VERSION: Final = 3
OLD_NAME, NEW_NAME = 10, 12
"""Types of the two information records of a rename."""


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def open_group() -> int:
    """A notification group that reports directories by handle and entries by name. OSError: EPERM without
    CAP_SYS_ADMIN, EINVAL before Linux 5.9, EMFILE beyond fs.fanotify.max_user_groups, ENOSYS."""
    flags = _CLOEXEC | _NONBLOCK | _UNLIMITED_MARKS | _REPORT_DFID_NAME
    fd: int = _libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(os.O_RDONLY))
    if fd < 0:
        raise _fail("fanotify_init")
    return fd


def mark_filesystem(group: int, path: bytes) -> None:
    """Hear everything of the filesystem that `path` is on; again is fine.

    btrfs refuses that through a subvolume (EXDEV), which is how most installers mount it: there the top-level
    volume is mounted for the moment of the call, in a directory of its own; the mark stays with the
    filesystem. OSError: EXDEV, ENODEV, EOPNOTSUPP (no handles: overlay, FUSE, network), EPERM, EINVAL before
    Linux 5.17.
    """
    if _mark(group, path):
        return
    if ctypes.get_errno() != errno.EXDEV:
        raise _fail("fanotify_mark")
    mount = hosts.mount_of(os.path.realpath(path))
    if mount is None or mount.fstype != "btrfs":
        raise OSError(errno.EXDEV, "fanotify_mark: the filesystem cannot be heard through this mount")
    _mark_through_top(group, mount.source)


def _mark(group: int, path: bytes) -> bool:
    flags = _MARK_ADD | _MARK_FILESYSTEM
    return int(_libc.fanotify_mark(group, flags, MASK, _AT_FDCWD, path)) == 0


def _mark_through_top(group: int, device: bytes) -> None:
    place = tempfile.mkdtemp(prefix="fsd-top-").encode()
    try:
        if _libc.mount(device, place, b"btrfs", 0, b"subvolid=5"):
            raise OSError(errno.EXDEV, f"the top-level volume cannot be mounted: {_fail('mount').strerror}")
        try:
            if not _mark(group, place):
                raise _fail("fanotify_mark")
        finally:
            _libc.umount2(place, _MNT_DETACH)
    finally:
        os.rmdir(place)


def open_handle(mount_fd: int, handle: bytes) -> int:
    """The directory with this handle as an O_PATH descriptor, seen through the mount of `mount_fd`. OSError:
    ESTALE if it is gone, EPERM without CAP_DAC_READ_SEARCH, ENOMEM if the kernel still says so after 0.1 s.

    ext4 answers ENOMEM while an inode number is given to a new file at this very moment (iget_locked() returns NULL
    for an inode under construction), so that alone is asked again.
    """
    for pause in _PAUSES:
        fd: int = _libc.open_by_handle_at(mount_fd, handle, os.O_PATH | os.O_CLOEXEC)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.ENOMEM:
            break
        time.sleep(pause)
    raise OSError(number, os.strerror(number))
