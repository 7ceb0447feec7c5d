"""The mounts that `fsd serve` keeps up (setting `mounts`): each an `fsd mount` in a process of its own.

A mount that dies, or hangs (`pulse`), is started again like any other process of the server; what its daemon left at
the mountpoint is cleared away by the new one. What the server was told to end leaves nothing mounted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fsd.cli.common import note
from fsd.service.pulse import Listened
from fsd.service.status import MOUNT

if TYPE_CHECKING:
    from fsd.service.config import Settings
    from fsd.service.options import MountLine

_OF_THE_MANAGER = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def children(settings: Settings, pulses: Mapping[str, Listened]) -> dict[str, Callable[[], None]]:
    """What runs in the process of each mount, by its name."""
    return {
        name: partial(_mount, settings, line, pulses[name])
        for line in settings.mounts
        for name in [MOUNT + line.place]
    }


def same(name: str, before: Settings, after: Settings) -> bool:
    """Whether a process of that name is a mount that both settings have alike."""
    return any(MOUNT + line.place == name and line in before.mounts for line in after.mounts)


def _mount(settings: Settings, line: MountLine, pulse: Listened) -> None:
    """Become `fsd mount`: nothing of the server is in its memory, and `ps` shows what it is.

    In a process group of its own, as a terminal's ctrl-C is the server's to act on. The kernel still kills it when the
    server dies (prctl(2): kept over execve).
    """
    os.setpgid(0, 0)
    for name in _OF_THE_MANAGER:  # the server is the one to tell
        os.environ.pop(name, None)
    pulse.announce()
    os.environ["FSD_LOG_FORMAT"] = settings.log_format
    command = [sys.executable, "-m", "fsd.cli.main", "mount"]
    command += ["--data", str(settings.data), "--state", str(settings.state)]
    command += ["--config", str(settings.config)] if settings.config is not None else []
    command += ["--log-level", settings.log_level, *line.arguments()]
    os.execv(sys.executable, command)


def clear(settings: Settings) -> None:
    """Unmount what a mount that had to be killed left behind."""
    from fsd.mount import mountpoints

    for line in settings.mounts if "mounts" in settings.only else ():
        with suppress(OSError):
            if mountpoints.clear_dead(line.place):
                note(f"A dead mount at {line.place} was cleared away.")
