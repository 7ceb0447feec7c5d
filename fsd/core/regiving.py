"""Ids that were lost with their labels, given back because a person says so.

A backup tool that drops attributes brings a tree back as new nodes: nothing on them says who they were, and a directory
that is made anew is another one. What is remembered is where each deleted node stood (its tombstone). Whoever knows
that the tree is the restored one may say that what stands there now is what stood there then. Nothing does so by
itself: a file of an old name may as well be another file.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, index, journal, totals
from fsd.core.index import DIRECTORY, FILE, LABELLED, NodeRow
from fsd.core.journal import Change
from fsd.core.names import join
from fsd.core.state import Tombstone

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

_CHUNK = 200


class Lost(NamedTuple):
    """An entry that stands where another one was deleted; `row` as it was read, `before` what is remembered."""

    path: bytes
    row: NodeRow
    before: Tombstone


def lost(space: Space) -> list[Lost]:
    """Entries with nothing but the id that they have by themselves, at the places of deleted ones whose ids are free;
    parents first. What lies in such a directory is looked for under the directory's earlier id."""
    stones = {(stone.parent, stone.name): stone for stone in space.state.tombstones()}
    found: list[Lost] = []
    with space.index.read() as db:
        queue = [(index.ROOT, b"", space.key)]
        while queue:
            n, path, parent_id = queue.pop()
            for row in list(index.children(db, n)):
                here = join(path, row.name)
                stone = stones.get((parent_id, row.name))
                if stone is not None and _is_nobody(space, row) and index.by_id(db, stone.id) is None:
                    found.append(Lost(here, row, stone))
                else:
                    stone = None
                if row.kind == DIRECTORY:
                    queue.append((row.n, here, stone.id if stone is not None else row.id))
    return found


def _is_nobody(space: Space, row: NodeRow) -> bool:
    single = row.nlink == 1 or row.kind == DIRECTORY
    return single and row.id == ids.derived_id(space.key, row.binding)


def give_back(space: Space, found: list[Lost]) -> int:
    """Give the entries their earlier ids; the number that got one. What changed since it was found is left alone.

    In small transactions: after a crash some have theirs, and `lost` finds the others. Labels are due.
    """
    given = 0
    for start in range(0, len(found), _CHUNK):
        chunk = found[start : start + _CHUNK]
        with space.index.write() as db:
            done = [item for item in chunk if _give(space, db, item)]
        space.state.bind(
            (item.row.binding, b"", item.before.id, _rev(item))
            for item in done
            if space.record.label == "none" or item.row.kind not in (FILE, DIRECTORY)
        )
        given += len(done)
    return given


def _rev(item: Lost) -> int:
    return max(item.row.rev, item.before.rev) + 1


def _give(space: Space, db: sqlite3.Connection, item: Lost) -> bool:
    row = index.node(db, item.row.n)
    if row is None or row.parent is None or row.id != item.row.id or row.name != item.row.name:
        return False
    parent = index.node(db, row.parent)
    if parent is None or parent.id != item.before.parent or index.by_id(db, item.before.id) is not None:
        return False
    now = time.time()
    db.execute(
        "UPDATE node SET id=?, rev=?, flags=flags & ~? WHERE n=?",
        (item.before.id, _rev(item), LABELLED, row.n),
    )
    db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 1)", (row.n, now))
    number = index.take_numbers(space, db, 1)
    journal.append(db, number, [Change("changed", item.before.id, row.kind, parent.id, row.name)], now)
    totals.climb(db, parent.n, 0, number)
    db.execute("UPDATE dir SET seq=seq+1 WHERE n=?", (parent.n,))
    return True
