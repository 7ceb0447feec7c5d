"""Several hinted directories reconciled in few transactions: what a backlog of hints for many directories consists of.

The same steps as reconcile for the usual case: a few named entries of a directory that the index knows at its path.
The disk is read with no lock held; then one transaction takes in several directories, and what their ways up to the
root share is written once. Whoever wants to write meanwhile is let in between two directories. A directory that another
writer was faster with is left to reconcile, alone, as is everything that is not usual.

Crash: a transaction is committed or not, with what it served of the dirty set.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, index, relabel, unchanged
from fsd.core.commit import Commit, Result, ToLabel
from fsd.core.populate import populate
from fsd.core.reconcile import BULK, Outcome, Place, locate, look_closer, nothing
from fsd.core.scan import Scan, scan_names
from fsd.core.totals import Deltas

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from fsd.core.dirty import Item
    from fsd.core.index import Head
    from fsd.core.observe import Seen
    from fsd.core.space import Space

_log = logging.getLogger(__name__)

NAMES = 50
"""A directory with more hinted names takes long enough by itself."""
ROWS = 250
"""Rows that one transaction changes, about: others wait for the writers' lock meanwhile."""
LOCKED_S = 0.005
"""Seconds that one transaction takes, about, likewise."""


class _Look(NamedTuple):
    """An open directory, compared with its rows."""

    item: Item
    place: Place
    scan: Scan
    seen: list[Seen]
    proven: dict[bytes, str]


def is_usual(item: Item) -> bool:
    """Whether a dirty directory may be served together with others."""
    return item.names is not None and len(item.names) <= NAMES


def reconcile_together(space: Space, items: Iterable[Item], deadline: float) -> dict[bytes, Outcome]:
    """Serve dirty directories with named entries, as reconcile does each of them; by their paths the outcomes of those
    that were served. Begins none after the deadline (monotonic), but one.

    Those that have no outcome still wait, and are to be reconciled one by one, which says what is wrong with them.
    """
    outcomes: dict[bytes, Outcome] = {}
    with ExitStack() as opened:
        looks: list[_Look] = []
        quiet: list[_Look] = []
        with space.index.read():
            for item in items:
                if (looks or quiet) and time.monotonic() >= deadline:
                    break
                look = _look(space, item, opened)
                if look is not None:
                    (looks if look.seen or look.scan.vanished else quiet).append(look)
        labelled: list[tuple[int, list[ToLabel]]] = []
        for look, result in _commit(space, looks, quiet):
            place = look.place
            labelled.append((place.fd, result.to_label))
            outcomes[look.item.path] = Outcome(
                result.changed, False, result.new_dirs, place.ident, result.rows or look.scan.rows
            )
        relabel.write_labels_in(space, labelled)
    return outcomes


def _look(space: Space, item: Item, opened: ExitStack) -> _Look | None:
    """Compare a directory; None if that is not the usual case."""
    assert item.names is not None
    try:
        fd = space.open_dir(item.path)
    except OSError:
        return None
    opened.callback(os.close, fd)
    try:
        place = locate(space, item.path, fd)
        if place is None or place.row.n != item.n:
            return None
        scan = scan_names(space, fd, item.n, item.names, place.generation)
        if nothing(place, scan, item.names):
            return _Look(item, place, scan, [], {})
        seen = look_closer(space, fd, scan.candidates)
        if seen is None:
            return None
        return _Look(item, place, scan, seen, unchanged.proven(space, fd, scan.touched, seen))
    except OSError:
        return None


def _commit(space: Space, looks: list[_Look], quiet: Sequence[_Look]) -> list[tuple[_Look, Result]]:
    """Commit the looks, in as many transactions as others leave us; what was served by them."""
    done: list[tuple[_Look, Result]] = []
    looks.reverse()
    while looks or quiet:
        space.index.give_way()
        turn: list[tuple[_Look, Result]] = []
        try:
            with space.index.write() as db:
                began, rows = time.monotonic(), 0
                head, deltas, last = index.Head(space, db), Deltas(), 0
                for look in quiet:
                    dirty.served(db, look.item)
                    turn.append((look, Result()))
                while looks:
                    look = looks.pop()
                    work = _work(space, db, head, look, deltas)
                    if work is None:
                        continue
                    number = _take_in(work, look)
                    last = last if number is None else number
                    deltas.merge(work.deltas)
                    turn.append((look, work.result))
                    rows += len(look.seen) + len(look.scan.vanished)
                    if rows >= ROWS or time.monotonic() >= began + LOCKED_S or space.index.wanted():
                        break
                if deltas.touched():
                    deltas.apply(db, last)
                head.save()
        except Exception as error:
            # Whichever it was that failed: alone it says so, and holds up nobody else.
            _log.debug("space %s: not together: %s", space.record.id, error)
            return done
        done += turn
        quiet = ()
    return done


def _work(space: Space, db: sqlite3.Connection, head: Head, look: _Look, deltas: Deltas) -> Commit | None:
    """A commit for a directory; None if another one, or an earlier one of this transaction, was faster."""
    item, place, scan = look.item, look.place, look.scan
    n = item.n
    if index.seq_of(db, n) != scan.seq or deltas.has(n):
        return None
    if head.has_moved(scan.moves) and index.path_of(db, n) != item.path:
        return None
    row = index.node(db, n)
    if row is None or row.id != place.row.id:
        return None
    return Commit(
        space, db, head, row, place.dir, place.found.mnt_id, item.path, time.time(),
        explicit=False, sweep=item.sweep, first_look=False, defer_labels=False, proven=look.proven,
    )  # fmt: skip


def _take_in(work: Commit, look: _Look) -> int | None:
    """Make the rows say what was seen, but for the sums; the number of the last change."""
    entries, fd = look.seen, look.place.fd
    if len(entries) >= BULK:
        entries = populate(work, fd, entries, label=True)
    work.put_all(entries)
    for row in look.scan.vanished:
        work.remove(row)
    for n in look.scan.stale_dirs:
        dirty.mark_row(work.db, n, None, work.now, sweep=work.sweep)
    number = work.tell()
    relabel.keep(work.space, work.db, fd, work.result.to_label)
    dirty.served(work.db, look.item)
    return number
