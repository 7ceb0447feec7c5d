"""What is on its way, for `fsd mount --status`: bytes done of bytes in all."""

from __future__ import annotations

import itertools
from typing import Any


class Progress:
    """Transfers that run now, and how many there were."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._running: dict[int, list[Any]] = {}
        self.done = {"upload": 0, "download": 0}
        self.changes = 0
        """Rises with everything that a person would see."""

    def begin(self, what: str, path: str, size: int) -> int:
        """A transfer begins; its number."""
        number = next(self._numbers)
        self._running[number] = [what, path, 0, size]
        self.changes += 1
        return number

    def more(self, number: int | None, count: int) -> None:
        """Bytes went over."""
        if number is not None:
            self._running[number][2] += count
            self.changes += 1

    def end(self, number: int | None) -> None:
        """A transfer is over, however it ended."""
        if number is not None:
            told = self._running.pop(number)
            self.done[told[0]] += 1
            self.changes += 1

    def running(self) -> list[dict[str, Any]]:
        """What is on its way now."""
        return [
            {"what": what, "path": path, "done": done, "size": size}
            for what, path, done, size in self._running.values()
        ]
