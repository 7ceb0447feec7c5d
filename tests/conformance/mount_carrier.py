"""File operations through a mount, by the system calls a careful program makes. What is shown is asked of the core,
as another process sees it, and compared with what the mount shows."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsd.core import tree
from fsd.core.space import Space
from fsd.core.syscalls import open_beneath, rename_noreplace
from tests.conformance.carriers import Refused, Seen
from tests.support.waiting import agree, wait_for

_REASONS = {
    errno.ENOENT: "missing",
    errno.EEXIST: "exists",
    errno.ENOTDIR: "kind",
    errno.EISDIR: "kind",
    errno.ELOOP: "forbidden",
    errno.EPERM: "forbidden",
    errno.EACCES: "forbidden",
    errno.EINVAL: "forbidden",
    errno.ENAMETOOLONG: "name",
    errno.ESTALE: "precondition",
}


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(_REASONS.get(error.errno or 0, "other"), error) from error


class MountCarrier:
    """A space through its mount."""

    any_name = saves_by_rename = True

    def __init__(self, place: Path, space: Space) -> None:
        self.space, self.root = space, space.root
        self._top = os.fsencode(place)

    @contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        above, _, name = path.rpartition(b"/")
        top = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fd = open_beneath(top, above, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(top)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def put(self, path: bytes, data: bytes, *, if_match: str | None = None, new: bool = False) -> str:
        """Written aside and renamed over; the etag afterwards."""
        with _asking(), self._parent(path) as (fd, name):
            if if_match is not None and not self._matches(path, if_match):
                raise OSError(errno.ESTALE, "another etag")
            if len(name) > 255:
                raise OSError(errno.ENAMETOOLONG, "too long")
            aside = name if new else b".new~" + name[:200]
            made = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd)
            with open(made, "wb") as file:
                file.write(data)
            if not new:
                os.rename(aside, name, src_dir_fd=fd, dst_dir_fd=fd)
        return self.look(path).etag

    def looked_at(self) -> None:
        """Wait until the watcher has looked into every directory once: a first look that finds it changed since it was
        first seen moves its etag, whatever the change was."""
        wait_for(self._none_is_new, what="the first look into each directory")

    def _none_is_new(self) -> bool:
        with self.space.index.read() as db:
            return db.execute("SELECT 1 FROM dir WHERE epoch=0 LIMIT 1").fetchone() is None

    def _matches(self, path: bytes, etag: str) -> bool:
        try:
            return os.getxattr(self._top + b"/" + path, "user.fsd.etag") == etag.encode()
        except FileNotFoundError:
            return False

    def get(self, path: bytes) -> bytes:
        """All bytes of a file."""
        with _asking(), self._parent(path) as (fd, name):
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd), "rb") as file:
                return file.read()

    def make_directory(self, path: bytes) -> None:
        """One new directory."""
        with _asking(), self._parent(path) as (fd, name):
            os.mkdir(name, dir_fd=fd)

    def delete(self, path: bytes) -> None:
        """Whole."""
        with _asking(), self._parent(path) as (fd, name):
            self._remove(fd, name)

    def _remove(self, fd: int, name: bytes) -> None:
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)

    def move(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool:
        """Whether the target is new."""
        with _asking(), self._parent(source) as (here, old), self._parent(target) as (there, new):
            if source == target:
                raise OSError(errno.EINVAL, "onto itself")
            try:
                rename_noreplace(here, old, there, new)
                return True
            except FileExistsError:
                if not overwrite:
                    raise
            try:
                os.rename(old, new, src_dir_fd=here, dst_dir_fd=there)
            except (IsADirectoryError, NotADirectoryError):
                self._remove(there, new)
                os.rename(old, new, src_dir_fd=here, dst_dir_fd=there)
            return False

    def copy(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool:
        """Whether the target is new."""
        with _asking():
            here, there = self._top + b"/" + source, self._top + b"/" + target
            taken = os.path.lexists(there)
            if taken and not overwrite:
                raise OSError(errno.EEXIST, "taken")
            if os.path.isdir(here):
                shutil.copytree(here, there, symlinks=True)
            else:
                shutil.copyfile(here, there, follow_symlinks=False)
            return not taken

    def look(self, path: bytes) -> Seen:
        """One entry, as the core shows it right after; the mount shows the same."""
        with _asking():
            before = tree.lookup(self.space, path)
            # Between two looks the watcher may find more to say of a directory that is new.
            agree(lambda: self._compare(path))
            return _seen(before)

    def _compare(self, path: bytes) -> None:
        entry, place = tree.lookup(self.space, path), self._top + b"/" + path
        shown = os.lstat(place)
        assert stat.S_IFMT(shown.st_mode) == stat.S_IFMT(entry.mode)
        if entry.kind in "fd":
            size = shown.st_size if entry.kind == "f" else int(os.getxattr(place, "user.fsd.treesize"))
            assert size == entry.size
            assert os.getxattr(place, "user.fsd.etag").decode() == entry.etag
            assert os.getxattr(place, "user.fsd.id").decode().endswith(entry.id)

    def names(self, path: bytes) -> dict[bytes, Seen]:
        """The entries of a directory."""
        with _asking():
            shown = set(os.listdir(self._top + b"/" + path))
            _, entries = tree.listing(self.space, path)
            assert shown == {entry.name for entry in entries}
        return {entry.name: _seen(entry) for entry in entries}


def _seen(entry: tree.Entry) -> Seen:
    return Seen(
        entry.kind if entry.kind in "fd" else "o", entry.size, entry.id, entry.etag, entry.mtime_ns // 10**9
    )
