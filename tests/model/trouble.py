"""What befalls a server while it looks: calls that fail, full disks, a SIGKILL, a clock that is set, a lost index.

Each comes over one piece of work and is gone after it. Failing calls are failed where Python makes them; full disks are
really full; a killed process is a real one.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fsd.core import observe, reconcile, scan
from fsd.core.space import Space
from tests.support.mounts import Disk

if TYPE_CHECKING:
    from tests.model.test_reconcile_model import World

_ERRORS = (errno.EIO, errno.EACCES, errno.ENOSPC, errno.ESTALE, errno.EINTR, errno.ENOMEM)
_real_time = time.time


class Trouble:
    """Decides when and what; `during(work)` does the work, under trouble or not."""

    def __init__(self, world: World, volume: Disk | None, *, troubled: bool) -> None:
        self.world, self.volume = world, volume
        self.random = world.random
        self.done: list[str] = []
        self.kinds: list[Callable[[Callable[[], object]], None]] = []
        self._clock = pytest.MonkeyPatch()
        if troubled:
            self.kinds = [self.failing, self.failing, self.killed, self.clock_set, self.index_lost]
            if volume is not None:
                self.kinds += [self.full, self.full]

    def during(self, work: Callable[[], object]) -> None:
        """Do the work; in one of ten cases something goes wrong meanwhile."""
        if not self.kinds or self.random.random() > 0.1:
            work()
            return
        kind = self.random.choice(self.kinds)
        self.done.append(kind.__name__)
        kind(work)

    def end(self) -> None:
        """From here on all is well."""
        self._clock.undo()

    def _survive(self, work: Callable[[], object]) -> None:
        """What it was about is found again by the next sweep."""
        try:
            work()
        except OSError:
            pass

    def failing(self, work: Callable[[], object]) -> None:
        """Every so often a system call fails."""
        with failing_calls(self.random.choice([0.02, 0.2]), self.random):
            self._survive(work)

    def killed(self, work: Callable[[], object]) -> None:
        """The process that does it is killed at some moment."""
        self.world.space.close()
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(0)
        deadline = time.monotonic() + self.random.choice([0.0, 0.002, 0.01, 0.03])
        while time.monotonic() < deadline:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def clock_set(self, work: Callable[[], object]) -> None:
        """From now on the service's clock is another; files have the kernel's."""
        step = self.random.choice([-86400.0, -60.0, -1.0, 1.0, 60.0, 86400.0])
        self._clock.setattr(time, "time", lambda: _real_time() + step)
        work()

    def index_lost(self, work: Callable[[], object]) -> None:
        """The index is deleted; the ids that labels carry come back."""
        for suffix in ("-wal", "-shm", ""):
            try:
                os.unlink(f"{self.world.space.index.path}{suffix}")
            except FileNotFoundError:
                pass
        work()

    def full(self, work: Callable[[], object]) -> None:
        """The volume that tree and index are on takes no byte more."""
        assert self.volume is not None
        filler = self.volume.fill()
        try:
            self._survive(work)
        except sqlite3.OperationalError as error:
            assert "full" in str(error) or "disk I/O" in str(error), error
        finally:
            filler.unlink()


@contextmanager
def failing_calls(share: float, chance: Any) -> Iterator[None]:
    """Some of the calls with which fsd looks at a tree and labels it fail, each with some error."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            if chance.random() < share:
                number = chance.choice(_ERRORS)
                raise OSError(number, os.strerror(number))
            return call(*arguments, **keywords)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for module, names in (
            (os, ("listxattr", "getxattr", "setxattr", "scandir")),
            (observe, ("statx",)),
            (scan, ("statx",)),
            (reconcile, ("statx",)),
        ):
            for name in names:
                patch.setattr(module, name, wrap(getattr(module, name)))
        patch.setattr(Space, "open_dir", wrap(Space.open_dir))
        yield
