"""System calls that Python does not wrap, through ctypes. Each raises OSError with the kernel's errno.

Sources: openat2(2), statx(2), name_to_handle_at(2), renameat2(2), linkat(2), ioctl_ficlone(2), fcntl(2) F_SETLEASE.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
import threading
from typing import Final, NamedTuple, Protocol

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_SYS_OPENAT2: Final = 437  # the same number on every architecture
_RESOLVE: Final = 0x08 | 0x04 | 0x02  # RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_AT_EMPTY_PATH: Final = 0x1000
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_SYMLINK_FOLLOW: Final = 0x400
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_FICLONE: Final = 0x40049409
_MAX_HANDLE: Final = 128
_STATX_WANTED: Final = 0x7FF | 0x800 | 0x1000  # basic stats, birth time, mount id
_STATX_BTIME: Final = 0x800
_STATX_MNT_ID: Final = 0x1000
_GETFLAGS: Final = 0x80086601
_SETFLAGS: Final = 0x40086602
_NOCOW: Final = 0x00800000
_BTRFS_FS_INFO: Final = 0x8400941F

O_TMPFILE: Final = os.O_TMPFILE


def _fail(path: bytes | None = None) -> OSError:
    number = ctypes.get_errno()
    return (
        OSError(number, os.strerror(number), path)
        if path is not None
        else OSError(number, os.strerror(number))
    )


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_have_openat2 = True
_PATH_MAX = 4096
"""Bytes that a system call takes as a path, the NUL among them (limits.h); trees may be deeper."""


def open_beneath(dirfd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open `path` below `dirfd`; no component may be a symbolic link or lead outside. O_CLOEXEC is always set.

    `b""` is the directory itself. ELOOP: a component is a link; EXDEV: `..` or an absolute path tried to escape.
    ENAMETOOLONG: a component is; the path may have any length.
    """
    global _have_openat2
    cut = path.rfind(b"/", 0, _PATH_MAX) if len(path) >= _PATH_MAX else -1
    if cut > 0:
        above = open_beneath(dirfd, path[:cut], os.O_PATH | os.O_DIRECTORY)
        try:
            return open_beneath(above, path[cut + 1 :], flags, mode)
        finally:
            os.close(above)
    if _have_openat2:
        how = _OpenHow(flags | os.O_CLOEXEC, mode, _RESOLVE)
        for _ in range(8):
            fd = _syscall(_SYS_OPENAT2, dirfd, path or b".", ctypes.byref(how), ctypes.sizeof(how))
            if fd >= 0:
                return int(fd)
            number = ctypes.get_errno()
            # EAGAIN: a rename raced with the resolution (openat2(2)); EINTR: a signal without SA_RESTART.
            if number not in (errno.EAGAIN, errno.EINTR):
                break
        if number != errno.ENOSYS:
            raise OSError(number, os.strerror(number), path)
        _have_openat2 = False
    return _walk_beneath(dirfd, path, flags, mode)


def _walk_beneath(dirfd: int, path: bytes, flags: int, mode: int) -> int:
    """The same for kernels without openat2: component by component, O_NOFOLLOW each."""
    if path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    if not parts:
        return os.open(b".", flags, mode, dir_fd=dirfd)
    here = dirfd
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            if here != dirfd:
                os.close(here)
            here = below
        return os.open(parts[-1], flags | os.O_NOFOLLOW, mode, dir_fd=here)
    finally:
        if here != dirfd:
            os.close(here)


def directory_path(fd: int) -> bytes:
    """The absolute path of an open directory (proc(5)), also of one that lies deeper than a path can say.

    FileNotFoundError if it is found to be gone on the way up; of a shallow one that is gone proc says so in its way.
    """
    below: list[bytes] = []
    here = os.dup(fd)
    try:
        while True:
            try:
                return b"/".join([os.readlink(b"/proc/self/fd/%d" % here), *reversed(below)])
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
            found = os.fstat(here)
            above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = above
            below.append(_name_of(found, above))
    finally:
        os.close(here)


def _name_of(found: os.stat_result, above: int) -> bytes:
    for name in os.listdir(b"/proc/self/fd/%d" % above):
        try:
            other = os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if (other.st_dev, other.st_ino) == (found.st_dev, found.st_ino):
            return name
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


class Statx(NamedTuple):
    """What statx(2) tells; times in nanoseconds since the epoch, `btime_ns` 0 where the filesystem has none."""

    mode: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    nlink: int
    uid: int
    gid: int
    dev: int
    mnt_id: int
    """Of the mount; of the device where the kernel doesn't tell (before 5.8)."""


_unpack_statx = struct.Struct("=I12xIIIH2xQQ32x" + "qI4x" * 3 + "8xIIQ").unpack_from
_FAR: Final = 1 << 63
_STATX_HOW: Final = _AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH
_makedev = os.makedev
_new = tuple.__new__  # a named tuple's own constructor takes twice as long
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_RANGE_WRITE, _RANGE_WAIT_AFTER = 2, 4
_statx = _libc.statx
_name_to_handle_at = _libc.name_to_handle_at


class _Buffers(threading.local):
    """What the calls of one thread pass to the kernel, made once."""

    def __init__(self) -> None:
        self.statx: ctypes.Array[ctypes.c_char] = ctypes.create_string_buffer(256)
        self.handle = ctypes.create_string_buffer(8 + _MAX_HANDLE)
        self.handle_size = ctypes.c_uint32.from_buffer(self.handle)
        self.mount = ctypes.byref(ctypes.c_int())


_buffers = _Buffers()


class Times(Protocol):
    """What an os.stat_result says of times."""

    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


def clamp_ns(time_ns: int) -> int:
    """A time as databases and structures hold it: 64 bits of nanoseconds, from 1677 to 2262. Filesystems know times
    beyond (ext4 2446, xfs 2486, btrfs any); they become the last or the first one. Then ctimes tell of changes."""
    return time_ns if -_FAR <= time_ns < _FAR else _FAR - 1 if time_ns > 0 else -_FAR


def times_ns(found: Times) -> tuple[int, int]:
    """(mtime, ctime) of an lstat, as rows have them (`clamp_ns`)."""
    return clamp_ns(found.st_mtime_ns), clamp_ns(found.st_ctime_ns)


def statx(dirfd: int, name: bytes) -> Statx:
    """Attributes of `name` in `dirfd`, or of `dirfd` itself for `b""`; links are not followed."""
    buffer = _buffers.statx
    if _statx(dirfd, name, _STATX_HOW, _STATX_WANTED, buffer):
        raise _fail(name)
    (mask, nlink, uid, gid, mode, ino, size, b_s, b_ns, c_s, c_ns, m_s, m_ns,
     dev_major, dev_minor, mnt_id) = _unpack_statx(buffer)  # fmt: skip
    return _new(Statx, (
        mode, ino, size, clamp_ns(m_s * 1_000_000_000 + m_ns), clamp_ns(c_s * 1_000_000_000 + c_ns),
        clamp_ns(b_s * 1_000_000_000 + b_ns) if mask & _STATX_BTIME else 0, nlink, uid, gid,
        dev := _makedev(dev_major, dev_minor), mnt_id if mask & _STATX_MNT_ID else dev,
    ))  # fmt: skip


def file_handle(dirfd: int, name: bytes) -> bytes:
    """The kernel's handle of a node: type (4 bytes, little-endian) and handle bytes. Stable over renames; a reused
    inode number gets another one. EOPNOTSUPP where the filesystem has none; links are not followed."""
    buffers = _buffers
    buffers.handle_size.value = _MAX_HANDLE
    if _name_to_handle_at(dirfd, name, buffers.handle, buffers.mount, _AT_EMPTY_PATH):
        raise _fail(name)
    handle: bytes = buffers.handle[4 : 8 + buffers.handle_size.value]  # type: ignore[assignment]
    return handle


def _renameat2(sfd: int, sname: bytes, dfd: int, dname: bytes, flags: int) -> None:
    if _libc.renameat2(sfd, sname, dfd, dname, flags):
        raise _fail(dname)


def rename_noreplace(sfd: int, sname: bytes, dfd: int, dname: bytes) -> None:
    """Rename unless the new name is taken (EEXIST). EINVAL where the filesystem can't."""
    _renameat2(sfd, sname, dfd, dname, _RENAME_NOREPLACE)


def rename_exchange(sfd: int, sname: bytes, dfd: int, dname: bytes) -> None:
    """Swap two names atomically; both must exist. EINVAL where the filesystem can't."""
    _renameat2(sfd, sname, dfd, dname, _RENAME_EXCHANGE)


def link_fd(fd: int, dirfd: int, name: bytes) -> None:
    """Give an O_TMPFILE its name; EEXIST if it is taken. Through /proc, which needs no capability (open(2))."""
    source = b"/proc/self/fd/%d" % fd
    if _libc.linkat(-100, source, dirfd, name, _AT_SYMLINK_FOLLOW):
        raise _fail(name)


def start_writing(fd: int) -> None:
    """Begin to write what a file has in memory (sync_file_range(2)). A hint: errors are told by fsync(2)."""
    _sync_file_range(fd, 0, 0, _RANGE_WRITE)


def wait_for_writing(fd: int) -> None:
    """Wait until that is written. Nothing is durable by it, and errors are told by fsync(2)."""
    _sync_file_range(fd, 0, 0, _RANGE_WRITE | _RANGE_WAIT_AFTER)


def clone(src_fd: int, dst_fd: int) -> None:
    """Share the source's extents with the destination (FICLONE). EOPNOTSUPP, EXDEV or EINVAL where impossible."""
    fcntl.ioctl(dst_fd, _FICLONE, src_fd)


def read_lease(fd: int) -> bool | None:
    """Whether a read lease can be had: False if somebody has the file open for writing, or mapped shared and writable,
    or if a network filesystem says so; None where there are no leases, or not for us (fcntl(2), F_SETLEASE).

    `fd` is open for reading only. The lease is given back at once; who opens the file in between waits that long.
    """
    try:
        # A lease that is broken sends SIGIO, which would end the process; SIGURG is ignored unless somebody listens.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def fs_type(fd: int) -> int:
    """The filesystem's magic number (statfs(2), f_type), as an unsigned 32-bit value."""
    buffer = _buffers.statx
    if _libc.fstatfs(fd, buffer):
        raise _fail()
    (magic,) = struct.unpack_from("=q", buffer)
    return int(magic) & 0xFFFFFFFF


def write_in_place(fd: int) -> None:
    """Have an empty file overwritten in place where the filesystem copies on write (ioctl_iflags(2), FS_NOCOW_FL)."""
    try:
        (flags,) = struct.unpack("=q", fcntl.ioctl(fd, _GETFLAGS, bytes(8)))
        fcntl.ioctl(fd, _SETFLAGS, struct.pack("=q", flags | _NOCOW))
    except OSError:
        pass  # a filesystem without the flag has no need of it


def filesystem_id(fd: int) -> str:
    """What stays the same of a filesystem over mounts, and for all subvolumes of a btrfs (ioctl_btrfs(2), FS_INFO).

    Elsewhere f_fsid of statfs(2), which is made of the UUID, or of the device (xfs).
    """
    buffer = bytearray(1024)
    try:
        fcntl.ioctl(fd, _BTRFS_FS_INFO, buffer)
    except OSError:
        return f"{os.fstatvfs(fd).f_fsid:x}"
    return bytes(buffer[16:32]).hex()
