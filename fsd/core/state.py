"""`<space>.state.db`: the little that can't be rebuilt from the tree. Every commit is fsynced (synchronous=FULL).

Numbers of the journal are reserved here in blocks before the index uses any of them. So neither a lost index nor
one that lost its last commits in a power cut can ever use a number twice, and no etag stands for two contents.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fsd.core import intents, locks, partials, writers
from fsd.core.store import Database

BLOCK = 100_000
"""Journal numbers reserved at once: one fsync for so many changes."""

GAP = 2**40
"""Numbers fit into 63 bits, so there is room for eight million starts."""

SCHEMA = """
CREATE TABLE ident (
    one INTEGER PRIMARY KEY CHECK (one = 1), next INTEGER NOT NULL, incarnation BLOB NOT NULL,
    fingerprint TEXT NOT NULL);
CREATE TABLE binding (
    binding BLOB NOT NULL, place BLOB NOT NULL, id BLOB NOT NULL, rev INTEGER NOT NULL,
    PRIMARY KEY (binding, place)) WITHOUT ROWID;
CREATE TABLE tombstone (
    id BLOB PRIMARY KEY, parent BLOB NOT NULL, name BLOB NOT NULL, uid INTEGER NOT NULL, rev INTEGER NOT NULL,
    at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX tombstone_at ON tombstone (at)
"""


class Tombstone(NamedTuple):
    """What is remembered of a node that is gone: its id, where it was, and whose."""

    id: bytes
    parent: bytes
    name: bytes
    uid: int
    rev: int
    at: float


class State(Database):
    """The state database of one space."""

    def __init__(self, path: Path, lock: Path) -> None:
        schema = ";".join(
            (SCHEMA, intents.SCHEMA, locks.SCHEMA, writers.SCHEMA, partials.SCHEMA, partials.FINISHED)
        )
        super().__init__(path, schema, synchronous="FULL", lock=lock)

    def created(self, db: sqlite3.Connection) -> None:
        """A new state database is a new incarnation: etags of an earlier one can't come back."""
        db.execute("INSERT INTO ident VALUES (1, 1, ?, '')", (os.urandom(8),))

    def opened(self, db: sqlite3.Connection) -> None:
        """Tables that came after the first release."""
        writers.upgrade(db)
        db.execute(partials.SCHEMA)
        db.execute(partials.FINISHED)

    def reserve(self, at_least: int, *, apart: bool = False) -> tuple[int, int]:
        """Reserve a block of journal numbers: (first, first one behind it), durable when this returns.

        `apart`: at a random distance, so that two histories that begin with the same databases share no numbers.
        """
        with self.write() as db:
            (first,) = db.execute("SELECT next FROM ident").fetchone()
            first = max(first, at_least) + (secrets.randbelow(GAP) if apart else 0)
            db.execute("UPDATE ident SET next=?", (first + BLOCK,))
        return first, first + BLOCK

    def incarnation(self) -> bytes:
        """Random, made with the database; part of every directory's etag."""
        with self.read() as db:
            value: bytes = db.execute("SELECT incarnation FROM ident").fetchone()[0]
        return value

    def fingerprint(self) -> str:
        """`oc:data-fingerprint`: changes only after a restore."""
        with self.read() as db:
            value: str = db.execute("SELECT fingerprint FROM ident").fetchone()[0]
        return value

    def bind(self, rows: Iterable[tuple[bytes, bytes, bytes, int]]) -> None:
        """Remember ids that nodes can't carry themselves, or not yet: (binding, place or b"", id, rev).

        What is known of a node as a whole (b"") takes the place of what was known of its names, and the other way
        round.
        """
        with self.write() as db:
            for row in rows:
                # As one of several names, or as the only one; of a node with thousands not each is looked at.
                query = "DELETE FROM binding WHERE binding=?" + (" AND place=x''" if row[1] else "")
                db.execute(query, row[:1])
                db.execute("INSERT OR REPLACE INTO binding VALUES (?, ?, ?, ?)", row)

    def bound(self, binding: bytes, place: bytes) -> tuple[bytes, int] | None:
        """The remembered (id, rev) of a node, at this place if it has several."""
        query = (
            "SELECT id, rev FROM binding WHERE binding=? AND place IN (?, x'') ORDER BY length(place) DESC"
        )
        with self.read() as db:
            row: tuple[bytes, int] | None = db.execute(query, (binding, place)).fetchone()
        return row

    def bound_names(self, binding: bytes) -> dict[bytes, tuple[bytes, int]]:
        """All that is remembered of a node: the (id, rev) by place."""
        with self.read() as db:
            rows = db.execute("SELECT place, id, rev FROM binding WHERE binding=?", (binding,)).fetchall()
        return {place: (node_id, rev) for place, node_id, rev in rows}

    def bury(self, gone: Iterable[Tombstone], bound: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Write tombstones, durably, before the rows of the gone nodes are deleted; `bound`: their bindings with the
        ids that may be remembered for them, and need not be any more."""
        with self.write() as db:
            db.executemany("INSERT OR REPLACE INTO tombstone VALUES (?, ?, ?, ?, ?, ?)", gone)
            if db.execute("SELECT 1 FROM binding LIMIT 1").fetchone() is not None:
                db.executemany("DELETE FROM binding WHERE binding=? AND id=?", bound)

    def remembered(self, bindings: Sequence[bytes]) -> set[bytes]:
        """Those of the bindings that an id is remembered for."""
        if not bindings:
            return set()
        marks = ",".join(["(?)"] * len(bindings))
        query = (
            f"WITH asked(one) AS (VALUES {marks}) SELECT one FROM asked"
            " WHERE EXISTS (SELECT 1 FROM binding WHERE binding=one)"
        )
        with self.read() as db:
            if db.execute("SELECT 1 FROM binding LIMIT 1").fetchone() is None:
                return set()
            rows = db.execute(query, bindings)
            return {binding for (binding,) in rows}

    def tombstone(self, node_id: bytes) -> Tombstone | None:
        """What is remembered of a gone node."""
        with self.read() as db:
            row = db.execute("SELECT * FROM tombstone WHERE id=?", (node_id,)).fetchone()
        return Tombstone(*row) if row else None

    def tombstones(self) -> list[Tombstone]:
        """All of them, the oldest first."""
        with self.read() as db:
            return [Tombstone(*row) for row in db.execute("SELECT * FROM tombstone ORDER BY at")]

    def exhume(self, node_ids: Iterable[bytes], before: float | None = None) -> None:
        """Forget tombstones: of nodes that came back, and all older than `before` (seconds since the epoch)."""
        with self.write() as db:
            db.executemany("DELETE FROM tombstone WHERE id=?", ((node_id,) for node_id in node_ids))
            if before is not None:
                db.execute("DELETE FROM tombstone WHERE at<?", (before,))
