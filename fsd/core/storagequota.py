"""Quotas that a storage has itself: of a btrfs subvolume (its qgroup) and of a directory in a CephFS.

Project quotas of ext4 and xfs need nothing here: statvfs(3) of a directory shows them as if they were the disk.
Sources: btrfs/ctree.h and linux/btrfs_tree.h (quota tree, BTRFS_IOC_TREE_SEARCH; root only), docs.ceph.com "Quotas".
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final, NamedTuple

_INO_LOOKUP: Final = 0xD0009412
_TREE_SEARCH: Final = 0xD0009411
_ARGUMENT: Final = 4096
_FIRST_INODE: Final = 256
_QUOTA_TREE: Final = 8
_INFO, _LIMIT = 242, 244
_MAX_REFERENCED: Final = 1
_KEY: Final = struct.Struct("<7Q4I4Q")
_HEADER: Final = struct.Struct("<3Q2I")
_TWO: Final = struct.Struct("<2Q")


class StorageQuota(NamedTuple):
    """What the storage lets a tree have, and what it has, bytes on the disk. A btrfs counts at each of its commits, so
    `used` may be half a minute old; the limit itself is kept at every write."""

    limit: int
    used: int

    @property
    def free(self) -> int:
        """Never negative."""
        return max(0, self.limit - self.used)


def of(root: int) -> StorageQuota | None:
    """The storage's own quota of the tree whose root is open; None where there is none, or where nobody may tell."""
    try:
        return _of_subvolume(root)
    except OSError:
        pass  # no btrfs, no quotas on it, or not for us to ask
    path = b"/proc/self/fd/%d" % root
    try:
        limit = int(os.getxattr(path, "ceph.quota.max_bytes"))
        return StorageQuota(limit, int(os.getxattr(path, "ceph.dir.rbytes"))) if limit else None
    except (OSError, ValueError):
        return None


def _of_subvolume(root: int) -> StorageQuota | None:
    """Of the subvolume that `root` is the top of; a part of one has no quota of its own."""
    if os.fstat(root).st_ino != _FIRST_INODE:
        return None
    asked = bytearray(_ARGUMENT)
    struct.pack_into("<2Q", asked, 0, 0, _FIRST_INODE)
    fd = os.open(
        b"/proc/self/fd/%d" % root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    )  # no O_PATH: ioctl(2)
    try:
        fcntl.ioctl(fd, _INO_LOOKUP, asked)
        (subvolume,) = struct.unpack_from("<Q", asked)
        flags, limit = _item(fd, subvolume, _LIMIT)
        if not flags & _MAX_REFERENCED:
            return None
        _, used = _item(fd, subvolume, _INFO)
        return StorageQuota(limit, used)
    finally:
        os.close(fd)


def _item(fd: int, subvolume: int, kind: int) -> tuple[int, int]:
    """The first two numbers of an item in the quota tree: (flags, most bytes) or (generation, bytes)."""
    asked = bytearray(_ARGUMENT)
    last = (1 << 64) - 1
    _KEY.pack_into(asked, 0, _QUOTA_TREE, 0, 0, subvolume, subvolume, 0, last, kind, kind, 1, 0, 0, 0, 0, 0)
    fcntl.ioctl(fd, _TREE_SEARCH, asked)
    found = struct.unpack_from("<I", asked, 64)[0]
    if not found:
        return 0, 0
    first: int
    second: int
    first, second = _TWO.unpack_from(asked, _KEY.size + _HEADER.size)
    return first, second
