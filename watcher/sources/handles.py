"""Which directory of which space a file handle stands for, as seen through the mounts of one filesystem.

A handle stands for one directory for ever, whatever it is called, so its binding is remembered; its place is
remembered only until a directory of its space is renamed, and that it is in no space until one comes into a
space. Bounded: two generations of MAX_KNOWN handles each,
of which the one that was not asked for is dropped. One thread at a time uses a Handles.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from fsd.core import ids
from fsd.core.syscalls import directory_path, file_handle, statx
from watcher.sources.fanotify_abi import open_handle

MAX_KNOWN = 32_768
_GONE = (errno.ESTALE, errno.ENOENT)


@dataclass(slots=True)
class Spot:
    """A root of a space, or a filesystem inside it, that is heard."""

    space: str
    root: bytes
    base: bytes
    hidden: tuple[int, int]
    fd: int
    """The root of a space, for open_by_handle_at(2); the Spot's own. -1 for a filesystem inside it: that is opened for
    each use, as whoever wants to unmount it would be told that it is busy."""
    handle: bytes
    mount: int
    hidden_handle: bytes
    hidden_path: bytes = b""
    hidden_seen: int = -1
    """`hidden_path` was true at so many moves."""
    moves: int = 0
    """Raised with each directory that is renamed within, or leaves: no remembered place in it holds then."""


class Known:
    """A directory: `spot` None if it is in no space, or hidden; `path` below the space's root."""

    __slots__ = ("binding", "path", "seen", "spot")

    def __init__(self) -> None:
        self.spot: Spot | None = None
        self.path = b""
        self.binding = b""
        self.seen = -1


class Handles:
    """All heard places of one filesystem."""

    def __init__(self) -> None:
        self._moves = 0
        """Raised with each directory that comes into a place, and each place that comes or goes: what was
        remembered to be in none may be in one."""
        self.asked = 0
        """How often the kernel was asked."""
        self._spots: list[Spot] = []
        self._tops: dict[bytes, Spot] = {}
        self._young: dict[bytes, Known] = {}
        self._old: dict[bytes, Known] = {}

    # -- places

    def add(self, space: str, root: bytes, hidden: tuple[int, int], base: bytes) -> Spot:
        """Begin with a place. OSError if it cannot be opened or has no handle, EPERM without the right to use
        handles, EXDEV if handles don't lead back to where it is."""
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = statx(fd, b"")
            spot = Spot(space, root, base, hidden, fd, _handle(fd), found.mnt_id, b"")
            spot.hidden_handle = _hidden_handle(fd, hidden)
            if _path(spot, spot.handle) != root:
                raise OSError(errno.EXDEV, "its handle leads elsewhere", root)
        except BaseException:
            os.close(fd)
            raise
        if base:
            os.close(fd)
            spot.fd = -1
        self._spots.append(spot)
        self._tops[root] = spot
        self.moved_all()
        return spot

    def remove(self, spot: Spot) -> None:
        """Forget a place."""
        self._spots.remove(spot)
        if self._tops.get(spot.root) is spot:
            del self._tops[spot.root]
        if spot.fd >= 0:
            os.close(spot.fd)
        spot.moves += 1
        self.moved_all()

    def came_in(self) -> None:
        """A directory came into a place, or a place came or went."""
        self._moves += 1

    def moved(self, spot: Spot) -> None:
        """A directory was renamed within a place, or left it."""
        spot.moves += 1

    def moved_all(self) -> None:
        """Nothing that is remembered of places holds."""
        self._moves += 1
        for spot in self._spots:
            spot.moves += 1

    def is_home(self, spot: Spot) -> bool:
        """Whether the root is still where it was."""
        try:
            return _path(spot, spot.handle) == spot.root
        except OSError:
            return False

    # -- directories

    def remembered(self, handle: bytes) -> Known | None:
        """What is remembered of a directory and holds; asks nobody."""
        known = self._young.get(handle)
        if known is None:
            known = self._old.get(handle)
            if known is None:
                return None
            self._keep(handle, known)
        return known if known.seen == self._now(known) else None

    def find(self, handle: bytes) -> Known | None:
        """The directory as it is now; None if it is gone. OSError if that can't be told."""
        known = self.remembered(handle)
        if known is not None:
            return known
        known = self._young.get(handle) or Known()
        try:
            self._look(handle, known)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._young.pop(handle, None)
            return None
        known.seen = self._now(known)
        self._keep(handle, known)
        return known

    def _now(self, known: Known) -> int:
        return self._moves if known.spot is None else known.spot.moves

    def _keep(self, handle: bytes, known: Known) -> None:
        if len(self._young) >= MAX_KNOWN:
            self._old, self._young = self._young, {}
        self._young[handle] = known

    def _look(self, handle: bytes, known: Known) -> None:
        """One look for each mount: a directory may be in a space as seen through one of them only."""
        known.spot = None
        asked: set[int] = set()
        for through in self._spots:
            if through.mount in asked:
                continue
            asked.add(through.mount)
            try:
                fd = _open(through, handle)
            except NotMounted:
                continue
            self.asked += 1
            try:
                path = directory_path(fd)
                spot = self._spot_of(path)
                if spot is None or spot.mount != through.mount:
                    continue  # outside, or covered by what is mounted over it
                if not known.binding:
                    known.binding = ids.node_binding(fd, b"", statx(fd, b""))
            finally:
                os.close(fd)
            if self._is_hidden(spot, path):
                return
            below = path[len(spot.root) + 1 :]
            known.spot = spot
            known.path = b"/".join(part for part in (spot.base, below) if part)
            return

    def _spot_of(self, path: bytes) -> Spot | None:
        """The innermost place that holds an absolute path."""
        while path:
            spot = self._tops.get(path)
            if spot is not None:
                return spot
            path = path.rpartition(b"/")[0]
        return None

    def _is_hidden(self, spot: Spot, path: bytes) -> bool:
        if not spot.hidden_handle:
            return False
        if spot.hidden_seen != spot.moves:
            try:
                spot.hidden_path = _path(spot, spot.hidden_handle)
            except OSError:
                spot.hidden_path = b""
            spot.hidden_seen = spot.moves
        hidden = spot.hidden_path
        return bool(hidden) and (path == hidden or path.startswith(hidden + b"/"))


class NotMounted(OSError):
    """A filesystem inside a space is not where it was heard."""


def _open(spot: Spot, handle: bytes) -> int:
    if spot.fd >= 0:
        return open_handle(spot.fd, handle)
    try:
        root = os.open(spot.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotMounted(error.errno, error.strerror, spot.root) from error
    try:
        if statx(root, b"").mnt_id != spot.mount:
            raise NotMounted(errno.ENODEV, os.strerror(errno.ENODEV), spot.root)
        return open_handle(root, handle)
    finally:
        os.close(root)


def _path(spot: Spot, handle: bytes) -> bytes:
    fd = _open(spot, handle)
    try:
        return directory_path(fd)
    finally:
        os.close(fd)


def _handle(fd: int) -> bytes:
    """The handle in the form in which events carry it: length, type, bytes."""
    raw = file_handle(fd, b"")
    return (len(raw) - 4).to_bytes(4, "little") + raw


def _hidden_handle(root_fd: int, hidden: tuple[int, int]) -> bytes:
    """The hidden directory's handle, b"" if it is not in this root."""
    try:
        fd = os.open(b".fsd", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        return _handle(fd) if (found.st_dev, found.st_ino) == hidden else b""
    finally:
        os.close(fd)
