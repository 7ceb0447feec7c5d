"""SQLite files shared by several processes: who may write, in which order, and what happens when a file vanishes.

Readers never block: WAL mode, autocommit connections. Writers queue on a flock(2) of a file beside
the database, not on SQLite's busy handler, which polls with growing pauses and starves the unlucky. The order of
locks is index before state; nobody takes the index's lock while holding the state's.

A database marked `rebuildable` may be deleted at any time, also below running processes: each use compares the file
at the path with the one that is open, and starts an empty one when they differ. A damaged one is set aside. Any other
one that is damaged stays as it is, for a person, and every use of it is DatabaseDamaged.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import struct
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fsd.core import waits
from fsd.core.errors import DatabaseDamaged, NotYetKnown
from fsd.core.stamp import Answers
from fsd.core.syscalls import write_in_place

_log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 20.0
_SQLITE_FULL, _SQLITE_IOERR, _SQLITE_CANTOPEN, _SQLITE_READONLY, _SQLITE_BUSY = 13, 10, 14, 8, 5
_SQLITE_CORRUPT, _SQLITE_NOTADB = 11, 26
_ERRNO = {
    _SQLITE_FULL: errno.ENOSPC,
    _SQLITE_IOERR: errno.EIO,
    _SQLITE_CANTOPEN: errno.EIO,
    _SQLITE_READONLY: errno.EROFS,
    _SQLITE_BUSY: errno.EAGAIN,
}


# struct flock: type, whence, start, length, pid. An open-file-description lock beside the flock(2) on the same file.
_FLOCK = struct.Struct("hhqqi4x")
_TURN = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_NO_TURN = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)


def _take_turn(fd: int) -> None:
    """Take the writers' lock. Who has to wait for it holds the first byte meanwhile: so bulk work sees that somebody
    waits, and the next one queues behind."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    with waits.aside:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _TURN)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        finally:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NO_TURN)


def _turn_taken(fd: int) -> bool:
    held: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _TURN))[0]
    return held != fcntl.F_UNLCK


_MAX_IDLE = 8
_PAGE = 4096
_RESTART_MS = 200
_CHECKPOINT_PAGES = 4000
"""Pages in the log before they are copied into the database: small commits write the same few pages again and again,
so the longer the log, the less is copied. 16 MiB at most stay on disk for each database."""
_LATE_CHECKPOINT_PAGES = 3 * _CHECKPOINT_PAGES
"""The same for a database that somebody checkpoints beside its writers: within a commit only if that comes too late."""
_Open = tuple[sqlite3.Connection, tuple[int, int]]
"""A connection, and (device, inode) of the file it has open."""
_forks = 0
"""How many forks lie between the first process and this one."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class _Lent:
    """A connection lent to one thread for a `with` block; the errors of SQLite leave it as OSErrors.

    There are only as many connections as were ever in use at once, however many threads there are.
    """

    __slots__ = ("_database", "_idle", "_local", "_taken")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._taken: _Open | None = None

    def __enter__(self) -> sqlite3.Connection:
        database = self._database
        database.check_fork()
        self._local = local = database.local
        outer: sqlite3.Connection | None = getattr(local, "db", None)
        if outer is not None:
            return outer
        self._idle = database.idle
        self._taken = database.take()
        local.db = self._taken[0]
        return self._taken[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._taken is not None:
            self._local.db = None
            db, idle = self._taken[0], self._idle
            if len(idle) < _MAX_IDLE and not db.in_transaction and idle is self._database.idle:
                idle.append(self._taken)
            else:
                db.close()
        if isinstance(error, sqlite3.Error):
            raise self._database.translate(error) from error


class _Writing(_Lent):
    """A write transaction for a `with` block, under the writers' lock."""

    __slots__ = ()

    def __enter__(self) -> sqlite3.Connection:
        self._database.lock()
        try:
            db = super().__enter__()
        except BaseException:
            self._database.unlock()
            raise
        try:
            db.execute("BEGIN IMMEDIATE")
        except BaseException as error:
            self._end(type(error), error, error.__traceback__)
            raise
        return db

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        db: sqlite3.Connection = self._local.db
        if error is None:
            try:
                self._database.commit(db)
            except BaseException as failure:
                self._roll_back(db, failure)
                raise
            self._end(None, None, None)
        else:
            self._roll_back(db, error)

    def _roll_back(self, db: sqlite3.Connection, error: BaseException) -> None:
        """Undo what the block did, and let its error leave as what it means."""
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error as second:
            error = second
        self._end(type(error), error, error.__traceback__)

    def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._database.unlock()


class Database:
    """One SQLite file. Thread-safe; opened on first use, again after a fork, again when the file was replaced."""

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        version: int = 1,
        synchronous: Literal["NORMAL", "FULL", "OFF"],
        lock: Path,
        rebuildable: bool = False,
        checkpointed: bool = False,
    ) -> None:
        """`checkpointed`: somebody calls `checkpoint` often, so that commits hardly ever have to do it."""
        self.path = path
        self._file = os.fspath(path)
        self._schema = schema
        self._version = version
        self._synchronous = synchronous
        self._lock_path = lock
        self._rebuildable = rebuildable
        self._log_pages = _LATE_CHECKPOINT_PAGES if checkpointed else _CHECKPOINT_PAGES
        self._generation = _forks
        self._answers = Answers(path)
        self._reset()

    def __del__(self) -> None:
        if getattr(self, "_lock_fd", -1) >= 0:
            os.close(self._lock_fd)

    def _reset(self) -> None:
        self.local = threading.local()
        self._mutex = threading.RLock()
        self._gate = threading.Lock()
        """Held by the thread that is the next to get the mutex."""
        self._depth = 0
        self._lock_fd = -1
        self.idle: list[_Open] = []

    def created(self, db: sqlite3.Connection) -> None:
        """Called in a transaction of its own when the file was new; subclasses fill it."""

    def opened(self, db: sqlite3.Connection) -> None:
        """Called for each new connection, with the writers' lock held; subclasses add what an earlier release lacks."""

    def read(self) -> _Lent:
        """A connection in autocommit mode for this thread alone; within `read()` or `write()`, the outer one."""
        return _Lent(self)

    def answers(self) -> dict[Hashable, Any]:
        """What readers may remember until the next commit (see Answers.now); within `read()` and `write()`, which may
        see more or less than that, a dictionary that is of no use to anybody else."""
        if getattr(self.local, "db", None) is not None:
            return {}
        return self._answers.now()

    def write(self) -> _Writing:
        """A transaction, alone among all threads and processes; committed at the end, rolled back on an exception.

        Not re-entrant. Raises OSError(ENOSPC, EIO, EROFS) when the state disk refuses; nothing has changed then.
        """
        return _Writing(self)

    def commit(self, db: sqlite3.Connection) -> None:
        """End the transaction of a `write`, and tell those who keep answers."""
        with self._answers.stamp.committing():
            if self._synchronous == "FULL":
                with waits.aside:
                    db.execute("COMMIT")
            else:
                db.execute("COMMIT")

    def checkpoint(self) -> int:
        """Copy the log into the database beside readers and writers, none of whom waits; how many pages it had.

        A commit that finds the log too long does the same with the writers' lock held: tens of milliseconds for all
        who wait for it. The log begins anew with the next write that finds all of it copied and nobody reading it. One
        that has become too long all the same, as somebody always reads it, is made to: writers wait for those readers.
        """
        with self.read() as db, waits.aside:
            _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages >= self._log_pages:
            with self.exclusive(), self.read() as db:
                db.execute(f"PRAGMA busy_timeout={_RESTART_MS}")
                try:
                    db.execute("PRAGMA wal_checkpoint(RESTART)")
                finally:
                    db.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
        return max(0, int(pages))

    def log_changed(self) -> int:
        """When the log was written last, in nanoseconds; 0 without one. Only good for comparing."""
        try:
            return os.stat(self._file + "-wal").st_mtime_ns
        except FileNotFoundError:
            return 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the writers' lock; re-entrant within a thread. A killed holder releases it (flock(2))."""
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def lock(self) -> None:
        """Take the writers' lock, for `unlock` in the same thread; see `exclusive`."""
        self.check_fork()
        mutex = self._mutex
        if not mutex.acquire(blocking=False):
            with waits.aside, self._gate:
                mutex.acquire()
        try:
            if self._depth == 0:
                if self._lock_fd < 0:
                    self._lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                _take_turn(self._lock_fd)
            self._depth += 1
        except BaseException:
            mutex.release()
            raise

    def unlock(self) -> None:
        """Give the writers' lock back."""
        self._depth -= 1
        try:
            if self._depth == 0:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def wanted(self) -> bool:
        """Whether anybody waits for the writers' lock: who holds it for bulk work lets it go then."""
        return self._gate.locked() or (self._lock_fd >= 0 and _turn_taken(self._lock_fd))

    def give_way(self) -> None:
        """Let whoever waits for the writers' lock have it first. Called without the lock."""
        with self._gate:
            pass
        if self._lock_fd >= 0 and _turn_taken(self._lock_fd):
            fcntl.fcntl(self._lock_fd, fcntl.F_OFD_SETLKW, _TURN)
            fcntl.fcntl(self._lock_fd, fcntl.F_OFD_SETLK, _NO_TURN)

    def close(self) -> None:
        """Close every connection of this process; the next use opens again."""
        self._answers.close()
        with self._mutex:
            while self.idle:
                self.idle.pop()[0].close()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
        self._reset()

    def check_fork(self) -> None:
        if self._generation != _forks:
            # SQLite connections must not cross a fork (sqlite.org/howtocorrupt.html); leave them to the parent.
            self._generation = _forks
            self._inherited = (self.local, self.idle, self._lock_fd)
            self._reset()

    def take(self) -> _Open:
        """An idle connection to the file that is at the path now, or a new one."""
        while self.idle:
            try:
                db, ident = self.idle.pop()
            except IndexError:
                break
            try:
                found = os.stat(self._file)
                if (found.st_dev, found.st_ino) == ident:
                    return db, ident
            except FileNotFoundError:
                pass
            db.close()
        try:
            with self.exclusive():
                self._answers.stamp.settle()
                db = self._open_file()
                if db.total_changes:
                    with self._answers.stamp.committing():
                        pass  # what `created` and `opened` wrote
                found = os.stat(self.path)
        except sqlite3.Error as error:
            raise self.translate(error) from error
        return db, (found.st_dev, found.st_ino)

    def _open_file(self) -> sqlite3.Connection:
        new = not self.path.exists()
        if new and self._rebuildable:
            # A log without its database belongs to the deleted one and must not be replayed into the new one.
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._make_shared_memory()
        db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA cache_size=-2000")
            db.execute("PRAGMA temp_store=MEMORY")
            db.execute(f"PRAGMA wal_autocheckpoint={self._log_pages}")
            db.execute(f"PRAGMA journal_size_limit={_CHECKPOINT_PAGES * _PAGE}")
            db.execute(f"PRAGMA synchronous={self._synchronous}")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, self._version):
                db.close()
                return self._open_other(version)
            if version == 0:
                self._create(db)
            else:
                self.opened(db)
        except BaseException:
            db.close()
            raise
        return db

    def _make_shared_memory(self) -> None:
        """SQLite's shared memory is a mapped file. On a btrfs that is full a store into it would be a SIGBUS, as its
        blocks are copied on write: this one is written in place."""
        path = self.path.with_name(self.path.name + "-shm")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError:
            return  # it is there already; or SQLite says what is wrong
        try:
            write_in_place(fd)
        finally:
            os.close(fd)

    def _open_other(self, version: int) -> sqlite3.Connection:
        """A file that another release wrote: what can be rebuilt is, what can't is left alone."""
        if not self._rebuildable:
            raise OSError(
                errno.EPROTO, f"{self.path.name} has format {version}; this release reads {self._version}"
            )
        _log.info("index %s has format %d: rebuilding it", self.path.name, version)
        self.path.unlink()
        return self._open_file()

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in self._schema.split(";"):
                    if statement.strip():
                        db.execute(statement)
                self.created(db)
                db.execute(f"PRAGMA user_version={self._version}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        os.chmod(self.path, 0o600)

    def translate(self, error: sqlite3.Error) -> OSError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (_SQLITE_CORRUPT, _SQLITE_NOTADB):
            if not self._rebuildable:
                return DatabaseDamaged(
                    f"The database {self.path.name} is damaged ({error}): stop fsd and restore it from a backup."
                )
            self._set_aside()
            return NotYetKnown("The index was damaged and is being rebuilt; ask again in a moment.")
        number = _ERRNO.get(code)
        if number is None:
            raise error
        return OSError(number, f"{self.path.name}: {error}")

    def discard(self) -> None:
        """Set a rebuildable database aside; the next use, in any process, starts an empty one."""
        assert self._rebuildable, "what it holds is nowhere else"
        self._set_aside()

    def _set_aside(self) -> None:
        _log.error("index %s is damaged: set aside, rebuilding", self.path.name)
        with self.exclusive():
            for suffix in ("", "-wal", "-shm"):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.replace(part.with_name(f"{part.name}.damaged"))
