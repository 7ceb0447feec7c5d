"""WebDAV locks (RFC 4918 class 2): durable, in the state database, shared by all worker processes.

A lock stands on a *path* (bytes below the space's root), not on a node: that is what the RFC locks, and every alias
of a URL leads to the same path. What is not there can be locked too; the adapter then makes an empty file. A lock on
a directory with depth infinity covers all paths below it, those made later included.
"""

from __future__ import annotations

import errno
import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from fsd.core.errors import FsdError, Locked, QuotaExceeded
from fsd.core.names import to_text

if TYPE_CHECKING:
    from fsd.core.space import Space

SCHEMA = """
CREATE TABLE IF NOT EXISTS lock (token TEXT PRIMARY KEY, path BLOB NOT NULL, infinite INTEGER NOT NULL,
 exclusive INTEGER NOT NULL, owner BLOB NOT NULL, principal TEXT NOT NULL, timeout INTEGER NOT NULL,
 expires REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lock_path ON lock (path);
CREATE TABLE IF NOT EXISTS lock_generation (one INTEGER PRIMARY KEY CHECK (one = 1), value INTEGER NOT NULL)
"""

MAX_TIMEOUT_S: Final = 7 * 24 * 3600
DEFAULT_TIMEOUT_S: Final = 1800
"""Clients lock for an editing session and refresh; half an hour outlives a short network loss."""
MOST_HELD: Final = 1000
"""Locks of one principal in a space: a client has one for each file it works on; a listing shows all of a file's."""
_COLUMNS = "token, path, infinite, exclusive, owner, principal, timeout, expires"


class LockUnknown(FsdError):
    """No lock with this token, or it has expired, or it does not cover the path (RFC 4918, 9.11.1: 409)."""

    code = errno.ENOENT


class PathLocked(Locked):
    """A lock on `path` of the space `space_id` is in the way."""

    def __init__(self, space_id: str, path: bytes) -> None:
        super().__init__(f"'{to_text(path)}' is locked." if path else "The space is locked.")
        self.space_id, self.path = space_id, path


class Lock(NamedTuple):
    """One granted lock. `owner` is the client's XML as sent; `timeout` in seconds, `expires` since the epoch."""

    token: str
    path: bytes
    infinite: bool
    exclusive: bool
    owner: bytes
    principal: str
    timeout: int
    expires: float

    def covers(self, path: bytes) -> bool:
        """Whether the lock protects `path`."""
        return self.path == path or (self.infinite and _below(path, self.path))


def _below(path: bytes, top: bytes) -> bool:
    return path != top and (not top or path.startswith(top + b"/"))


def _upward(path: bytes) -> list[bytes]:
    """`path` and every directory above it, the root included."""
    paths = [path]
    while path:
        path = path.rpartition(b"/")[0]
        paths.append(path)
    return paths


class LockTable:
    """The locks of one space. Holds no state of its own, so any number of processes may have one."""

    def __init__(self, space: Space, clock: Callable[[], float] = time.time) -> None:
        self._state = space.state
        self._space_id = space.record.id
        self._clock = clock

    def any(self) -> bool:
        """Whether there may be a lock at all: remembered until the state changes, so it can be asked at any time."""
        answers = self._state.answers()
        found: bool | None = answers.get("any lock")
        if found is None:
            with self._state.read() as db:
                found = db.execute("SELECT 1 FROM lock LIMIT 1").fetchone() is not None
            answers["any lock"] = found
        return found

    def generation(self) -> int:
        """A number that is another one after any change of the table, by any process."""
        with self._state.read() as db:
            row = db.execute("SELECT value FROM lock_generation").fetchone()
        return int(row[0]) if row else 0

    def acquire(
        self,
        path: bytes,
        *,
        principal: str,
        exclusive: bool = True,
        depth: Literal["0", "infinity"] = "infinity",
        owner: bytes = b"",
        timeout: int | None = None,
    ) -> Lock:
        """Grant a lock, or raise PathLocked; all or nothing. QuotaExceeded beyond MOST_HELD of one principal."""
        seconds = _bounded(timeout)
        token = f"urn:uuid:{uuid.UUID(bytes=secrets.token_bytes(16), version=4)}"
        now = self._clock()
        lock = Lock(token, path, depth == "infinity", exclusive, owner, principal, seconds, now + seconds)
        with self._state.write() as db:
            db.execute("DELETE FROM lock WHERE expires<=?", (now,))
            (held,) = db.execute("SELECT COUNT(*) FROM lock WHERE principal=?", (principal,)).fetchone()
            if held >= MOST_HELD:
                raise QuotaExceeded(f"You hold {held} locks in this space; end some of them first.")
            others = self._covering(db, path, now)
            if lock.infinite:
                others += self._inside(db, path, now)
            for other in others:
                if exclusive or other.exclusive:
                    raise PathLocked(self._space_id, other.path)
            db.execute(f"INSERT INTO lock ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", lock)
            note_change(db)
        return lock

    def refresh(self, token: str, path: bytes, timeout: int | None = None) -> Lock:
        """Prolong a lock that covers `path`; LockUnknown if there is none."""
        with self._state.write() as db:
            lock = self._held(db, token, path)
            seconds = _bounded(timeout if timeout is not None else lock.timeout)
            lock = lock._replace(timeout=seconds, expires=self._clock() + seconds)
            db.execute("UPDATE lock SET timeout=?, expires=? WHERE token=?", (seconds, lock.expires, token))
            note_change(db)
        return lock

    def release(self, token: str, path: bytes) -> Lock:
        """Remove a lock that covers `path` (UNLOCK); LockUnknown if there is none."""
        with self._state.write() as db:
            lock = self._held(db, token, path)
            db.execute("DELETE FROM lock WHERE token=?", (token,))
            note_change(db)
        return lock

    def get(self, token: str) -> Lock | None:
        """The living lock with this token."""
        with self._state.read() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM lock WHERE token=?", (token,)).fetchone()
        lock = _lock(row) if row else None
        return lock if lock and lock.expires > self._clock() else None

    def covering(self, path: bytes) -> list[Lock]:
        """The locks that protect `path`: its own, and infinite ones above it."""
        with self._state.read() as db:
            return self._covering(db, path, self._clock())

    def inside(self, path: bytes) -> list[Lock]:
        """The locks strictly below `path`."""
        with self._state.read() as db:
            return self._inside(db, path, self._clock())

    def check(
        self,
        path: bytes,
        tokens: Collection[str],
        principal: str,
        *,
        subtree: bool = False,
        binding: bool = False,
    ) -> None:
        """Raise PathLocked unless `principal` holds, and submitted, a token for every lock in the way of a change.

        `subtree`: the change touches all below (DELETE, MOVE, COPY over). `binding`: it adds or removes the name,
        which a lock of any depth on the parent protects (RFC 4918, 7.4). One of several shared locks is enough.
        """
        if not self.any():
            return
        with self._state.read() as db:
            now = self._clock()
            groups = [self._covering(db, path, now)]
            if binding and path:
                groups.append(self._covering(db, path.rpartition(b"/")[0], now))
            if subtree:
                by_path: dict[bytes, list[Lock]] = {}
                for lock in self._inside(db, path, now):
                    by_path.setdefault(lock.path, []).append(lock)
                groups.extend(by_path.values())
        for group in groups:
            if group and not any(k.token in tokens and k.principal == principal for k in group):
                raise PathLocked(self._space_id, group[0].path)

    def drop(self, path: bytes) -> int:
        """Remove all locks on `path` and below, because it was moved or deleted (RFC 4918, 7.5, 9.6)."""
        if not self.any():
            return 0
        with self._state.write() as db:
            count = db.execute("DELETE FROM lock WHERE path=?", (path,)).rowcount
            low, high = _range(path)
            count += db.execute("DELETE FROM lock WHERE path>=? AND path<?", (low, high)).rowcount
            if count:
                note_change(db)
        return count

    def expire(self) -> int:
        """Remove what has timed out; done on every new lock too."""
        if not self.any():
            return 0
        with self._state.write() as db:
            count = db.execute("DELETE FROM lock WHERE expires<=?", (self._clock(),)).rowcount
            if count:
                note_change(db)
        return count

    def _held(self, db: sqlite3.Connection, token: str, path: bytes) -> Lock:
        row = db.execute(f"SELECT {_COLUMNS} FROM lock WHERE token=?", (token,)).fetchone()
        lock = _lock(row) if row else None
        if lock is None or lock.expires <= self._clock() or not lock.covers(path):
            raise LockUnknown(f"There is no lock with this token on '{to_text(path)}'.")
        return lock

    def _covering(self, db: sqlite3.Connection, path: bytes, now: float) -> list[Lock]:
        found = []
        for top in _upward(path):
            query = f"SELECT {_COLUMNS} FROM lock WHERE path=? AND expires>? AND (infinite OR path=?)"
            found += [_lock(row) for row in db.execute(query, (top, now, path))]
        return found

    def _inside(self, db: sqlite3.Connection, path: bytes, now: float) -> list[Lock]:
        query = f"SELECT {_COLUMNS} FROM lock WHERE path>=? AND path<? AND expires>? ORDER BY path"
        return [_lock(row) for row in db.execute(query, (*_range(path), now))]


def _range(path: bytes) -> tuple[bytes, bytes]:
    # '0' follows '/' in byte order; no name starts with a byte above 0xff.
    return (path + b"/", path + b"0") if path else (b"\0", b"\xff" * 4097)


def _lock(row: tuple[str, bytes, int, int, bytes, str, int, float]) -> Lock:
    return Lock(row[0], row[1], bool(row[2]), bool(row[3]), row[4], row[5], row[6], row[7])


def _bounded(timeout: int | None) -> int:
    return DEFAULT_TIMEOUT_S if timeout is None else max(1, min(timeout, MAX_TIMEOUT_S))


def note_change(db: sqlite3.Connection) -> None:
    """In the transaction that changes locks: what processes remember of them ends."""
    db.execute("INSERT INTO lock_generation VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET value=value+1")
