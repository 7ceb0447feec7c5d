"""The watcher's threads: one hears and reconciles, one does what may take long, one says how it is.

The first works in slices of milliseconds, so that a change never waits behind a sweep; the second sweeps,
labels, polls and settles, paced to a share of a core. Both are shifts (`fsd.service.shift`): where a storage
hangs, its space keeps the thread and another one goes on. The third never asks a storage; it sees who hangs.
Each space's failure stays its own: it is set aside until it works again.

Who owns what: `keepers` is changed by the first thread only, the others look at copies; a space that is no
longer served is closed by the second, once nobody is at work on it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fsd.core import lease
from fsd.core.errors import StorageUnavailable
from fsd.core.lease import Host, Record
from fsd.core.space import SpaceRecord
from fsd.service.shift import Shift, Subject
from fsd.service.status import replace_json
from watcher import report
from watcher.ears import ASKING, LOGS, READING, Ears, Held
from watcher.keeper import Keeper
from watcher.leases import Leases
from watcher.mounts import Mounts
from watcher.sources.base import LogReader

if TYPE_CHECKING:
    from fsd.core.space import Space
    from watcher.streams.publisher import Publisher

log = logging.getLogger(__name__)

T = TypeVar("T")
COLLECT = 0.005
COLLECT_SLOW = 0.05
"""Seconds for one call of a source that hears, and of one that asks."""
COLLECT_SHARE, COLLECT_MOST = 0.3, 0.1
"""Of the time since sources were heard last, and seconds: after a long pass more waits, and what comes faster
than it is taken in keeps everything behind it waiting."""
COLLECT_LOG = 0.05
"""Of a log, which is only so long if it is behind: a large batch writes each page of the dirty set once."""
KEPT_EVERY, KEPT_EACH = 0.5, 0.01
"""Seconds after which positions in logs are stored where nothing else is, and for each space there is."""
RUN = 0.02
SLICE = 0.05
SHARE = 0.8
"""Of a core, for sweeps while nothing else happens."""
SHARE_LABELS = 0.4
"""While only labels are left: each is heard again and has to be looked at."""
SHARE_BUSY = 0.25
BUSY_FOR = 0.5
GENERATION_EVERY = 0.2
TICK = 1.0
NAP = 0.1
"""Longest pause of the second thread."""
LOOK, LOOK_STRAINED = 0.25, 0.05
"""Seconds between two looks at who hangs."""
RETRY_WATCH = 10.0
END = 10.0
"""Seconds to wait for the other threads at the end; whatever they do may be cut off at any point."""


class Spaces(Protocol):
    """The part of the registry that the watcher needs."""

    def generation(self) -> int:
        """Changes with any change."""

    def spaces(self) -> list[SpaceRecord]:
        """All that are not deleted."""

    def open(self, space_id: str) -> Space:
        """The open space."""


class Watcher:
    """All spaces of one data root."""

    def __init__(
        self,
        registry: Spaces,
        run_dir: Path,
        ears: Ears,
        *,
        verify_every: float = 86400.0,
        host: Host | None = None,
        take_over: Callable[[Space], None] = lambda space: None,
        likeness: Callable[[], str] = lambda: "",
        publish: Callable[[Callable[[], Mapping[str, Space]]], Publisher] | None = None,
    ) -> None:
        """`host`: the spaces are shared with other hosts; `take_over` is called for one that another had before.
        `likeness` tells them which users and spaces this host knows; `publish` makes what tells them of the spaces that
        are worked on here."""
        self.keepers: dict[str, Keeper] = {}
        self._registry = registry
        self._run_dir = run_dir
        self._ears = ears
        self._verify_every = verify_every
        self._generation = -1
        self._next_generation = self._next_beat = self._next_tick = self._busy_until = 0.0
        self._turned = self._heard_at = time.monotonic()
        self._slices = 0
        self._started = time.time()
        self._mounts = Mounts()
        self._leaving: deque[Keeper] = deque()
        self._told: dict[str, Any] = {}
        self._ending = threading.Event()
        self._take_over = take_over
        self._leases = Leases(host, self._taken, likeness) if host is not None else None
        self._publisher = publish(self._open_spaces) if publish is not None else None
        self._itself = Subject("registry")
        self._front = Shift("front", self._turn, self._ending)
        self._back = Shift("background", self._background, self._ending)

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until `stop` says so (asked several times a second), then keep what was heard."""
        for shift in (self._front, self._back):
            shift.start()
        told = 0.0
        try:
            while not stop():
                now = time.monotonic()
                if now >= told + TICK:
                    told = now
                    self._write_status(now)
                for shift in (self._front, self._back):
                    shift.relieve(now)
                strained = self._front.strained() or self._back.strained()
                self._ending.wait(LOOK_STRAINED if strained else LOOK)
        finally:
            self._end()
            self._write_status(time.monotonic(), running=False)

    def _end(self) -> None:
        """What was heard becomes durable; nobody waits for what hangs."""
        self._ending.set()
        self._ears.bell.set()
        deadline = time.monotonic() + END
        for shift in (self._front, self._back):
            shift.join(max(0.0, deadline - time.monotonic()))
        rest = threading.Thread(target=self._close, name="end", daemon=True)
        rest.start()
        rest.join(max(1.0, deadline - time.monotonic()))

    def _close(self) -> None:
        keepers = [*self.keepers.values(), *self._leaving]
        for keeper in keepers:
            with keeper.post.held() as mine:
                if mine:
                    keeper.drain.close()
        self._ears.close()
        if self._publisher is not None:
            self._publisher.close()
        if self._leases is not None:
            self._leases.close()
        for keeper in keepers:
            _close(keeper)

    def _turn(self) -> float:
        """One round of the first thread; ends by waiting until there is something to do."""
        now = self._turned = time.monotonic()
        if now >= self._next_generation:
            self._next_generation = now + GENERATION_EVERY
            self._front.do(self._itself, self._follow_registry)
            self._take_up(now)
        more = self._hear()
        more |= self._drain()
        if now >= self._next_beat:
            self._next_beat = now + TICK
            self._beat(now)
        if not more:
            self._wait()
        return 0.0

    # -- spaces

    def _follow_registry(self) -> None:
        try:
            generation = self._registry.generation()
            if generation != self._generation:
                self._compare(self._registry.spaces())
                self._generation = generation
        except OSError as error:
            log.error("the registry cannot be read: %s", error)
            self._next_generation = time.monotonic() + 2.0

    def _compare(self, records: list[SpaceRecord]) -> None:
        wanted = {record.hex: record for record in records if record.state == "active"}
        for key in list(self.keepers):
            record = self.keepers[key].space.record
            if key not in wanted or (record.path, record.root_binding) != (
                wanted[key].path,
                wanted[key].root_binding,
            ):
                self._drop(key)
        for key, record in wanted.items():
            if key not in self.keepers:
                try:
                    space = self._registry.open(record.id)
                except OSError as error:
                    log.warning("space %s cannot be opened: %s", record.id, error)
                    continue
                self.keepers[key] = Keeper(space, verify_every=self._verify_every)
                continue
            keeper = self.keepers[key]
            if keeper.space.record.source != record.source:
                keeper.watched, keeper.next_watch = False, 0.0
            keeper.space.record = record
        if self._leases is not None:
            self._leases.follow({key: (each.storage, each.space) for key, each in self.keepers.items()})

    def _open_spaces(self) -> dict[str, Space]:
        return {key: keeper.space for key, keeper in list(self.keepers.items()) if keeper.available}

    def _taken(self, space: Space, old: Record | None) -> None:
        """This host is about to have a space's lease. In the thread of its storage."""
        if old is not None and not lease.is_ours(space, old):
            self._take_over(space)
            log.info("space %s is taken over from %s", space.record.id, old.name)
        keeper = self.keepers.get(space.record.hex)
        if keeper is not None:
            keeper.taken_over()

    def _drop(self, key: str) -> None:
        keeper = self.keepers.pop(key)
        keeper.available = False
        self._ears.remove(key)
        self._leaving.append(keeper)

    def _take_up(self, now: float) -> None:
        """Give spaces that nobody hears to their sources."""
        for key, keeper in list(self.keepers.items()):
            if keeper.available and not keeper.watched and now >= keeper.next_watch:
                keeper.next_watch = now + RETRY_WATCH
                self._front.do(keeper.front, partial(self._guard, keeper, partial(self._watch, key, keeper)))

    def _watch(self, key: str, keeper: Keeper) -> None:
        keeper.space.root_fd()
        ear = self._ears.add(key, keeper.space, keeper.space.record.source)
        keeper.watched = True
        keeper.drain.by_path = all(held.kind in READING for held in ear.held)
        if any(held.kind in LOGS for held in ear.held):
            keeper.go_on()
        kinds = ", ".join(f"{part.base.decode(errors='replace') or '/'}: {part.kind}" for part in ear.parts)
        log.info("space %s is heard by %s", keeper.space.record.id, kinds)

    # -- work

    def _hear(self) -> bool:
        more = False
        since = time.monotonic() - self._heard_at
        usual = min(COLLECT_MOST, max(COLLECT, COLLECT_SHARE * since))
        for held in self._ears.sources():
            if held.kind not in ASKING:
                budget = max(COLLECT_LOG, usual) if held.kind in READING else usual
                more |= bool(self._front.do(held.subject, partial(self._collect, held, budget)))
        self._heard_at = now = time.monotonic()
        for keeper in list(self.keepers.values()):
            if keeper.drain.heard() or (keeper.drain.owes() and now >= keeper.next_kept):
                keeper.next_kept = now + max(KEPT_EVERY, KEPT_EACH * len(self.keepers))
                self._front.do(keeper.post, partial(self._guard, keeper, keeper.flush))
        return more

    def _say_kept(self) -> None:
        """The logs learn how far what they said is durable."""
        for held in self._ears.sources():
            if held.kind in READING:
                self._front.do(held.subject, partial(self._say_kept_to, held))

    def _say_kept_to(self, held: Held) -> None:
        assert isinstance(held.source, LogReader)
        for key in held.source.spaces():
            keeper = self.keepers.get(key)
            if keeper is not None:
                held.source.kept(key, dict(keeper.drain.kept))
        held.source.commit()

    def _collect(self, held: Held, budget: float) -> bool:
        """Everything a source says is taken in before anything else happens, also by a thread that was
        relieved."""
        try:
            for hint in held.source.collect(budget):
                keeper = self.keepers.get(hint.space)
                if keeper is not None:
                    keeper.hear(hint)
            if held.kind in READING:
                self._reach(held)
        except StorageUnavailable:
            return False  # the space's own thread notices, and says so
        return held.source.busy()

    def _reach(self, held: Held) -> None:
        assert isinstance(held.source, LogReader)
        for key in held.source.spaces() & self.keepers.keys():
            self.keepers[key].drain.reach(held.source.positions(key))

    def _drain(self) -> bool:
        now = time.monotonic()
        more = False
        for keeper in list(self.keepers.values()):
            due = keeper.drain.next_due() if keeper.available else None
            if due is not None and due <= now:
                changed = keeper.drain.counts["changed"]
                more |= bool(
                    self._front.do(keeper.front, partial(self._guard, keeper, partial(keeper.run, RUN)))
                )
                if keeper.drain.counts["changed"] != changed:
                    self._busy_until = now + BUSY_FOR
        return more

    def _beat(self, now: float) -> None:
        remounted = frozenset(self._mounts.changed([keeper.space.root for keeper in self.keepers.values()]))
        for keeper in self.keepers.values():
            if keeper.space.root in remounted:
                keeper.remounted = True
        for key, keeper in list(self.keepers.items()):
            self._front.do(keeper.front, partial(self._beat_one, key, keeper, now))
        self._say_kept()
        self._ears.tidy()

    def _beat_one(self, key: str, keeper: Keeper, now: float) -> None:
        if self._guard(keeper, partial(keeper.beat, now)) and not keeper.available:
            keeper.found_storage()
        if keeper.watched and (not keeper.available or keeper.remounted or self._ears.lost(key)):
            # Taken up again, it is heard from the beginning and ends in a GAP.
            keeper.drain.forget_failures()
            self._ears.remove(key)
            keeper.watched, keeper.next_watch, keeper.remounted = False, 0.0, False

    # -- the second thread

    def _background(self) -> float:
        for _ in range(len(self._leaving)):
            keeper = self._leaving.popleft()
            if not _close(keeper):
                self._leaving.append(keeper)
        now = time.monotonic()
        keepers = list(self.keepers.values())
        if now >= self._next_tick:
            self._next_tick = now + TICK
            for keeper in keepers:
                if keeper.available and not self._ending.is_set():
                    self._back.do(keeper.back, partial(self._guard, keeper, partial(keeper.tick, now)))
        for held in self._ears.sources():
            if held.kind in ASKING:
                self._back.do(held.subject, partial(self._collect, held, COLLECT_SLOW))
        return self._slice(keepers)

    def _slice(self, keepers: list[Keeper]) -> float:
        """A slice for the next space that wants one; how long to rest then, so that only a share of a core
        goes."""
        now = time.monotonic()
        wanting = [keeper for keeper in keepers if keeper.wants_slice(now) and not keeper.back.busy(now)]
        if not wanting:
            return NAP
        self._slices += 1
        keeper = wanting[self._slices % len(wanting)]
        self._back.do(keeper.back, partial(self._guard, keeper, partial(keeper.sweep, SLICE)))
        ended = time.monotonic()
        share = SHARE_BUSY if ended < self._busy_until else SHARE if keeper.sweeping else SHARE_LABELS
        return min(1.0, (ended - now) * (1.0 / share - 1.0))

    def _guard(self, keeper: Keeper, work: Callable[[], T]) -> T | None:
        """Run one space's work; its failure stays its own."""
        try:
            return work()
        except StorageUnavailable as error:
            keeper.lost_storage(error)
        except Exception as error:
            keeper.failed(error, time.monotonic())
        return None

    def _wait(self) -> None:
        now = time.monotonic()
        until = min(self._next_beat, self._next_generation)
        for keeper in list(self.keepers.values()):
            due = keeper.drain.next_due() if keeper.available and not keeper.front.busy(now) else None
            if due is not None:
                until = min(until, due)
        self._ears.bell.wait(max(0.0, until - now))
        self._ears.bell.clear()

    # -- status

    def _write_status(self, now: float, *, running: bool = True) -> None:
        spaces = {}
        for key, keeper in list(self.keepers.items()):
            try:
                ear, sources = self._ears.heard(key), self._ears.told(key)
                spaces[key] = report.told(keeper, ear, sources, now)
                spaces[key]["lease"] = self._leases.told(key) if self._leases is not None else None
                spaces[key]["told"] = self._publisher.told(key) if self._publisher is not None else None
            except RuntimeError:
                pass  # a dict changed while it was read: the last second's words stand
        self._told = {**{key: told for key, told in self._told.items() if key in self.keepers}, **spaces}
        replace_json(
            self._run_dir / "watcher.json",
            {
                "pid": os.getpid(),
                "running": running,
                "started": self._started,
                "written": time.time(),
                "turned": round(now - self._turned, 3),
                "spaces": self._told,
            },
        )


def _close(keeper: Keeper) -> bool:
    """Close a space that is no longer served; False while somebody is at work on it."""
    with keeper.front.held() as front, keeper.post.held() as post, keeper.back.held() as back:
        if front and post and back:
            keeper.drain.close()
            keeper.close()
            return True
    return False
