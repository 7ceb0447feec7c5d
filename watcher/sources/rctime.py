"""What a CephFS sums up by itself: `ceph.dir.rctime` tells the newest change below a directory, `rbytes` its size.

It stands beside the source that hears or asks: a notification that was lost, or an edit in place that polling would
come to late, is found by going down only where `rctime` is new. These values reach the upper directories seconds late
(some ten by default), so whatever is newer than MARGIN is looked at again in each round; a directory is hinted when
what it sums up is not what it was. They are never shown to anybody: a size is what reconcile counted.

Once a directory has been quiet for long, `rbytes` is compared with the index's sum. Where they differ the directory is
hinted once, and its subdirectories are compared. They may differ for good: `rbytes` counts a hard link once, a symbolic
link by its length. A stopped clock on one of the clients may hide a change from this source, never from the sweeps.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, polling
from fsd.core.hosts import within
from fsd.core.names import INTERNAL, join
from watcher.hint import Hint, Kind
from watcher.sources.base import SourceStatus

if TYPE_CHECKING:
    from fsd.core.space import Space

ASKS = 300
"""Calls a second for a space; each goes to a metadata server."""
BURST = 0.5
MARGIN = 60.0
"""Seconds: how late a sum may be, and how far two clocks may be apart, together."""
ROUND_LEAST = 1.0
COMPARE_EVERY = 600.0
MOST = 50_000
"""Directories whose sums are remembered."""


class Sums(NamedTuple):
    """What a directory says of all below it; `times`: its own, as far as they are asked for."""

    rctime: float
    rbytes: int
    rentries: int
    times: tuple[int, int] = (0, 0)


class RecursiveTimes:
    """See `watcher.sources.base.Source`. One space each, of which it may be given several parts."""

    name = "rctime"

    def __init__(
        self, space: Space, *, asks: int = ASKS, margin: float = MARGIN, bell: threading.Event | None = None
    ) -> None:
        self.asked = 0
        """Attributes that were asked for."""
        self._space = space
        self._asks = asks
        self._margin = margin
        self._bell = bell if bell is not None else threading.Event()
        self._key = ""
        self._parts: dict[bytes, frozenset[bytes]] = {}
        self._tokens = asks * BURST
        self._filled = self._began = time.monotonic()
        self._took = 0.0
        self._todo: list[bytes] = []
        self._comparing = False
        self._next_compare = self._began + COMPARE_EVERY
        self._floor = self._next_floor = 0.0
        self._seen: OrderedDict[bytes, Sums] = OrderedDict()
        self._differing: dict[bytes, tuple[int, int]] = {}
        self._hints: list[Hint] = []
        self._errors: Counter[str] = Counter()

    def add(
        self,
        space: str,
        root: bytes,
        hidden: tuple[int, int],
        *,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not ids.cluster_of(fd):
                raise OSError(errno.EOPNOTSUPP, "no CephFS", root)
        finally:
            os.close(fd)
        top = root[: len(root) - len(base)] if base else root + b"/"
        self._key = space
        self._parts[base] = frozenset(path[len(top) :] for path in without if path != root)
        self._floor = self._verified() - self._margin
        self._bell.set()

    def _verified(self) -> float:
        """When the whole space was right for the last time, in seconds since the epoch; 0: never."""
        with self._space.index.read() as db:
            return float(db.execute("SELECT swept_at FROM head").fetchone()[0])

    def remove(self, space: str) -> None:
        if space == self._key:
            self._parts.clear()

    def spaces(self) -> set[str]:
        return {self._key} if self._parts else set()

    def busy(self) -> bool:
        return bool(self._hints)

    def wait(self, timeout: float) -> None:
        self._bell.wait(timeout)
        self._bell.clear()

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        self._parts.clear()

    def lost(self, space: str) -> bool:
        """Never: paths are asked, and the root is proven by its owner."""
        return False

    def status(self, space: str) -> SourceStatus | None:
        if space not in self.spaces():
            return None
        return SourceStatus(self.name, True, 0, 0, 0, 0, dict(self._errors), self._took, self._took)

    def collect(self, budget: float) -> list[Hint]:
        now = time.monotonic()
        self._tokens = min(self._asks * BURST, self._tokens + (now - self._filled) * self._asks)
        self._filled = now
        if self._parts:
            self._go_on(now, now + budget)
        hints, self._hints = self._hints, []
        return hints

    def _go_on(self, now: float, deadline: float) -> None:
        if not self._todo:
            if now < self._began + ROUND_LEAST and self.asked:
                return
            self._begin(now)
        while self._todo and self._tokens >= 1 and time.monotonic() < deadline:
            path = self._todo.pop()
            if self._is_mine(path):
                (self._compare if self._comparing else self._look)(path)
        if not self._todo:
            self._took = time.monotonic() - self._began
            if not self._comparing:
                self._floor = self._next_floor

    def _begin(self, now: float) -> None:
        self._began = now
        self._comparing = now >= self._next_compare
        if self._comparing:
            self._next_compare = now + COMPARE_EVERY
        else:
            self._next_floor = time.time() - self._margin
        self._todo = list(self._parts)

    # -- what is new

    def _look(self, path: bytes) -> None:
        rctime = self._ask(path, "rctime")
        if rctime is None or rctime <= self._floor:
            return
        sums = self._sums(path, rctime)
        if sums is None:
            return
        if self._seen.get(path) != sums:
            self._seen[path] = sums
            self._seen.move_to_end(path)
            while len(self._seen) > MOST:
                self._seen.popitem(last=False)
            self._hints.append(Hint(self._key, Kind.DIRECTORY, path, heard=time.monotonic()))
        self._todo += [known.path for known in polling.below(self._space, path)]

    def _sums(self, path: bytes, rctime: float) -> Sums | None:
        """What tells whether it changed. At the root fsd's own internals, which change all the time, are left out: its
        rctime then counts only in steps of the margin's tenth, for edits in place of files right in it."""
        rbytes, rentries = self._ask(path, "rbytes"), self._ask(path, "rentries")
        if rbytes is None or rentries is None:
            return None
        if path:
            return Sums(rctime, int(rbytes), int(rentries))
        inner = INTERNAL
        found = self._stat(path)
        inside = self._ask(inner, "rctime"), self._ask(inner, "rbytes"), self._ask(inner, "rentries")
        if found is None or inside[0] is None or inside[1] is None or inside[2] is None:
            return None
        if rctime <= inside[0]:
            step = max(1.0, self._margin / 10)
            rctime = rctime // step * step
        times = (found.st_mtime_ns, 0)
        return Sums(rctime, int(rbytes - inside[1]), int(rentries - inside[2]), times)

    # -- what adds up

    def _compare(self, path: bytes) -> None:
        rctime, rbytes = self._ask(path, "rctime"), self._ask(path, "rbytes")
        total = polling.total_of(self._space, path)
        if rctime is None or rbytes is None or total is None:
            return
        if not path:
            rbytes -= self._ask(INTERNAL, "rbytes") or 0.0
        elif rctime > time.time() - self._margin:
            return  # on its way still
        pair = (int(rbytes), total)
        if pair[0] == pair[1] or self._differing.get(path) == pair:
            return
        if len(self._differing) < MOST:
            self._differing[path] = pair
        self._hints.append(Hint(self._key, Kind.DIRECTORY, path, heard=time.monotonic()))
        self._todo += [known.path for known in polling.below(self._space, path)]

    # -- asking

    def _ask(self, path: bytes, name: str) -> float | None:
        """One of the directory's sums; None if it is gone or does not tell."""
        self._tokens -= 1
        self.asked += 1
        place = b"/proc/self/fd/%d/%b" % (self._space.root_fd(), join(path, b"."))
        try:
            return float(os.getxattr(place, f"ceph.dir.{name}"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            self._errors[type(error).__name__ if isinstance(error, ValueError) else str(error.strerror)] += 1
            return None

    def _stat(self, path: bytes) -> os.stat_result | None:
        try:
            return os.stat(path or b".", dir_fd=self._space.root_fd(), follow_symlinks=False)
        except OSError:
            return None

    def _is_mine(self, path: bytes) -> bool:
        """Whether a directory is in one of the parts, and not in what is mounted inside it."""
        return any(
            (not base or within(path, base)) and not any(within(path, other) for other in without)
            for base, without in self._parts.items()
        )
