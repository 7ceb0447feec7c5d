"""The watcher as a process: `run(settings)`."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from fsd.core.registry import Registry
from watcher.loop import Watcher
from watcher.sources.base import Source
from watcher.sources.inotify import InotifySource, unavailable

if TYPE_CHECKING:
    from fsd.service.config import Settings

log = logging.getLogger(__name__)


def make_source(settings: Settings) -> Source | None:
    """The best source this host has; None if only sweeps are left."""
    try:
        return InotifySource(max_watches=settings.watch_max)
    except OSError as error:
        if not unavailable(error):
            raise
        log.error("no inotify instance to be had (%s): changes are found by sweeps only", error)
        return None


def run(settings: Settings) -> None:
    """Watch all spaces until SIGTERM; the caller forked and set logging up. Opens everything itself."""
    stopping = False
    # Hearing must not wait 5 ms, Python's default, each time the sweeping thread has the interpreter.
    sys.setswitchinterval(0.0005)
    source = make_source(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if source is not None:
            source.wake()

    signal.signal(signal.SIGTERM, stop)
    watcher = Watcher(
        Registry(settings.state), settings.state / "run", source, verify_every=float(settings.watch_sweep)
    )
    watcher.run(lambda: stopping)
