"""POSIX access control lists (acl(5)) as the kernel keeps them in `system.posix_acl_*`, without libacl.

The value is a version (2) and entries of tag, permissions and id, little-endian (linux/posix_acl_xattr.h). A
directory's *default* list is what new entries in it start with; where there is one, the writer's umask does not count.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
_NOBODY: Final = 0xFFFFFFFF
_HEAD, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")


class Entry(NamedTuple):
    """One entry: `permissions` are the bits rwx; `id` counts for USER and GROUP alone."""

    tag: int
    permissions: int
    id: int = _NOBODY


def decode(raw: bytes) -> list[Entry]:
    """The entries of a value; ValueError for what is none."""
    if len(raw) < _HEAD.size or _HEAD.unpack_from(raw)[0] != 2 or (len(raw) - _HEAD.size) % _ENTRY.size:
        raise ValueError("not a POSIX ACL")
    return [Entry(*_ENTRY.unpack_from(raw, at)) for at in range(_HEAD.size, len(raw), _ENTRY.size)]


def encode(entries: Sequence[Entry]) -> bytes:
    """The value, entries in the order that the kernel demands."""
    ordered = sorted(entries, key=lambda each: (each.tag, each.id))
    return _HEAD.pack(2) + b"".join(_ENTRY.pack(*each) for each in ordered)


def read(target: int | bytes, name: str = ACCESS) -> list[Entry] | None:
    """A node's list, None if it has none or its filesystem has none. Other errors are raised."""
    try:
        return decode(os.getxattr(target, name))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None


def write(fd: int, name: str, entries: Sequence[Entry] | None) -> None:
    """Set a list, or remove it; removing what isn't there is fine. EOPNOTSUPP where the filesystem has none."""
    if entries is not None:
        os.setxattr(fd, name, encode(entries))
        return
    try:
        os.removexattr(fd, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def permissions(entries: Sequence[Entry], tag: int, ident: int = _NOBODY) -> int:
    """What an entry allows after the mask; 0 without one."""
    mask = next((each.permissions for each in entries if each.tag == MASK), 7)
    for each in entries:
        if each.tag == tag and (tag not in (USER, GROUP) or each.id == ident):
            return each.permissions if tag in (USER_OBJ, OTHER) else each.permissions & mask
    return 0


def inherited(default: Sequence[Entry], mode: int) -> list[Entry]:
    """The access list of a node made with `mode` in a directory with this default list."""
    group = MASK if any(each.tag == MASK for each in default) else GROUP_OBJ
    shifts = {USER_OBJ: 6, group: 3, OTHER: 0}
    return [
        each._replace(permissions=each.permissions & mode >> shifts[each.tag]) if each.tag in shifts else each
        for each in default
    ]


def shared(mode: int, *users: int) -> list[Entry]:
    """A default list for a directory of this mode that others write into as well: the bits of `mode`, and all of the
    owner's for `users`."""
    entries = [
        Entry(USER_OBJ, mode >> 6 & 7), Entry(GROUP_OBJ, mode >> 3 & 7), Entry(OTHER, mode & 7),
    ]  # fmt: skip
    if users:
        entries += [Entry(USER, mode >> 6 & 7, user) for user in users]
        entries.append(Entry(MASK, mode >> 6 & 7))
    return entries


def admit(fd: int, uid: int, bits: int) -> None:
    """Let one more user do with a file what `bits` (rwx) say. Where there are no lists, nothing changes."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    plain = [Entry(USER_OBJ, mode >> 6 & 7), Entry(GROUP_OBJ, mode >> 3 & 7), Entry(OTHER, mode & 7)]
    entries = [each for each in read(fd) or plain if each[::2] != (USER, uid)]
    mask = next((each.permissions for each in entries if each.tag == MASK), mode >> 3 & 7)
    # A wider mask must not give the others more than they have now.
    entries = [
        each._replace(permissions=each.permissions & mask) if each.tag in (USER, GROUP_OBJ, GROUP) else each
        for each in entries
        if each.tag != MASK
    ]
    entries += [Entry(USER, bits, uid), Entry(MASK, mask | bits)]
    try:
        write(fd, ACCESS, entries)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def inherit(fd: int, parent: int, mode: int) -> None:
    """Give a node that was made elsewhere what one made in `parent` with this mode would have: group, setgid, lists."""
    above, found = os.fstat(parent), os.fstat(fd)
    directory = stat.S_ISDIR(found.st_mode)
    gid = above.st_gid if above.st_mode & stat.S_ISGID else os.getegid()
    if found.st_gid != gid:
        os.fchown(fd, -1, gid)
    default = read(parent, DEFAULT)
    if directory:
        write(fd, DEFAULT, default)
    write(fd, ACCESS, inherited(default, mode) if default is not None else None)
    bits = stat.S_IMODE(os.fstat(fd).st_mode) & 0o777 if default is not None else mode & 0o777 & ~umask()
    os.fchmod(fd, bits | (above.st_mode & stat.S_ISGID if directory else 0))


def umask() -> int:
    """This process's, without changing it."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022
