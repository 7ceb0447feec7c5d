"""Keeps one space true: its drain, its sweeps, its housekeeping, and what `status` shows of it.

A gap (the watcher was down, events were lost, the storage was away) is answered by a sweep in a new epoch. A
sweep that never yet came to its end is finished first, so that a large adoption ends even if the server
restarts often; a new epoch follows it.

Three threads may be at work on a Keeper, each kept apart from itself by a Subject: one that hears (`post`:
`hear`,
`flush`), one that handles (`front`: `run`, `beat`), one that does what may take long (`back`: `sweep`,
`tick`). They share flags only; the core they all call is safe for threads. `close` needs all three. What is
told of a Keeper (`watcher.report`) may be read at any time.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, hosts, inner, lease, limbo, positions, ready, relabel, tree
from fsd.core.errors import StorageUnavailable
from fsd.core.sweep import Progress, Sweep
from fsd.service.shift import Subject
from watcher.drain import Drain
from watcher.hint import Hint
from watcher.pace import failure_wait
from watcher.rows import root_is_there

if TYPE_CHECKING:
    from fsd.core.space import Space

log = logging.getLogger(__name__)

TICK = 1.0
ACTIVE = 90.0
"""Seconds after the last sign of life during which housekeeping looks every second."""
QUIET_TICK = 15.0
AT_REST = 0.1
INNER_AWAY = 0.2
LONG = 10.0
SETTLE = 0.1
"""Seconds of each second's housekeeping in which files may become ready."""
LABELS = 100
TREES = 100


class Keeper:
    """One space of the watcher."""

    def __init__(self, space: Space, *, verify_every: float) -> None:
        self.space = space
        mount = hosts.mount_of(space.root)
        self.storage = mount.dev if mount is not None else ""
        self.front, self.post, self.back = (Subject(self.storage) for _ in range(3))
        self.drain = Drain(space)
        self.available = True
        self.why = ""
        """Why it is not available."""
        self.watched = False
        """A source has it."""
        self.next_watch = 0.0
        """When to try again to give it to a source."""
        self.next_kept = 0.0
        """When its positions in logs are to be stored, if nothing else is."""
        self.remounted = False
        """Something was mounted or unmounted in it since."""
        self.displaced = False
        """Its `.fsd` is not where it belongs: nothing may be written."""
        self.inner_away: list[tuple[bytes, bytes]] = []
        """Filesystems inside it that are not there (path, binding)."""
        self.waiting = dirty.Counts(0, 0, None)
        """Of the dirty set, as of the last housekeeping."""
        self.oldest = 0.0
        """Seconds that the oldest hinted directory had waited then."""
        self.usage = 0
        """Tree size in bytes, likewise."""
        self.gap = False
        """A new epoch is wanted."""
        self.sweeping = False
        self.progress: Progress | None = None
        self.verified_at = 0.0
        """End of the last full verification, seconds since the epoch; 0: never."""
        self.sweep_began = 0.0
        self._verify_every = verify_every
        self._sweep = Sweep(space)
        self._readiness = ready.Readiness(space)
        self._again = False
        self._active_until = time.monotonic() + ACTIVE
        self._next_tick = self._next_refill = 0.0
        self._sweep_ended = self._sweep_took = 0.0
        self._labels_left = self._labels_turn = False
        self._index: int | None = None
        """Which index the last sweep began in, by its birth; None before the first."""
        self._failures = 0
        self._rest_until = 0.0
        self._said = ""
        self._say_again = 0.0

    # -- hints

    def hear(self, hint: Hint) -> None:
        """Take in a hint of the source."""
        self._active_until = hint.heard + ACTIVE
        self.drain.hear(hint)

    def flush(self) -> None:
        """Make the batch durable. OSError of the state disk: it is kept for the next call."""
        self.drain.flush()
        self.gap |= self.drain.take_gap()

    def go_on(self) -> None:
        """It is heard by a log that is read on from where it was: nothing but what an earlier run left undone needs
        a sweep."""
        known = verified(self.space)
        self.verified_at = known.at
        if not known.current or positions.sweep_wanted(self.space):
            self.gap = True

    def run(self, budget: float) -> bool:
        """Reconcile what is due; True if more is."""
        more = self.drain.run(budget)
        if not more:
            self.drain.refill(time.monotonic())
        return more

    def beat(self, now: float) -> bool:
        """Every second: is the root still there, does anything wait? True; StorageUnavailable if it is
        not."""
        self.space.root_fd()
        self.displaced = not self.space.internals_at_home()
        self.drain.settle()
        if now < self._active_until or now >= self._next_refill:
            self._next_refill = now + QUIET_TICK
            self.drain.refill(now, force=True)
        return True

    def taken_over(self) -> None:
        """This host works on it from now on: all of it is verified. From any thread."""
        self._active_until = time.monotonic() + ACTIVE
        self.gap = True

    # -- sweeps

    def _begin(self) -> None:
        """Verify the whole space from now on. OSError of the state disk."""
        self._index = self._born()
        known = verified(self.space)
        self.verified_at = known.at
        self.progress = self._sweep.progress()
        unfinished = not known.current and self.progress.done_dirs > 0
        long = self.sweeping and time.monotonic() - self.sweep_began > LONG
        if not known.complete or long or (unfinished and not self.sweeping):
            # Brought to its end before another one begins: else gap after gap, or restart after restart, would keep
            # it from ever ending. Directories are looked at again at once; what was edited in place where the sweep
            # had been, the next one finds.
            self._again = self.progress.done_dirs > 0
            self._sweep.resume()
        else:
            self._again = False
            self._sweep.begin()
        if long:
            return
        self.sweeping = True
        self.sweep_began = time.monotonic()

    def sweep(self, budget: float) -> None:
        """A slice of the sweep or of other work that nobody waits for; one large directory may take
        seconds."""
        self._labels_turn = not self._labels_turn
        if self._labels_left and (self._labels_turn or not (self.sweeping or self.gap)):
            self._labels_left = relabel.label_due(self.space, LABELS) >= LABELS
            return
        if self.gap:
            self.gap = False
            try:
                self._begin()
            except BaseException:
                self.gap = True
                raise
        if not self.sweeping:
            return
        try:
            self.progress = self._sweep.step(budget)
        except StorageUnavailable as error:
            if not root_is_there(self.space):
                raise
            # A filesystem inside the space is away: the rest is swept, and the sweep ends when it is back.
            self.drain.last_error = f"ENODEV: {error}"
            self._rest_until = time.monotonic() + INNER_AWAY
            return
        self._failures = 0
        if self.progress.finished:
            self._end()

    def _end(self) -> None:
        known = verified(self.space)
        now = time.monotonic()
        if not known.current:
            # Some directories are hinted as well: those are served as any other, then this is asked again.
            self._rest_until = now + AT_REST
            return
        self.sweeping = False
        self._sweep_ended, self._sweep_took = now, now - self.sweep_began
        self._active_until = now + ACTIVE
        self.verified_at = known.at
        log.info("space %s verified in %.1f s", self.space.record.id, self._sweep_took)
        if self._again:
            self._again = False
            self.gap = True

    def wants_slice(self, now: float) -> bool:
        """There is work for `sweep`."""
        busy = self.sweeping or self.gap or self._labels_left
        return self.available and busy and now >= self._rest_until

    def failed(self, error: Exception, now: float) -> None:
        """Something other than one directory's pass failed (state disk full, a defect): rest, and try again.

        The same failure is logged once a minute; each one is counted.
        """
        text = f"{type(error).__name__}: {error}"
        self.drain.errors[type(error).__name__] += 1
        self.drain.last_error = text
        self._failures += 1
        self._rest_until = now + failure_wait(self._failures)
        if text != self._said or now >= self._say_again:
            self._said, self._say_again = text, now + 60.0
            known = isinstance(error, OSError)
            log.error("space %s: %s", self.space.record.id, text, exc_info=None if known else error)

    # -- every second

    def tick(self, now: float) -> None:
        """Housekeeping once a second; seldom where nothing happens."""
        self._follow_index(now)
        if now < self._next_tick:
            return
        active = now < self._active_until or self.sweeping
        self._next_tick = now + (TICK if active else QUIET_TICK) - 0.05
        # Asked for, not noticed: what comes and goes between two looks at the mount table leaves no trace there.
        self.inner_away = inner.away(self.space, inner.known(self.space))
        if self.inner_away:
            self._active_until = now + ACTIVE
        limbo.settle(self.space, time.time())
        # What another host works on is only followed: that one says when a file is whole, and labels it.
        if lease.may_write(self.space) and self._readiness.settle(SETTLE):
            self._active_until = now + ACTIVE
        if not self._labels_left:
            self._labels_left = relabel.label_due(self.space, LABELS) >= LABELS
        relabel.publish_trees(self.space, TREES)
        self.waiting = dirty.counts(self.space)
        self.oldest = time.time() - self.waiting.oldest if self.waiting.oldest is not None else 0.0
        self.usage = tree.usage(self.space)
        if self._labels_left or self.drain.waiting():
            self._active_until = now + ACTIVE
        age = time.time() - self.verified_at  # negative: the clock was set back, nobody knows how far
        if not self.sweeping and self.verified_at and not -TICK < age <= self._verify_every:
            self.gap = True

    def _follow_index(self, now: float) -> None:
        """Deleting the index is legal at any time; a new one knows nothing until it is swept."""
        if self._index not in (None, self._born()):
            self.gap = True
            self._active_until = now + ACTIVE

    def _born(self) -> int:
        with self.space.index.read() as db:
            (born,) = db.execute("SELECT born_ns FROM head").fetchone()
        return int(born)

    def lost_storage(self, error: StorageUnavailable) -> None:
        """The root is not provably there: wait, delete nothing."""
        if self.available:
            log.warning("space %s is unavailable: %s", self.space.record.id, error)
        self.available = False
        self.why = str(error)

    def found_storage(self) -> None:
        """The root is back: what failed is tried at once; its source says GAP when it hears again."""
        log.info("space %s is available again", self.space.record.id)
        self.available = True
        self.why = ""
        self.drain.forget_failures()

    def close(self) -> None:
        """Close the space; what was heard was kept by `flush`."""
        self.space.close()


class Verified(NamedTuple):
    """`complete`: the index once knew the whole tree. `at`: end of the last full verification, seconds since
    the epoch, 0 if none. `current`: the newest sweep came to its end."""

    complete: bool
    at: float
    current: bool


def verified(space: Space) -> Verified:
    """How much of a space was ever verified. A sweep ends only when the directories it left to their hints
    are served as well."""
    with space.index.read() as db:
        complete, at, epoch = db.execute("SELECT complete, swept_at, epoch FROM head").fetchone()
        row = db.execute("SELECT value FROM cursor WHERE source='sweep'").fetchone()
    return Verified(bool(complete), float(at), row is not None and int(row[0]) == epoch)
