"""Hints for storages that tell nothing (network filesystems, FUSE below us): asks again, with a fixed budget.

So many stat(2) calls a second, never more, whatever the size of the tree. A third goes to directories that
changed lately, a third to all directories in turn (one call finds whatever was made, removed or renamed in
one), a third to all files in turn (edits in place). How old the oldest answer may be is told, in `status`.
What a hint makes others look at is charged to the budget.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from fsd.core import polling
from fsd.core.hosts import within
from fsd.core.syscalls import times_ns
from watcher.hint import Hint, Kind
from watcher.sources.base import SourceStatus

if TYPE_CHECKING:
    from fsd.core.space import Space

T = TypeVar("T")
STATS = 500
"""Calls a second for a space, by default."""
BURST = 0.5
"""Seconds' worth of calls that may be saved up."""
PAGE = 200
HOT = 64
HOT_FOR = 60.0
HOT_EVERY = 0.5
ROUND_LEAST = 1.0
"""Seconds from one round to the next, at least."""


class PollSource:
    """See `watcher.sources.base.Source`. One space each, of which it may be given several parts."""

    name = "poll"

    def __init__(self, space: Space, *, stats: int = STATS, bell: threading.Event | None = None) -> None:
        self.asked = 0
        """Calls made."""
        self._space = space
        self._stats = stats
        self._bell = bell if bell is not None else threading.Event()
        self._key = ""
        self._parts: dict[bytes, frozenset[bytes]] = {}
        self._tokens = 0.0
        self._filled = time.monotonic()
        self._directories: _Round[polling.Directory] = _Round(self._filled)
        self._files: _Round[polling.File] = _Round(self._filled)
        self._hot: OrderedDict[bytes, tuple[float, float, tuple[int, int]]] = OrderedDict()
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
        top = root[: len(root) - len(base)] if base else root + b"/"
        self._key = space
        self._parts[base] = frozenset(path[len(top) :] for path in without if path != root)
        self._hints.append(Hint(space, Kind.GAP, heard=time.monotonic()))
        self._bell.set()

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
        now = time.monotonic()
        ages = (self._directories.age(now), self._files.age(now))
        return SourceStatus(self.name, True, 0, 0, 0, 0, dict(self._errors), *ages)

    def collect(self, budget: float) -> list[Hint]:
        now = time.monotonic()
        self._tokens = min(self._stats * BURST, self._tokens + (now - self._filled) * self._stats)
        self._filled = now
        if self._parts and self._tokens >= 1:
            deadline = now + budget
            share = self._tokens / 3
            self._ask_hot(now, share)
            self._ask_files(deadline, share)
            self._ask_directories(deadline)
        hints, self._hints = self._hints, []
        return hints

    # -- asking

    def _ask_hot(self, now: float, share: float) -> None:
        floor = self._tokens - share
        for path, (until, due, known) in list(self._hot.items()):
            if now > until:
                del self._hot[path]
            elif now >= due and self._tokens > floor:
                found = self._stat(path)
                if found is None:
                    del self._hot[path]
                    continue
                signature = times_ns(found)
                self._hot[path] = (until, now + HOT_EVERY, signature)
                if signature != known:
                    self._warm(path, signature, now)
                    self._say(path)

    def _warm(self, path: bytes, signature: tuple[int, int], now: float) -> None:
        self._hot[path] = (now + HOT_FOR, now + HOT_EVERY, signature)
        self._hot.move_to_end(path)
        while len(self._hot) > HOT:
            self._hot.popitem(last=False)

    def _ask_directories(self, deadline: float) -> None:
        ring = self._directories
        if ring.rests(time.monotonic()):
            return
        while self._tokens >= 1 and time.monotonic() < deadline:
            if not ring.page:
                ring.page = list(reversed(polling.directories(self._space, ring.after, PAGE)))
                if not ring.page:
                    ring.again(time.monotonic())
                    return
            known = ring.page.pop()
            ring.after = known.n
            if not self._is_mine(known.path):
                continue
            found = self._stat(known.path)
            if found is not None and times_ns(found) != (
                known.mtime_ns,
                known.ctime_ns,
            ):
                self._tokens -= known.entries
                self._warm(known.path, times_ns(found), time.monotonic())
                self._say(known.path)

    def _ask_files(self, deadline: float, share: float) -> None:
        ring, floor = self._files, self._tokens - share
        if ring.rests(time.monotonic()):
            return
        while self._tokens > floor and time.monotonic() < deadline:
            if not ring.page:
                ring.page = list(reversed(polling.files(self._space, ring.after, PAGE)))
                if not ring.page:
                    ring.again(time.monotonic())
                    return
            known = ring.page.pop()
            ring.after = known.n
            if not self._is_mine(known.parent):
                continue
            found = self._stat(polling.place(known))
            if found is not None and _differs(known, found):
                self._say(known.parent, known.name)

    def _stat(self, path: bytes) -> os.stat_result | None:
        """None if it is gone or can't be told; its directory tells the first, and is asked too."""
        self._tokens -= 1
        self.asked += 1
        try:
            return os.stat(path or b".", dir_fd=self._space.root_fd(), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._errors[os.strerror(error.errno or 0)] += 1
            return None

    def _is_mine(self, path: bytes) -> bool:
        """Whether a directory is in one of the parts, and not in what is mounted inside it."""
        return any(
            (not base or within(path, base)) and not any(within(path, other) for other in without)
            for base, without in self._parts.items()
        )

    def _say(self, path: bytes, name: bytes | None = None) -> None:
        kind, names = (
            (Kind.DIRECTORY, frozenset[bytes]()) if name is None else (Kind.ENTRIES, frozenset({name}))
        )
        self._hints.append(Hint(self._key, kind, path, names, heard=time.monotonic()))


class _Round(Generic[T]):
    """Going through all rows, again and again."""

    def __init__(self, now: float) -> None:
        self.after = 0
        self.page: list[T] = []
        self._began = now
        self._took = 0.0

    def rests(self, now: float) -> bool:
        """Small trees are not asked without pause."""
        return not self.after and not self.page and self._took > 0.0 and now < self._began + ROUND_LEAST

    def again(self, now: float) -> None:
        """The end was reached."""
        self.after, self._took, self._began = 0, max(1e-3, now - self._began), now

    def age(self, now: float) -> float:
        """How old the oldest look may be, in seconds."""
        return max(self._took, now - self._began)


def _differs(known: polling.File, found: os.stat_result) -> bool:
    return (known.ino, known.mtime_ns, known.ctime_ns) != (found.st_ino, *times_ns(found))
