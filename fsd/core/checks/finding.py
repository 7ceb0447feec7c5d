"""From a suspicion to a finding: what looks wrong is looked at again before it is said, because everything is in use
while it is checked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from fsd.core.errors import StorageUnavailable

JOBS_S = 2 * 3600.0
"""What the jobs tidy up each hour is a finding when they have missed it. Seconds."""
_TURNS = 5
_MOST = 5000
"""Suspicions that wait at once: memory is bounded however much is wrong."""


class Finding(NamedTuple):
    """One broken invariant. `code` is stable for scripts; `path` is below the space; `repaired` only with
    `repair`."""

    code: str
    path: bytes
    text: str
    repairable: bool
    repaired: bool


@dataclass(frozen=True, slots=True)
class Suspect:
    """What looks wrong. `again` looks once more: the fact it is based on, None when all is well. A fact that changes
    means that somebody is at work there. `mend` repairs it; None if no program can."""

    code: str
    path: bytes
    text: str
    fact: object
    again: Callable[[], object | None]
    mend: Callable[[], object] | None = None


class Judge:
    """Turns suspects into findings: those whose fact is the same after `grace_s` seconds."""

    def __init__(self, *, repair: bool, grace_s: float) -> None:
        self._repair = repair
        self._grace_s = grace_s
        self._waiting: deque[tuple[float, int, Suspect]] = deque()

    def findings(self, suspects: Iterable[Suspect]) -> Iterator[Finding]:
        """Those that stay, in order; repaired if asked for."""
        for suspect in suspects:
            self._waiting.append((time.monotonic() + self._grace_s, 1, suspect))
            while self._waiting and (len(self._waiting) > _MOST or self._waiting[0][0] <= time.monotonic()):
                yield from self._next()
        while self._waiting:
            yield from self._next()

    def _next(self) -> Iterator[Finding]:
        due, turn, suspect = self._waiting.popleft()
        time.sleep(max(0.0, due - time.monotonic()))
        fact = _look(suspect)
        if fact is None:
            return
        if fact != suspect.fact:
            if turn < _TURNS:
                later = replace(suspect, fact=fact)
                self._waiting.append((time.monotonic() + self._grace_s, turn + 1, later))
            return
        text, repaired = suspect.text, False
        if self._repair and suspect.mend is not None:
            try:
                suspect.mend()
                repaired = _look(suspect) is None
            except StorageUnavailable:
                raise
            except OSError as error:
                text = f"{text} It could not be repaired: {error.strerror or error}."
        yield Finding(suspect.code, suspect.path, text, suspect.mend is not None, repaired)


def _look(suspect: Suspect) -> object | None:
    try:
        return suspect.again()
    except StorageUnavailable:
        raise
    except FileNotFoundError:
        return None
    except OSError:
        return suspect.fact
