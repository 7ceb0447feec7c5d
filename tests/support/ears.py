"""Listening to a source in tests: what was heard so far, and waiting for more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.support.waiting import wait_for
from watcher.hint import Hint, Kind
from watcher.sources.base import Source


def hidden(root: Path) -> tuple[int, int]:
    """(device, inode) of the internal directory, made if missing."""
    (root / ".fsd").mkdir(parents=True, exist_ok=True)
    info = (root / ".fsd").stat()
    return info.st_dev, info.st_ino


class Listener:
    """A source with one space, `s`, and what was heard of it so far."""

    def __init__(self, source: Source, root: Path) -> None:
        self.root = root
        self.source = source
        self.hints: list[Hint] = []
        self.source.add("s", os.fsencode(root), hidden(root))
        self.until(lambda hints: any(hint.kind is Kind.GAP for hint in hints), "the first GAP")

    def add(self, space: str, root: Path, **more: object) -> None:
        """One more space."""
        self.source.add(space, os.fsencode(root), hidden(root), **more)  # type: ignore[arg-type]
        self.settle()
        self.hints = []

    def hear(self) -> list[Hint]:
        """Everything since the last `until`."""
        self.hints += self.source.collect(0.05)
        return self.hints

    def until(self, condition: Callable[[list[Hint]], object], what: str) -> list[Hint]:
        """What was heard until a condition came true."""
        wait_for(lambda: condition(self.hear()), what=what, every=0.002)
        heard, self.hints = self.hints, []
        return heard

    def settle(self) -> None:
        """Everything that has happened so far is heard."""
        queue = self.source.queue  # type: ignore[attr-defined]
        wait_for(lambda: (self.hear() or True) and not self.source.busy() and queue.idle())
        self.hear()
