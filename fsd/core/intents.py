"""Intents: what a change of several steps was going to do, written durably before its first step shows.

A change takes a *ticket*: a random number that names its staged files and trash entries, and that is locked (an
open-file-description lock on that byte of `<space>.owners`, fcntl(2)) while the change runs, in whatever process. A
kill releases the lock. So replay can tell a change under way from one that was cut off, and takes over only the
latter: by locking the number itself, so that of several processes starting at once only one does.

Finished intents are deleted with the next one that is written, so finishing costs no fsync. Replaying a finished
intent must therefore be harmless, for ever: each kind looks at what stands on disk, node by node, before it acts.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import bequest, lease, waits
from fsd.core.groupsync import Group

if TYPE_CHECKING:
    from fsd.core.space import Space

SCHEMA = """
CREATE TABLE IF NOT EXISTS intent (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL)
"""

Body = dict[str, str | int | bool | None]
"""Paths and bindings as hexadecimal text, because names are bytes."""

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, len, pid
_UNLOCK_ALL = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
_MAX_IDLE = 8
_NUMBER_BITS = 62  # the byte's offset must be a positive off_t


class Intent(NamedTuple):
    """One row."""

    number: int
    kind: str
    body: Body


def staged_name(number: int) -> bytes:
    """The name of a ticket's entry in `.fsd/staging` and in the trash."""
    return b"%016x" % number


def number_of(name: bytes) -> int | None:
    """The ticket's number in such a name; None if fsd did not make it."""
    if len(name) < 16 or name[16:17] not in (b"", b".") or set(name[:16]) - set(b"0123456789abcdef"):
        return None
    number = int(name[:16], 16)
    return number if number < 1 << _NUMBER_BITS else None


class Ticket:
    """A change under way. Made by `Intents.begin`, which releases it at the end whatever happens."""

    def __init__(self, owner: Intents, number: int) -> None:
        self.number = number
        self.name = staged_name(number)
        self._owner = owner

    def record(self, kind: str, body: Body) -> None:
        """Write (or rewrite) the intent; durable when this returns. ENOSPC, EIO: nothing was written."""
        self._owner.write(Intent(self.number, kind, body))

    def finish(self) -> None:
        """All steps are done and durable: the row may go whenever something else is written."""
        self._owner.finished(self.number)


class Intents:
    """The intents of one space in this process. Thread-safe."""

    def __init__(self, space: Space) -> None:
        self._space = weakref.ref(space)
        self._path = space.state_dir / f"{space.record.hex}.owners"
        self._guard = threading.Lock()
        self._fd = -1
        self._idle: list[int] = []
        self._finished: set[int] = set()
        self._writers = Group(self._write_all)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file of the byte locks, which releases those this process still has."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        while self._idle:
            os.close(self._idle.pop())

    @contextmanager
    def begin(self) -> Iterator[Ticket]:
        """A ticket for one change. An error in the change leaves its intent to `replay`.

        What is not found because another host has taken over what was staged is Elsewhere, and no 404.
        """
        space = self._open_space()
        since = lease.token(space)
        number = secrets.randbits(_NUMBER_BITS)
        fd = self._owners()
        _set_lock(fd, fcntl.F_WRLCK, number)
        try:
            yield Ticket(self, number)
        except FileNotFoundError:
            lease.require(space, since)
            raise
        finally:
            _set_lock(fd, fcntl.F_UNLCK, number)

    def ticket(self, number: int) -> Ticket:
        """A ticket for a number that was taken over, to finish its change with."""
        return Ticket(self, number)

    @contextmanager
    def take_over(self, number: int) -> Iterator[bool]:
        """Own an abandoned number for a while; False if its change is under way somewhere, also in this process."""
        # A description of its own: locks of one description never conflict with each other.
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                _set_lock(fd, fcntl.F_WRLCK, number)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def alone(self, *paths: bytes) -> _Alone:
        """Wait until no other change of fsd's own, in any process, is at one of these paths, and keep others out.

        Not nested. It keeps our writers from undoing each other's exchanges; programs on the disk don't ask.
        """
        return _Alone(self, paths)

    def take_description(self) -> int:
        """A descriptor of the file of the locks that nobody else of this process uses, until `give_description`."""
        try:
            return self._idle.pop()
        except IndexError:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def give_description(self, fd: int) -> None:
        """Release all locks of a descriptor, and keep it for later."""
        if len(self._idle) < _MAX_IDLE:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _UNLOCK_ALL)
            self._idle.append(fd)
        else:
            os.close(fd)

    def pending(self) -> list[Intent]:
        """Every intent that is written down, finished ones not yet deleted included."""
        space = self._open_space()
        with space.state.read() as db:
            rows = db.execute("SELECT number, kind, body FROM intent ORDER BY rowid").fetchall()
        found = [Intent(number, kind, json.loads(body)) for number, kind, body in rows]
        return found + [Intent(*row) for row in bequest.rows(space)] if _shared(space) else found

    def get(self, number: int) -> Intent | None:
        """The intent with this number, if it is still written down."""
        space = self._open_space()
        if _shared(space) and (found := bequest.row(space, number)) is not None:
            return Intent(*found)
        with space.state.read() as db:
            row = db.execute("SELECT number, kind, body FROM intent WHERE number=?", (number,)).fetchone()
        return Intent(row[0], row[1], json.loads(row[2])) if row else None

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete intents now, durably."""
        space = self._open_space()
        if _shared(space):
            bequest.drop(space, numbers, durably=True)
        with space.state.write() as db:
            db.executemany("DELETE FROM intent WHERE number=?", ((number,) for number in numbers))

    def write(self, intent: Intent) -> None:
        """Write an intent in a transaction shared with all threads that wait for one."""
        self._writers.submit(intent)

    def finished(self, number: int) -> None:
        """Note that a number's row may be deleted."""
        with self._guard:
            self._finished.add(number)

    def _write_all(self, batch: Sequence[Intent]) -> None:
        with self._guard:
            done, self._finished = self._finished, set()
        space = self._open_space()
        try:
            if _shared(space):
                bequest.write(space, batch)
                bequest.drop(space, sorted(done), durably=False)
            else:
                with space.state.write() as db:
                    db.executemany("DELETE FROM intent WHERE number=?", ((number,) for number in done))
                    db.executemany(
                        "INSERT OR REPLACE INTO intent VALUES (?, ?, ?)",
                        ((intent.number, intent.kind, json.dumps(intent.body)) for intent in batch),
                    )
        except BaseException:
            with self._guard:
                self._finished |= done
            raise

    def _owners(self) -> int:
        with self._guard:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            return self._fd

    def _open_space(self) -> Space:
        space = self._space()
        assert space is not None, "the caller holds the space while it changes it"
        return space


def _shared(space: Space) -> bool:
    """Whether other hosts may have to end what this one begins: then intents stand beside what they are about."""
    return lease.host_of(space.state_dir) is not None and not space.record.read_only


class _Alone:
    """See `Intents.alone`."""

    __slots__ = ("_fd", "_owner", "_paths")

    def __init__(self, owner: Intents, paths: Sequence[bytes]) -> None:
        self._owner = owner
        self._paths = paths

    def __enter__(self) -> None:
        self._fd = fd = self._owner.take_description()
        try:
            # In one order: who wants the same paths in another one would wait for us, and we for them.
            for byte in sorted({_path_byte(path) for path in self._paths}):
                _lock_alone(fd, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        except BaseException:
            self._owner.give_description(fd)
            raise

    def __exit__(self, *_: object) -> None:
        self._owner.give_description(self._fd)


def _path_byte(path: bytes) -> int:
    """The byte that stands for a path, above those of the numbers; two paths that share one just wait more."""
    digest = hashlib.blake2b(path, digest_size=8).digest()
    return 1 << _NUMBER_BITS | int.from_bytes(digest, "little") >> (64 - _NUMBER_BITS)


@contextmanager
def alone_in_both(first: Space, path: bytes, second: Space, other: bytes) -> Iterator[None]:
    """`alone` in two spaces; always in the same order, so that opposite moves don't wait for each other."""
    ends = sorted([(first.record.id, first, path), (second.record.id, second, other)], key=lambda end: end[0])
    with of(ends[0][1]).alone(ends[0][2]), of(ends[1][1]).alone(ends[1][2]):
        yield


def _lock_alone(fd: int, lock: bytes) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, fcntl(2)
        with waits.aside:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, lock)


def _set_lock(fd: int, kind: int, number: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))


_instances: weakref.WeakKeyDictionary[Space, Intents] = weakref.WeakKeyDictionary()
_instances_guard = threading.Lock()


def of(space: Space) -> Intents:
    """This process's Intents of a space."""
    with _instances_guard:
        found = _instances.get(space)
        if found is None:
            found = _instances[space] = Intents(space)
        return found


def forget(space: Space) -> None:
    """Close what this process holds open for a space's intents; nothing may be under way. The next use opens again."""
    with _instances_guard:
        found = _instances.pop(space, None)
    if found is not None:
        found.close()


def _forget_after_fork() -> None:
    # The child must not share the parent's descriptions: its locks would be the parent's.
    global _instances, _instances_guard
    _inherited.append(_instances)
    _instances = weakref.WeakKeyDictionary()
    _instances_guard = threading.Lock()


_inherited: list[object] = []
os.register_at_fork(after_in_child=_forget_after_fork)
