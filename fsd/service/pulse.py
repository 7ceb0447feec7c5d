"""Signs of life of a child that may hang without dying: stopped, or its loop stands still.

The child writes a byte into a pipe each second (`Beating`, fifo(7)), the supervisor empties it (`Listened`). Nothing of
it is on a disk, and neither side ever waits. Silence is summed up in the supervisor's own steps, so that a machine that
was suspended makes nobody look dead. A child that waits for its disk (state D, proc(5)) is not silent: killing it helps
nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

EVERY = 1.0
"""Seconds between two signs."""
_LONGEST_STEP = 5.0
"""Seconds of silence that one look may find."""
_PATH = "FSD_PULSE"


class Beating:
    """The child's side."""

    def __init__(self, path: str) -> None:
        # For reading as well: it opens whoever listens, and a sign that nobody hears is no SIGPIPE.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def beat(self) -> None:
        """A sign of life; lost if nobody has listened for hours."""
        with suppress(BlockingIOError):
            os.write(self._fd, b".")


def ours() -> Beating | None:
    """What whoever started this process listens to; None where nobody does."""
    path = os.environ.pop(_PATH, None)
    try:
        return Beating(path) if path else None
    except OSError:
        return None


class Listened:
    """The supervisor's side, for one child at a time. `path` is made when a child begins."""

    def __init__(self, path: Path, patience: float) -> None:
        self.path, self.patience = path, patience
        self._silent = -1.0
        self._looked = 0.0

    def begin(self, now: float) -> None:
        """Another child begins: what the last one said is forgotten, and it is waited for as long as it takes."""
        self._silent, self._looked = -1.0, now
        with suppress(OSError):
            self.path.unlink()
        with suppress(OSError):
            os.mkfifo(self.path, 0o600)

    def announce(self) -> None:
        """In the child, before it becomes another program: where it is listened to."""
        os.environ[_PATH] = str(self.path)

    def beating(self) -> Callable[[], None]:
        """In the child, if it stays the same program: what it has to call each second."""
        try:
            return Beating(str(self.path)).beat
        except OSError:
            return lambda: None

    def silent(self, now: float, pid: int) -> bool:
        """Whether a child that has given signs has given none for too long."""
        step, self._looked = min(now - self._looked, _LONGEST_STEP), now
        if self._heard() or _waits_for_disk(pid):
            self._silent = 0.0
        elif self._silent >= 0:
            self._silent += step
        return self.patience > 0 and self._silent > self.patience

    def _heard(self) -> bool:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return bool(os.read(fd, 1 << 16))
        except OSError:
            return False
        finally:
            os.close(fd)


def _waits_for_disk(pid: int) -> bool:
    try:
        said = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return said.rpartition(b") ")[2][:1] == b"D"
