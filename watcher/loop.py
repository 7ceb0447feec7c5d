"""The watcher's threads: one hears and reconciles, one does what may take long, one says how it is.

The first works in slices of milliseconds, so that a change never waits behind a sweep; the second sweeps, labels and
settles, paced to a share of a core. Each space's failure stays its own: it is set aside until it works again.

Who owns what: `keepers` is changed by the first thread only, the others look at copies; a space that is no longer
served is closed by the second, which is the one that may be at work on it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fsd.core.errors import StorageUnavailable
from fsd.core.space import SpaceRecord
from fsd.service.status import replace_json
from watcher.keeper import Keeper
from watcher.mounts import Mounts
from watcher.sources.base import Source

if TYPE_CHECKING:
    from fsd.core.space import Space

log = logging.getLogger(__name__)

COLLECT = 0.005
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
        self, registry: Spaces, run_dir: Path, source: Source | None, *, verify_every: float = 86400.0
    ) -> None:
        """`source` None: nothing can be heard here, everything is found by sweeps."""
        self.keepers: dict[str, Keeper] = {}
        self._registry = registry
        self._run_dir = run_dir
        self._source = source
        self._verify_every = verify_every
        self._generation = -1
        self._next_generation = self._next_beat = self._next_tick = self._busy_until = 0.0
        self._turned = time.monotonic()
        self._slices = 0
        self._started = time.time()
        self._mounts = Mounts()
        self._leaving: deque[Keeper] = deque()
        self._told: dict[str, Any] = {}
        self._ending = threading.Event()

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until `stop` says so (asked after each `wake` of the source), then keep what was heard."""
        threads = [
            threading.Thread(target=self._steadily, args=(work,), name=name, daemon=True)
            for name, work in (("background", self._background), ("status", self._report))
        ]
        for thread in threads:
            thread.start()
        try:
            while not stop():
                self.turn()
        finally:
            self._ending.set()
            for keeper in self.keepers.values():
                keeper.drain.close()
            for thread in threads:
                thread.join(END)
            if self._source is not None:
                self._source.close()
            for keeper in self.keepers.values():
                keeper.close()
            self._write_status(time.monotonic(), running=False)

    def turn(self) -> None:
        """One round of the first thread; ends by waiting until there is something to do."""
        now = self._turned = time.monotonic()
        if now >= self._next_generation:
            self._next_generation = now + GENERATION_EVERY
            self._follow_registry(now)
        more = self._hear()
        more |= self._drain()
        if now >= self._next_beat:
            self._next_beat = now + TICK
            self._beat(now)
        if not more:
            self._wait()

    # -- spaces

    def _follow_registry(self, now: float) -> None:
        try:
            generation = self._registry.generation()
            if generation != self._generation:
                self._compare(self._registry.spaces())
                self._generation = generation
        except OSError as error:
            log.error("the registry cannot be read: %s", error)
            self._next_generation = now + 2.0
        for key, keeper in self.keepers.items():
            if keeper.available and not keeper.watched and now >= keeper.next_watch:
                self._watch(key, keeper, now)

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
            else:
                self.keepers[key].space.record = record

    def _drop(self, key: str) -> None:
        if self._source is not None:
            self._source.remove(key)
        keeper = self.keepers.pop(key)
        keeper.drain.close()
        keeper.available = False
        self._leaving.append(keeper)

    def _watch(self, key: str, keeper: Keeper, now: float) -> None:
        """Give a space to the source; where that fails, sweeps find its changes."""
        keeper.next_watch = now + RETRY_WATCH
        try:
            keeper.space.root_fd()
            if self._source is not None:
                self._source.add(key, keeper.space.root, keeper.space.fsd_ident)
                keeper.watched = True
            else:
                keeper.poll(now)
        except StorageUnavailable as error:
            keeper.lost_storage(error)
        except OSError as error:
            if not keeper.said_unwatched:
                log.warning("space %s cannot be watched, it is swept: %s", keeper.space.record.id, error)
            keeper.said_unwatched = True
            keeper.poll(now)

    # -- work

    def _hear(self) -> bool:
        if self._source is None:
            return False
        hints = self._source.collect(COLLECT)
        for hint in hints:
            keeper = self.keepers.get(hint.space)
            if keeper is not None:
                keeper.hear(hint)
        if hints:
            for key in {hint.space for hint in hints} & self.keepers.keys():
                self._guard(self.keepers[key], self.keepers[key].flush)
        return self._source.busy()

    def _drain(self) -> bool:
        now = time.monotonic()
        more = False
        for keeper in self.keepers.values():
            due = keeper.drain.next_due() if keeper.available else None
            if due is not None and due <= now:
                changed = keeper.drain.counts["changed"]
                more |= bool(self._guard(keeper, partial(keeper.run, RUN)))
                if keeper.drain.counts["changed"] != changed:
                    self._busy_until = now + BUSY_FOR
        return more

    def _beat(self, now: float) -> None:
        remounted = self._mounts.changed([keeper.space.root for keeper in self.keepers.values()])
        for key, keeper in self.keepers.items():
            if self._guard(keeper, partial(keeper.beat, now)) and not keeper.available:
                keeper.found_storage()
            if self._source is not None and keeper.watched:
                lost = not keeper.available or self._source.lost(key)
                if lost or keeper.space.root in remounted:
                    # Added again, it is walked again and ends in a GAP.
                    keeper.drain.forget_failures()
                    self._source.remove(key)
                    keeper.watched, keeper.next_watch = False, 0.0

    # -- the second thread

    def _steadily(self, turn: Callable[[], float]) -> None:
        """A thread's loop: `turn` answers how long to rest. A defect in one turn must not end the thread."""
        while not self._ending.is_set():
            try:
                rest = turn()
            except Exception:
                if not self._ending.is_set():
                    log.exception("a turn of the watcher failed")
                rest = TICK
            self._ending.wait(rest)

    def _background(self) -> float:
        while self._leaving:
            self._leaving.popleft().close()
        now = time.monotonic()
        keepers = list(self.keepers.values())
        if now >= self._next_tick:
            self._next_tick = now + TICK
            for keeper in keepers:
                if keeper.available and not self._ending.is_set():
                    self._guard(keeper, partial(keeper.tick, now))
        return self._slice(keepers)

    def _slice(self, keepers: list[Keeper]) -> float:
        """A slice for the next space that wants one; how long to rest then, so that only a share of a core goes."""
        now = time.monotonic()
        wanting = [keeper for keeper in keepers if keeper.wants_slice(now)]
        if not wanting:
            return NAP
        self._slices += 1
        keeper = wanting[self._slices % len(wanting)]
        self._guard(keeper, partial(keeper.sweep, SLICE))
        ended = time.monotonic()
        share = SHARE_BUSY if ended < self._busy_until else SHARE if keeper.sweeping else SHARE_LABELS
        return min(1.0, (ended - now) * (1.0 / share - 1.0))

    def _guard(self, keeper: Keeper, work: Callable[[], Any]) -> Any:
        """Run one space's work; its failure stays its own."""
        try:
            answer = work()
        except StorageUnavailable as error:
            keeper.lost_storage(error)
            return None
        except Exception as error:
            keeper.failed(error, time.monotonic())
            return None
        return answer

    def _wait(self) -> None:
        now = time.monotonic()
        until = min(self._next_beat, self._next_generation)
        for keeper in self.keepers.values():
            due = keeper.drain.next_due() if keeper.available else None
            if due is not None:
                until = min(until, due)
        timeout = max(0.0, until - now)
        if self._source is not None:
            self._source.wait(timeout)
        else:
            time.sleep(min(timeout, 0.2))

    # -- status

    def _report(self) -> float:
        self._write_status(time.monotonic())
        return TICK

    def _write_status(self, now: float, *, running: bool = True) -> None:
        spaces = {}
        for key, keeper in list(self.keepers.items()):
            try:
                source = self._source.status(key) if self._source is not None and keeper.watched else None
                spaces[key] = keeper.status(source, now)
            except (RuntimeError, sqlite3.Error):
                pass  # a dict changed while it was read, or the space was closed: the last second's words stand
        self._told = {**{key: told for key, told in self._told.items() if key in self.keepers}, **spaces}
        replace_json(
            self._run_dir / "watcher.json",
            {
                "pid": os.getpid(),
                "running": running,
                "started": self._started,
                "written": time.time(),
                "turned": round(now - self._turned, 3),
                "source": self._source.name if self._source is not None else "sweeps",
                "spaces": self._told,
            },
        )
