"""What a look at the disk tells about one entry: facts only, no decisions, no database."""

from __future__ import annotations

import errno
import os
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, labels
from fsd.core.index import DIRECTORY, FILE, OTHER, SYMLINK
from fsd.core.labels import Label
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space


class Seen(NamedTuple):
    """One entry as it was on disk. `assumed`: a directory's published tree size; `xattrs`: a hash of foreign ones."""

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


def kind_of(mode: int) -> int:
    """FILE, DIRECTORY, SYMLINK or OTHER."""
    form = stat.S_IFMT(mode)
    if form == stat.S_IFREG:
        return FILE
    if form == stat.S_IFDIR:
        return DIRECTORY
    return SYMLINK if form == stat.S_IFLNK else OTHER


def look(space: Space, dir_fd: int, name: bytes) -> Seen:
    """Look at `name` in an open directory; links are not followed. Raises OSError, ENOENT if it is gone."""
    found = statx(dir_fd, name)
    kind = kind_of(found.mode)
    binding = ids.node_binding(dir_fd, name, found)
    foreign, label, assumed = 0, None, 0
    if kind in (FILE, DIRECTORY):
        foreign, label, assumed = _attributes(space.secret, b"/proc/self/fd/%d/%b" % (dir_fd, name), binding)
    size = found.size if kind == FILE else 0
    return Seen(
        name, kind, binding, found.ino, size, found.mtime_ns, found.ctime_ns, found.mode, found.uid, found.gid,
        found.nlink, found.dev, found.mnt_id, foreign, label, assumed,
    )  # fmt: skip


def _attributes(secret: bytes, path: bytes, binding: bytes) -> tuple[int, Label | None, int]:
    """(hash of the attributes that aren't ours, the label, the published tree size)."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO, errno.EINTR):
            raise
        return 0, None, 0
    label: Label | None = None
    assumed = 0
    foreign = []
    for name in names:
        raw = _value(path, name)
        if raw is None:
            continue
        if name == labels.ID_ATTRIBUTE:
            label = labels.parse(raw, secret, binding)
        elif name == labels.TREE_ATTRIBUTE:
            assumed = labels.parse_tree(raw, secret, binding) or 0
        else:
            foreign.append(os.fsencode(name) + b"\0" + raw)
    if not foreign:
        return 0, label, assumed
    digest = blake2b(b"\0\0".join(sorted(foreign)), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1, label, assumed


def _value(path: bytes, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
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
