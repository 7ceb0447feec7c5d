"""Entries that vanished and may yet reappear elsewhere. Their sizes and etags dropped at once; here their
rows wait.

What doesn't reappear was deleted: a tombstone (id, place, owner) is written durably, then the rows go, leaves
first and in small transactions, so a crash in between leaves rows that the next call finds again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fsd.core import index
from fsd.core.commit import MEMORY_S
from fsd.core.index import DIRECTORY, NodeRow
from fsd.core.state import Tombstone

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

_BATCH = 500
TOMBSTONE_S = 180 * 86400.0
"""Tombstones are kept for half a year: as long as people restore from backups. Seconds."""


def settle(space: Space, now: float | None = None, limit: int = 5000) -> int:
    """Turn vanished entries that are older than the memory into deletions; the number of rows, at most about
    `limit`. What vanished later than now, as the clock was set back since, vanished now."""
    moment = time.time() if now is None else now
    gone = 0
    _set_back(space, moment)
    with space.index.read() as db:
        query = "SELECT n, parent, name FROM limbo WHERE since<=? ORDER BY since"
        waiting = db.execute(query, (moment - MEMORY_S,)).fetchall()
        stale = db.execute("SELECT 1 FROM recent WHERE since<? LIMIT 1", (moment - MEMORY_S,)).fetchone()
    if stale:
        with space.index.write() as db:
            db.execute("DELETE FROM recent WHERE since<?", (moment - MEMORY_S,))
    batch: list[tuple[int, int, bytes]] = []
    for n, parent, name in waiting:
        if gone >= limit:
            break
        with space.index.read() as db:
            leaf = _is_leaf(db, n)
        if leaf:
            batch.append((n, parent, name))
            gone += 1
            if len(batch) >= _BATCH:
                _delete_roots(space, batch, moment)
                batch = []
        else:
            gone += _empty(space, n, moment, limit - gone)
    _delete_roots(space, batch, moment)
    return gone


def _set_back(space: Space, moment: float) -> None:
    with space.index.read() as db:
        (later,) = db.execute(
            "SELECT EXISTS (SELECT 1 FROM limbo WHERE since>?) OR EXISTS (SELECT 1 FROM recent WHERE since>?)",
            (moment, moment),
        ).fetchone()
    if later:
        with space.index.write() as db:
            for table in ("limbo", "recent"):
                db.execute(f"UPDATE {table} SET since=? WHERE since>?", (moment, moment))


def _is_leaf(db: sqlite3.Connection, n: int) -> bool:
    return db.execute("SELECT 1 FROM node WHERE parent=? LIMIT 1", (n,)).fetchone() is None


def _empty(space: Space, top: int, now: float, limit: int) -> int:
    """Delete rows below a directory in limbo, deepest first; the number deleted."""
    stack, gone = [top], 0
    while stack and gone < limit:
        here = stack[-1]
        with space.index.read() as db:
            rows = [
                NodeRow._make(r)
                for r in db.execute("SELECT * FROM node WHERE parent=? LIMIT ?", (here, _BATCH))
            ]
            full = [row.n for row in rows if row.kind == DIRECTORY and not _is_leaf(db, row.n)]
            above = index.node(db, here)
        if full:
            stack.append(full[0])
            continue
        if rows and above is not None:
            _bury(space, [(row, above.id, row.name) for row in rows], now)
            with space.index.write() as db:
                for row in rows:
                    _forget(db, row.n, here)
            gone += len(rows)
        if len(rows) < _BATCH:
            stack.pop()
    return gone


def _delete_roots(space: Space, batch: list[tuple[int, int, bytes]], now: float) -> None:
    if not batch:
        return
    with space.index.read() as db:
        found = [(index.node(db, n), index.node(db, parent), name) for n, parent, name in batch]
    _bury(
        space,
        [(row, above.id if above else b"", name) for row, above, name in found if row and row.parent is None],
        now,
    )
    with space.index.write() as db:
        for n, _, _ in batch:
            if db.execute("DELETE FROM limbo WHERE n=?", (n,)).rowcount:
                _forget(db, n, None)


def _bury(space: Space, gone: list[tuple[NodeRow, bytes, bytes]], now: float) -> None:
    stones = (Tombstone(row.id, parent, name, row.uid, row.rev, now) for row, parent, name in gone)
    space.state.bury(stones, ((row.binding, row.id) for row, _, _ in gone))


def _forget(db: sqlite3.Connection, n: int, parent: int | None) -> None:
    """Delete a row unless it was revived or moved meanwhile."""
    where = "parent IS NULL" if parent is None else "parent=?"
    arguments = (n,) if parent is None else (n, parent)
    if db.execute(f"DELETE FROM node WHERE n=? AND {where}", arguments).rowcount:
        for table in ("dir", "dirty", "pending"):
            db.execute(f"DELETE FROM {table} WHERE n=?", (n,))
