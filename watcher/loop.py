"""The watcher's loop: events first, then what is due, then every second's housekeeping, then a slice of a sweep.

Everything but reading the kernel's queue happens in one thread, in slices of milliseconds, so that an event never
waits long behind a sweep, and nothing here needs a lock. A space that fails is set aside until it works again; the
others go on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
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
SLICE = 0.02
SLICE_BUSY = 0.008
SHARE = 0.8
"""Of a core, for sweeps while nothing else happens."""
SHARE_BUSY = 0.25
BUSY_FOR = 0.5
GENERATION_EVERY = 0.2
TICK = 1.0
RETRY_WATCH = 10.0


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
        self._next_generation = self._next_tick = self._sweep_at = self._busy_until = 0.0
        self._turn = 0
        self._started = time.time()
        self._mounts = Mounts()

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until `stop` says so (asked after each `wake` of the source), then keep what was heard."""
        try:
            while not stop():
                self.turn()
        finally:
            self.close()

    def turn(self) -> None:
        """One round; ends by waiting until there is something to do."""
        now = time.monotonic()
        if now >= self._next_generation:
            self._next_generation = now + GENERATION_EVERY
            self._follow_registry(now)
        more = self._hear()
        more |= self._drain()
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self._housekeep(now)
        if not more:
            more = self._slice()
        if not more:
            self._wait()

    def close(self) -> None:
        """Make durable what waits; write a last status."""
        for keeper in self.keepers.values():
            keeper.close()
        if self._source is not None:
            self._source.close()
        self._write_status(time.monotonic(), running=False)

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
        self.keepers.pop(key).close()

    def _watch(self, key: str, keeper: Keeper, now: float) -> None:
        """Give a space to the source; where that fails, sweeps find its changes."""
        keeper.next_watch = now + RETRY_WATCH
        try:
            keeper.space.root_fd()
            if self._source is not None:
                self._source.add(key, keeper.space.root, keeper.space.fsd_ident)
                keeper.watched = True
            elif not keeper.sweeping:
                keeper.begin_sweep()
        except StorageUnavailable as error:
            keeper.lost_storage(error)
        except OSError as error:
            log.warning("space %s cannot be watched and is swept instead: %s", keeper.space.record.id, error)
            if not keeper.sweeping:
                self._guard(keeper, keeper.begin_sweep)

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
                more |= bool(self._guard(keeper, lambda keeper=keeper: keeper.run(RUN)))  # type: ignore[misc]
                if keeper.drain.counts["changed"] != changed:
                    self._busy_until = now + BUSY_FOR
        return more

    def _slice(self) -> bool:
        """A slice of sweeping for the next space that wants one; True if work should go on at once."""
        now = time.monotonic()
        wanting = [keeper for keeper in self.keepers.values() if keeper.wants_slice(now)]
        if not wanting or now < self._sweep_at:
            return False
        busy = now < self._busy_until
        self._turn += 1
        keeper = wanting[self._turn % len(wanting)]
        self._guard(keeper, lambda: keeper.sweep(SLICE_BUSY if busy else SLICE))
        cost = time.monotonic() - now
        self._sweep_at = now + cost / (SHARE_BUSY if busy else SHARE)
        return False

    def _housekeep(self, now: float) -> None:
        remounted = self._mounts.changed([keeper.space.root for keeper in self.keepers.values()])
        for key, keeper in self.keepers.items():
            self._guard(keeper, lambda keeper=keeper: keeper.tick(now))  # type: ignore[misc]
            if self._source is not None and keeper.watched:
                lost = not keeper.available or self._source.lost(key)
                if lost or keeper.space.root in remounted:
                    # Added again, it is walked again and ends in a GAP.
                    self._source.remove(key)
                    keeper.watched, keeper.next_watch = False, 0.0
        self._write_status(now)

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
        if not keeper.available:
            keeper.found_storage()
        return answer

    def _wait(self) -> None:
        now = time.monotonic()
        until = min(self._next_tick, self._next_generation)
        for keeper in self.keepers.values():
            due = keeper.drain.next_due() if keeper.available else None
            if due is not None:
                until = min(until, due)
        if any(keeper.wants_slice(now) for keeper in self.keepers.values()):
            until = min(until, self._sweep_at)
        timeout = max(0.0, until - now)
        if self._source is not None:
            self._source.wait(timeout)
        else:
            time.sleep(min(timeout, 0.2))

    # -- status

    def _write_status(self, now: float, *, running: bool = True) -> None:
        spaces = {}
        for key, keeper in self.keepers.items():
            source = self._source.status(key) if self._source is not None and keeper.watched else None
            spaces[key] = keeper.status(source, now)
        replace_json(
            self._run_dir / "watcher.json",
            {
                "pid": os.getpid(),
                "running": running,
                "started": self._started,
                "written": time.time(),
                "source": self._source.name if self._source is not None else "sweeps",
                "spaces": spaces,
            },
        )
