"""A place: an open directory of a space and a name in it. Every change of the tree goes through one.

The directory is resolved once, beneath the root and without following links; afterwards only single-component calls
on its descriptor are made, so nothing that happens to the path above can lead a change outside the space.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fsd.core import ids, lease
from fsd.core.absent import is_absent
from fsd.core.errors import AcrossMounts, Forbidden, NameRefused, ParentMissing, ReadOnlySpace, SpaceDisabled
from fsd.core.names import INTERNAL, NAME_MAX, SNAPSHOTS, check_new_name, to_text
from fsd.core.syscalls import Statx, directory_path, open_beneath, rename_noreplace, statx

if TYPE_CHECKING:
    from fsd.core.space import Space


class Place:
    """`name` in the directory behind `fd`. Owns the descriptor."""

    __slots__ = ("_ident", "fd", "met", "name", "path", "space", "token")

    def __init__(self, space: Space, path: bytes, fd: int, name: bytes) -> None:
        self.space = space
        self.path = path
        self.fd = fd
        self.name = name
        self.met: Statx | None = None
        """What stood here when the place was opened."""
        self.token = lease.token(space)
        """By which this host had the space's lease then."""
        self._ident: tuple[int, int] | None = None

    @property
    def ident(self) -> tuple[int, int]:
        """(device, inode) of the directory; no other has them while it is held open."""
        if self._ident is None:
            found = os.fstat(self.fd)
            self._ident = found.st_dev, found.st_ino
        return self._ident

    @property
    def parent(self) -> bytes:
        """The path of the directory."""
        return self.path.rpartition(b"/")[0]

    @property
    def text(self) -> str:
        """The path for messages."""
        return to_text(self.path)

    @property
    def link(self) -> bytes:
        """A path through /proc to the entry itself, for calls that have no *at form (xattrs)."""
        return b"/proc/self/fd/%d/%b" % (self.fd, self.name)

    def require(self) -> None:
        """Raise Elsewhere if this host has lost the space's lease since the place was opened; also if it has got it
        again, as another one may have changed what was looked at."""
        lease.require(self.space, self.token)

    def may_write(self) -> bool:
        """Whether `require` would let it pass."""
        return lease.may_write(self.space, self.token)

    def seen(self) -> Statx | None:
        """What stands here, None if nothing does."""
        try:
            return statx(self.fd, self.name)
        except FileNotFoundError:
            return None

    def binding(self) -> bytes | None:
        """Which node stands here, None if none does."""
        return binding_at(self.fd, self.name)

    def reserved(self) -> bool:
        """Whether the space's internal directory stands here, or a filesystem's snapshots."""
        if self.parent and self.name not in (INTERNAL, SNAPSHOTS):
            return False
        try:
            return self.space.is_hidden(os.stat(self.name, dir_fd=self.fd, follow_symlinks=False), self.name)
        except FileNotFoundError:
            return False

    def is_at(self, directory: bytes) -> bool:
        """Whether this path leads to the open directory now; what can't be told counts as no."""
        try:
            # That it is no hidden one was asked when the place was opened.
            fd = open_beneath(self.space.root_fd(), directory, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return False
        try:
            found = os.fstat(fd)
            return (found.st_dev, found.st_ino) == self.ident
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the directory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def binding_at(fd: int, name: bytes) -> bytes | None:
    """The binding of an entry, None if there is none."""
    try:
        return ids.node_binding(fd, name, statx(fd, name))
    except FileNotFoundError:
        return None


def require_writable(space: Space) -> None:
    """Raise unless fsd may change this space's tree, and may do so on this host."""
    if space.record.state != "active":
        raise SpaceDisabled("The space is not served.")
    if space.record.read_only:
        raise ReadOnlySpace("The space is read-only.")
    if not space.internals_at_home():
        raise ReadOnlySpace(
            "The space's internal directory '.fsd' was moved away; the space is read-only until it is back."
        )
    lease.require(space)


def _check_path(path: bytes) -> None:
    if not path:
        raise Forbidden("The root of a space can't be moved, replaced or deleted.")
    if any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise NameRefused("A path must not have empty, '.' or '..' parts.")


def open_source(space: Space, path: bytes) -> Place:
    """The place of something that exists; FileNotFoundError if it does not, or is the internal directory."""
    _check_path(path)
    try:
        fd, name = space.open_parent(path)
    except OSError as error:
        # Below a file or a link there is nothing (links are not followed); that proves absence like ENOENT does.
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    place = Place(space, path, fd, name)
    try:
        place.met = place.seen()
        if (place.met is None and is_absent(space, fd, name)) or place.reserved():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    except BaseException:
        place.close()
        raise
    return place


def open_destination(space: Space, path: bytes, *, known_name: bytes | None = None) -> Place:
    """The place where something will appear, taken or free.

    ParentMissing without a directory to hold it; NameRefused for a new name that may not be made, unless it is
    `known_name`, which exists elsewhere already.
    """
    _check_path(path)
    try:
        fd, name = space.open_parent(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Forbidden(
                f"'{to_text(path)}' lies behind a symbolic link, which is not followed."
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ParentMissing(f"The directory of '{to_text(path)}' does not exist.") from error
        raise
    place = Place(space, path, fd, name)
    try:
        if len(name) > NAME_MAX:
            check_new_name(name)
        place.met = place.seen()
        if place.met is None and name != known_name:
            check_new_name(name)
        if place.reserved():
            raise Forbidden(f"The name '{place.text}' is reserved.")
    except BaseException:
        place.close()
        raise
    return place


@contextmanager
def source(space: Space, path: bytes) -> Iterator[Place]:
    """`open_source`, closed at the end."""
    place = open_source(space, path)
    try:
        yield place
    finally:
        place.close()


@contextmanager
def destination(space: Space, path: bytes, *, known_name: bytes | None = None) -> Iterator[Place]:
    """`open_destination`, closed at the end."""
    place = open_destination(space, path, known_name=known_name)
    try:
        yield place
    finally:
        place.close()


@contextmanager
def internal(space: Space, name: str) -> Iterator[int]:
    """A descriptor of a directory below `.fsd`."""
    fd = space.open_internal(name)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def changing(place: Place) -> Iterator[None]:
    """A step that others see, and so one of the host that has the space's lease (Elsewhere): asked at the last moment,
    as it may have stood still since it began. The kernel's answers about mount points become sentences."""
    place.require()
    try:
        yield
    except OSError as error:
        if error.errno == errno.EXDEV and not isinstance(error, AcrossMounts):
            raise AcrossMounts(
                f"'{place.text}' lies on another filesystem than the rest of the space; this can't be done at once."
            ) from error
        if error.errno == errno.EBUSY:
            raise Forbidden(f"'{place.text}' is a mount point.") from error
        raise


def rename_new(sfd: int, sname: bytes, dfd: int, dname: bytes) -> None:
    """Rename to a name that must be free (FileExistsError).

    Without RENAME_NOREPLACE (EINVAL) a file is linked, then unlinked; a directory is renamed after a look, which a
    writer in between could overtake: an empty directory of theirs would be replaced, nothing else can be (rename(2)).
    """
    try:
        rename_noreplace(sfd, sname, dfd, dname)
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    found = statx(sfd, sname)
    if not stat.S_ISDIR(found.mode):
        os.link(sname, dname, src_dir_fd=sfd, dst_dir_fd=dfd, follow_symlinks=False)
        os.unlink(sname, dir_fd=sfd)
        return
    if binding_at(dfd, dname) is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dname)
    os.rename(sname, dname, src_dir_fd=sfd, dst_dir_fd=dfd)


def refuse_mounts_below(place: Place) -> None:
    """Forbidden if a filesystem is mounted at or below a directory: it would be moved along or be cut off."""
    top = directory_path(place.fd)
    top = b"/" + place.name if top == b"/" else top + b"/" + place.name
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            point = _unescape(line.split(b" ", 5)[4])
            if point == top or point.startswith(top + b"/"):
                raise Forbidden(f"A filesystem is mounted in '{place.text}'; unmount it first.")


def _unescape(field: bytes) -> bytes:
    # proc(5): space, tab, newline and backslash are octal escapes.
    if b"\\" not in field:
        return field
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field
