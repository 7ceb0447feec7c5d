"""What a look at the disk tells about one entry: facts only, no decisions, no database."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import disk, ids, labels, xattrs
from fsd.core.index import DIRECTORY, FILE, OTHER, SYMLINK
from fsd.core.labels import Label
from fsd.core.syscalls import Statx, statx

if TYPE_CHECKING:
    from fsd.core.space import Space


_PROPERTY = labels.PROPERTY_PREFIX.encode()
_ID, _TREE = labels.ID_ATTRIBUTE.encode(), labels.TREE_ATTRIBUTE.encode()


class Seen(NamedTuple):
    """One entry as it was on disk. `assumed`: a directory's published tree size; `xattrs`: a hash of foreign ones, odd
    if there are properties among them."""

    name: bytes
    kind: int
    binding: bytes
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int
    nlink: int
    dev: int
    mount: int
    xattrs: int
    label: Label | None
    assumed: int


_new = tuple.__new__  # a named tuple's own constructor takes twice as long
_UNTOLD = (errno.ENOENT, errno.EIO, errno.EINTR)
"""Errors after which nothing is known of an entry's attributes; other ones mean that it has none."""
_ONLY_LABEL = _ID + b"\0"
_BATCH = 256
_KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}


def kind_of(mode: int) -> int:
    """FILE, DIRECTORY, SYMLINK or OTHER."""
    return _KINDS.get(mode & 0o170000, OTHER)


def look(space: Space, dir_fd: int, name: bytes) -> Seen:
    """Look at `name` in an open directory; links are not followed. Raises OSError, ENOENT if it is gone."""
    found = statx(dir_fd, name)
    binding = ids.node_binding(dir_fd, name, found)
    foreign, label, assumed = 0, None, 0
    if _KINDS.get(found.mode & 0o170000, OTHER) in (FILE, DIRECTORY):
        try:
            attributes = xattrs.list_names(dir_fd, name)
        except OSError as error:
            if error.errno in _UNTOLD:
                raise
            attributes = []
        if attributes:
            foreign, label, assumed = _attributes(space.secret, dir_fd, name, binding, attributes)
    return _seen(name, found, binding, foreign, label, assumed)


def look_many(space: Space, dir_fd: int, names: Sequence[bytes]) -> Iterator[Seen | OSError]:
    """`look` at each of these names, in their order; what it would raise for one of them is in its place."""
    if disk.compiled is None:
        for name in names:
            try:
                yield look(space, dir_fd, name)
            except OSError as error:
                yield error
        return
    for start in range(0, len(names), _BATCH):
        batch = tuple(names[start : start + _BATCH])
        for name, fact in zip(batch, disk.compiled.facts(dir_fd, batch), strict=True):
            try:
                if isinstance(fact, int):
                    raise OSError(fact, os.strerror(fact), name)
                yield _seen_at_once(space, dir_fd, name, fact)
            except OSError as error:
                yield error


def _seen_at_once(space: Space, dir_fd: int, name: bytes, fact: disk.Fact) -> Seen:
    found: Statx = _new(Statx, fact[:11])
    handle, attributes, raw = fact[11:]
    binding = ids.node_binding(dir_fd, name, found, handle)
    foreign, label, assumed = 0, None, 0
    if isinstance(attributes, int):
        if attributes in _UNTOLD:
            raise OSError(attributes, os.strerror(attributes), name)
        if attributes == errno.ERANGE:
            return look(space, dir_fd, name)
    elif attributes == _ONLY_LABEL and raw is not None:
        label = labels.parse(raw, space.secret, binding)
    elif attributes:
        given = attributes.split(b"\0")[:-1]
        foreign, label, assumed = _attributes(space.secret, dir_fd, name, binding, given)
    return _seen(name, found, binding, foreign, label, assumed)


def _seen(name: bytes, found: Statx, binding: bytes, foreign: int, label: Label | None, assumed: int) -> Seen:
    mode, ino, size, mtime_ns, ctime_ns, _, nlink, uid, gid, dev, mount = found
    kind = _KINDS.get(mode & 0o170000, OTHER)
    return _new(Seen, (name, kind, binding, ino, size if kind == FILE else 0, mtime_ns, ctime_ns, mode, uid, gid,
                       nlink, dev, mount, foreign, label, assumed))  # fmt: skip


def _attributes(
    secret: bytes, dir_fd: int, name: bytes, binding: bytes, attributes: list[bytes]
) -> tuple[int, Label | None, int]:
    """(hash of the attributes that aren't ours, the label, the published tree size)."""
    label: Label | None = None
    assumed = 0
    foreign = []
    for attribute in attributes:
        raw = _value(dir_fd, name, attribute)
        if raw is None:
            continue
        if attribute == _ID:
            label = labels.parse(raw, secret, binding)
        elif attribute == _TREE:
            assumed = labels.parse_tree(raw, secret, binding) or 0
        else:
            foreign.append(attribute + b"\0" + raw)
    if not foreign:
        return 0, label, assumed
    digest = blake2b(b"\0\0".join(sorted(foreign)), digest_size=8).digest()
    marked = any(each.startswith(_PROPERTY) for each in foreign)
    return int.from_bytes(digest, "little") >> 2 << 1 | marked, label, assumed


def _value(dir_fd: int, name: bytes, attribute: bytes) -> bytes | None:
    try:
        return xattrs.get(dir_fd, name, attribute)
    except OSError as error:
        # Only ENODATA means "not there any more"; what may not be read is skipped like what is not there.
        if error.errno in (errno.ENODATA, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT):
            return None
        raise


def still_at(space: Space, path: bytes, binding: bytes) -> bool:
    """Whether the node with this binding is at `path` now. Only ENOENT and ENOTDIR say no without a look."""
    parent, _, name = path.rpartition(b"/")
    try:
        fd = space.open_dir(parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise
    try:
        return ids.node_binding(fd, name, statx(fd, name)) == binding
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)


def is_taken(space: Space, path: bytes) -> bool:
    """Whether anything stands at `path`; what can't be told counts as no."""
    parent, _, name = path.rpartition(b"/")
    try:
        fd = space.open_dir(parent)
    except OSError:
        return False
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
