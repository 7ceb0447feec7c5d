"""Identity: how a node gets its id, and how a claim to an id is proven.

An id is 128 bits, derived from the space and the node's *binding*: a hash of the whole file handle and the birth
time. Two processes derive the same id, and nothing has to be written before a node can be served. Handle layouts
differ per filesystem, so the handle is hashed and never parsed.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, NamedTuple

from fsd.core.syscalls import Statx, file_handle, fs_type, statx

ID_BYTES = 16
_WEAK = b"\0ino"
_OVERLAYFS = 0x794C7630
_PASSING = frozenset({0x65735546, 0x4D44, 0x2011BAB0})
"""FUSE, FAT and exFAT (statfs(2))."""
_FUSE = 0x65735546
_CEPHFS = frozenset({_FUSE, 0x00C36400})
"""FUSE, which ceph-fuse is, and the kernel's own client."""
_MOST_STORAGES = 1000
_NO_HANDLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EOVERFLOW, errno.EPERM)


def node_binding(dirfd: int, name: bytes, found: Statx, handle: bytes | int | None = None) -> bytes:
    """16 bytes that stand for exactly this node as long as it lives; `b""` names `dirfd` itself. `handle`: what
    `file_handle` gave already, or the error number.

    Where the filesystem has no handles that outlive the mount, inode number and birth time stand in; without birth
    times the number alone does, and the binding `is_weak`. A CephFS never gives an inode number twice, and each client
    of it, on any machine, says the same one; handles are only the kernel client's, birth times too.
    """
    storage = _storages.get((found.dev, found.mnt_id)) or _probe(dirfd, name, found)
    if storage.cluster:
        return blake2b(storage.cluster + found.ino.to_bytes(8, "little"), digest_size=16).digest()
    if storage.handles:
        try:
            if isinstance(handle, int):
                raise OSError(handle, os.strerror(handle), name)
            data = (handle or file_handle(dirfd, name)) + found.btime_ns.to_bytes(8, "little", signed=True)
            return blake2b(data, digest_size=16).digest()
        except OSError as error:
            if error.errno not in _NO_HANDLE:
                raise
    number = b"\xff\xff\xff\xff" + found.ino.to_bytes(8, "little") + storage.fsid.to_bytes(8, "little")
    if found.btime_ns and storage.births:
        return blake2b(number + found.btime_ns.to_bytes(8, "little", signed=True), digest_size=16).digest()
    return blake2b(number, digest_size=12).digest() + _WEAK


def forget_storages() -> None:
    """Ask again: something was mounted since."""
    _storages.clear()


def told_by(fd: int) -> Literal["handles", "birth times", "lasting inode numbers", "inode numbers"]:
    """What the nodes of an open directory's filesystem are told by."""
    found = statx(fd, b"")
    storage = _storages.get((found.dev, found.mnt_id)) or _probe(fd, b"", found)
    if storage.cluster:
        return "lasting inode numbers"
    if storage.handles:
        try:
            file_handle(fd, b"")
            return "handles"
        except OSError as error:
            if error.errno not in _NO_HANDLE:
                raise
    return "birth times" if found.btime_ns and storage.births else "inode numbers"


def forgets_names(fd: int) -> bool:
    """Whether an open directory is seen through a client that says ENOENT of names that are there: `absent`."""
    found = statx(fd, b"")
    return (_storages.get((found.dev, found.mnt_id)) or _probe(fd, b"", found)).forgets


def is_weak(binding: bytes) -> bool:
    """Whether a binding is made of an inode number alone: see weak.py for what else is asked then."""
    return binding[12:] == _WEAK


class _Storage(NamedTuple):
    """What a mounted filesystem can tell nodes by. `fsid`: statfs(2)'s, the same at each mount where there is one.
    `cluster`: the id of the Ceph cluster whose CephFS it is, empty if it is none."""

    handles: bool
    births: bool
    fsid: int
    cluster: bytes
    forgets: bool
    """ceph-fuse: see absent.py."""


_storages: dict[tuple[int, int], _Storage] = {}


def _probe(dirfd: int, name: bytes, found: Statx) -> _Storage:
    """Ask once for each mount. Handles of FUSE hold a number that lasts as long as the mount, those of FAT the number
    of an inode in memory, and so are FAT's inode numbers. A file of overlayfs is born again when it is first changed.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd) if name else dirfd
    try:
        kind = fs_type(fd)
        cluster = cluster_of(fd, kind)
        storage = _Storage(
            kind not in _PASSING,
            kind not in _PASSING | {_OVERLAYFS},
            os.fstatvfs(fd).f_fsid & (2**64 - 1),
            cluster,
            bool(cluster) and kind == _FUSE,
        )
    finally:
        if fd != dirfd:
            os.close(fd)
    if len(_storages) >= _MOST_STORAGES:
        _storages.clear()
    _storages[found.dev, found.mnt_id] = storage
    return storage


def cluster_of(fd: int, kind: int | None = None) -> bytes:
    """The id of the Ceph cluster an open node's CephFS belongs to; empty if it is on no CephFS.

    `kind`: the filesystem's magic number, where it is known. `fd` may be O_PATH.
    """
    if (fs_type(fd) if kind is None else kind) not in _CEPHFS:
        return b""
    try:
        return os.getxattr(b"/proc/self/fd/%d" % fd, "ceph.cluster_fsid")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS):
            return b""
        raise


def derived_id(space_key: bytes, binding: bytes) -> bytes:
    """The id that a node has by itself. `space_key` is the 16 bytes of the space's own id."""
    hasher = _keyed(space_key, ID_BYTES, b"node").copy()
    hasher.update(binding)
    return hasher.digest()


@lru_cache(maxsize=256)
def _keyed(key: bytes, size: int, person: bytes) -> blake2b:
    """A hasher that has taken in its key: a copy of it costs half as much as a new one."""
    return blake2b(digest_size=size, key=key, person=person)


def spare_id(space_key: bytes, binding: bytes, turn: int) -> bytes:
    """The id of a node whose derived one went to its successor (save-by-rename); it must be labelled at once."""
    return blake2b(
        binding + turn.to_bytes(4, "little"), digest_size=ID_BYTES, key=space_key, person=b"spare"
    ).digest()


def link_id(space_key: bytes, binding: bytes, parent_id: bytes, name: bytes) -> bytes:
    """The id of a further name of a hard-linked node: stable for this place."""
    data = binding + parent_id + name
    return blake2b(data, digest_size=ID_BYTES, key=space_key, person=b"link").digest()


def proof(secret: bytes, node_id: bytes, binding: bytes) -> bytes:
    """8 bytes that only the service can make: "this id belongs to this node" (keyed by the space's secret)."""
    hasher = _keyed(secret, 8, b"label").copy()
    hasher.update(node_id + binding)
    return hasher.digest()


def file_etag(node_id: bytes, size: int, mtime_ns: int, rev: int) -> str:
    """32 hexadecimal digits; the same for renames, chmod and xattrs, another for other content."""
    data = b"%b%d.%d.%d" % (node_id, size, mtime_ns, rev)
    return blake2b(data, digest_size=16, person=b"etag-f").hexdigest()


def directory_etag(node_id: bytes, counter: int, incarnation: bytes) -> str:
    """32 hexadecimal digits; another whenever something visible below the directory changed."""
    data = b"%b%d.%b" % (node_id, counter, incarnation)
    return blake2b(data, digest_size=16, person=b"etag-d").hexdigest()


def new_id() -> bytes:
    """A random id, for spaces."""
    return os.urandom(ID_BYTES)
