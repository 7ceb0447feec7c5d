"""The watcher as a process: `run(settings)`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fsd.core import lease, likeness, restoring
from fsd.core.registry import Registry
from fsd.service.status import read_json
from watcher.ears import Choice, Ears
from watcher.loop import Watcher
from watcher.streams.make import logs, publish

if TYPE_CHECKING:
    from fsd.service.config import Settings

FAMILY_EVERY = 1.0


class Family:
    """The processes of this server. What they write they reconcile themselves, so it is only looked at, a
    moment later.

    One that was started a moment ago, and commands, count as strangers: that costs a look too many, nothing
    else.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "supervisor.json"
        self._next = 0.0
        self._known = frozenset({os.getpid()})

    def __call__(self) -> frozenset[int]:
        """Their numbers, as of the last second."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + FAMILY_EVERY
            children = read_json(self._file).get("children", {})
            self._known = frozenset({os.getpid(), *(child.get("pid", 0) for child in children.values())})
        return self._known


def make_ears(settings: Settings) -> Ears:
    """The sources as the settings wish them. UserError if what they say of logs is wrong."""
    choice = Choice(
        settings.watch_source,
        frozenset(settings.watch_polled),
        settings.watch_stats,
        settings.watch_max,
        logs(settings),
    )
    return Ears(choice, own=Family(settings.state / "run"))


def run(settings: Settings) -> None:
    """Watch all spaces until SIGTERM; the caller forked and set logging up. Opens everything itself."""
    stopping = False
    # Hearing must not wait 5 ms, Python's default, each time the sweeping thread has the interpreter.
    sys.setswitchinterval(0.0005)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    registry = Registry(settings.state)
    watcher = Watcher(
        registry,
        settings.state / "run",
        make_ears(settings),
        verify_every=float(settings.watch_sweep),
        host=lease.host_of(settings.state),
        likeness=likeness.Told(registry.installation),
        take_over=lambda space: restoring.take_over(space, registry.installation),
        publish=publish(settings),
    )
    watcher.run(lambda: stopping)
