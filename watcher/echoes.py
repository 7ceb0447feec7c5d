"""What we did ourselves: labels that were written, and, where the source can tell, all that the server's
processes do. Once their transaction is through, it differs from no row.

They are looked at a moment later, without marking anything; marked, a burst of labels would count as a storm
and end in whole passes over large directories. What differs is looked at once more, then it is news.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from watcher.rows import differing

if TYPE_CHECKING:
    from fsd.core.space import Space

MAX_NAMES = 1000
MAX_DIRS = 1000
"""Names of a directory, and directories, that may wait; a name costs about 10 us."""
FIRST = 0.04
AGAIN = 0.1
"""Seconds that a batch of labels has from its first setxattr(2) to its commit; the second, if it is a slow
one."""

News = list[tuple[bytes, set[bytes]]]


class Echoes:
    """The entries of one space of which changed attributes, or only our own processes, were heard, and that
    were not yet looked at. `hear` may be called by one thread while another one looks."""

    def __init__(self, space: Space, clock: Callable[[], float]) -> None:
        self.dropped = 0
        """Looks that found nothing new."""
        self._space = space
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[tuple[bytes, bool], tuple[set[bytes], float]] = {}

    def hear(self, path: bytes, names: Collection[bytes]) -> bool:
        """Take in the entries of a directory; False if too many wait: they are news then."""
        return self._put(path, names, FIRST, looked=False)

    def next_due(self) -> float | None:
        """When to look next; None if nothing waits."""
        with self._lock:
            return min((until for _, until in self._waiting.values()), default=None)

    def look(self, now: float) -> News:
        """Look at what is due; answers what is news."""
        news: News = []
        with self._lock:
            due = [key for key, (_, until) in self._waiting.items() if until <= now]
            taken = [(*key, self._waiting.pop(key)[0]) for key in due]
        for path, looked, names in taken:
            left = differing(self._space, path, names)
            if not left:
                self.dropped += 1
            elif looked or not self._put(path, left, AGAIN, looked=True):
                news.append((path, left))
        return news

    def rest(self) -> News:
        """Everything that still waits, taken out."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return [(path, names) for (path, _), (names, _) in waiting.items()]

    def _put(self, path: bytes, names: Collection[bytes], wait: float, *, looked: bool) -> bool:
        key = (path, looked)
        with self._lock:
            if key not in self._waiting and len(self._waiting) >= MAX_DIRS:
                return False
            held, _ = self._waiting.setdefault(key, (set(), self._clock() + wait))
            if len(held) + len(names) > MAX_NAMES:
                return False
            held.update(names)
            return True
