"""Files that fsd has just written and given a name: known to the index in one transaction, several of them together.

The usual reconcile looks at an entry and works out who it is. Here that is known: fsd made the inode, labelled it and
linked it, and still holds it open, so its number belongs to nobody else. What is left to be proven, under the writers'
lock, is that the name leads to this inode alone, as it was written, with no attribute but the label, and that the index
knows the directory and neither the name nor the id. Whatever is otherwise is left to reconcile, which knows all cases.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, index, journal, labels, totals, waits
from fsd.core.index import FILE, LABELLED, READY, Head, NodeRow
from fsd.core.journal import Change
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.places import Place
    from fsd.core.space import Space

_INSERT = f"INSERT OR IGNORE INTO node VALUES ({'?,' * 16}?)"
_DIRECTORY = "SELECT node.id, node.binding FROM node JOIN dir ON dir.n=node.n WHERE node.n=?"
_ONLY_LABEL = [labels.ID_ATTRIBUTE]


class Arrival(NamedTuple):
    """A file at its place. `fd` is open, `row` is what its row will say but for `n`, `parent` and the ctime; `durable`:
    whether its name must be."""

    place: Place
    fd: int
    row: NodeRow
    durable: bool


Outcome = NodeRow | BaseException | None
"""The row of a file that was settled, None if reconcile has to look, or why it could not be made known."""


def settle_all(arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Make files known that were just linked, and their names durable where that is asked for.

    Those of a space share one transaction, also with those that other threads bring at the same time, and one fsync for
    each directory. Of an error of either, which is an OSError, those are told whom it concerns.
    """
    found: list[Outcome] = [None] * len(arrivals)
    groups: dict[tuple[Space, bool], list[int]] = {}
    for number, new in enumerate(arrivals):
        groups.setdefault((new.place.space, new.durable), []).append(number)
    for (space, durable), numbers in groups.items():
        some = [arrivals[number] for number in numbers]
        outcomes = _group_of(space).settle(some) if durable else _take_in_or_error(space, some)
        for number, outcome in zip(numbers, outcomes, strict=True):
            found[number] = outcome
    return found


def _take_in_or_error(space: Space, arrivals: Sequence[Arrival]) -> Sequence[Outcome]:
    try:
        return take_in(space, arrivals)
    except Exception as error:
        return [error] * len(arrivals)


def take_in(space: Space, arrivals: Sequence[Arrival]) -> list[NodeRow | None]:
    """The rows of these files, committed with sums, counters and journal; None for one that reconcile has to look at.

    OSError of the state disk: nothing has changed.
    """
    rows: list[NodeRow | None] = [None] * len(arrivals)
    by_place: dict[tuple[bytes, tuple[int, int]], list[int]] = {}
    for number, each in enumerate(arrivals):
        if each.row.flags & LABELLED and not ids.is_weak(each.row.binding):
            by_place.setdefault((each.place.parent, each.place.ident), []).append(number)
    by_directory = []
    for (path, _), numbers in by_place.items():
        place = arrivals[numbers[0]].place
        if place.is_at(path):
            binding = ids.node_binding(place.fd, b"", statx(place.fd, b""))
            by_directory.append((path, binding, numbers))
    if not by_directory:
        return rows
    now = time.time()
    with space.index.write() as db:
        head = Head(space, db)
        for path, binding, numbers in by_directory:
            found = _directory(space, db, head, path, binding)
            if found is None:
                continue
            n, parent_id = found
            for number in numbers:
                rows[number] = _insert(db, head, n, arrivals[number])
            known = [made for number in numbers if (made := rows[number]) is not None]
            _count(space, db, head, n, parent_id, known, now)
        head.save()
    return rows


def _directory(
    space: Space, db: sqlite3.Connection, head: Head, path: bytes, binding: bytes
) -> tuple[int, bytes] | None:
    """(row number, id) of a directory, if the index has it at this path."""
    moves, paths = space.index.paths
    n = index.ROOT if not path else paths.get(path) if moves == head.moves else None
    found = db.execute(_DIRECTORY, (n,)).fetchone() if n is not None else None
    if n is None or found is None or found[1] != binding:
        return None
    return n, found[0]


def _insert(db: sqlite3.Connection, head: Head, parent: int, new: Arrival) -> NodeRow | None:
    place, row = new.place, new.row
    try:
        seen = statx(place.fd, place.name)
        # In this order: an attribute that comes later changes the ctime, and is looked at then.
        attributes = os.listxattr(new.fd)
    except OSError:
        return None
    same = (seen.ino, seen.dev, seen.size, seen.mtime_ns) == (row.ino, place.ident[0], row.size, row.mtime_ns)
    if not same or seen.nlink != 1 or not stat.S_ISREG(seen.mode) or attributes != _ONLY_LABEL:
        return None
    n = head.rows(1)
    made = NodeRow(n, row.id, parent, place.name, FILE, row.binding, seen.ino, seen.size, seen.mtime_ns, seen.ctime_ns,
                   seen.mode, seen.uid, seen.gid, 1, row.rev, READY | LABELLED, 0)  # fmt: skip
    return made if db.execute(_INSERT, made).rowcount == 1 else None


def _count(
    space: Space,
    db: sqlite3.Connection,
    head: Head,
    n: int,
    parent_id: bytes,
    made: list[NodeRow],
    now: float,
) -> None:
    """Sums, counters and journal for what was inserted into one directory."""
    if not made:
        return
    first = head.numbers(len(made))
    changes = [Change("created", row.id, FILE, parent_id, row.name) for row in made]
    journal.append(db, first, changes, now)
    size = sum(row.size for row in made)
    totals.count(db, index.chain(space.index, db, n, head.moves), size, size, first + len(made) - 1)


class _Batch:
    """Arrivals that share a transaction. `through` is released for each of the other threads when it is over."""

    __slots__ = ("arrivals", "errors", "others", "rows", "through")

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.others = 0
        self.rows: dict[int, NodeRow | None] = {}
        self.errors: dict[tuple[int, int], BaseException] = {}
        """By the directory, (device, inode)."""
        self.through = threading.Semaphore(0)


class _Group:
    """The arrivals of one space in this process. Thread-safe.

    While one batch is under way the next one gathers: a filesystem that is committing a directory takes what comes
    later into its next commit, so nobody waits longer for that.
    """

    def __init__(self, space: Space) -> None:
        self._space = weakref.ref(space)
        self._guard = threading.Lock()
        self._under_way = threading.Lock()
        self._open: _Batch | None = None

    def settle(self, some: Sequence[Arrival]) -> list[Outcome]:
        with self._guard:
            batch = self._open
            leads = batch is None
            if batch is None:
                batch = self._open = _Batch()
            else:
                batch.others += 1
            first = len(batch.arrivals)
            batch.arrivals += some
        if leads:
            self._lead(batch)
        else:
            with waits.aside:
                batch.through.acquire()
        return [
            batch.errors.get(new.place.ident) or batch.rows.get(number)
            for number, new in enumerate(some, first)
        ]

    def _lead(self, batch: _Batch) -> None:
        if not self._under_way.acquire(blocking=False):
            with waits.aside:
                self._under_way.acquire()
        with self._guard:
            self._open = None
        try:
            self._take_in(batch)
        except BaseException as error:
            batch.errors = dict.fromkeys((each.place.ident for each in batch.arrivals), error)
        finally:
            self._under_way.release()
            if batch.others:
                batch.through.release(batch.others)

    def _take_in(self, batch: _Batch) -> None:
        space = self._space()
        assert space is not None, "the caller holds the space while it changes it"
        for ident, fd in {each.place.ident: each.place.fd for each in batch.arrivals}.items():
            try:
                with waits.aside:
                    os.fsync(fd)
            except OSError as error:
                batch.errors[ident] = error
        durable = [
            number for number, each in enumerate(batch.arrivals) if each.place.ident not in batch.errors
        ]
        rows = take_in(space, [batch.arrivals[number] for number in durable])
        batch.rows = dict(zip(durable, rows, strict=True))


_groups: weakref.WeakKeyDictionary[Space, _Group] = weakref.WeakKeyDictionary()
_groups_guard = threading.Lock()


def _group_of(space: Space) -> _Group:
    with _groups_guard:
        found = _groups.get(space)
        if found is None:
            found = _groups[space] = _Group(space)
        return found


def _forget_after_fork() -> None:
    # A batch of the parent's threads would never be over here.
    global _groups, _groups_guard
    _groups, _groups_guard = weakref.WeakKeyDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
