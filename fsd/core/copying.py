"""Copying content and attributes between open files: shared extents where possible, holes kept, ids never."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Collection, Iterator

from fsd.core import posixacl
from fsd.core.labels import PROPERTY_PREFIX, is_internal_xattr
from fsd.core.syscalls import clone

_libc = ctypes.CDLL(None, use_errno=True)
_CHUNK = 16 << 20
_CANNOT = {
    errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EBADF, errno.ETXTBSY,
}  # fmt: skip
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOTSUP}
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")


def copy_data(src: int, dst: int) -> int:
    """Make the empty file `dst` hold what `src` holds, and return its size. Reflink, else copy_file_range(2)."""
    size = os.fstat(src).st_size
    try:
        clone(src, dst)
        return os.fstat(dst).st_size
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    for start, end in _extents(src, size):
        _copy_range(src, dst, start, end)
    # A file that grew meanwhile is copied as long as it was, one that shrank gets a hole, as a reader would see zeros.
    os.ftruncate(dst, size)
    return size


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that hold data (lseek(2), SEEK_DATA)."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            start, end = position, size
        if start >= size or end <= position:
            return
        yield start, end
        position = end


def _copy_range(src: int, dst: int, start: int, end: int) -> None:
    while start < end:
        try:
            done = os.copy_file_range(src, dst, min(_CHUNK, end - start), start, start)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            break
        if done == 0:
            return
        start += done
    while start < end:
        data = os.pread(src, min(1 << 20, end - start), start)
        if not data:
            return
        view = memoryview(data)
        while view:
            written = os.pwrite(dst, view, start)
            view, start = view[written:], start + written


def user_attributes(target: int | bytes) -> dict[str, bytes]:
    """The attributes that belong to the content: `user.*` without the service's own. Links are not followed."""
    found: dict[str, bytes] = {}
    for name in list_attributes(target):
        if name.startswith("user.") and not is_internal_xattr(name):
            value = get_attribute(target, name)
            if value is not None:
                found[name] = value
    return found


def list_attributes(target: int | bytes) -> list[str]:
    """Attribute names; none where the filesystem or the kind of the node has none."""
    try:
        return (
            os.listxattr(target) if isinstance(target, int) else os.listxattr(target, follow_symlinks=False)
        )
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return []


def get_attribute(target: int | bytes, name: str) -> bytes | None:
    """One value; None only if there is none, or attributes can't be there."""
    try:
        if isinstance(target, int):
            return os.getxattr(target, name)
        return os.getxattr(target, name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None


def lasting_attributes(model: int | bytes, own: Collection[str]) -> dict[str, bytes]:
    """Of a replaced node, the `user.*` attributes that its successor takes over besides its `own`: not the properties,
    which belong to what was replaced (RFC 4918, 9.8.3 and 9.9.3)."""
    found = user_attributes(model)
    return {n: v for n, v in found.items() if n not in own and not n.startswith(PROPERTY_PREFIX)}


def set_user_attributes(fd: int, attributes: dict[str, bytes]) -> None:
    """Set `user.*` attributes; a filesystem without attributes loses them, a full one is an error."""
    for name, value in attributes.items():
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise


def keep_owner(fd: int, uid: int, gid: int) -> None:
    """Give a file an owner and a group, as far as the service may."""
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) == (uid, gid):
        return
    for owner, group in ((uid, gid), (-1, gid)):
        try:
            os.fchown(fd, owner, group)
            return
        except PermissionError:
            continue


def dress_like(fd: int, model: int | bytes, like: os.stat_result, *, user: bool = True) -> None:
    """Give the open file owner, mode, ACLs and foreign attributes of `model` (a descriptor, or a path not followed).

    `user` False: without its `user.*`. Attributes of the security modules are kept where they may be written; file
    capabilities are not, because the content is another one.
    """
    names = [name for name in list_attributes(model) if not is_internal_xattr(name)]
    if user:
        # First, while the service may still write the file: a mode of 0444 refuses `user.*` to all but root.
        set_user_attributes(fd, user_attributes(model))
    keep_owner(fd, like.st_uid, like.st_gid)
    os.fchmod(fd, stat.S_IMODE(like.st_mode))
    for name in names:
        if name == "security.capability" or name.startswith("user."):
            continue
        value = get_attribute(model, name)
        if value is None:
            continue
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno not in _UNSUPPORTED or name in _ACLS:
                raise
    if _ACLS[0] not in names and get_attribute(fd, _ACLS[0]) is not None:
        os.removexattr(fd, _ACLS[0])  # inherited from the directory's default, which the old one did not have
    if stat.S_ISREG(like.st_mode) and os.fstat(fd).st_uid != like.st_uid:
        # Only root may give a file away. Who owned it can do with it what they could before.
        posixacl.admit(fd, like.st_uid, like.st_mode >> 6 & 7)


def sync_filesystem(fd: int) -> None:
    """Make everything on the filesystem behind `fd` durable (syncfs(2)): one call for a tree of any size."""
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
