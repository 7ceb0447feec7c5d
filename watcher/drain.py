"""Hints of one space -> the durable dirty set -> reconcile, at the right moment.

What waits is in the dirty set of the index, one row a directory, marked in one transaction for each batch of
hints. In memory there is only the schedule: which directory may be handled when (`pace`). It is bounded: when
it is full, or after a crash, directories are taken from the dirty set itself.

Two threads may be at work on a Drain: one hears (`hear`, `flush`), one handles (`run`, `refill`), so that
what is heard becomes durable also while a pass takes long. What was flushed waits in a queue until the
handling one takes it over.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, positions
from fsd.core.dirty import Hinted
from fsd.core.errors import StorageUnavailable
from fsd.core.names import split
from fsd.core.reconcile import Outcome, reconcile
from watcher.coalesce import Coalescer, Waiting, below
from watcher.echoes import Echoes, News
from watcher.hint import Hint, Kind
from watcher.pace import Pacer
from watcher.passes import HINTED, TOGETHER, Passes, Work
from watcher.rows import root_is_there, subdirectories
from watcher.schedule import Schedule

if TYPE_CHECKING:
    from fsd.core.space import Space

log = logging.getLogger(__name__)

MAX_SCHEDULED = 20_000
REFILL = 500
REFILL_EVERY = 0.1
AFTER_PARENT = 0.001
MAX_FOLLOWED = 64
"""Renamed directories of a batch whose scheduled parts are looked for."""


class _Arrived(NamedTuple):
    """What one flush made durable; `more`: the dirty set holds other directories than these paths say."""

    moves: list[tuple[bytes, bytes]]
    waiting: dict[bytes, Waiting]
    more: bool


_OVERRUN = _Arrived([], {}, True)


class Drain:
    """The waiting directories of one space."""

    def __init__(
        self,
        space: Space,
        *,
        clock: Callable[[], float] = time.monotonic,
        work: Work = reconcile,
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
        self._passes = Passes(space, work)
        self._hearing = threading.Lock()
        self._batch = Coalescer()
        self._reached: dict[str, str] = {}
        self.kept: dict[str, str] = {}
        """The positions in logs that are durable, with everything up to them."""
        self.by_path = False
        """All that is heard comes from logs, which say of moved directories that all below them may differ."""
        self._gap = False
        self._trees = False
        """Trees wait, and the index says so: after a crash a sweep finds what is left of them."""
        self._arrived: deque[_Arrived] = deque()
        self.echoes = Echoes(space, clock)
        self._pacer = Pacer()
        self._max = max_scheduled
        self._schedule = Schedule(max_scheduled)
        self._more = True
        """The dirty set may hold directories that are not scheduled."""
        self._next_refill = 0.0
        self._behind = (0.0, 0)
        """How far the dirty set was read: one that is full of what fails must not hide the rest."""
        self._due: float | None = None
        self._failing: set[bytes] = set()
        self._alone: set[bytes] = set()
        """Scheduled ones that can't be taken in together with others."""

    # -- hearing

    def hear(self, hint: Hint) -> None:
        """Take in one hint; `flush` makes the batch durable."""
        self.counts["hints"] += 1
        if not (hint.meta and hint.names and self.echoes.hear(hint.dir, hint.names)):
            with self._hearing:
                self._batch.add(hint)

    def reach(self, positions: Mapping[str, str]) -> None:
        """Everything that logs said up to these positions was heard: the next `flush` stores them with it."""
        with self._hearing:
            self._reached.update(item for item in positions.items() if self.kept.get(item[0]) != item[1])

    def heard(self) -> bool:
        """Whether `flush` has something to do that should not wait."""
        batch = self._batch
        return bool(batch.waiting) or batch.gap or batch.moves_heard()

    def owes(self) -> bool:
        """Whether there are positions to be stored."""
        return bool(self._reached)

    def take_gap(self) -> bool:
        """True, once, if only a sweep can answer what was flushed; it is owed from then on, also over a crash."""
        gap, self._gap = self._gap, False
        return gap

    def flush(self) -> None:
        """Mark what was heard, and how far logs were read, in one transaction. OSError of the state disk: it
        is kept, and the next call tries again."""
        with self._hearing:
            batch, reached = self._batch, self._reached
            gap = batch.gap
            if not (batch.waiting or gap or batch.moves_heard() or reached):
                return
            fresh = Coalescer()
            fresh.collapsed, self._batch, self._reached = batch.collapsed, fresh, {}
        marks = [Hinted(path, item.names, item.binding) for path, item in batch.waiting.items()]
        marks += [Hinted(path, item.names, item.binding) for path, item in batch.elsewhere.values()]
        try:
            if marks or reached or gap:
                trees = any(item.deep for item in batch.waiting.values())
                dirty.mark(self.space, marks, reached=reached, owed=gap, trees=trees, by_path=self.by_path)
                self._trees |= trees
        except BaseException:
            with self._hearing:
                batch.take_over(self._batch)
                self._batch, self._reached = batch, {**reached, **self._reached}
            raise
        self.kept.update(reached)
        self._gap |= gap
        self._arrive(batch)

    def _arrive(self, batch: Coalescer) -> None:
        arrived = _Arrived(batch.moves(), batch.waiting, bool(batch.elsewhere))
        if self._count_arrived() + len(arrived.waiting) > self._max:
            self.counts["collapsed"] += 1
            if any(item.deep for item in arrived.waiting.values()):
                self._owe()
            arrived = _OVERRUN
        elif not (arrived.moves or arrived.waiting or arrived.more):
            return
        if arrived != _OVERRUN or not self._arrived or self._arrived[-1] != _OVERRUN:
            self._arrived.append(arrived)

    def _owe(self) -> None:
        """A tree can't be kept in mind: a sweep looks at all."""
        with self._hearing:
            self._batch.gap = True

    def settle(self) -> None:
        """Once a second: when no tree waits any more, the index need not say so. OSError of the state disk."""
        if not self._trees:
            return
        with self._hearing:
            waiting = [self._batch.waiting, self._schedule.items, *(each.waiting for each in self._arrived)]
            if not any(item.deep for each in waiting for item in each.values()):
                positions.no_trees(self.space)
                self._trees = False

    # -- handling

    def next_due(self) -> float | None:
        """When there is something to do next; None if nothing waits. For any thread: as the last `run` left
        it."""
        if self._arrived:
            return 0.0
        dues = [due for due in (self._due, self.echoes.next_due()) if due is not None]
        return min(dues, default=None)

    def run(self, budget: float) -> bool:
        """Handle directories that are due, for about `budget` seconds; True if more are due.

        Raises StorageUnavailable if the root is away: everything still waits then.
        """
        deadline = self._clock() + budget
        try:
            return self._run(deadline)
        finally:
            self._due = self._schedule.next_due()

    def _run(self, deadline: float) -> bool:
        if news := self.echoes.look(self._clock()):
            self._news(news)
            self.flush()
        self._accept()
        while True:
            now = self._clock()
            if not self._schedule.ripen(now):
                return False
            if now >= deadline:
                return True
            path, item = self._schedule.take()
            together = self._take_in if item.names is None else self._serve_together
            if not together(path, item, now):
                self._alone.discard(path)
                self._handle(path, item)

    def _take_in(self, path: bytes, item: Waiting, now: float) -> bool:
        """Take in a new directory, and new ones that wait beside it, together; False if this one has to be handled."""
        if path in self._alone:
            return False
        taken = {path: item}
        taken |= self._schedule.take_beside(path, TOGETHER, lambda each: each not in self._alone)
        if len(taken) == 1:
            return False
        done = set(self._passes.together(list(taken)))
        for each, waiting in taken.items():
            if each in done:
                self.counts["whole"] += 1
                if waiting.first:
                    self.latencies.append(self._clock() - waiting.first)
            elif each != path:
                self._alone.add(each)
                self._schedule.put(each, waiting)
                self._schedule.enter(each, now)
        if done:
            self.counts["changed"] += 1
            self._more = True  # what is new in them was marked
        return path in done

    def _serve_together(self, path: bytes, item: Waiting, now: float) -> bool:
        """Serve a directory with hinted names, and what comes next of that kind, together; False if this one has to be
        handled."""
        if not self._may_join(path, item):
            return False
        taken = {path: item, **self._schedule.take_more(HINTED - 1, self._may_join)}
        if len(taken) == 1:
            return False
        served = self._passes.hinted(list(taken))
        ended = self._clock()
        cost = (ended - now) / len(taken)
        for each, waiting in taken.items():
            if each not in served:
                if each != path:
                    self._alone.add(each)
                    self._schedule.put(each, waiting)
                    self._schedule.enter(each, now)
                continue
            outcome = served[each]
            if outcome is not None:
                self._note(outcome)
                self._done(each, waiting, ended, cost, whole=False)
        return path in served

    def _may_join(self, path: bytes, item: Waiting) -> bool:
        return item.names is not None and path not in self._alone and not self._pacer.fails(path)

    def refill(self, now: float, *, force: bool = False) -> None:
        """Schedule what the dirty set holds and nobody here has heard of: marked by other processes, by
        reconcile itself, or before a restart."""
        if not force and not (self._more and now >= self._next_refill):
            return
        self._next_refill = now + REFILL_EVERY
        self._accept()
        items = dirty.pending(self.space, REFILL, sweep=False, after=self._behind)
        full = len(items) == REFILL
        if full:
            self._behind = items[-1].since, items[-1].n
        else:
            # Once more from the front, if this was not the front already.
            self._more, self._behind = self._behind != (0.0, 0), (0.0, 0)
        for item in items:
            if item.path not in self._schedule.items:
                self._plan(item.path, Waiting(_names(item), False, False, now, now), now)
        self._more |= full
        self._due = self._schedule.next_due()

    def forget_failures(self) -> None:
        """Storage is back: what failed may be tried at once."""
        self._pacer.forget_failures()
        now = self._clock()
        for path in list(self._schedule.items):
            if not self._schedule.is_ripe(path):
                self._schedule.enter(path, now)
        self._due = self._schedule.next_due()

    def waiting(self) -> int:
        """Directories that were heard of and not handled, as far as they are in memory."""
        return len(self._schedule.items) + len(self._batch.waiting) + self._count_arrived()

    def _count_arrived(self) -> int:
        return sum(len(each.waiting) for each in list(self._arrived))

    def oldest(self) -> float | None:
        """When the longest waiting one was first heard of (monotonic)."""
        return min((item.first for item in self._schedule.items.values()), default=None)

    def close(self) -> None:
        """Make durable what was heard and not handled."""
        self._passes.close()
        self._news(self.echoes.rest())
        try:
            self.flush()
        except OSError as error:
            log.warning("hints of space %s were not kept: %s", self.space.record.id, error)

    # -- inside

    def _news(self, news: News) -> None:
        with self._hearing:
            for path, names in news:
                self._batch.add(Hint("", Kind.ENTRIES, path, frozenset(names), heard=self._clock()))

    def _accept(self) -> None:
        """Schedule what was flushed since the last time."""
        now = self._clock()
        while self._arrived:
            arrived = self._arrived.popleft()
            if arrived.moves:
                self._moved(arrived.moves, now)
            for path, item in arrived.waiting.items():
                self._plan(path, item, now)
            self._more |= arrived.more

    def _plan(self, path: bytes, item: Waiting, now: float) -> None:
        have = self._schedule.items.get(path)
        if have is not None:
            have.merge(item, 1 << 30)
        elif self._schedule.is_full(path):
            self._more = True
            self.counts["collapsed"] += 1
            if item.deep:
                self._owe()
            return
        elif self._held_back(path):
            if item.deep:
                self._owe()
            return
        else:
            have = item
            self._schedule.put(path, item)
        due = self._pacer.due(path, now, whole=have.names is None, soft=have.soft)
        known = self._schedule.due(path)
        if known is None or due < known:
            self._schedule.enter(path, due)

    def _held_back(self, path: bytes) -> bool:
        """What fails again and again takes at most half of the schedule; the rest of it waits in the dirty
        set."""
        if not self._pacer.fails(path):
            return False
        if len(self._failing) >= self._max // 2:
            self._failing &= self._schedule.items.keys()
        if len(self._failing) >= self._max // 2:
            return True
        self._failing.add(path)
        return False

    def _moved(self, moves: list[tuple[bytes, bytes]], now: float) -> None:
        """What is scheduled below a renamed directory is scheduled below its new name. The dirty set knows it
        by its row, so after a storm of renames it is simply read again."""
        if len(moves) > MAX_FOLLOWED:
            self._more = True
            return
        paths = sorted(self._schedule.items)
        for old, new in moves:
            for path in below(paths, old):
                if path in self._schedule.items:
                    self._plan(new + path[len(old) :], self._schedule.items[path].copy(), now)

    def _handle(self, path: bytes, item: Waiting) -> None:
        begin = self._clock()
        try:
            whole = self._serve(path, item)
        except StorageUnavailable as error:
            if not root_is_there(self.space):
                self._again(path, item)
                raise
            self._failed(path, item, error)  # a filesystem inside the space is away, its neighbours are not
            return
        except Exception as error:
            self._failed(path, item, error)
            return
        now = self._clock()
        if whole is None:
            if item.deep and path not in self._schedule.items:
                self._descend(path, now)  # another process served it: what is below is still ours
            return
        self._done(path, item, now, max(now - begin, self._passes.spent(path)), whole=whole)
        if item.deep:
            self._descend(path, now)

    def _done(self, path: bytes, item: Waiting, now: float, cost: float, *, whole: bool) -> None:
        self._pacer.done(path, now, cost, whole=whole)
        self.counts["whole" if whole else "names"] += 1
        if item.first:
            self.latencies.append(now - item.first)

    def _serve(self, path: bytes, item: Waiting) -> bool | None:
        """One pass; True if it was a whole one, None if another process was quicker."""
        n, row = dirty.waiting_at(self.space, path)
        if n is None:
            # Its parent has not been looked at yet: that makes it known, and dirty as a whole.
            parent, name = split(path)
            first = self._schedule.due(parent)
            if first is not None:
                self._schedule.put(path, item)
                self._schedule.enter(path, max(first, self._clock()) + AFTER_PARENT)
                return None
            self._note(self._work(self.space, parent, [name]))
            n, row = dirty.waiting_at(self.space, path)
            if n is None:
                return False
        if row is None:
            return None
        outcome = self._passes.serve(path, row)
        if outcome is None:
            self._schedule.put(path, item)
            self._schedule.enter(path, self._clock() + AFTER_PARENT)
            return None
        self._note(outcome)
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
        if times in (1, 100):
            known = isinstance(error, OSError)
            log.log(
                logging.WARNING if known else logging.ERROR,
                "space %s: reconciling %r failed: %s",
                self.space.record.id,
                path,
                self.last_error,
                exc_info=None if known else error,
            )
        self._again(path, item)

    def _again(self, path: bytes, item: Waiting) -> None:
        if self._held_back(path):
            if item.deep:
                self._owe()
            return
        now = self._clock()
        self._schedule.put(path, item)
        self._schedule.enter(path, self._pacer.due(path, now, whole=item.names is None, soft=item.soft))


def _names(item: dirty.Item) -> set[bytes] | None:
    return None if item.names is None else set(item.names)
