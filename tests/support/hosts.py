"""Hosts: a network and a mount namespace each, with an address of its own, a mount of the shared filesystem at the same
path, and a server. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ceph import SCRIPT, Ceph
from tests.support.serving import Server, dying_with_us
from tests.support.waiting import wait_for

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _ip(*arguments: str) -> None:
    done = subprocess.run(
        ["ip", *arguments], capture_output=True, text=True, env={**os.environ, "PATH": PATH}
    )
    assert done.returncode == 0, f"ip {arguments}: {done.stderr}"


class Network:
    """A bridge, with the address that everybody reaches."""

    def __init__(self) -> None:
        number = os.getpid()
        self.name = f"fsd{number % 10**9:x}"
        self.prefix = f"10.{128 + number // 254 % 100}.{1 + number % 254}"
        self.address = f"{self.prefix}.1"
        self._hosts = 0

    def up(self) -> None:
        """Make it; skips where that is not allowed."""
        made = subprocess.run(
            ["ip", "link", "add", self.name, "type", "bridge"],
            capture_output=True, text=True, env={**os.environ, "PATH": PATH},
        )  # fmt: skip
        if made.returncode != 0:
            pytest.skip(f"a network of our own takes root and the right to mount: {made.stderr.strip()}")
        _ip("addr", "add", f"{self.address}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")

    def down(self) -> None:
        """Take it away."""
        _ip("link", "delete", self.name)

    def next_host(self) -> int:
        """The last part of the next host's address."""
        self._hosts += 1
        return self._hosts + 1


class Host(Server):
    """A server on a host of its own."""

    def __init__(self, base: Path, network: Network, name: str, shared: Path) -> None:
        super().__init__(base, workers=1)
        self.name, self.shared = name, shared
        self.data.rmdir()
        self.data = shared / "data"
        number = network.next_host()
        self.link = f"{network.name[:11]}h{number}"
        self.address = f"{network.prefix}.{number}"
        self._init = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"],
            **dying_with_us(),
        )
        wait_for(self._apart, what="the namespaces of a host")
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(self._init.pid))
        _ip("link", "set", self.link, "master", network.name, "up")
        for command in (
            ["ip", "addr", "add", f"{self.address}/24", "dev", "eth0"],
            ["ip", "link", "set", "eth0", "up"],
            ["ip", "link", "set", "lo", "up"],
        ):
            self.inside(*command)
        runner = base / "python"
        runner.write_text(f'#!/bin/sh\nexec nsenter -t {self._init.pid} -n -m -- {sys.executable} "$@"\n')
        runner.chmod(0o755)
        self.python = str(runner)
        self.settings |= {
            "FSD_BEHIND_PROXY": "true",
            "FSD_CLUSTER_SHARED": "true",
            "FSD_CLUSTER_NAME": name,
            "FSD_CLUSTER_ADDRESS": f"http://{self.address}:{self.port}",
            "FSD_CLUSTER_LEASE": "3",
        }

    def _apart(self) -> bool:
        return os.readlink(f"/proc/{self._init.pid}/ns/net") != os.readlink("/proc/self/ns/net")

    def inside(self, *command: str) -> str:
        """Run a command on this host."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._init.pid), "-n", "-m", "--", *command],
            capture_output=True, text=True, env={**os.environ, "PATH": PATH}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"
        return done.stdout

    def path(self, path: Path) -> Path:
        """A path of this host, as the test process reaches it."""
        return Path(f"/proc/{self._init.pid}/root{path}")

    def mount(self, ceph: Ceph) -> None:
        """Mount the shared filesystem."""
        self.shared.mkdir(exist_ok=True)
        self.inside(str(SCRIPT), "mount", str(ceph.base), str(self.shared))

    def like(self, other: Host) -> None:
        """Begin as another host of its installation, or follow its registry, as the operations page says."""
        self.fsd("cluster", "join", stdin=other.fsd("cluster", "export"))

    def cut_off(self) -> None:
        """Nothing comes in or goes out any more."""
        _ip("link", "set", self.link, "down")

    def reconnect(self) -> None:
        """The network is back."""
        _ip("link", "set", self.link, "up")

    def close(self) -> None:
        """Stop everything on it."""
        try:
            super().close()
        finally:
            self._init.kill()
            self._init.wait()


@contextmanager
def network() -> Iterator[Network]:
    """A network of the test's own."""
    made = Network()
    made.up()
    try:
        yield made
    finally:
        made.down()
