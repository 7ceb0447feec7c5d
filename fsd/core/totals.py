"""Tree sizes and change counters, carried from a directory up to the root within one transaction."""

from __future__ import annotations

import sqlite3

_UP = (
    "WITH RECURSIVE up (n) AS (SELECT ? UNION "
    "SELECT node.parent FROM up JOIN node ON node.n = up.n WHERE node.parent IS NOT NULL) "
)

_CHANGED = (
    _UP
    + "UPDATE dir SET own=own+iif(n=?,?,0), seq=seq+(n=?), total=total+?, counter=? WHERE n IN (SELECT n FROM up)"
)


class Deltas:
    """Collects what a commit changes per directory, then applies each chain once."""

    def __init__(self) -> None:
        self._by_dir: dict[int, tuple[int, int, bool]] = {}

    def add(self, n: int, own: int = 0, total: int = 0, *, visible: bool = True) -> None:
        """`own`: bytes of files listed in `n`; `total`: bytes of the tree below; `visible`: the etag must change."""
        old = self._by_dir.get(n, (0, 0, False))
        self._by_dir[n] = (old[0] + own, old[1] + total, old[2] or visible)

    def touched(self) -> bool:
        """Whether anything was added."""
        return bool(self._by_dir)

    def visible(self) -> bool:
        """Whether any etag has to change."""
        return any(change[2] for change in self._by_dir.values())

    def apply(self, db: sqlite3.Connection, counter: int) -> None:
        """Add the sums along each chain; visible ones get `counter`. Each touched directory's seq rises."""
        for n, (own, total, visible) in self._by_dir.items():
            if visible:
                db.execute(_CHANGED, (n, n, own, n, total, counter))
            else:
                db.execute("UPDATE dir SET own=own+?, seq=seq+1 WHERE n=?", (own, n))
                climb(db, n, total, None)


def climb(db: sqlite3.Connection, n: int, delta: int, counter: int | None) -> None:
    """Add `delta` bytes to the totals of `n` and all above it, and set their counters."""
    if counter is not None:
        db.execute(
            _UP + "UPDATE dir SET total=total+?, counter=? WHERE n IN (SELECT n FROM up)", (n, delta, counter)
        )
    elif delta:
        db.execute(_UP + "UPDATE dir SET total=total+? WHERE n IN (SELECT n FROM up)", (n, delta))


def recount(db: sqlite3.Connection, n: int) -> tuple[int, int]:
    """(own, total) of a directory from its rows, nothing assumed."""
    (own,) = db.execute("SELECT coalesce(sum(size), 0) FROM node WHERE parent=? AND kind=0", (n,)).fetchone()
    (below,) = db.execute(
        "SELECT coalesce(sum(dir.total), 0) FROM node JOIN dir ON dir.n=node.n WHERE node.parent=? AND node.kind=1",
        (n,),
    ).fetchone()
    return own, own + below
