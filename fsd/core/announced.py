"""What a mount has changed and nobody has compared with the index yet, so that a reader can do it before it looks.

A mount changes names thousands of times a second and cannot reconcile each time. It announces: it appends the
directory and the name to a file mapped into memory, and says which files are open for writing. Whoever reads the
space (`settle`, called by every door) compares what was announced since the last time, and the open files whose
attributes moved. Announcing costs a microsecond; a reader pays only while something waits.

Files in the state directory: `<hex>.board`, one page with a slot for each mount, and `<hex>.log-<slot>`, its records.
They are hints like any other (the tree is the truth): a killed mount's records stay in the page cache and are
settled by the next reader; a power cut loses them, as it loses the end of the index, and the sweep after it finds all.
Locks: the log's flock comes before the index's lock. A slot belongs to the process that holds its byte's lock.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fsd.core.names import join

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)

SLOTS: Final = 63
_SLOT: Final = 64
LOG_BYTES: Final = 8 << 20
_BITS: Final = slice(8, 16)
_NONE: Final = bytes(8)
_STATE: Final = struct.Struct("<QQQQ")
"""A slot: the log's generation, the end of its records, how far they are settled, how many files are open."""
_PROMISED: Final = 4
"""The number of a slot after those: bytes that its mount may add without asking again, or keeps in files without a
name. No index counts them, and under a quota they are taken."""
_NUMBER: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<BxHHxxQ")
"""A record: kind, lengths of the two names that follow it, the token of an open file."""
_CHANGED, _OPENED, _CLOSED, _MOVED = 1, 2, 3, 4
_RECORD_MAX: Final = _RECORD.size + 2 * 65535
_OFD: Final = struct.Struct("hhqqi4x")

Names = dict[bytes, set[bytes]]
Signature = tuple[int, int, int] | None


def _mapped(path: Path) -> tuple[int, mmap.mmap]:
    """(descriptor, the one page of the file). Its block is there before it is written to: on a full disk a write to
    mapped memory would be a SIGBUS."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, mmap.PAGESIZE)
        return fd, mmap.mmap(fd, mmap.PAGESIZE)
    except BaseException:
        os.close(fd)
        raise


class Board:
    """The page of a space that says which mounts are writing; opened on first use, thread-safe."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._guard = threading.Lock()
        self._page: mmap.mmap | None = None
        self._fd = -1
        self._readers: dict[int, _Reader] = {}
        self._settling = threading.local()

    @property
    def page(self) -> mmap.mmap:
        """The mapped page."""
        if self._page is None:
            with self._guard:
                if self._page is None:
                    self._fd, self._page = _mapped(self._base.with_suffix(".board"))
        return self._page

    def waiting(self) -> bool:
        """Whether any mount has the space; False costs next to nothing."""
        try:
            return self.page[_BITS] != _NONE
        except OSError as error:
            # A hint that can't be read must not fail an answer: names and sizes of files come from the disk anyway.
            _log.info("what mounts announce can't be read: %s", error)
            return False

    def settle(self, space: Space) -> None:
        """Compare what was announced with the index; never raises for what can't be compared now."""
        if getattr(self._settling, "busy", False):
            return
        self._settling.busy = True
        try:
            with self._guard:
                for slot in self._used():
                    self._reader(slot).settle(space)
        finally:
            self._settling.busy = False

    def _used(self) -> Iterator[int]:
        (bits,) = _NUMBER.unpack(self.page[_BITS])
        while bits:
            yield (bits & -bits).bit_length()
            bits &= bits - 1

    def _reader(self, slot: int) -> _Reader:
        if slot not in self._readers:
            self._readers[slot] = _Reader(self, slot)
        return self._readers[slot]

    def state(self, slot: int) -> tuple[int, int, int, int]:
        """Generation, end, settled, open files."""
        return _STATE.unpack_from(self.page, slot * _SLOT)

    def put(self, slot: int, field: int, value: int) -> None:
        """Write one number of a slot."""
        _NUMBER.pack_into(self.page, slot * _SLOT + 8 * field, value)

    def promised(self, but: int = 0) -> int:
        """Bytes that mounts, but for the one of the slot `but`, may add or hold beyond what the index counts. To be
        read before the index: what is written meanwhile then counts twice, never not at all."""
        if not self.waiting():
            return 0
        return sum(self._promise(slot) for slot in self._used() if slot != but)

    def _promise(self, slot: int) -> int:
        number: int = _NUMBER.unpack_from(self.page, slot * _SLOT + 8 * _PROMISED)[0]
        return number

    def promise(self, slot: int, count: int) -> None:
        """Say what `promised` tells of a slot."""
        self.put(slot, _PROMISED, count)

    def log_path(self, slot: int) -> Path:
        """Where a slot's records are."""
        return self._base.with_suffix(f".log-{slot}")

    def take(self) -> int:
        """A free slot, locked by this process until `free` or its end. OSError(EBUSY) if all are taken."""
        with self._changing():
            for slot in range(1, SLOTS + 1):
                lock = _OFD.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
                try:
                    fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
                except OSError:
                    continue
                _, end, settled, opened = self.state(slot)
                if end != settled or opened:
                    self._unlock(slot)  # left by a killed one: a reader settles it
                    continue
                self._mark(slot, True)
                return slot
        raise OSError(16, "Too many mounts of one space.")

    def alive(self, slot: int) -> bool:
        """Whether the process that announces in this slot still runs."""
        fd = os.open(self._base.with_suffix(".board"), os.O_RDWR | os.O_CLOEXEC)
        try:
            asked = _OFD.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
            kind: int = _OFD.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
            return kind != fcntl.F_UNLCK
        finally:
            os.close(fd)

    def free(self, slot: int) -> None:
        """Give a slot back: nothing waits in it any more."""
        with self._changing():
            self._clear(slot)
            self._unlock(slot)

    def bury(self, slot: int) -> None:
        """Clear the slot of a mount that was killed, once its records are settled."""
        if not self.alive(slot):
            with self._changing():
                _, end, settled, _ = self.state(slot)
                if end == settled and not self.alive(slot):
                    self._clear(slot)

    def _clear(self, slot: int) -> None:
        self.put(slot, 2, self.state(slot)[1])
        self.put(slot, 3, 0)
        self.put(slot, _PROMISED, 0)
        self._mark(slot, False)

    def _changing(self) -> _Flock:
        page = self.page  # opens
        assert page is not None
        return _Flock(self._fd)

    def _mark(self, slot: int, used: bool) -> None:
        (bits,) = _NUMBER.unpack(self.page[_BITS])
        bit = 1 << (slot - 1)
        self.page[_BITS] = _NUMBER.pack(bits | bit if used else bits & ~bit)

    def _unlock(self, slot: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _OFD.pack(fcntl.F_UNLCK, os.SEEK_SET, slot, 1, 0))

    def close(self) -> None:
        """Unmap; the next use maps again."""
        with self._guard:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()
            if self._page is not None:
                self._page.close()
                os.close(self._fd)
                self._page, self._fd = None, -1


class _Flock:
    """flock(2) as a context."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


class _Reader:
    """What this process knows of one mount's log."""

    def __init__(self, board: Board, slot: int) -> None:
        self._board, self._slot = board, slot
        self._fd = os.open(board.log_path(slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < LOG_BYTES:
            os.ftruncate(self._fd, LOG_BYTES)
        self._map = mmap.mmap(self._fd, LOG_BYTES, access=mmap.ACCESS_READ)
        self._generation = -1
        self._position = 0
        self._open: dict[int, tuple[bytes, bytes, Signature]] = {}

    def settle(self, space: Space) -> None:
        _, end, settled, opened = self._board.state(self._slot)
        if end == settled and not opened:
            if self._board.promised():
                self._board.bury(self._slot)
            return
        if end != settled or self._position != end:
            with _Flock(self._fd):
                self._settle_records(space)
        if self._open:
            self._settle_open(space)
        self._board.bury(self._slot)

    def _settle_records(self, space: Space) -> None:
        names = Names()
        end = self._read(names)
        if names and _reconcile(space, names):
            self._board.put(self._slot, 2, end)

    def _settle_open(self, space: Space) -> None:
        names = Names()
        seen: dict[int, tuple[bytes, bytes, Signature]] = {}
        for token, (directory, name, known) in self._open.items():
            now = _signature(space, directory, name)
            if now != known:
                names.setdefault(directory, set()).add(name)
                seen[token] = (directory, name, now)
        if names and _reconcile(space, names):
            self._open |= seen

    def _read(self, names: Names) -> int:
        """Take in the records up to the end, and into `names` what of them isn't settled; the end."""
        generation, end, settled, _ = self._board.state(self._slot)
        if generation != self._generation:
            self._generation, self._position, self._open = generation, 0, {}
        at = min(self._position, settled)
        while at < end:
            kind, first, second, token = _RECORD.unpack_from(self._map, at)
            start = at + _RECORD.size
            old = self._map[start : start + first]
            new = self._map[start + first : start + first + second]
            at = start + first + second
            self._apply(kind, old, new, token, names if at > settled else None, at > self._position)
        self._position = end
        return end

    def _apply(
        self, kind: int, first: bytes, second: bytes, token: int, names: Names | None, fresh: bool
    ) -> None:
        if kind == _MOVED:
            if names is not None:
                _rename(names, first, second)
            if fresh:
                self._open = {
                    token: (_renamed(directory, first, second), name, None)
                    for token, (directory, name, _) in self._open.items()
                }
            return
        if names is not None:
            names.setdefault(first, set()).add(second)
        if fresh and kind == _OPENED:
            self._open[token] = (first, second, None)
        elif fresh and kind == _CLOSED:
            self._open.pop(token, None)

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)


def _renamed(path: bytes, old: bytes, new: bytes) -> bytes:
    if path == old:
        return new
    return new + path[len(old) :] if path.startswith(old + b"/") else path


def _rename(names: Names, old: bytes, new: bytes) -> None:
    for path in [path for path in names if path == old or path.startswith(old + b"/")]:
        names.setdefault(_renamed(path, old, new), set()).update(names.pop(path))


def _signature(space: Space, directory: bytes, name: bytes) -> Signature:
    try:
        found = os.stat(join(directory, name), dir_fd=space.root_fd(), follow_symlinks=False)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _reconcile(space: Space, names: Names) -> bool:
    """False if something could not be compared: it is tried again by the next reader, and the sweep finds it."""
    from fsd.core.reconcile import reconcile  # the mutator stands above the spaces in the import order

    done = True
    for directory in sorted(names, key=lambda path: (path.count(b"/") if path else -1, path)):
        try:
            reconcile(space, directory, names[directory])
            for other, linked in _other_names(space, directory, names[directory]).items():
                reconcile(space, other, linked)
        except OSError as error:
            _log.info("space %s: what was announced waits: %s", space.record.id, error)
            done = False
    return done


def _other_names(space: Space, directory: bytes, names: set[bytes]) -> Names:
    """The other names of files with several: they changed as well, wherever they are. Of very many the watcher looks
    at some after the other (hardlinks.py)."""
    from fsd.core import hardlinks, index

    found = Names()
    with space.index.read() as db:
        above = index.find(db, directory)
        if above is None:
            return found
        met = {
            row.binding: row
            for row in index.children(db, above.n, sorted(names))
            if row.nlink > 1 and row.kind == index.FILE
        }
        for binding, one in met.items():
            if hardlinks.count(db, space.key, binding) > hardlinks.MANY:
                continue
            for row in index.by_binding(db, space.key, binding):
                # What says the same ctime was told already.
                place = (
                    None
                    if row.parent is None or row.ctime_ns == one.ctime_ns
                    else index.path_of(db, row.parent)
                )
                if place is not None and not (place == directory and row.name in names):
                    found.setdefault(place, set()).add(row.name)
    return found


class Announcer:
    """A mount's own side. One thread announces; `settle` may run in another."""

    def __init__(self, space: Space) -> None:
        self._space, self._board = space, space.board
        self._settle_left()
        self.slot = slot = self._board.take()
        self._fd = os.open(self._board.log_path(slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._fd, 0, LOG_BYTES)  # see _mapped
        self._map = mmap.mmap(self._fd, LOG_BYTES)
        self._end, self._token = 0, 0
        self._open: dict[int, tuple[bytes, bytes]] = {}
        self._begin()

    def _settle_left(self) -> None:
        if self._board.waiting():
            self._board.settle(self._space)

    def _begin(self) -> None:
        """Start the log anew; nobody reads it meanwhile (the log's flock, or the slot is new)."""
        self._end = 0
        self._board.put(self.slot, 1, 0)
        self._board.put(self.slot, 2, 0)
        self._board.put(self.slot, 0, self._board.state(self.slot)[0] + 1)
        for token, (directory, name) in self._open.items():
            self._append(_OPENED, directory, name, token)

    def changed(self, directory: bytes, name: bytes) -> None:
        """The entry `name` of `directory` may differ from its row."""
        self._append(_CHANGED, directory, name)

    def opened(self, directory: bytes, name: bytes) -> int:
        """A file is open for writing from now on; the token for `closed`."""
        self._token += 1
        self._open[self._token] = (directory, name)
        self._board.put(self.slot, 3, len(self._open))
        self._append(_OPENED, directory, name, self._token)
        return self._token

    def closed(self, token: int) -> None:
        """The last that this opening changed was changed before."""
        directory, name = self._open.pop(token)
        self._append(_CLOSED, directory, name, token)
        self._board.put(self.slot, 3, len(self._open))

    def moved(self, old: bytes, new: bytes) -> None:
        """A directory is at another path from now on, and with it whatever was announced below it."""
        self._open = {
            token: (_renamed(directory, old, new), name) for token, (directory, name) in self._open.items()
        }
        self._append(_MOVED, old, new)

    def _append(self, kind: int, first: bytes, second: bytes, token: int = 0) -> None:
        start = self._end + _RECORD.size
        middle = start + len(first)
        end = middle + len(second)
        if end > LOG_BYTES:
            self.compact()
            return self._append(kind, first, second, token)
        _RECORD.pack_into(self._map, self._end, kind, len(first), len(second), token)
        self._map[start:middle] = first
        self._map[middle:end] = second
        self._end = end
        _NUMBER.pack_into(self._board.page, self.slot * _SLOT + 8, end)
        return None

    @property
    def backlog(self) -> int:
        """Bytes of records that nobody has settled."""
        return self._end - self._board.state(self.slot)[2]

    @property
    def filled(self) -> float:
        """How full the log is, 0 to 1."""
        return self._end / LOG_BYTES

    def compact(self) -> None:
        """Settle all records and start the log anew. Whatever can't be settled is left to the sweep."""
        from fsd.core import dirty

        self._board.settle(self._space)
        with _Flock(self._fd):
            if self._board.state(self.slot)[2] != self._end:
                try:
                    dirty.mark_tree(self._space)
                except OSError as error:
                    _log.error("space %s: changes wait for the next sweep: %s", self._space.record.id, error)
            self._begin()

    def close(self) -> None:
        """Settle, and give the slot back."""
        self._open.clear()
        self._board.settle(self._space)
        self._board.free(self.slot)
        self._map.close()
        os.close(self._fd)


def settle(space: Space) -> None:
    """Before a look: what mounts announced is in the index. Costs a glance at a mapped page if no mount writes."""
    if space.board.waiting():
        space.board.settle(space)
