"""What sources that read logs share: spaces, messages to hints, what was not understood, and gaps."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from watcher.hint import Hint, Kind
from watcher.sources.base import SourceStatus
from watcher.streams.gather import Gatherer, Rejected
from watcher.streams.heard import Decoder
from watcher.streams.letters import Letters
from watcher.streams.places import Places, Prefix

log = logging.getLogger(__name__)

DOUBT_EVERY = 3600.0
"""Seconds: what a message that can't be read would have said, a sweep finds; at most one for so long."""


class LogSource:
    """See `watcher.sources.base.Source`; what reads the log is added by those who inherit.

    After `collect` the hints it answered stand for everything up to `positions`; once those are kept with the hints,
    `kept` says so.
    """

    def __init__(
        self,
        name: str,
        decode: Decoder,
        mapping: list[Prefix],
        letters: Letters,
        *,
        bell: threading.Event | None = None,
    ) -> None:
        self.name = name
        self.bell = bell if bell is not None else threading.Event()
        self.gaps: Counter[str] = Counter()
        """By reason, and since the start."""
        self.rejected: Counter[str] = Counter()
        """Messages by what was wrong with them."""
        self.foreign = ""
        """The last path that the mapping doesn't know."""
        self._places = Places(mapping)
        self._decode = decode
        self._gatherer = Gatherer(decode, self._places)
        self._letters = letters
        self._hints: list[Hint] = []
        self._stored: dict[str, dict[str, str]] = {}
        self._space_gaps: Counter[str] = Counter()
        self._next_doubt = 0.0
        self._doubt = False

    # -- spaces

    def resume(self, space: str, stored: Mapping[str, str]) -> None:
        """Before `add`: what the space has kept of earlier positions, by the names of the logs."""
        self._stored[space] = dict(stored)

    def add(
        self,
        space: str,
        root: bytes,
        hidden: tuple[int, int],
        *,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        """Begin with a space; GAP only if its positions don't say where to read on."""
        self._stored.setdefault(space, {})
        self._places.add(space, root, base, without)

    def remove(self, space: str) -> None:
        """Forget a space."""
        self._places.remove(space)
        self._stored.pop(space, None)
        self._space_gaps.pop(space, None)

    def spaces(self) -> set[str]:
        """Those that were added."""
        return self._places.spaces()

    def lost(self, space: str) -> bool:
        """Never: the root is proven by its owner."""
        return False

    def wait(self, timeout: float) -> None:
        """Sleep until there is something."""
        self.bell.wait(timeout)
        self.bell.clear()

    def wake(self) -> None:
        """End a `wait`."""
        self.bell.set()

    # -- for those who inherit

    def _reject(self, rejected: Rejected, raw: bytes | None, where: str) -> None:
        self.rejected[rejected.kind] += 1
        self._letters.keep(where, rejected.kind, rejected.reason, raw)
        if rejected.kind == "malformed":
            self._doubt = True
        elif rejected.kind == "foreign":
            self.foreign = rejected.reason

    def _gap(self, space: str | None, reason: str, now: float) -> None:
        self.gaps[reason] += 1
        for each in sorted(self.spaces()) if space is None else [space]:
            self._space_gaps[each] += reason != "first"
            self._hints.append(Hint(each, Kind.GAP, heard=now))

    def _gathered(self, now: float) -> list[Hint]:
        if self._doubt and now >= self._next_doubt:
            self._doubt, self._next_doubt = False, now + DOUBT_EVERY
            self._gap(None, "malformed", now)
        hints, self._hints = self._hints + self._gatherer.take(now), []
        return hints

    def _status(self, space: str, *, ready: bool, backlog: int, stream: dict[str, Any]) -> SourceStatus:
        counts = self._gatherer.counts
        told = {
            **stream,
            "messages": counts["messages"],
            "elsewhere": counts["elsewhere"],
            "rejected": {kind: self.rejected[kind] for kind in ("malformed", "unfamiliar", "foreign")},
            "foreign": self.foreign,
            "rejected_file": str(self._letters.path),
            "gaps": dict(self.gaps),
            "jumps": getattr(self._decode, "jumps", 0),
            "asked": time.time(),
        }
        return SourceStatus(self.name, ready, 0, 0, self._space_gaps[space], backlog, stream=told)
