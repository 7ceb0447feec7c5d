"""What fsd writes on nodes: `user.fsd.id` on files and directories, `user.fsd.tree` on directories.

`user.fsd.id` is `1:<id, 32 hex>:<proof, 16 hex>:<rev>`: at most 64 bytes, so that ext4 keeps it inside a 256-byte
inode. It is one attribute, so one setxattr(2) writes all of it or nothing. The proof binds the id to this node; in a
copy made with its xattrs it no longer fits, and only the service can make one.

`user.fsd.tree` is `1:<bytes>:<counter>:<proof>`: a published copy of the directory's tree size, so that a rebuilt
index and other readers have a size before the sweep is through. Never trusted where the index knows better.
"""

from __future__ import annotations

import errno
import os
from binascii import hexlify
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, xattrs
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.core.tree import Entry

ID_ATTRIBUTE = "user.fsd.id"
TREE_ATTRIBUTE = "user.fsd.tree"
_ID = ID_ATTRIBUTE.encode()
PROPERTY_PREFIX = "user.fsd.p."
_NO_XATTRS = (
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.E2BIG,
)


class Label(NamedTuple):
    """A parsed `user.fsd.id`. `proven` tells whether the proof fits the node it was found on."""

    id: bytes
    rev: int
    proven: bool
    proof: bytes


def is_internal_xattr(name: str) -> bool:
    """True for attributes that belong to one node and must not travel with a copy of its content."""
    return name.startswith("user.fsd.") and not name.startswith(PROPERTY_PREFIX)


def parse(raw: bytes, secret: bytes, binding: bytes) -> Label | None:
    """The label in an attribute's value; None if it is not one of ours."""
    parts = raw.split(b":")
    if (
        len(parts) != 4
        or parts[0] != b"1"
        or len(parts[1]) != 32
        or len(parts[2]) != 16
        or len(parts[3]) > 12
    ):
        return None
    try:
        node_id, proof, rev = (
            bytes.fromhex(parts[1].decode()),
            bytes.fromhex(parts[2].decode()),
            int(parts[3]),
        )
    except ValueError:
        return None
    if rev < 0:
        return None
    return Label(node_id, rev, proof == ids.proof(secret, node_id, binding), proof)


def has_lost(fd: int, secret: bytes, binding: bytes, node_id: bytes) -> bool:
    """Whether an open node that was labelled is so no more: only a missing or foreign label proves it."""
    try:
        raw = os.getxattr(fd, ID_ATTRIBUTE)
    except OSError as error:
        return error.errno == errno.ENODATA
    label = parse(raw, secret, binding)
    return label is None or not label.proven or label.id != node_id


def encode(secret: bytes, node_id: bytes, binding: bytes, rev: int) -> bytes:
    """The value of `user.fsd.id`."""
    return b"1:%b:%b:%d" % (hexlify(node_id), hexlify(ids.proof(secret, node_id, binding)), rev)


def encode_tree(secret: bytes, binding: bytes, size: int, counter: int) -> bytes:
    """The value of `user.fsd.tree`."""
    return b"1:%d:%d:%b" % (size, counter, _tree_proof(secret, binding, size, counter).hex().encode())


def parse_tree(raw: bytes, secret: bytes, binding: bytes) -> int | None:
    """The tree size published on a directory, None unless it is ours and about this very directory."""
    parts = raw.split(b":")
    try:
        size, counter = int(parts[1]), int(parts[2])
        if len(parts) == 4 and parts[3].decode() == _tree_proof(secret, binding, size, counter).hex():
            return size
    except (ValueError, IndexError):
        pass
    return None


def _tree_proof(secret: bytes, binding: bytes, size: int, counter: int) -> bytes:
    return ids.proof(secret, b"tree:%d:%d" % (size, counter), binding)


def new_label(space: Space, fd: int) -> tuple[str, int]:
    """The (id, rev) a node that was just created has by itself; for `write_label` before it gets its name."""
    binding = ids.node_binding(fd, b"", statx(fd, b""))
    return ids.derived_id(space.key, binding).hex(), 0


def label_for_replacement(space: Space, old: Entry) -> tuple[str, int]:
    """The (id, rev) for a node that takes the place and the id of `old`."""
    with space.index.read() as db:
        row = db.execute("SELECT rev FROM node WHERE id=?", (bytes.fromhex(old.id),)).fetchone()
    return old.id, (row[0] if row else 0) + 1


def write_label(space: Space, fd: int, node_id: str, rev: int, binding: bytes | None = None) -> bool:
    """Label the open node, whose `binding` may be known already. False where the filesystem, the space or permissions
    don't take attributes."""
    if space.record.label == "none":
        return False
    if binding is None:
        binding = ids.node_binding(fd, b"", statx(fd, b""))
    return set_xattr(fd, ID_ATTRIBUTE, encode(space.secret, bytes.fromhex(node_id), binding, rev))


def set_on_entry(dir_fd: int, name: bytes, value: bytes) -> bool:
    """Write `user.fsd.id` on an entry of an open directory; False where it can't be kept, other errors are raised."""
    try:
        xattrs.put(dir_fd, name, _ID, value)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return False
    return True


def set_xattr(target: int | bytes, name: str, value: bytes) -> bool:
    """Set an attribute without following links; False where it can't be kept, other errors are raised."""
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return False
    return True
