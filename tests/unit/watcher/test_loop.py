"""The watcher's threads: how long sources are heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from fsd.service.shift import Subject
from watcher import loop
from watcher.ears import Choice, Ears, Held
from watcher.hint import Hint


class _Flood:
    """Says more than is ever taken in: each call works for as long as it may, in the test's own time."""

    def __init__(self, clock: _Clock) -> None:
        self.heard = 0.0
        self._clock = clock

    def collect(self, budget: float) -> list[Hint]:
        self.heard += budget
        self._clock.now += budget
        return []

    def busy(self) -> bool:
        return True


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("passes", [0.001, 0.25])
def test_a_flood_is_heard_for_a_part_of_the_time_that_passes_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: float
) -> None:
    """Else what is told elsewhere waits behind all that came during them, longer from pass to pass."""
    clock = _Clock()
    watcher = loop.Watcher(cast(Any, None), tmp_path, Ears(Choice()))
    source = _Flood(clock)
    monkeypatch.setattr(watcher._ears, "sources", lambda: [Held("fanotify", cast(Any, source), Subject())])
    monkeypatch.setattr(loop, "time", clock)
    watcher._heard_at = began = clock.now
    for _ in range(40):
        clock.now += passes
        assert watcher._hear()
    assert source.heard >= 0.2 * (clock.now - began)
    assert source.heard <= 40 * loop.COLLECT_MOST, "and passes have their turn"
