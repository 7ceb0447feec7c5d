"""When the logs of the spaces' indexes are copied into them: often while much is written, so that no commit has to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fsd.core.space import Space

EVERY = 1.0
PAGES = 2000
"""So many new ones are to be in the log when it is copied; fewer where it grows faster than EVERY allows for."""
LONGEST = 10.0
"""Seconds until a log that grew slowly is looked at again: it may grow fast by now."""


class _Looked(NamedTuple):
    at: float
    due: float
    changed: int
    pages: int


class Checkpoints:
    """What is known of each index's log."""

    def __init__(self) -> None:
        self._known: dict[str, _Looked] = {}

    def step(self, space: Space) -> None:
        """Copy the index's log if it is time to."""
        key, now = space.record.id, time.monotonic()
        before = self._known.get(key, _Looked(now - EVERY, now, 0, 0))
        changed = space.index.log_changed()
        if now < before.due or changed == before.changed:
            return
        pages = space.index.checkpoint()
        grown = pages - before.pages if pages > before.pages else pages  # it began anew
        growth = max(1, grown) / max(EVERY, now - before.at)
        pause = min(max(PAGES / growth, EVERY), LONGEST)
        self._known[key] = _Looked(now, now + pause, changed, pages)
