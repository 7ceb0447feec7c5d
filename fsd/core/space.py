"""An open space: its root, proven to be the right one, its internals, and its two databases.

Opening is lazy, so that a process may fork before; a Space is thread-safe. The root's descriptor is kept, and each
use compares what the path leads to with what was proven: an unmounted or swapped root is *unavailable*, never empty.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fsd.core import ids, lease, ownfiles
from fsd.core.announced import Board
from fsd.core.errors import FsdError, ReadOnlySpace, StorageUnavailable
from fsd.core.index import Index
from fsd.core.names import INTERNAL, SNAPSHOTS
from fsd.core.state import State
from fsd.core.sums import Sums
from fsd.core.syscalls import open_beneath, statx

INTERNAL_PARTS = (b"trash", b"trash/files", b"trash/info", b"versions", b"staging", b"meta")
_PROOF_S = 0.002
"""The root is proven once for the calls of one operation; the descriptor leads to the right tree in any case."""
_TRIES = 5
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class SpaceRecord:
    """What the registry knows of a space. `path` is the absolute root; `root_binding` proves it (hex)."""

    id: str
    hex: str
    name: str
    alias: str
    type: Literal["personal", "project"]
    path: bytes
    owner: str | None
    label: Literal["now", "lazy", "none"]
    read_only: bool
    state: Literal["active", "disabled", "deleted"]
    uid: int | None
    gid: int | None
    file_mode: int | None
    dir_mode: int | None
    root_binding: str
    created: int
    source: str = "auto"
    """How changes are heard: auto, fanotify, inotify or poll."""


class Space:
    """An open space. Does not own the registry's record: a changed record means a new Space."""

    def __init__(self, record: SpaceRecord, state_dir: Path) -> None:
        self.record = record
        self.root = record.path
        self.key = bytes.fromhex(record.hex)
        self.state_dir = state_dir
        self._guard = threading.RLock()
        self._root: tuple[int, tuple[int, int]] | None = None
        self._proved_at = 0.0
        self._secret: bytes | None = None
        self._fsd_ident: tuple[int, int] | None = None
        self._snapshots = False
        """Whether its filesystem is a CephFS, which has snapshots under a name in each directory."""
        base = state_dir / record.hex
        self.state = State(base.with_suffix(".state.db"), base.with_suffix(".state-lock"))
        self.index = Index(base.with_suffix(".index.db"), base.with_suffix(".lock"), self)
        self.sums = Sums(base.with_suffix(".sums.db"), base.with_suffix(".sums-lock"))
        self.board = Board(base)

    def root_fd(self) -> int:
        """The root's descriptor, proven now; it stays the Space's own, don't close it.

        Raises StorageUnavailable if the path leads elsewhere, nowhere, or to another node than the registered one.
        """
        now = time.monotonic()
        if self._root is not None and now - self._proved_at < _PROOF_S:
            return self._root[0]
        try:
            found = os.stat(self.root)
        except OSError as error:
            self._drop_root()
            raise StorageUnavailable(
                f"The storage of the space is not available: {os.strerror(error.errno or 0)}."
            ) from error
        ident = (found.st_dev, found.st_ino)
        known = self._root
        if known is not None and known[1] == ident:
            self._proved_at = now
            return known[0]
        with self._guard:
            known = self._root
            if known is not None and known[1] == ident:
                return known[0]  # another thread was faster, and uses its descriptor already
            self._drop_root()
            return self._prove_root()

    def _prove_root(self) -> int:
        try:
            fd = os.open(self.root, _DIRECTORY)
        except OSError as error:
            raise StorageUnavailable(
                f"The root of the space cannot be opened: {os.strerror(error.errno or 0)}."
            ) from error
        try:
            ids.forget_storages()
            found = statx(fd, b"")
            if ids.node_binding(fd, b"", found).hex() != self.record.root_binding:
                raise StorageUnavailable(
                    "The directory of the space is not the registered one: is its storage mounted there?"
                )
        except BaseException:
            os.close(fd)
            raise
        if self._fsd_ident is not None and self._fsd_ident[0] != found.dev:
            # The storage was plugged in again under another device number; space.json tells whether it is ours.
            self._fsd_ident = None
        self._snapshots = ids.cluster_of(fd) != b""
        self._root = (fd, (found.dev, found.ino))
        return fd

    def _drop_root(self) -> None:
        with self._guard:
            if self._root is not None:
                os.close(self._root[0])
                self._root = None

    @property
    def internal_path(self) -> bytes:
        """Where the internals live: in the tree, for a read-only space in the state directory."""
        if self.record.read_only:
            return os.fsencode(self.state_dir / f"{self.record.hex}.fsd")
        return self.root + b"/" + INTERNAL

    @property
    def secret(self) -> bytes:
        """32 bytes that key the labels' proofs; they travel in `.fsd/space.json`, readable by the service alone."""
        if self._secret is None:
            self._load_internals()
        assert self._secret is not None
        return self._secret

    @property
    def fsd_ident(self) -> tuple[int, int]:
        """(device, inode) of the internal directory; whatever has them is hidden, under any name."""
        if self._fsd_ident is None:
            self._load_internals()
        assert self._fsd_ident is not None
        return self._fsd_ident

    def _load_internals(self) -> None:
        fd = self._open_internals()
        try:
            self._secret = _read_space_json(fd, self.record.id)
            found = os.fstat(fd)
            self._fsd_ident = (found.st_dev, found.st_ino)
        finally:
            os.close(fd)

    def _open_internals(self) -> int:
        try:
            if self.record.read_only:
                return os.open(self.internal_path, _DIRECTORY | os.O_NOFOLLOW)
            return open_beneath(self.root_fd(), INTERNAL, _DIRECTORY | os.O_NOFOLLOW)
        except FsdError:
            raise
        except OSError as error:
            raise StorageUnavailable(
                f"The space's internal directory '.fsd' cannot be opened: {os.strerror(error.errno or 0)}."
            ) from error

    def open_internal(self, name: str) -> int:
        """A descriptor of a directory below `.fsd`, made if missing; the caller closes it.

        Hosts that share the space stage each in a place of its own: what a host has staged only its intents know.
        Raises ReadOnlySpace when `.fsd` was displaced: nothing may be written without it.
        """
        if name == "staging" and lease.host_of(self.state_dir) is not None:
            name = f"staging/work-{lease.host_id(self.state_dir)}"
        fd = self._open_internals()
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self.fsd_ident:
                raise ReadOnlySpace("The space's internal directory was replaced; the space is read-only.")
            for turn in range(_TRIES):
                here = b""
                for part in os.fsencode(name).split(b"/"):
                    here = here + b"/" + part if here else part
                    try:
                        os.mkdir(here, 0o700, dir_fd=fd)
                    except FileExistsError:
                        pass
                try:
                    return open_beneath(fd, here, _DIRECTORY)
                except FileNotFoundError:  # another host took it over in this very moment
                    if turn == _TRIES - 1:
                        raise
            raise AssertionError
        finally:
            os.close(fd)

    def open_dir(self, path: bytes) -> int:
        """Open a directory of the space for reading, beneath the root, no links followed; the caller closes it.

        The internal directory does not exist for callers (ENOENT), under whatever name.
        """
        # First of all: not even the kind of what lies in there is told.
        if path and self._leads_inside(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return open_beneath(self.root_fd(), path, _DIRECTORY)

    def open_file(self, path: bytes) -> int:
        """Open a regular file for reading, beneath the root, no links followed; the caller closes it.

        A descriptor of something else is possible: look at it. Nothing of the internal directory (ENOENT).
        """
        if self._leads_inside(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return open_beneath(self.root_fd(), path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _leads_inside(self, path: bytes) -> bool:
        """Whether a path is, or lies below, the internal directory, also where somebody has moved it, or snapshots."""
        parts = path.split(b"/")
        if SNAPSHOTS in parts and self.keeps_snapshots():
            return True
        at_home = self.internals_at_home()
        if at_home and parts[0] == INTERNAL and not self.record.read_only:
            return True
        if at_home and INTERNAL not in parts:
            return False
        above = (b"/".join(parts[: depth + 1]) for depth in range(len(parts)))
        return any(
            self.is_hidden(
                os.stat(part, dir_fd=self.root_fd(), follow_symlinks=False), part.rpartition(b"/")[2]
            )
            for part in above
            if not at_home or part.endswith(INTERNAL)
        )

    def internals_at_home(self) -> bool:
        """Whether `.fsd` is where it belongs. If not, somebody displaced it: nothing may be written then."""
        if self.record.read_only:
            return True
        try:
            found = os.stat(INTERNAL, dir_fd=self.root_fd(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self.fsd_ident

    def open_parent(self, path: bytes) -> tuple[int, bytes]:
        """(descriptor of the directory that holds `path`, last name); the caller closes it."""
        parent, _, name = path.rpartition(b"/")
        return self.open_dir(parent), name

    def keeps_snapshots(self) -> bool:
        """Whether SNAPSHOTS is a name that the filesystem has for itself, as CephFS does."""
        self.root_fd()
        return self._snapshots

    def is_hidden(self, found: os.stat_result, name: bytes) -> bool:
        """Whether an entry is the internal directory, under any name, or that of another space or another time; or a
        filesystem's directory of snapshots.

        A snapshot or a backup that lies in the space has one too, with the key that proves labels: what has the name,
        is a directory of the service's and closed to all others.
        """
        if not stat.S_ISDIR(found.st_mode):
            return False
        if (found.st_dev, found.st_ino) == self.fsd_ident or (name == SNAPSHOTS and self.keeps_snapshots()):
            return True
        return name == INTERNAL and not found.st_mode & 0o077 and found.st_uid == os.geteuid()

    def hides(self, fd: int, name: bytes) -> bool:
        """The same of what stands at a name of an open directory now; what is gone nobody sees."""
        try:
            return self.is_hidden(os.stat(name, dir_fd=fd, follow_symlinks=False), name)
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close the root and the databases; the next use opens them again."""
        self._drop_root()
        self.board.close()
        self.index.close()
        self.sums.close()
        self.state.close()


def _read_space_json(fsd_fd: int, space_id: str) -> bytes:
    try:
        data = ownfiles.parse(ownfiles.read(fsd_fd, b"space.json", 65536))
        secret = bytes.fromhex(data["secret"])
        if data["id"] != space_id or len(secret) != 32:
            raise ValueError("it belongs to another space")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageUnavailable(f"The space's '.fsd/space.json' is not usable: {error}.") from error
    return secret


def initialise_root(
    root: bytes,
    space_id: str,
    secret: bytes,
    uid: int | None = None,
    gid: int | None = None,
    *,
    internals: bytes | None = None,
) -> str:
    """Make the internal directory of a space and return the binding of its root (hex).

    `internals` is the directory to use instead of `.fsd` in the tree (read-only spaces). Idempotent; an existing
    `space.json` of another id is an error (FileExistsError). Everything is fsynced before it returns.
    """
    root_fd = os.open(root, _DIRECTORY)
    try:
        place = internals if internals is not None else root + b"/" + INTERNAL
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            pass
        fsd_fd = os.open(place, _DIRECTORY | os.O_NOFOLLOW)
        try:
            if stat.S_IMODE(os.fstat(fsd_fd).st_mode) != 0o700:  # some filesystems have one mode for all
                os.fchmod(fsd_fd, 0o700)
            for part in INTERNAL_PARTS:
                try:
                    os.mkdir(part, 0o700, dir_fd=fsd_fd)
                except FileExistsError:
                    pass
            _write_space_json(fsd_fd, space_id, secret)
            if uid is not None or gid is not None:
                os.fchown(root_fd, -1 if uid is None else uid, -1 if gid is None else gid)
            os.fsync(fsd_fd)
        finally:
            os.close(fsd_fd)
        try:
            os.fsync(root_fd)
        except OSError as error:
            # A filesystem that is never written has nothing to write back (fsync(2)).
            if internals is None or error.errno not in (errno.EINVAL, errno.EROFS):
                raise
        return ids.node_binding(root_fd, b"", statx(root_fd, b"")).hex()
    finally:
        os.close(root_fd)


def _write_space_json(fsd_fd: int, space_id: str, secret: bytes) -> None:
    try:
        old = ownfiles.parse(ownfiles.read(fsd_fd, b"space.json", 65536)).get("id")
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ownfiles.Unusable(f"The directory's '.fsd/space.json' is damaged ({error}).") from None
    else:
        if old != space_id:
            raise FileExistsError(errno.EEXIST, "The directory already belongs to another space")
        return
    fd = os.open(
        b"space.json.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=fsd_fd
    )
    with open(fd, "w") as file:
        json.dump({"id": space_id, "secret": secret.hex()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(b"space.json.new", b"space.json", src_dir_fd=fsd_fd, dst_dir_fd=fsd_fd)
