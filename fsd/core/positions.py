"""How far the logs that tell of a space were read, in its index: in the transaction that marks what they said.

So a log is read on from where its hints are kept, whatever else was lost; an index that is made anew has no positions,
and is swept. `owed` says that a gap was heard which no sweep has begun to answer; `trees`, that a process has trees in
mind of which the dirty set holds only the tops.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsd.core.space import Space

_LOG = "log:"
_OWED = "owed"
_TREES = "trees"


def keep(
    db: sqlite3.Connection, reached: Mapping[str, str], *, owed: bool = False, trees: bool = False
) -> None:
    """Store positions by the names of their logs, within a transaction; an empty one is deleted."""
    rows = [(_LOG + name, value) for name, value in reached.items() if value]
    ended = [(_LOG + name,) for name, value in reached.items() if not value]
    if ended:
        db.executemany("DELETE FROM cursor WHERE source=?", ended)
    if owed:
        rows.append((_OWED, "1"))
    if trees:
        rows.append((_TREES, "1"))
    if rows:
        db.executemany("INSERT OR REPLACE INTO cursor VALUES (?, ?)", rows)


def paid(db: sqlite3.Connection) -> None:
    """A sweep of everything begins, within its transaction."""
    db.execute("DELETE FROM cursor WHERE source IN (?, ?)", (_OWED, _TREES))


def reached(space: Space, kind: str = "") -> dict[str, str]:
    """The positions in the logs whose names begin with `kind`."""
    head = _LOG + kind
    with space.index.read() as db:
        rows = db.execute("SELECT source, value FROM cursor WHERE substr(source, 1, ?)=?", (len(head), head))
        return {name[len(_LOG) :]: value for name, value in rows}


def sweep_wanted(space: Space) -> bool:
    """Whether the process before this one left something that only a sweep can answer."""
    with space.index.read() as db:
        found = db.execute("SELECT 1 FROM cursor WHERE source IN (?, ?)", (_OWED, _TREES)).fetchone()
    return found is not None


def no_trees(space: Space) -> None:
    """No tree is in anybody's mind any more."""
    with space.index.write() as db:
        db.execute("DELETE FROM cursor WHERE source=?", (_TREES,))


def forget(space: Space, kind: str) -> None:
    """Drop the positions in the logs whose names begin with `kind`."""
    head = _LOG + kind
    with space.index.write() as db:
        db.execute("DELETE FROM cursor WHERE substr(source, 1, ?)=?", (len(head), head))
