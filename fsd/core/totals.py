"""Tree sizes and change counters, carried from a directory up to the root within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence


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

    def has(self, n: int) -> bool:
        """Whether anything was added for a directory."""
        return n in self._by_dir

    def merge(self, later: Deltas) -> None:
        """Add what another commit of the same transaction collected."""
        for n, (own, total, visible) in later._by_dir.items():
            self.add(n, own, total, visible=visible)

    def apply(self, db: sqlite3.Connection, counter: int) -> None:
        """Add the sums along each chain; visible ones get `counter`. Each touched directory's seq rises.

        What several chains share is written once.
        """
        if len(self._by_dir) > 1:
            self._apply_together(db, counter)
            return
        for n, (own, total, visible) in self._by_dir.items():
            if visible:
                count(db, above(db, n), own, total, counter)
            else:
                db.execute("UPDATE dir SET own=own+?, seq=seq+1 WHERE n=?", (own, n))
                climb(db, n, total, None)

    def _apply_together(self, db: sqlite3.Connection, counter: int) -> None:
        totals: dict[int, int] = {}
        raised: set[int] = set()
        parents: dict[int, int | None] = {}
        for n, (_, total, visible) in self._by_dir.items():
            if not (visible or total):
                continue
            chain = above(db, n, parents)
            for each in chain:
                totals[each] = totals.get(each, 0) + total
            if visible:
                raised.update(chain)
        db.executemany(
            "UPDATE dir SET own=own+?, seq=seq+1 WHERE n=?",
            [(own, n) for n, (own, _, _) in self._by_dir.items()],
        )
        rows = [(totals[n], counter, n) for n in raised]
        db.executemany("UPDATE dir SET total=total+?, counter=? WHERE n=?", rows)
        others = [(total, n) for n, total in totals.items() if total and n not in raised]
        db.executemany("UPDATE dir SET total=total+? WHERE n=?", others)
        db.executemany(_UNTOLD, [(n,) for n in raised])


_UNTOLD = "UPDATE dir SET published=0 WHERE n=? AND published"
"""By itself, and rarely true: the key on what is not published is not written each time."""


def above(db: sqlite3.Connection, n: int, parents: dict[int, int | None] | None = None) -> list[int]:
    """A directory's row number and those of all above it, nearest first. Of rows that hang on themselves (`fsd check`
    tells of them) each once. `parents`: what earlier calls found, as long as nothing moves."""
    found = [n]
    met = {n}
    parents = {} if parents is None else parents
    while True:
        here = found[-1]
        if here not in parents:
            row = db.execute("SELECT parent FROM node WHERE n=?", (here,)).fetchone()
            parents[here] = row[0] if row is not None else None
        parent = parents[here]
        if parent is None or parent in met:
            return found
        met.add(parent)
        found.append(parent)


def count(db: sqlite3.Connection, chain: Sequence[int], own: int, total: int, counter: int) -> None:
    """Something changed in the first directory of `chain` (see `above`) that everybody may see: the bytes of its own
    files by `own`, those of its tree by `total`."""
    db.execute(
        "UPDATE dir SET own=own+?, seq=seq+1, total=total+?, counter=? WHERE n=?",
        (own, total, counter, chain[0]),
    )
    _raise(db, chain, chain[1:], total, counter)


def climb(db: sqlite3.Connection, n: int, delta: int, counter: int | None) -> None:
    """Add `delta` bytes to the totals of `n` and all above it, and set their counters."""
    if counter is not None:
        chain = above(db, n)
        _raise(db, chain, chain, delta, counter)
    elif delta:
        db.executemany("UPDATE dir SET total=total+? WHERE n=?", [(delta, each) for each in above(db, n)])


def _raise(
    db: sqlite3.Connection, chain: Sequence[int], raised: Sequence[int], delta: int, counter: int
) -> None:
    if raised:
        rows = [(delta, counter, each) for each in raised]
        db.executemany("UPDATE dir SET total=total+?, counter=? WHERE n=?", rows)
    db.executemany(_UNTOLD, [(each,) for each in chain])


def recount(db: sqlite3.Connection, n: int) -> tuple[int, int]:
    """(own, total) of a directory from its rows, nothing assumed."""
    (own,) = db.execute("SELECT coalesce(sum(size), 0) FROM node WHERE parent=? AND kind=0", (n,)).fetchone()
    (below,) = db.execute(
        "SELECT coalesce(sum(dir.total), 0) FROM node JOIN dir ON dir.n=node.n WHERE node.parent=? AND node.kind=1",
        (n,),
    ).fetchone()
    return own, own + below
