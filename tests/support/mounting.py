"""A real `fsd mount` in a process of its own, of the spaces of a Server's data root (running or not)."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fsd.mount import mountpoints
from tests.support.serving import COMPLAINT, Server, dying_with_us
from tests.support.waiting import wait_for


class Mount:
    """One mount and its daemon. `arguments` are those of `fsd mount` but for the mountpoint."""

    def __init__(self, server: Server, place: Path, *arguments: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting needs root")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            pytest.skip("mounting is not allowed here: /dev/fuse")
        self.server, self.path, self.arguments = server, place, list(arguments)
        self.log_path = place.with_name(place.name + ".log")
        self.environment = dict(server.environment)
        self.python = sys.executable
        self.identity: dict[str, Any] = {}
        """`user`, `group` and `extra_groups` of the daemon; empty: the caller's."""
        self.process: subprocess.Popen[bytes] | None = None
        self._allowed: list[re.Pattern[str]] = []
        if mountpoints.at(str(place)).state != "dead":
            place.mkdir(parents=True, exist_ok=True)

    def begin(self) -> subprocess.Popen[bytes]:
        """Start the daemon, and wait for nothing."""
        command = [self.python, "-m", "fsd.cli.main", "mount", *self.arguments, str(self.path)]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment, cwd="/",
                **self.identity, **dying_with_us(),
            )  # fmt: skip
        return self.process

    def start(self) -> Mount:
        """Mount, and wait until it serves."""
        self.begin()
        wait_for(self._up, timeout=60, what=f"a mount at {self.path}")
        return self

    def _up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"fsd mount ended with {self.process.returncode}: {self.log()[-2000:]}")
        # In this order: a dead mount may be taken for a living one when the machine is slow, and is cleared away then.
        return self._answers() and mountpoints.at(str(self.path)).state == "ours"

    def _answers(self) -> bool:
        return os.statvfs(self.path).f_namemax > 0

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """What the daemon wrote."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def allow_log(self, pattern: str) -> None:
        """Complaints in the log that match are expected."""
        self._allowed.append(re.compile(pattern))

    def complaints(self) -> list[str]:
        """Lines of its log at WARNING or above that nobody expected."""
        lines = [line for line in self.log().splitlines() if COMPLAINT.search(line)]
        return [line for line in lines if not any(pattern.search(line) for pattern in self._allowed)]

    def kill(self) -> None:
        """SIGKILL; the mount stays behind, dead."""
        process, self.process = self.process, None
        assert process is not None
        process.kill()
        process.wait(10)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; the exit code."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            mountpoints.unmount(str(self.path), lazily=True, forcibly=True)
            process.kill()
            process.wait(10)
            raise AssertionError(f"the mount's daemon did not end:\n{self.log()[-2000:]}") from None

    def close(self) -> None:
        """End it if it still runs, and leave nothing mounted."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        while mountpoints.at(str(self.path)).state != "none":
            mountpoints.unmount(str(self.path), lazily=True)


WAYS = ("on", "off", "none")
"""With kernel passthrough, without, and on a machine that has no compiler for what pyfuse3 lacks."""


def open_way(place: Path) -> Path:
    """The place, with a way to it for everybody: a mount as it is then lets others in."""
    for above in (place, *place.parents):
        mode = stat.S_IMODE(above.stat().st_mode)
        if not mode & 0o001:
            above.chmod(mode | 0o001)
    return place


def open_space(base: Path) -> Server:
    """A data root with the space `posix`, which everybody may reach on disk."""
    base.mkdir(exist_ok=True)
    server = Server(open_way(base))
    server.fsd("init")
    server.fsd("space", "create", "posix")
    (server.data / "projects/posix").chmod(0o755)
    return server


def below(mount: Mount, path: Path) -> Path:
    """The same on disk."""
    return mount.server.data / "projects/posix" / path.relative_to(mount.path)


def fails(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


@contextmanager
def mounted(server: Server, place: Path, *arguments: str, way: str = "auto") -> Iterator[Mount]:
    """A mount that serves, in one of the `WAYS`; its log must not complain."""
    mount = Mount(server, place, *arguments, "--passthrough", "auto" if way == "none" else way)
    if way == "none":
        mount.environment["CC"] = "/nonexistent"
    try:
        yield mount.start()
    finally:
        mount.close()
    assert not (found := mount.complaints()), "the mount's log complains:\n" + "\n".join(found[:20])
