"""The jobs process's second thread: checksums of files that were written straight to disk, at a bounded rate."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from fsd.core.errors import StorageUnavailable
from fsd.core.hashing import Background, Stopped

if TYPE_CHECKING:
    from fsd.core.registry import Registry
    from fsd.core.space import Space

log = logging.getLogger(__name__)

EVERY = 1.0
_NICE = 10
_SHORTEST_S = 0.02


class Hasher:
    """Space after space, a page of files each."""

    def __init__(self, registry: Registry, rate: int) -> None:
        """`rate`: bytes a second; a small file counts as 64 KiB."""
        self._registry = registry
        self._rate = rate
        self._known: dict[str, tuple[Space, Background]] = {}
        self._said: dict[str, str] = {}
        self._owed = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop, when nobody else wants the processor."""
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not stop.wait(EVERY):
            waiting = [record.id for record in self._registry.spaces() if record.state == "active"]
            while waiting and not stop.is_set():
                space_id = waiting.pop(0)
                try:
                    if self._step(space_id, stop):
                        waiting.append(space_id)
                except Stopped:
                    return

    def _rest(self, count: int, stop: threading.Event) -> bool:
        """Keep to the rate; for small files together, as each wait costs more than reading one."""
        self._owed += count / self._rate
        if self._owed < _SHORTEST_S:
            return stop.is_set()
        owed, self._owed = self._owed, 0.0
        return stop.wait(owed)

    def _step(self, space_id: str, stop: threading.Event) -> bool:
        """One space's failure keeps no other from its turn, and is said once until it changes."""
        said = ""
        more = False
        try:
            space = self._registry.open(space_id)
            known = self._known.get(space_id)
            if known is None or known[0] is not space:
                known = self._known[space_id] = (
                    space,
                    Background(space, lambda count: self._rest(count, stop)),
                )
            more = known[1].step()
        except StorageUnavailable:
            pass
        except OSError as error:
            said = str(error)
            if self._said.get(space_id) != said:
                log.error("space %s: checksums wait: %s", space_id, error)
        self._said[space_id] = said
        return more
