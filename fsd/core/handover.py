"""What the next host needs of a holder's state database: its locks, and its uploads under way. Beside the lease, in
`.fsd/lease/state-TOKEN`, written by the holder of that token alone, whole, when it changed since its last renewal.

The parts of uploads lie in the tree anyway. A holder that is killed may have granted a lock, or begun an upload, since
it was last at it: that is lost.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from fsd.core import locks, ownfiles

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
TABLES = ("lock", "upload")
_MOST = 64 << 20
_TYPES: dict[str, tuple[type, ...]] = {
    "TEXT": (str, type(None)),
    "BLOB": (bytes, type(None)),
    "INTEGER": (int, type(None)),
    "REAL": (float, int, type(None)),
}
"""What may stand in a column; SQLite itself takes anything anywhere, NULL apart (datatype3.html)."""


def collected(space: Space) -> bytes:
    """All of it, as it is now."""
    with space.state.read() as db:
        rows = {table: db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in TABLES}
    return json.dumps(rows, default=lambda value: {"hex": value.hex()}).encode()


def write(directory: int, token: int, data: bytes) -> None:
    """Put it beside the lease, atomically. Another token's is never touched."""
    name = _name(token)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name + b".new", flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + b".new", name, src_dir_fd=directory, dst_dir_fd=directory)


def take_in(space: Space, directory: int, token: int) -> None:
    """Make what the holder of `token` had this host's. What can't be read is as if there had been nothing: logged."""
    try:
        tables = ownfiles.parse(ownfiles.read(directory, _name(token), _MOST))
        rows = {table: [[_value(each) for each in row] for row in tables[table]] for table in TABLES}
        with space.state.write() as db:
            for table, found in rows.items():
                _replace(db, table, found)
            locks.note_change(db)
    except FileNotFoundError:
        return
    except (ownfiles.Unusable, ValueError, KeyError, TypeError, sqlite3.IntegrityError) as error:
        _log.error(
            "space %s: the locks and uploads of its last host are not usable: %s", space.record.id, error
        )


def _replace(db: sqlite3.Connection, table: str, rows: list[list[Any]]) -> None:
    """Make these the rows of a table. ValueError, sqlite3.IntegrityError if they are none of it."""
    kinds = [row[2] for row in db.execute(f"PRAGMA table_info({table})")]
    for row in rows:
        if len(row) != len(kinds) or not all(
            isinstance(v, _TYPES[k]) for k, v in zip(kinds, row, strict=True)
        ):
            raise ValueError(f"a row of '{table}' is none")
    db.execute(f"DELETE FROM {table}")
    db.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(kinds))})", rows)


def clear(directory: int, below: int) -> None:
    """Remove what earlier tokens left."""
    for text in os.listdir(b"/proc/self/fd/%d" % directory):
        number = text.removeprefix(b"state-").removesuffix(b".new")
        if not text.startswith(b"state-") or len(number) != 16 or set(number) - set(b"0123456789abcdef"):
            continue
        if int(number, 16) < below:
            os.unlink(text, dir_fd=directory)


def _name(token: int) -> bytes:
    return b"state-%016x" % token


def _value(found: Any) -> Any:
    return bytes.fromhex(found["hex"]) if isinstance(found, dict) else found
