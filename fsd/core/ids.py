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

from fsd.core.syscalls import Statx, file_handle

ID_BYTES = 16
_NO_HANDLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EOVERFLOW, errno.EPERM)


def node_binding(dirfd: int, name: bytes, found: Statx) -> bytes:
    """16 bytes that stand for exactly this node as long as it lives; `b""` names `dirfd` itself.

    Where the filesystem has no handles, inode number and birth time stand in.
    """
    try:
        handle = file_handle(dirfd, name)
    except OSError as error:
        if error.errno not in _NO_HANDLE:
            raise
        handle = (
            b"\xff\xff\xff\xff"
            + found.ino.to_bytes(8, "little")
            + (found.dev & (2**64 - 1)).to_bytes(8, "little")
        )
    return blake2b(handle + found.btime_ns.to_bytes(8, "little", signed=True), digest_size=16).digest()


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
