"""Which directory is handled when. Pure: time comes in as an argument (monotonic seconds).

What is due takes turns by the directory above it, and names take turns with whole directories: whoever makes thousands
of directories somewhere, or in a hundred places, holds up nobody elsewhere who changed a file.
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


class _Lanes:
    """Paths in the order in which they came, by the directory above them; the directories take turns."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[bytes, deque[bytes]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, path: bytes) -> None:
        self._lanes.setdefault(lane_of(path), deque()).append(path)

    def first(self) -> bytes:
        """The one that `take` gives next."""
        return next(iter(self._lanes.values()))[0]

    def take(self) -> bytes:
        lane, paths = self._lanes.popitem(last=False)
        path = paths.popleft()
        if paths:
            self._lanes[lane] = paths
        return path

    def beside(self, path: bytes) -> bytes | None:
        """The next one with the same directory above it; None without any."""
        paths = self._lanes.get(lane_of(path))
        return paths[0] if paths else None

    def drop_beside(self, path: bytes) -> None:
        """Take the one that `beside` gave."""
        lane = lane_of(path)
        paths = self._lanes[lane]
        paths.popleft()
        if not paths:
            del self._lanes[lane]


class Schedule:
    """Waiting directories by path, each with the time at which it may be handled."""

    def __init__(self, most: int) -> None:
        self.items: dict[bytes, Waiting] = {}
        self._most = most
        self._at: dict[bytes, float] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._named, self._whole = _Lanes(), _Lanes()
        """What is due, by what waited when it became so."""
        self._named_next = True
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
                later = self.items[path].names is None or self._follows(path)
                (self._whole if later else self._named).add(path)
        return bool(self._named or self._whole)

    def _follows(self, path: bytes) -> bool:
        """Whether the directory above waits to be looked at for this one, which it may not know yet."""
        parent, name = split(path)
        above = self.items.get(parent) if path else None
        return above is not None and (above.names is None or name in above.names)

    def next_due(self) -> float | None:
        """When something is due next; None if nothing waits."""
        if self._named or self._whole:
            return 0.0
        while self._heap:
            due, _, path = self._heap[0]
            if self._at.get(path) == due:
                return due
            heapq.heappop(self._heap)
        return None

    def take(self) -> tuple[bytes, Waiting]:
        """The next one of what is due; names and whole directories take turns, and in each of them the lanes."""
        lanes = self._named if self._named and (self._named_next or not self._whole) else self._whole
        self._named_next = lanes is self._whole
        path = lanes.take()
        return path, self._taken(path)

    def take_more(self, most: int, wanted: Callable[[bytes, Waiting], bool]) -> dict[bytes, Waiting]:
        """Those with names that come next, up to the first that is not wanted."""
        taken: dict[bytes, Waiting] = {}
        while self._named and len(taken) < most:
            path = self._named.first()
            if not wanted(path, self.items[path]):
                break
            taken[path] = self._taken(self._named.take())
        return taken

    def take_beside(self, path: bytes, most: int, wanted: Callable[[bytes], bool]) -> dict[bytes, Waiting]:
        """Those that are due as a whole beside `path`, up to the first that is not wanted."""
        taken: dict[bytes, Waiting] = {}
        while len(taken) < most:
            each = self._whole.beside(path)
            if each is None or self.items[each].names is not None or not wanted(each):
                break
            self._whole.drop_beside(path)
            taken[each] = self._taken(each)
        return taken

    def _taken(self, path: bytes) -> Waiting:
        del self._at[path]
        lane = lane_of(path)
        self._beside[lane] -= 1
        if not self._beside[lane]:
            del self._beside[lane]
        return self.items.pop(path)
