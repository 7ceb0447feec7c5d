"""What a source of hints must do, and a check that any of them can be put through."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from watcher.hint import Hint, Kind


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One space as its source sees it."""

    name: str
    ready: bool
    """Everything that can be heard is being heard (the first walk is over)."""
    watched: int
    """Directories with a watch; 0 where one mark stands for all."""
    unwatched: int
    """Directories that should have one and don't: they are polled."""
    overflows: int
    """Times that events were lost, since the source started."""
    backlog: int
    """Bytes of events read and not yet looked at (all spaces together)."""
    errors: dict[str, int] = field(default_factory=dict)
    round_seconds: float = 0.0
    """Polling: how old the oldest look at a directory is, and at a file; 0 where changes are heard."""
    files_seconds: float = 0.0
    stream: dict[str, Any] | None = None
    """Of a log that others write: its connection, positions, lag, and what was wrong with it."""


class Source(Protocol):
    """Hears about changes below some directories. One thread at a time calls it; `wake` may be called from
    any.

    A source never follows symbolic links, never reports from inside the hidden directory, and after `add`
    says GAP once everything it can hear is being heard: whatever changed before that has to be found by a
    sweep.
    """

    name: str

    def add(
        self,
        space: str,
        root: bytes,
        hidden: tuple[int, int],
        *,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        """Begin with a space, or with a filesystem inside it. OSError if it cannot be heard at all.

        `root` is an absolute path without links, `base` its path below the space's root, `hidden` the
        (device, inode) of the internal directory, `without` the absolute paths of filesystems inside that are
        not meant.
        """

    def remove(self, space: str) -> None:
        """Forget a space, with all that was added for it; unknown ones are fine."""

    def spaces(self) -> set[str]:
        """The spaces that were added."""

    def collect(self, budget: float) -> list[Hint]:
        """Work for at most about `budget` seconds on what is there, and answer the hints. Never waits for
        events."""

    def busy(self) -> bool:
        """True if `collect` has more to do right now."""

    def wait(self, timeout: float) -> None:
        """Sleep until there is something to collect, `wake` is called, or `timeout` seconds are over."""

    def wake(self) -> None:
        """End a `wait`."""

    def status(self, space: str) -> SourceStatus | None:
        """None if the space is not known."""

    def lost(self, space: str) -> bool:
        """True if the root itself is not heard any more (moved, removed, unmounted): `remove` and `add` it
        again."""

    def close(self) -> None:
        """Give everything back."""


@runtime_checkable
class LogReader(Source, Protocol):
    """A source that reads a log which others write, and goes on where it was.

    It says GAP after `add` only if what the space has kept does not tell where to read on, and whenever it finds that
    something may be missed.
    """

    def resume(self, space: str, stored: Mapping[str, str]) -> None:
        """Before `add`: the positions that the space has kept, by the names of the logs."""

    def positions(self, space: str) -> dict[str, str]:
        """After `collect`: the hints answered so far stand for everything up to here."""

    def kept(self, space: str, stored: Mapping[str, str]) -> None:
        """These positions of the space are durable, and so are the hints up to them."""

    def commit(self) -> None:
        """Tell whoever writes the log what is durable, where that is usual."""


class _Listener:
    """Collects from a source until a condition holds."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.hints: list[Hint] = []

    def until(self, what: str, condition: Callable[[list[Hint]], bool], timeout: float = 10.0) -> list[Hint]:
        """All hints since the last call; AssertionError if the condition does not come true."""
        deadline = time.monotonic() + timeout
        while not condition(self.hints):
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{self.source.name}: {what}; heard {self.hints}")
            if not self.source.busy():
                self.source.wait(min(left, 0.05))
            self.hints += self.source.collect(0.05)
        heard, self.hints = self.hints, []
        return heard


def covers(hints: list[Hint], directory: bytes, name: bytes) -> bool:
    """True if one of the hints says that the entry may differ."""
    return any(
        hint.kind is Kind.GAP
        or (hint.kind is Kind.SUBTREE and (directory + b"/").startswith(hint.dir + b"/" if hint.dir else b""))
        or (hint.kind is Kind.DIRECTORY and hint.dir == directory)
        or (hint.kind is Kind.ENTRIES and hint.dir == directory and name in hint.names)
        for hint in hints
    )


def check_source(make: Callable[[], Source], base: str) -> None:
    """Put a source through its contract in the empty directory `base`. AssertionError says what is wrong."""
    root = os.fsencode(os.path.join(base, "space"))
    outside = os.fsencode(os.path.join(base, "outside"))
    hidden = os.path.join(root, b".fsd")
    for path in (root, outside, hidden, os.path.join(root, b"old")):
        os.mkdir(path)
    os.symlink(outside, os.path.join(root, b"link"))
    info = os.stat(hidden)
    source = make()
    try:
        source.add("s", root, (info.st_dev, info.st_ino))
        listener = _Listener(source)
        listener.until("a GAP after the first walk", lambda hints: any(h.kind is Kind.GAP for h in hints))
        _check_changes(listener, root, outside)
        _check_wake(source)
        source.remove("s")
        source.remove("s")
        assert source.status("s") is None, "a removed space has no status"
    finally:
        source.close()


def _check_changes(listener: _Listener, root: bytes, outside: bytes) -> None:
    def write(*parts: bytes) -> None:
        with open(os.path.join(root, *parts), "wb") as file:
            file.write(b"x")

    write(b"old", b"f\xff\n")
    listener.until("a write in a known directory", lambda h: covers(h, b"old", b"f\xff\n"))
    os.makedirs(os.path.join(root, b"a/b/c"))
    write(b"a", b"b", b"c", b"f")
    listener.until("a file in a chain of new directories", lambda h: covers(h, b"a/b/c", b"f"))
    os.rename(os.path.join(root, b"a"), os.path.join(root, b"z"))
    listener.until(
        "both names of a renamed directory", lambda h: covers(h, b"", b"a") and covers(h, b"", b"z")
    )
    write(b"z", b"b", b"c", b"g")
    listener.until("a write below a renamed directory", lambda h: covers(h, b"z/b/c", b"g"))
    os.makedirs(os.path.join(outside, b"in/deep"))
    os.rename(os.path.join(outside, b"in"), os.path.join(root, b"in"))
    listener.until("a tree moved in", lambda h: covers(h, b"", b"in"))
    write(b"in", b"deep", b"f")
    listener.until("a write in a tree moved in", lambda h: covers(h, b"in/deep", b"f"))
    os.truncate(os.path.join(root, b"z/b/c/f"), 100)
    listener.until("truncate by path", lambda h: covers(h, b"z/b/c", b"f"))
    with open(os.path.join(outside, b"quiet"), "wb"), open(os.path.join(root, b".fsd", b"quiet"), "wb"):
        pass
    shutil.rmtree(os.path.join(root, b"z"))
    heard = listener.until("a removed tree", lambda h: covers(h, b"", b"z"))
    assert not any(h.dir.startswith((b".fsd", b"link")) for h in heard), "never hidden, never through a link"


def _check_wake(source: Source) -> None:
    while source.busy():
        source.collect(0.05)
    timer = threading.Timer(0.05, source.wake)
    timer.start()
    begin = time.monotonic()
    source.wait(10.0)
    timer.join()
    assert time.monotonic() - begin < 5.0, "wake() ends a wait"
