"""The journal: numbered changes, oldest first. Numbers never repeat (state.py); the rows are kept for a while."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from fsd.core.space import Space

Kind = Literal["created", "changed", "moved", "deleted", "metadata", "scanned", "ready", "left"]
"""`left`: the place from which something `moved`. `scanned`: a directory (its own `parent`, under an empty name) was
looked at for the first time, so what lies in it is not told one by one."""
KEEP = 200_000
"""Rows kept; a reader that is further behind must look at the tree instead."""


class Change(NamedTuple):
    """What reconcile found of one entry; `parent` is the id of the directory it is (or was) in."""

    kind: Kind
    node: bytes
    node_kind: int
    parent: bytes
    name: bytes


class Numbered(NamedTuple):
    """A change as the journal holds it; `at` in seconds since the epoch."""

    number: int
    kind: str
    node: bytes
    node_kind: int
    parent: bytes
    name: bytes
    at: float


def append(db: sqlite3.Connection, first: int, changes: list[Change], now: float) -> None:
    """Write changes under consecutive numbers from `first`, within the transaction that makes them true."""
    rows = ((first + i, *change, now) for i, change in enumerate(changes))
    db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def since(space: Space, number: int, limit: int = 1000) -> list[Numbered]:
    """Changes after `number`, oldest first."""
    with space.index.read() as db:
        rows = db.execute(
            "SELECT * FROM journal WHERE number>? ORDER BY number LIMIT ?", (number, limit)
        ).fetchall()
    return [Numbered._make(row) for row in rows]


def last(space: Space) -> int:
    """The number of the newest change."""
    with space.index.read() as db:
        number: int = db.execute("SELECT number-1 FROM head").fetchone()[0]
    return number


def trim(space: Space) -> None:
    """Drop all but the newest rows."""
    with space.index.read() as db:
        row = db.execute(
            "SELECT number FROM journal ORDER BY number DESC LIMIT 1 OFFSET ?", (KEEP,)
        ).fetchone()
    if row is not None:
        with space.index.write() as db:
            db.execute("DELETE FROM journal WHERE number<=?", (row[0],))
            set_floor(db, row[0])


def set_floor(db: sqlite3.Connection, number: int) -> None:
    """From now on the journal is whole only behind `number`."""
    db.execute("INSERT OR REPLACE INTO cursor VALUES ('journal', ?)", (str(number),))


def floor(db: sqlite3.Connection) -> int:
    """The journal holds every change behind this number."""
    return int(db.execute("SELECT value FROM cursor WHERE source='journal'").fetchone()[0])
