"""A real `fsd serve` on a temporary data root, driven the way a person drives it: by its command line and by
HTTP."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.support.davclient import Dav
from tests.support.waiting import wait_for

ADMIN, ADMIN_PASSWORD = "admin", "admin-test-password"
COMPLAINT = re.compile(r"^\S+ \S+ (warning|error|critical)\b|\b(WARNING|ERROR|CRITICAL|Traceback)\b")
_libc = ctypes.CDLL(None)


def _ports() -> Iterator[int]:
    """Ports of this test process alone, none of those that the kernel gives to clients, round and round. Where it
    begins is random, for other runs on this machine."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = range(10_000, 32_000)[process % _SHARES :: _SHARES]
    start = random.SystemRandom().randrange(len(share))
    return cycle((*share[start:], *share[:start]))


def free_port() -> int:
    """A port that nobody listens on now, and that this run gives to no other test before all others were given."""
    for port in _free:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: ports go round")


def dying_with_us() -> dict[str, Any]:
    """For Popen: a test run that is killed leaves no server behind (prctl(2), PR_SET_PDEATHSIG: tied to a thread)."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {"preexec_fn": lambda: _libc.prctl(1, signal.SIGTERM)}


_SHARES = 8
_free = _ports()


class CommandFailed(AssertionError):
    """A command ended with another code than 0."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{done.args} -> {done.returncode}\n{done.stdout}{done.stderr}")
        self.code = done.returncode
        self.stderr = done.stderr


class Server:
    """The process tree of one `fsd serve`, its data root and its state directory."""

    def __init__(self, base: Path, *, workers: int = 2, options: Sequence[str] = ()) -> None:
        self.data, self.state, self.log_path = base / "data", base / "state", base / "serve.log"
        self.data.mkdir(parents=True, exist_ok=True)
        self.port, self.ops_port = free_port(), free_port()
        self.address = "127.0.0.1"
        """Where it listens; another one than loopback needs `FSD_BEHIND_PROXY`."""
        self.workers, self.options = workers, list(options)
        self.settings = {"FSD_DISK_RESERVE": "0"}
        """Settings as environment variables; test disks are smaller than the usual reserve."""
        self.python = sys.executable
        self.identity: dict[str, Any] = {}
        """`user`, `group` and `extra_groups` of the server and its commands; empty: the caller's."""
        self.process: subprocess.Popen[bytes] | None = None
        self._allowed: list[re.Pattern[str]] = []
        self._clients: list[Dav] = []

    def become(self, uid: int, *groups: int) -> None:
        """Run the server and its commands as another user, with an interpreter that this user can reach (one in root's
        home is closed to others); skips the test where there is none."""
        self.identity = {"user": uid, "group": uid, "extra_groups": list(groups)}
        places = [place for place in sys.path if place and not place.startswith(sys.base_prefix)]
        for python, settings in (
            (sys.executable, {}),
            ("/usr/bin/python3", {"PYTHONPATH": ":".join(places)}),
        ):
            try:
                able = subprocess.run(
                    [python, "-c", "import fsd.cli.serve, dav.main, watcher.main"],
                    cwd="/", env={**self.environment, **settings}, capture_output=True, **self.identity,
                )  # fmt: skip
            except PermissionError:
                continue
            if able.returncode == 0:
                self.python = python
                self.settings |= settings
                return
        pytest.skip("needs root, and an interpreter that other users can run")

    # -- processes

    @property
    def environment(self) -> dict[str, str]:
        """What every command of this server runs with; nothing of the caller's that fsd or Python would heed."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FSD_", "PYTHON"))}
        return {
            **clean,
            "FSD_DATA": str(self.data),
            "FSD_STATE": str(self.state),
            "FSD_LISTEN": f"{self.address}:{self.port}",
            "FSD_OPS_LISTEN": f"{self.address}:{self.ops_port}",
            "FSD_ADMIN_PASSWORD": ADMIN_PASSWORD,
            **self.settings,
        }

    def start(self, timeout: float = 30) -> Server:
        """Start and wait until it is ready to serve."""
        assert self.process is None
        command = [self.python, "-m", "fsd.cli.main", "serve", str(self.data), "--state", str(self.state)]
        command += ["--workers", str(self.workers), *self.options]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,
                **self.identity,
                **dying_with_us(),
            )
        wait_for(self._ready, timeout=timeout, what="a ready server")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"fsd serve ended with {self.process.returncode}:\n{self.log()[-3000:]}")
        return self.ops("/readyz")[0] == 200

    def ops(self, path: str) -> tuple[int, bytes]:
        """GET from the operations address."""
        connection = http.client.HTTPConnection(self.address, self.ops_port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM, wait, and return its exit code; a process that stays behind is an error."""
        process, self.process = self.process, None
        assert process is not None
        tree = [process.pid, *self.children(process.pid)]
        process.terminate()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill(tree)
            raise AssertionError(
                f"fsd serve did not stop within {timeout} s:\n{self.log()[-3000:]}"
            ) from None
        left = [pid for pid in tree if _alive(pid)]
        self._kill(left)
        assert not left, f"processes left behind: {left}"
        return code

    def kill(self) -> None:
        """SIGKILL for the whole tree at once, as after a power cut (but what was written to the page cache
        stays)."""
        process, self.process = self.process, None
        assert process is not None
        self._kill([process.pid, *self.children(process.pid)])
        process.wait(10)

    @staticmethod
    def _kill(pids: Sequence[int]) -> None:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def children(self, pid: int | None = None) -> list[int]:
        """The pids of all descendants."""
        top = pid if pid is not None else self._pid
        found: list[int] = []
        queue = [top]
        while queue:
            parent = queue.pop()
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                try:
                    below = [int(child) for child in task.read_text().split()]
                except OSError:
                    continue
                found += below
                queue += below
        return found

    def child(self, role: str) -> list[int]:
        """The pids of the children whose title or command line names `role` (`web`, `watcher`, `jobs`)."""
        matching = []
        for pid in self.children():
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
            except OSError:
                continue
            if role.encode() in title:
                matching.append(pid)
        return matching

    @property
    def _pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    # -- commands

    def fsd(self, *arguments: str | bytes, stdin: str | None = None, timeout: float = 120) -> str:
        """Run `fsd ARGUMENTS` beside the server; its standard output. CommandFailed when it doesn't end with
        0."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        if done.returncode != 0:
            raise CommandFailed(done)
        return done.stdout

    def run(
        self, *arguments: str | bytes, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `fsd ARGUMENTS` beside the server, whatever its exit code."""
        texts = [os.fsdecode(argument) for argument in arguments]
        command = [self.python, "-m", "fsd.cli.main", *texts]
        return subprocess.run(
            command, input=stdin or "", capture_output=True, text=True, env=self.environment, timeout=timeout,
            **self.identity,
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        """The parsed standard output of `fsd ARGUMENTS --json`."""
        return json.loads(self.fsd(*arguments, "--json"))

    def json_any(self, *arguments: str) -> Any:
        """The same, whatever the exit code (`status` tells by it that something is not up to date)."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def spaces(self) -> dict[str, dict[str, Any]]:
        """`fsd space list --json` by alias."""
        return {record["alias"]: record for record in self.json("space", "list")}

    def space(self, name: str) -> dict[str, Any]:
        """The space whose alias or name is `name`."""
        for record in self.json("space", "list"):
            if name in (record["alias"], record["name"]):
                return dict(record)
        raise AssertionError(f"no space {name!r}")

    # -- HTTP

    def dav(self, prefix: str = "", user: str = ADMIN, password: str = ADMIN_PASSWORD) -> Dav:
        """A client of the server; closed with it."""
        client = Dav(self.address, self.port, user, password, prefix)
        self._clients.append(client)
        return client

    def space_dav(self, record: dict[str, Any], user: str = ADMIN, password: str = ADMIN_PASSWORD) -> Dav:
        """A client below a space's own path."""
        return self.dav(f"/dav/spaces/{record['id']}", user, password)

    # -- its log

    def log(self) -> str:
        """All it has written so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def allow_log(self, pattern: str) -> None:
        """Complaints in the log that match are expected."""
        self._allowed.append(re.compile(pattern))

    def complaints(self) -> list[str]:
        """Lines of its log at WARNING or above (and tracebacks) that nobody expected."""
        lines = [line for line in self.log().splitlines() if COMPLAINT.search(line)]
        return [line for line in lines if not any(pattern.search(line) for pattern in self._allowed)]

    def close(self) -> None:
        """Stop it if it runs, and close the clients."""
        for client in self._clients:
            client.close()
        if self.process is not None:
            self.stop()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
