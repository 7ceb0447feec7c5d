"""How a waiting directory is served: in one pass; in parts, where it has very many entries; together with others, where
many are new, or many wait.

A comparison in parts holds a descriptor and a bit for each row, and gives way to other directories between its parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from fsd.core import bulk, dirty, large
from fsd.core.reconcile import Outcome, reconcile
from fsd.core.scan import TooLarge
from fsd.core.together import is_usual, reconcile_together

if TYPE_CHECKING:
    from fsd.core.dirty import Item
    from fsd.core.space import Space

Work = Callable[..., Outcome]
STEP_S = 0.03
"""How long a part takes. Seconds."""
MOST = 8
"""Comparisons in parts at the same time; further ones wait."""
AT_ONCE = 20_000
"""Entries of a directory that are compared at once: what is held in memory of each is about 1 KiB."""
TOGETHER = 64
"""New directories that are taken in together."""
TOGETHER_S = 0.1
HINTED = 64
"""Directories with hinted names that are served together, at most."""
HINTED_S = 0.01
"""Seconds in which they are looked at: who writes elsewhere meanwhile waits for so long, and for the commit."""
_DONE = Outcome(True, False, [], None, {})


class Passes:
    """The passes of one space. One thread at a time."""

    def __init__(self, space: Space, work: Work = reconcile) -> None:
        self._space = space
        self._work = _some if work is reconcile else work
        self._going: dict[bytes, large.Comparison] = {}
        self._spent: dict[bytes, float] = {}

    def serve(self, path: bytes, item: Item) -> Outcome | None:
        """Work on a dirty directory; None if it is to be called again. Raises as reconcile does."""
        begin = time.monotonic()
        going = self._going.get(path)
        if going is not None and (going.item.n != item.n or item.names is not None):
            self._stop(path)
            going = None
        if going is None:
            try:
                return self._work(self._space, path, item.names, item=item)
            except TooLarge:
                if len(self._going) >= MOST:
                    return None
                going = self._going[path] = large.Comparison(self._space, item)
        try:
            through = going.step(begin + STEP_S)
        except BaseException:
            self._stop(path)
            raise
        self._spent[path] = self._spent.get(path, 0.0) + time.monotonic() - begin
        if not through:
            return None
        going.close()
        del self._going[path]
        return _DONE

    def spent(self, path: bytes) -> float:
        """Seconds that the parts of a pass took which is through now; 0 for one without."""
        return self._spent.pop(path, 0.0)

    def together(self, paths: list[bytes]) -> list[bytes]:
        """Take in those of these dirty directories that were never looked at, in few transactions; returns them. The
        others are to be served one by one, where they also say what is wrong with them."""
        found = (dirty.waiting_at(self._space, path)[1] for path in paths)
        rows = [row for row in found if row is not None and row.names is None]
        waiting = list(rows)
        try:
            left = bulk.first_looks(self._space, waiting, time.monotonic() + TOGETHER_S)
        except OSError:
            return []
        missed = {row.n for row in left + waiting}
        return [row.path for row in rows if row.n not in missed]

    def hinted(self, paths: list[bytes]) -> dict[bytes, Outcome | None]:
        """Serve those of these directories of which names wait, in few transactions: by path the outcomes, None where
        nothing waits any more. The others are to be served one by one, where they also say what is wrong with them."""
        if self._work is not _some:
            return {}
        served: dict[bytes, Outcome | None] = {}
        wanted: list[Item] = []
        with self._space.index.read():
            for path in paths:
                n, row = dirty.waiting_at(self._space, path)
                if n is not None and row is None:
                    served[path] = None
                elif row is not None and is_usual(row) and path not in self._going:
                    wanted.append(row)
        if wanted:
            served |= reconcile_together(self._space, wanted, time.monotonic() + HINTED_S)
        return served

    def close(self) -> None:
        """What is under way begins again the next time."""
        for path in list(self._going):
            self._stop(path)

    def _stop(self, path: bytes) -> None:
        self._going.pop(path).close()
        self._spent.pop(path, None)


def _some(
    space: Space, path: bytes, names: Collection[bytes] | None = None, *, item: Item | None = None
) -> Outcome:
    return reconcile(space, path, names, item=item, most=AT_ONCE)
