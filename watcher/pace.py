"""When a waiting directory may be handled. Pure: time comes in as an argument (monotonic seconds).

A quiet directory is handled at once. One that was just handled waits ten times what that cost, so a directory
under fire costs a tenth of a core at most; a pass by name and a whole pass are costed apart, so that a
directory of 100,000 entries stays quick by name. A directory that fails waits longer each time and holds up
nobody else.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

FACTOR = 10.0
MAX_WAIT = 5.0
MAX_WAIT_NAMES = 0.015
SOFT_FIRST = 0.004
"""A store is usually followed by the close, which says more."""
SOFT_AGAIN = 0.03
FIRST_FAILURE = 0.25
MAX_FAILURE = 60.0
MAX_KNOWN = 20_000


@dataclass(slots=True)
class _Past:
    names_until: float = 0.0
    whole_until: float = 0.0
    soft_until: float = 0.0
    failed_until: float = 0.0
    failures: int = 0


def failure_wait(failures: int) -> float:
    """Seconds until the next try after so many failures in a row."""
    return min(MAX_FAILURE, FIRST_FAILURE * 2.0 ** min(failures - 1, 30)) if failures > 0 else 0.0


class Pacer:
    """Remembers the last passes of the directories of one space; the least recently handled are forgotten."""

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        self._past: OrderedDict[bytes, _Past] = OrderedDict()
        self._max_known = max_known

    def due(self, path: bytes, now: float, *, whole: bool, soft: bool) -> float:
        """The earliest time for this directory; `now` if nothing holds it back."""
        earliest = now + SOFT_FIRST if soft else now
        past = self._past.get(path)
        if past is None:
            return earliest
        until = max(past.failed_until, past.whole_until if whole else past.names_until)
        if soft:
            until = max(until, past.soft_until)
        return max(earliest, until)

    def done(self, path: bytes, now: float, cost: float, *, whole: bool) -> None:
        """A pass ended well after `cost` seconds."""
        past = self._recall(path)
        if whole:
            past.whole_until = now + min(MAX_WAIT, FACTOR * cost)
        else:
            wait = min(MAX_WAIT_NAMES, FACTOR * cost)
            past.names_until = now + wait
            past.soft_until = now + max(wait, SOFT_AGAIN)
        past.failures = 0
        past.failed_until = 0.0

    def failed(self, path: bytes, now: float) -> int:
        """A pass failed; answers how often in a row."""
        past = self._recall(path)
        past.failures += 1
        past.failed_until = now + failure_wait(past.failures)
        return past.failures

    def fails(self, path: bytes) -> bool:
        """Whether its last pass failed."""
        past = self._past.get(path)
        return past is not None and past.failures > 0

    def forget_failures(self) -> None:
        """The cause is gone (storage is back): try everything at once."""
        for past in self._past.values():
            past.failures, past.failed_until = 0, 0.0

    def _recall(self, path: bytes) -> _Past:
        past = self._past.get(path)
        if past is None:
            past = self._past[path] = _Past()
            while len(self._past) > self._max_known:
                self._past.popitem(last=False)
        else:
            self._past.move_to_end(path)
        return past
