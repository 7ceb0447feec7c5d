"""Uploads that may arrive in several requests: their parts on disk, their rows in the state database.

The parts lie in `.fsd/uploads/<id>/`, on the space's own storage, and are never visible in the tree. A row says whose
the upload is, where it goes and how many bytes it will have: these are reserved under the quota until it ends. A
directory without a row, and a row without its directory, are what a crash leaves; both are swept (`expire`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import lease
from fsd.core.errors import Locked, NameRefused
from fsd.core.groupsync import sync_directory
from fsd.core.names import check_new_name

if TYPE_CHECKING:
    from fsd.core.space import Space

SCHEMA = """
CREATE TABLE IF NOT EXISTS upload (
    id TEXT PRIMARY KEY, name TEXT, user_id TEXT NOT NULL, path BLOB, length INTEGER, reserved INTEGER NOT NULL,
    terms TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, UNIQUE (user_id, name))
"""
FINISHED = """
CREATE TABLE IF NOT EXISTS finished (
    id TEXT PRIMARY KEY, user_id TEXT NOT NULL, length INTEGER NOT NULL, until REAL NOT NULL)
"""
REMEMBER_S = 86400.0
"""How long an upload that became a file is known to have done so, for a client that did not get the last answer.
Seconds."""
KEEP_S = 7 * 86400.0
"""How long an upload waits for its next byte. Seconds."""
DATA = b"data"
"""The one part of an upload whose bytes arrive in order."""
_DIRECTORY = "uploads"
_MAX_PARTS = 100_000
_Row = tuple[str, str | None, str, bytes | None, int | None, int, str, float, float]


class Terms(NamedTuple):
    """What was said when it began and holds when it ends: as for `content.Upload`."""

    mtime_ns: int | None = None
    checksum: tuple[str, str] | None = None
    if_match: tuple[str, ...] | None = None
    must_not_exist: bool = False
    said: str = ""
    """What the client said of it, verbatim, to be told again (TUS: Upload-Metadata)."""


class Partial(NamedTuple):
    """An upload under way. `name`: what the client calls it, if it chose; `path`: where it goes, once that is known;
    `length` in bytes, if it was announced; `reserved`: bytes by which the space will grow; times in seconds since the
    epoch."""

    id: str
    name: str | None
    user_id: str
    path: bytes | None
    length: int | None
    reserved: int
    terms: Terms
    created: float
    expires: float


def create(
    space: Space, user_id: str, *, name: str | None = None, path: bytes | None = None, length: int | None = None,
    reserve: int = 0, terms: Terms | None = None,
) -> Partial:  # fmt: skip
    """Begin an upload; durable when this returns. FileExistsError if the user has one of that name already.

    The caller has checked the quota: from now on `reserve` bytes count as taken.
    """
    now = time.time()
    ident = secrets.token_hex(16)
    made = Partial(ident, name, user_id, path, length, reserve, terms or Terms(), now, now + KEEP_S)
    with _all(space) as above:
        lease.require(space)
        os.mkdir(made.id, 0o700, dir_fd=above)
        try:
            sync_directory(above)
            with space.state.write() as db:
                row = (*made[:6], json.dumps(made.terms), made.created, made.expires)
                db.execute("INSERT INTO upload VALUES (?,?,?,?,?,?,?,?,?)", row)
        except BaseException as error:
            os.rmdir(made.id, dir_fd=above)
            if isinstance(error, sqlite3.IntegrityError):
                raise FileExistsError(errno.EEXIST, "There is an upload of that name already.") from error
            raise
    return made


def get(space: Space, user_id: str, *, ident: str | None = None, name: str | None = None) -> Partial:
    """A user's upload by id or by its name. FileNotFoundError if there is none (any more)."""
    query = "SELECT * FROM upload WHERE user_id=? AND (id=? OR name=?)"
    with space.state.read() as db:
        row: _Row | None = db.execute(query, (user_id, ident, name)).fetchone()
    if row is None or row[8] <= time.time():
        raise FileNotFoundError(errno.ENOENT, "There is no such upload (any more)")
    return _partial(row)


def finished(space: Space, user_id: str, ident: str) -> int | None:
    """How many bytes an upload had that became its file within the last day; None if it is not known to."""
    query = "SELECT length FROM finished WHERE id=? AND user_id=? AND until>?"
    with space.state.read() as db:
        row = db.execute(query, (ident, user_id, time.time())).fetchone()
    return None if row is None else int(row[0])


def every(space: Space) -> list[Partial]:
    """All uploads under way, oldest first."""
    with space.state.read() as db:
        return [_partial(row) for row in db.execute("SELECT * FROM upload ORDER BY created")]


def reserved(space: Space) -> int:
    """Bytes that uploads under way may still bring, under the quota."""
    with space.state.read() as db:
        query = "SELECT coalesce(sum(reserved), 0) FROM upload WHERE expires>?"
        total: int = db.execute(query, (time.time(),)).fetchone()[0]
    return total


def touch(space: Space, partial: Partial) -> None:
    """It is alive: it may wait for its next byte as long as at first. Told to the disk once an hour."""
    until = time.time() + KEEP_S
    if until - partial.expires > 3600:
        with space.state.write() as db:
            db.execute("UPDATE upload SET expires=? WHERE id=?", (until, partial.id))


def set_checksum(space: Space, partial: Partial, checksum: tuple[str, str]) -> Partial:
    """What the whole must have, (algorithm, digest), learnt after the beginning; durable when this returns."""
    known = partial._replace(terms=partial.terms._replace(checksum=checksum))
    with space.state.write() as db:
        db.execute("UPDATE upload SET terms=? WHERE id=?", (json.dumps(known.terms), partial.id))
    return known


@contextmanager
def opened(space: Space, partial: Partial, *, alone: bool = False) -> Iterator[int]:
    """The directory of its parts. FileNotFoundError if it is gone; Locked if `alone` and somebody is at it."""
    with _all(space) as above:
        fd = os.open(partial.id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        if alone:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Locked("Another request is at this upload just now.") from error
        yield fd
    finally:
        os.close(fd)


def parts(directory: int) -> list[tuple[bytes, int]]:
    """The complete parts, (name, bytes), in the byte-wise order of their names: that of the whole."""
    found = []
    for name in os.listdir(b"/proc/self/fd/%d" % directory):
        if not name.startswith(b"."):
            found.append((name, os.stat(name, dir_fd=directory, follow_symlinks=False).st_size))
    return sorted(found)


class Part:
    """One part on its way; it is there whole after `close`, or not at all. One thread at a time."""

    def __init__(self, space: Space, directory: int, name: bytes) -> None:
        """NameRefused for a name that no part may have."""
        check_new_name(name)
        if name.startswith(b"."):
            raise NameRefused("The name of a chunk does not begin with a dot.")
        self._space = space
        self._directory = os.dup(directory)
        self._name = name
        self._temporary = b"." + secrets.token_hex(8).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            lease.require(space)
            self._fd = os.open(self._temporary, flags, 0o600, dir_fd=self._directory)
        except BaseException:
            os.close(self._directory)
            raise

    def write(self, view: memoryview) -> None:
        """Append. OSError(ENOSPC)."""
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> bool:
        """Put it in its place, durably; True if there was none of that name."""
        os.fsync(self._fd)
        try:
            os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            new = False
        except FileNotFoundError:
            new = True
        lease.require(self._space)
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)
        self._end()
        return new

    def abort(self) -> None:
        """Leave nothing of it; harmless when it is closed."""
        if self._fd >= 0:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._directory)
            self._end()

    def _end(self) -> None:
        os.close(self._fd)
        os.close(self._directory)
        self._fd = -1


def drop_part(space: Space, directory: int, name: bytes) -> None:
    """Delete a part. FileNotFoundError."""
    if name.startswith(b".") or b"/" in name:
        raise FileNotFoundError(errno.ENOENT, "There is no such part")
    lease.require(space)
    os.unlink(name, dir_fd=directory)


def check_room_for_part(directory: int) -> None:
    """OSError(ENOSPC) for more parts than any client sends: a directory is not an archive."""
    if len(os.listdir(b"/proc/self/fd/%d" % directory)) >= _MAX_PARTS:
        raise OSError(errno.ENOSPC, "There are too many parts")


def drop(space: Space, partial: Partial, *, became: int | None = None) -> None:
    """End an upload; its parts and its reservation are gone. Idempotent; a crash leaves the parts to `expire`.

    `became`: it ended as a file of so many bytes, which is remembered for `finished`.
    """
    with space.state.write() as db:
        db.execute("DELETE FROM upload WHERE id=?", (partial.id,))
        if became is not None:
            row = (partial.id, partial.user_id, became, time.time() + REMEMBER_S)
            db.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?)", row)
    with _all(space) as above:
        _remove(space, above, os.fsencode(partial.id))


def expire(space: Space, now: float | None = None) -> int:
    """Drop what waited too long, and directories that no row knows; returns how many uploads ended."""
    moment = time.time() if now is None else now
    late = [partial for partial in every(space) if partial.expires <= moment]
    for partial in late:
        drop(space, partial)
    with space.state.write() as db:
        db.execute("DELETE FROM finished WHERE until<=?", (moment,))
    with _all(space) as above:
        names = os.listdir(b"/proc/self/fd/%d" % above)
        # Rows are read after the names: a directory is made before its row.
        known = {os.fsencode(partial.id) for partial in every(space)}
        for name in names:
            try:
                age = moment - os.stat(name, dir_fd=above, follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            if name not in known and age > 60:
                _remove(space, above, name)
    return len(late)


@contextmanager
def _all(space: Space) -> Iterator[int]:
    fd = space.open_internal(_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove(space: Space, above: int, name: bytes) -> None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        for part in os.listdir(b"/proc/self/fd/%d" % fd):
            lease.require(space)
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=fd)
    finally:
        os.close(fd)
    lease.require(space)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=above)


def _partial(row: _Row) -> Partial:
    mtime_ns, checksum, if_match, must_not_exist, *said = json.loads(row[6])
    terms = Terms(
        mtime_ns,
        tuple(checksum) if checksum is not None else None,
        tuple(if_match) if if_match is not None else None,
        must_not_exist,
        *said,
    )
    return Partial(*row[:6], terms, *row[7:])
