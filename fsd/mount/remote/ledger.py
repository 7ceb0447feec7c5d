"""What a mount has to remember across its end, in SQLite beside the bytes: changes not uploaded yet, what is cached,
listings. A row is written before a program hears that its file is there, so a killed mount loses none.

The listings and the cached bytes may be thrown away at any time; `pending` may not.
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.mount.remote.multistatus import Found

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pending(
    n INTEGER PRIMARY KEY,      -- the bytes are in pending/<n>
    id TEXT,                    -- of the file that is replaced; NULL: a new one
    parent TEXT NOT NULL,       -- the folder's id
    name BLOB NOT NULL,
    base TEXT,                  -- the etag that was seen; NULL: nothing was there
    mtime_ns INTEGER,           -- NULL: that of the bytes
    path TEXT NOT NULL,         -- as people know it
    upload TEXT,                -- the address of a resumable upload of just these bytes, begun already
    complete INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS content(
    key TEXT PRIMARY KEY,       -- the bytes are in content/<key>
    id TEXT NOT NULL, etag TEXT NOT NULL, size INTEGER NOT NULL,
    have BLOB,                  -- one byte for each block, 1: it is here; NULL: all are
    used REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS listing(id TEXT PRIMARY KEY, entries TEXT NOT NULL);
"""
_FULL = "full"


class Row(NamedTuple):
    """A change that is not uploaded yet."""

    n: int
    id: str | None
    parent: str
    name: bytes
    base: str | None
    mtime_ns: int | None
    path: str
    upload: str | None


class Kept(NamedTuple):
    """Bytes of a file, as of an etag."""

    key: str
    id: str
    etag: str
    size: int
    have: bytes | None
    used: float


class Ledger:
    """The database of one cache directory; the caller holds the directory's lock. OSError for all that fails."""

    def __init__(self, place: Path) -> None:
        with _as_os_error():
            self._db = sqlite3.connect(place / "ledger.db", isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=4000")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, VERSION):
                raise OSError(errno.EINVAL, f"{place} was made by another version of fsd")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        """Durable when this returns."""
        with _as_os_error():
            self._db.close()

    # -- pending

    def pending(self) -> list[Row]:
        """All changes, oldest first."""
        with _as_os_error():
            rows = self._db.execute(
                "SELECT n, id, parent, name, base, mtime_ns, path, upload FROM pending ORDER BY n"
            )
            return [Row._make(row) for row in rows]

    def last_number(self) -> int:
        """The largest number of a pending change."""
        with _as_os_error():
            return int(self._db.execute("SELECT coalesce(max(n), 0) FROM pending").fetchone()[0])

    def put(self, row: Row) -> None:
        """Write a change down, or what is different about it."""
        with _as_os_error():
            self._db.execute(
                "INSERT OR REPLACE INTO pending(n, id, parent, name, base, mtime_ns, path, upload)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def drop(self, n: int) -> None:
        """The change is on the server, or was taken back."""
        with _as_os_error():
            self._db.execute("DELETE FROM pending WHERE n=?", (n,))

    # -- content

    def contents(self) -> list[Kept]:
        """All that is cached, least recently used first."""
        with _as_os_error():
            rows = self._db.execute("SELECT key, id, etag, size, have, used FROM content ORDER BY used")
            return [Kept._make(row) for row in rows]

    def keep(self, kept: Iterable[Kept]) -> None:
        """Bytes are here."""
        with _as_os_error():
            self._db.executemany("INSERT OR REPLACE INTO content VALUES (?, ?, ?, ?, ?, ?)", kept)

    def forget(self, keys: Iterable[str]) -> None:
        """Bytes are here no more."""
        with _as_os_error():
            self._db.executemany("DELETE FROM content WHERE key=?", [(key,) for key in keys])

    # -- listings

    def remember(self, ident: str, entries: Iterable[tuple[Found, int]]) -> None:
        """A folder's entries, each with its time in nanoseconds."""
        told = [
            [each.name.decode("utf-8", "surrogateescape"), *each[1:], mtime_ns] for each, mtime_ns in entries
        ]
        with _as_os_error():
            self._db.execute("INSERT OR REPLACE INTO listing VALUES (?, ?)", (ident, json.dumps(told)))

    def remembered(self, ident: str) -> list[tuple[Found, int]] | None:
        """A folder's entries as they were, None if they were never seen."""
        from fsd.mount.remote.multistatus import Found

        with _as_os_error():
            row = self._db.execute("SELECT entries FROM listing WHERE id=?", (ident,)).fetchone()
        if row is None:
            return None
        return [
            (Found(name.encode("utf-8", "surrogateescape"), *rest), mtime_ns)
            for name, *rest, mtime_ns in json.loads(row[0])
        ]

    def batch(self) -> _Batch:
        """Several of the above in one transaction."""
        return _Batch(self._db)


class _Batch:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        with _as_os_error():
            self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        with _as_os_error():
            self._db.execute("COMMIT" if kind is None else "ROLLBACK")


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = errno.ENOSPC if _FULL in str(error) else errno.EIO
        raise OSError(code, f"the mount's ledger: {error}") from error
