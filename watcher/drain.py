"""Hints of one space -> the durable dirty set -> reconcile, at the right moment.

What waits is in the dirty set of the index, one row a directory, marked in one transaction for each batch of hints.
In memory there is only the schedule: which directory may be handled when (`pace`). It is bounded: when it is full,
or after a crash, directories are taken from the dirty set itself. One thread owns a Drain.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from fsd.core import dirty, index
from fsd.core.errors import StorageUnavailable
from fsd.core.names import split
from fsd.core.reconcile import Outcome, reconcile
from fsd.core.scan import scan_names
from watcher.coalesce import Coalescer, Waiting
from watcher.hint import Hint, Kind
from watcher.pace import Pacer

if TYPE_CHECKING:
    from fsd.core.space import Space

log = logging.getLogger(__name__)

MAX_SCHEDULED = 20_000
REFILL = 500
REFILL_EVERY = 0.1
AFTER_PARENT = 0.001
MAX_LOOK = 1000
MAX_ECHOES = 1000
"""Names of a directory, and directories, of which changed attributes may wait; a name costs about 10 us."""
ECHO = 0.04
ECHO_AGAIN = 0.1
"""Seconds that a batch of labels has from its first setxattr(2) to its commit; the second, if it is a slow one."""
_Reconcile = Callable[..., Outcome]


class Drain:
    """The waiting directories of one space."""

    def __init__(
        self,
        space: Space,
        *,
        clock: Callable[[], float] = time.monotonic,
        work: _Reconcile = reconcile,
        max_scheduled: int = MAX_SCHEDULED,
    ) -> None:
        self.space = space
        self.counts: Counter[str] = Counter()
        """Passes by kind (`names`, `whole`), `changed`, `hints`, `collapsed`."""
        self.errors: Counter[str] = Counter()
        """Failed passes by the name of the errno (or the class)."""
        self.last_error = ""
        self.latencies: deque[float] = deque(maxlen=512)
        """Seconds from hearing to done, of the latest passes that were asked for by a hint."""
        self._clock = clock
        self._work = work
        self._batch = Coalescer()
        self._echoes: dict[tuple[bytes, bool], tuple[set[bytes], float]] = {}
        self._pacer = Pacer()
        self._max = max_scheduled
        self._schedule: dict[bytes, Waiting] = {}
        self._at: dict[bytes, float] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._turn = 0
        self._more = True
        """The dirty set may hold directories that are not scheduled."""
        self._next_refill = 0.0

    # -- hearing

    def hear(self, hint: Hint) -> None:
        """Take in one hint; `flush` makes the batch durable."""
        self.counts["hints"] += 1
        if hint.meta and self._doubt(hint.dir, hint.names, ECHO, looked=False):
            return
        self._batch.add(hint)

    def _doubt(self, path: bytes, names: Collection[bytes], wait: float, *, looked: bool) -> bool:
        """Look at changed attributes later; False if too much waits for that."""
        key = (path, looked)
        if key not in self._echoes and len(self._echoes) >= MAX_ECHOES:
            return False
        held, _ = self._echoes.setdefault(key, (set(), self._clock() + wait))
        if len(held) + len(names) > MAX_LOOK:
            return False
        held.update(names)
        return True

    def take_gap(self) -> bool:
        """True, once, if only a sweep can answer what was heard."""
        gap, self._batch.gap = self._batch.gap, False
        return gap

    def flush(self) -> None:
        """Mark what was heard, in one transaction, and schedule it. OSError of the state disk: it is kept, and the
        next call tries again."""
        for old, new in self._batch.moves():
            self._moved(old, new)
        batch = self._batch.waiting
        if not batch:
            return
        dirty.mark(self.space, [(path, item.names) for path, item in batch.items()])
        now = self._clock()
        for path, item in batch.items():
            self._plan(path, item, now)
        self._batch.waiting = {}

    # -- handling

    def next_due(self) -> float | None:
        """When there is something to do next; None if nothing waits."""
        echo = min((until for _, until in self._echoes.values()), default=None)
        due = self._next_scheduled()
        return due if echo is None else echo if due is None else min(due, echo)

    def _next_scheduled(self) -> float | None:
        while self._heap:
            due, _, path = self._heap[0]
            if self._at.get(path) == due:
                return due
            heapq.heappop(self._heap)
        return None

    def run(self, budget: float) -> bool:
        """Handle directories that are due, for about `budget` seconds; True if more are due.

        Raises StorageUnavailable: everything still waits then.
        """
        deadline = self._clock() + budget
        self._look(self._clock())
        while (due := self._next_scheduled()) is not None:
            now = self._clock()
            if due > now:
                return False
            if now >= deadline:
                return True
            _, _, path = heapq.heappop(self._heap)
            del self._at[path]
            self._handle(path, self._schedule.pop(path))
        return False

    def refill(self, now: float, *, force: bool = False) -> None:
        """Schedule what the dirty set holds and nobody here has heard of: marked by other processes, by reconcile
        itself, or before a restart."""
        if not force and not (self._more and now >= self._next_refill):
            return
        self._next_refill = now + REFILL_EVERY
        items = dirty.pending(self.space, REFILL, sweep=False)
        self._more = len(items) == REFILL
        for item in items:
            if item.path is not None and item.path not in self._schedule:
                self._plan(item.path, Waiting(_names(item), False, False, now, now), now)

    def forget_failures(self) -> None:
        """Storage is back: what failed may be tried at once."""
        self._pacer.forget_failures()
        now = self._clock()
        for path in list(self._schedule):
            self._enter(path, now)

    def waiting(self) -> int:
        """Scheduled directories."""
        return len(self._schedule) + len(self._batch.waiting)

    def oldest(self) -> float | None:
        """When the longest waiting one was first heard of (monotonic)."""
        return min((item.first for item in self._schedule.values()), default=None)

    def close(self) -> None:
        """Make durable what was heard and not handled."""
        for (path, _), (names, _) in self._echoes.items():
            self._batch.add(Hint("", Kind.ENTRIES, path, frozenset(names)))
        self._echoes.clear()
        try:
            self.flush()
        except OSError as error:
            log.warning("hints of space %s were not kept: %s", self.space.record.id, error)

    # -- inside

    def _look(self, now: float) -> None:
        """Changed attributes: look, without marking anything, whether they differ from the rows. After our own
        labelling they don't, once its transaction is through; marked, labels would count as a storm and end in whole
        passes. What differs is looked at once more, and is marked then."""
        due = [key for key, (_, until) in self._echoes.items() if until <= now]
        for path, looked in due:
            names, _ = self._echoes.pop((path, looked))
            differing = self._differing(path, names)
            if not differing:
                self.counts["echoes"] += 1
            elif looked or not self._doubt(path, differing, ECHO_AGAIN, looked=True):
                self._batch.add(Hint("", Kind.ENTRIES, path, frozenset(differing), heard=now))
        if due:
            self.flush()

    def _differing(self, path: bytes, names: set[bytes]) -> set[bytes]:
        """Those of the names that are not on disk as their rows say; all of them if that can't be told."""
        try:
            fd = self.space.open_dir(path)
        except OSError:
            return names
        try:
            n, _ = known(self.space, path)
            if n is None:
                return names
            found = scan_names(self.space, fd, n, names)
        except OSError:
            return names
        finally:
            os.close(fd)
        return {*found.candidates, *(row.name for row in found.vanished)}

    def _plan(self, path: bytes, item: Waiting, now: float) -> None:
        have = self._schedule.get(path)
        if have is not None:
            have.merge(item, 1 << 30)
        elif len(self._schedule) >= self._max:
            self._more = True
            self.counts["collapsed"] += 1
            return
        else:
            have = self._schedule[path] = item
        due = self._pacer.due(path, now, whole=have.names is None, soft=have.soft)
        known = self._at.get(path)
        if known is None or due < known:
            self._enter(path, due)

    def _enter(self, path: bytes, due: float) -> None:
        self._turn += 1
        self._at[path] = due
        heapq.heappush(self._heap, (due, self._turn, path))
        if len(self._heap) > 4 * len(self._at) + 1000:
            self._heap = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def _moved(self, old: bytes, new: bytes) -> None:
        prefix = old + b"/"
        now = self._clock()
        for path in [path for path in self._schedule if path == old or path.startswith(prefix)]:
            self._plan(new + path[len(old) :], self._schedule[path].copy(), now)

    def _handle(self, path: bytes, item: Waiting) -> None:
        begin = self._clock()
        try:
            whole = self._serve(path, item)
        except StorageUnavailable:
            self._again(path, item)
            raise
        except Exception as error:
            self._failed(path, item, error)
            return
        now = self._clock()
        if whole is None:
            return
        self._pacer.done(path, now, now - begin, whole=whole)
        self.counts["whole" if whole else "names"] += 1
        if item.first:
            self.latencies.append(now - item.first)
        if item.deep:
            self._descend(path, now)

    def _serve(self, path: bytes, item: Waiting) -> bool | None:
        """One pass; True if it was a whole one, None if another process was quicker."""
        n, row = known(self.space, path)
        if n is None:
            # Its parent has not been looked at yet: that makes it known, and dirty as a whole.
            parent, name = split(path)
            first = self._at.get(parent)
            if first is not None:
                self._schedule[path] = item
                self._enter(path, max(first, self._clock()) + AFTER_PARENT)
                return None
            self._note(self._work(self.space, parent, [name]))
            n, row = known(self.space, path)
            if n is None:
                return False
        if row is None:
            return None
        self._note(self._work(self.space, path, row.names, item=row))
        return row.names is None

    def _note(self, outcome: Outcome) -> None:
        if outcome.changed:
            self.counts["changed"] += 1
        now = self._clock()
        for path in outcome.new_dirs:
            self._plan(path, Waiting(None, False, False, now, now), now)
        # What it marked itself: directories below with an unexpected look, or above, if this one has moved.
        self._more |= outcome.changed or outcome.vanished_dir

    def _descend(self, path: bytes, now: float) -> None:
        """What is below may differ as well: its directories are marked in their turn."""
        names = subdirectories(self.space, path)
        below = [path + b"/" + name if path else name for name in names]
        if below:
            dirty.mark(self.space, [(each, None) for each in below])
            for each in below:
                self._plan(each, Waiting(None, False, True, now, now), now)

    def _failed(self, path: bytes, item: Waiting, error: Exception) -> None:
        kind = (
            errno.errorcode.get(error.errno or 0, type(error).__name__)
            if isinstance(error, OSError)
            else type(error).__name__
        )
        times = self._pacer.failed(path, self._clock())
        self.errors[kind] += 1
        self.last_error = f"{kind}: {error}"
        if not isinstance(error, OSError):
            log.error("space %s: reconciling %r failed", self.space.record.id, path, exc_info=error)
        elif times == 1:
            log.warning("space %s: reconciling %r failed: %s", self.space.record.id, path, error)
        self._again(path, item)

    def _again(self, path: bytes, item: Waiting) -> None:
        now = self._clock()
        self._schedule[path] = item
        self._enter(path, self._pacer.due(path, now, whole=item.names is None, soft=item.soft))


def known(space: Space, path: bytes) -> tuple[int | None, dirty.Item | None]:
    """The row number of the directory at a path, None if the index has none there, and its dirty row, if any."""
    with space.index.read() as db:
        row = index.find(db, path)
        if row is None or row.kind != index.DIRECTORY:
            return None, None
        found = db.execute("SELECT names, stamp, since, sweep FROM dirty WHERE n=?", (row.n,)).fetchone()
    if found is None:
        return row.n, None
    packed, stamp, since, rank = found
    names = None if packed is None else frozenset(packed.split(b"/"))
    return row.n, dirty.Item(row.n, path, names, stamp, since, bool(rank))


def _names(item: dirty.Item) -> set[bytes] | None:
    return None if item.names is None else set(item.names)


def subdirectories(space: Space, path: bytes) -> list[bytes]:
    """Names of the directories in a directory of the space; none if it is gone or cannot be read."""
    try:
        fd = space.open_dir(path)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                os.fsencode(entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and not space.is_hidden(entry.stat(follow_symlinks=False))
            ]
    except OSError:
        return []
    finally:
        os.close(fd)
