"""A real CephFS of the test session's own, as `scripts/ceph` brings it up; each mount is a client of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "ceph"
PROGRAMS = ("ceph", "ceph-fuse", "ceph-mds", "ceph-mgr", "ceph-mon", "ceph-osd")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Ceph:
    """A running cluster with one filesystem."""

    def __init__(self, base: Path, address: str = "127.0.0.1") -> None:
        self.base = base
        self._environment = {**os.environ, "FSD_CEPH_ADDRESS": address}
        self._run("up")

    def _run(self, verb: str, *arguments: object) -> str:
        command = [str(SCRIPT), verb, str(self.base), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=self._environment)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def mount(self, point: Path, path: str = "/") -> Path:
        """Mount `path` of the filesystem."""
        self._run("mount", point, path)
        return point

    def command(self, *arguments: str) -> str:
        """What `ceph ARGUMENTS` says."""
        return self._run("ceph", *arguments)

    def down(self) -> None:
        """Unmount and stop."""
        self._run("down")


@contextmanager
def running(base: Path, address: str = "127.0.0.1") -> Iterator[Ceph]:
    """A cluster below an empty directory, at an address of this machine; skips where Ceph can't be had."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"Ceph cannot be installed here: no {', '.join(missing)}")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("a CephFS takes root and the right to mount")
    # A test run that is killed leaves none behind: its daemons are nobody's children.
    command = f"while kill -0 {os.getpid()} 2>/dev/null; do sleep 1; done; exec {SCRIPT} down {base}"
    guard = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    ceph = Ceph(base, address)
    try:
        yield ceph
    finally:
        ceph.down()
        guard.kill()
        guard.wait()
