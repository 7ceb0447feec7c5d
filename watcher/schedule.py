"""Which directory is handled when. Pure: time comes in as an argument (monotonic seconds).

What is due takes turns by the directory above it: whoever makes thousands of directories somewhere holds up nobody
elsewhere.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from fsd.core.names import split
from watcher.coalesce import Waiting

_RIPE = 0.0
"""The time of what is due already."""


def lane_of(path: bytes) -> bytes:
    """The directory above; of the root, something that is no path."""
    return split(path)[0] if path else b"/"


class Schedule:
    """Waiting directories by path, each with the time at which it may be handled."""

    def __init__(self, most: int) -> None:
        self.items: dict[bytes, Waiting] = {}
        self._most = most
        self._at: dict[bytes, float] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._ripe: OrderedDict[bytes, deque[bytes]] = OrderedDict()
        """What is due, by the directory above it."""
        self._beside: Counter[bytes] = Counter()
        """How many are scheduled, likewise."""
        self._turn = 0

    def put(self, path: bytes, item: Waiting) -> None:
        """Keep what waits at a path; `enter` says until when."""
        if path not in self.items:
            self._beside[lane_of(path)] += 1
        self.items[path] = item

    def enter(self, path: bytes, due: float) -> None:
        """It may be handled at `due`, whatever was said before."""
        self._turn += 1
        self._at[path] = due
        heapq.heappush(self._heap, (due, self._turn, path))
        if len(self._heap) > 4 * len(self._at) + 1000:
            self._heap = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def due(self, path: bytes) -> float | None:
        """When it may be handled; None if nothing was said."""
        return self._at.get(path)

    def is_ripe(self, path: bytes) -> bool:
        """Whether it is due already."""
        return self._at.get(path) == _RIPE

    def is_full(self, path: bytes) -> bool:
        """As many again are admitted where nothing else waits beside them."""
        count = len(self.items)
        return count >= self._most and (count >= 2 * self._most or self._beside[lane_of(path)] > 0)

    def ripen(self, now: float) -> bool:
        """What is due goes to the lane of the directory above it; whether anything is due."""
        while self._heap and self._heap[0][0] <= now:
            due, _, path = heapq.heappop(self._heap)
            if self._at.get(path) == due:
                self._at[path] = _RIPE
                self._ripe.setdefault(lane_of(path), deque()).append(path)
        return bool(self._ripe)

    def next_due(self) -> float | None:
        """When something is due next; None if nothing waits."""
        if self._ripe:
            return 0.0
        while self._heap:
            due, _, path = self._heap[0]
            if self._at.get(path) == due:
                return due
            heapq.heappop(self._heap)
        return None

    def take(self) -> tuple[bytes, Waiting]:
        """The next one of what is due; the lanes take turns."""
        lane, paths = self._ripe.popitem(last=False)
        path = paths.popleft()
        if paths:
            self._ripe[lane] = paths
        return path, self._taken(path)

    def take_more(self, most: int, wanted: Callable[[bytes, Waiting], bool]) -> dict[bytes, Waiting]:
        """Those that come next, up to the first that is not wanted."""
        taken: dict[bytes, Waiting] = {}
        while self._ripe and len(taken) < most:
            path = next(iter(self._ripe.values()))[0]
            if not wanted(path, self.items[path]):
                break
            path, item = self.take()
            taken[path] = item
        return taken

    def take_beside(self, path: bytes, most: int, wanted: Callable[[bytes], bool]) -> dict[bytes, Waiting]:
        """Those that are due as a whole beside `path`, up to the first that is not, or is not wanted."""
        lane = lane_of(path)
        paths = self._ripe.get(lane, deque())
        taken: dict[bytes, Waiting] = {}
        while paths and len(taken) < most and self.items[paths[0]].names is None and wanted(paths[0]):
            each = paths.popleft()
            taken[each] = self._taken(each)
        if not paths:
            self._ripe.pop(lane, None)
        return taken

    def _taken(self, path: bytes) -> Waiting:
        del self._at[path]
        lane = lane_of(path)
        self._beside[lane] -= 1
        if not self._beside[lane]:
            del self._beside[lane]
        return self.items.pop(path)
