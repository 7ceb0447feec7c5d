"""Verifying a whole space: every directory is compared with its rows once in an epoch.

The work list is the dirty set at its lower rank: the root first, each directory adds its children. So a sweep
survives a restart, can be stopped at any time, and does nothing twice.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, index
from fsd.core.errors import StorageUnavailable
from fsd.core.reconcile import reconcile_item

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
_AHEAD = 64
_COUNT_EVERY_S = 1.0


class Progress(NamedTuple):
    """Directories verified in this epoch and known in all; `finished` when nothing is left to verify."""

    done_dirs: int
    total_dirs: int
    finished: bool


class Sweep:
    """A resumable sweep of one space."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._ahead: list[dirty.Item] = []
        self._last = Progress(0, 0, False)
        self._counted_at = 0.0

    def begin(self) -> None:
        """Start a new epoch: what was verified before counts no more."""
        dirty.mark_tree(self._space)
        self._ahead.clear()

    def step(self, budget_s: float) -> Progress:
        """Work for about `budget_s` seconds. Directories that can't be read are left to the next sweep."""
        deadline = time.monotonic() + budget_s
        finished = False
        while not finished and time.monotonic() < deadline:
            if not self._ahead:
                self._ahead = dirty.pending(self._space, _AHEAD, sweep=True)[::-1]
            if self._ahead:
                self._verify(self._ahead.pop())
            else:
                self._complete()
                finished = True
        return self._counted(finished)

    def _counted(self, finished: bool) -> Progress:
        """Counting reads every directory's row, so a sweep in small steps counts once in a while."""
        now = time.monotonic()
        if finished or now - self._counted_at > _COUNT_EVERY_S:
            self._last = self.progress()
            self._counted_at = time.monotonic()
        return self._last._replace(finished=finished)

    def _verify(self, item: dirty.Item) -> None:
        try:
            reconcile_item(self._space, item)
        except StorageUnavailable:
            raise
        except OSError as error:
            _log.info("space %s: %r is left to the next sweep: %s", self._space.record.id, item.path, error)
            dirty.done(self._space, [item])

    def _complete(self) -> None:
        with self._space.index.read() as db:
            swept_at, complete = db.execute("SELECT swept_at, complete FROM head").fetchone()
            (marked,) = db.execute(
                "SELECT epoch=(SELECT epoch FROM head) FROM dir WHERE n=?", (index.ROOT,)
            ).fetchone()
            # What was hinted before the sweep came to it is verified by serving the hint.
            (fresh,) = db.execute(
                "SELECT count(*) FROM dirty JOIN dir ON dir.n=dirty.n, head"
                " WHERE sweep=0 AND (dir.n=? OR dir.epoch<>head.epoch)",
                (index.ROOT,),
            ).fetchone()
        if marked and not fresh and (not complete or not swept_at or self._newer_epoch()):
            with self._space.index.write() as db:
                db.execute("UPDATE head SET complete=1, swept_at=?", (time.time(),))
                db.execute("INSERT OR REPLACE INTO cursor VALUES ('sweep', (SELECT epoch FROM head))")

    def _newer_epoch(self) -> bool:
        with self._space.index.read() as db:
            (epoch,) = db.execute("SELECT epoch FROM head").fetchone()
            row = db.execute("SELECT value FROM cursor WHERE source='sweep'").fetchone()
        return row is None or int(row[0]) != epoch

    def progress(self) -> Progress:
        """How far it is."""
        with self._space.index.read() as db:
            total, done = db.execute(
                "SELECT count(*), sum(epoch=(SELECT epoch FROM head)) FROM dir"
            ).fetchone()
        return Progress(done or 0, total, not dirty.pending(self._space, 1, sweep=True))
