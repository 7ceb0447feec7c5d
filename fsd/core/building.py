"""Building a copy of anything in `.fsd/staging`, so that it can appear whole.

Copied: content, `user.*` attributes (dead properties among them), modification times, symbolic links as links, and
the x bits; with `keep` (a move across filesystems) also owner, mode and ACLs. Never copied: ids and other attributes
of the service itself. FIFOs and sockets are made anew. Device nodes are left out of a copy, and refused in a move,
because a move ends with the source in the trash.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from fsd.core import copying, posixacl, properties
from fsd.core.errors import Forbidden, PreconditionFailed
from fsd.core.names import to_text
from fsd.core.places import Place, binding_at
from fsd.core.syscalls import open_beneath, statx

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.core.syscalls import Statx

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TRIES = 3


def build(
    src: Place,
    space: Space,
    staging: int,
    name: bytes,
    *,
    into: int,
    keep: bool = False,
    deep: bool = True,
) -> bytes:
    """Copy what stands at `src` to `name` in the staging directory of `space`; returns the binding of the copy.

    `into`: the directory where it will appear; group, modes and ACLs are those that it would have got there.
    All of it is durable when this returns (one syncfs(2), however large). An entry that can't be read fails the
    whole copy; devices below a directory are left out, one by itself is Forbidden. With `keep`, a source that changes
    while it is copied is PreconditionFailed.
    """
    copy = _Copy(src, space, staging, name, into, keep)
    found = src.seen()
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), src.path)
    if stat.S_IFMT(found.mode) in (stat.S_IFBLK, stat.S_IFCHR):
        raise Forbidden(f"'{src.text}' is a device; it can't be copied, nor moved to another filesystem.")
    copy.entry(src.fd, src.name, found, staging, name, src.path)
    if stat.S_ISDIR(found.mode):
        copy.tree(deep)
    copying.sync_filesystem(staging)
    if keep:
        copy.check_unchanged()
    binding = binding_at(staging, name)
    assert binding is not None
    return binding


class _Copy:
    """One copy under way. Directories are worked off a list of relative paths: depth costs no stack."""

    def __init__(self, src: Place, space: Space, staging: int, name: bytes, into: int, keep: bool) -> None:
        self._src = src
        self._space = space
        self._staging = staging
        self._name = name
        self._into = into
        self._keep = keep
        self._seen: list[tuple[bytes, Statx]] = []

    def tree(self, deep: bool) -> None:
        """Fill the directory that was just made, then set the times that filling it changed."""
        waiting, made = [b""], []
        while waiting:
            path = waiting.pop()
            made.append(path)
            if deep:
                waiting += self._fill(path)
        for path in reversed(made):
            src, dst = self._open_source(path), self._open_copy(path)
            try:
                found = os.fstat(src)
                if self._keep:
                    os.fchmod(dst, stat.S_IMODE(found.st_mode))
                os.utime(dst, ns=(found.st_atime_ns, found.st_mtime_ns))
            finally:
                os.close(src)
                os.close(dst)

    def _fill(self, path: bytes) -> list[bytes]:
        """Copy the entries of one directory; returns the directories among them."""
        src, dst = self._open_source(path), self._open_copy(path)
        below = []
        try:
            for name in sorted(os.listdir(b"/proc/self/fd/%d" % src)):
                if self._src.space.is_hidden(os.stat(name, dir_fd=src, follow_symlinks=False), name):
                    continue
                found = statx(src, name)
                relative = path + b"/" + name if path else name
                self.entry(src, name, found, dst, name, self._src.path + b"/" + relative)
                if stat.S_ISDIR(found.mode):
                    below.append(relative)
        finally:
            os.close(src)
            os.close(dst)
        return below

    def entry(self, src: int, name: bytes, found: Statx, dst: int, new: bytes, path: bytes) -> None:
        """Copy one entry; of a directory only itself."""
        if self._keep:
            self._seen.append((path, found))
        kind = stat.S_IFMT(found.mode)
        if kind == stat.S_IFREG:
            self._file(src, name, found, dst, new, path)
        elif kind == stat.S_IFDIR:
            self._directory(src, name, dst, new)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=src), new, dir_fd=dst)
            self._finish_special(src, name, found, dst, new)
        elif kind in (stat.S_IFIFO, stat.S_IFSOCK):
            os.mknod(new, kind | stat.S_IMODE(found.mode), dir_fd=dst)
            self._finish_special(src, name, found, dst, new)
        elif self._keep:
            raise Forbidden(f"'{to_text(path)}' is a device; it can't be moved to another filesystem.")

    def _file(self, src: int, name: bytes, found: Statx, dst: int, new: bytes, path: bytes) -> None:
        record = self._space.record
        mode = 0o666 if record.file_mode is None else record.file_mode
        source = os.open(name, _READ, dir_fd=src)
        try:
            target = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode | 0o200, dir_fd=dst)
            try:
                for _ in range(_TRIES):
                    before = statx(source, b"")
                    copying.copy_data(source, target)
                    if statx(source, b"") == before:
                        break
                    os.ftruncate(target, 0)
                else:
                    if self._keep:
                        raise PreconditionFailed(
                            f"'{to_text(path)}' was written to while it was being moved."
                        )
                    copying.copy_data(source, target)  # a log that never rests is copied as it is
                if dst == self._staging and not self._keep:
                    posixacl.inherit(target, self._into, mode)
                self._dress(source, target)
                if not self._keep:
                    self._set_file_mode(target, found)
                os.utime(target, ns=(found.mtime_ns, found.mtime_ns))
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _directory(self, src: int, name: bytes, dst: int, new: bytes) -> None:
        record = self._space.record
        os.mkdir(new, 0o777 if record.dir_mode is None else record.dir_mode, dir_fd=dst)
        source, target = open_beneath(src, name, _DIRECTORY), open_beneath(dst, new, _DIRECTORY)
        try:
            if dst == self._staging and not self._keep:
                posixacl.inherit(target, self._into, 0o777 if record.dir_mode is None else record.dir_mode)
            self._dress(source, target)
            if not self._keep and record.dir_mode is not None and posixacl.read(target) is None:
                os.fchmod(target, record.dir_mode | (os.fstat(target).st_mode & stat.S_ISGID))
            if self._keep:
                os.fchmod(target, 0o700)  # `tree` sets the real one when the directory is full
        finally:
            os.close(source)
            os.close(target)

    def _dress(self, source: int, target: int) -> None:
        copying.set_user_attributes(target, copying.user_attributes(source))
        properties.copy_overflow(self._src.space, source, self._space, target)
        if self._keep:
            copying.dress_like(target, source, os.fstat(source), user=False)
            return
        record = self._space.record
        gid = self._group()
        if record.uid is not None or gid is not None:
            os.fchown(target, -1 if record.uid is None else record.uid, -1 if gid is None else gid)

    def _group(self) -> int | None:
        """What the copy gets: a directory with the setgid bit gives its own, as to whatever else is made there."""
        into = os.fstat(self._into)
        return into.st_gid if into.st_mode & stat.S_ISGID else self._space.record.gid

    def _set_file_mode(self, target: int, found: Statx) -> None:
        """The space's mode, or what the umask or the default ACL left; and the x bits of the source."""
        mode = self._space.record.file_mode
        if mode is None or posixacl.read(target) is not None:
            mode = stat.S_IMODE(os.fstat(target).st_mode)
        os.fchmod(target, mode | (found.mode & 0o111 & (mode & 0o444) >> 2))

    def _finish_special(self, src: int, name: bytes, found: Statx, dst: int, new: bytes) -> None:
        record = self._space.record
        uid, gid = (found.uid, found.gid) if self._keep else (record.uid, self._group())
        if uid is not None or gid is not None:
            try:
                os.chown(
                    new,
                    -1 if uid is None else uid,
                    -1 if gid is None else gid,
                    dir_fd=dst,
                    follow_symlinks=False,
                )
            except PermissionError:
                if not self._keep:
                    raise
        os.utime(new, ns=(found.mtime_ns, found.mtime_ns), dir_fd=dst, follow_symlinks=False)

    def check_unchanged(self) -> None:
        """PreconditionFailed if anything below the source is not as it was when it was copied."""
        skip = len(self._src.path) + 1
        for path, found in self._seen:
            parent, _, name = path[skip:].rpartition(b"/")
            top = path == self._src.path
            fd = os.dup(self._src.fd) if top else self._open_source(parent)
            try:
                now = statx(fd, self._src.name if top else name)
            finally:
                os.close(fd)
            if now._replace(nlink=0) != found._replace(nlink=0):
                raise PreconditionFailed(f"'{to_text(path)}' was changed while it was being moved.")

    def _open_source(self, path: bytes) -> int:
        whole = self._src.name + b"/" + path if path else self._src.name
        return open_beneath(self._src.fd, whole or b".", _DIRECTORY)

    def _open_copy(self, path: bytes) -> int:
        return open_beneath(self._staging, self._name + b"/" + path if path else self._name, _DIRECTORY)
