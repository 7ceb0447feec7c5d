"""fsd under measurement: its processes' CPU and memory, its spaces."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.serving import ADMIN, ADMIN_PASSWORD, Server
from tests.support.waiting import wait_for

USER, PASSWORD = ADMIN, ADMIN_PASSWORD
_TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def served(base: Path, *, workers: int = 2, options: Sequence[str] = ()) -> Iterator[Server]:
    """A running fsd below `base`; complaints in its log are shown at the end."""
    server = Server(base, workers=workers, options=options)
    server.start()
    try:
        yield server
    finally:
        server.close()
        for line in server.complaints()[:5]:
            print(f"\n  log: {line}", file=sys.stderr)


def adopt(server: Server, path: Path, name: str) -> dict[str, Any]:
    """Adopt a directory, and wait until all of it is verified and every size is right."""
    server.fsd("space", "adopt", str(path), "--name", name)
    record = server.space(name)
    dav = server.space_dav(record)
    expected = tree_size(path)
    wait_for(lambda: _verified(server, name), timeout=600, what=f"{name} verified", every=0.5)
    wait_for(lambda: dav.stat(b"").size == expected, timeout=60, what=f"the sizes of {name}")
    return record


def _verified(server: Server, name: str) -> bool:
    told = json.loads(server.run("status", "--json").stdout)
    (space,) = (space for space in told["spaces"] if space["name"] == name)
    return bool(space.get("verified_at")) and space.get("sweep") is None and not space["dirty"]


def tree_size(path: Path) -> int:
    """The sum of the regular files' sizes, `.fsd` left out."""
    total = 0
    for directory, names, files in os.walk(path):
        if ".fsd" in names:
            names.remove(".fsd")
        for name in files:
            status = os.lstat(os.path.join(directory, name))
            total += status.st_size if status.st_mode & 0o170000 == 0o100000 else 0
    return total


def processes(server: Server) -> list[int]:
    """The supervisor and everything below it."""
    assert server.process is not None
    return [server.process.pid, *server.children()]


def cpu(server: Server) -> float:
    """Seconds of CPU that all living processes of the server have used."""
    total = 0
    for pid in processes(server):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICK


def pss(server: Server, pids: Sequence[int] | None = None) -> float:
    """MiB of memory in proportion (PSS) of all processes, or of some."""
    total = 0
    for pid in processes(server) if pids is None else pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def quiet(server: Server, *, timeout: float = 120) -> None:
    """Wait until the server uses next to no CPU."""
    last = [cpu(server)]

    def calm() -> bool:
        now = cpu(server)
        idle = now - last[0] < 0.03
        last[0] = now
        return idle

    wait_for(calm, timeout=timeout, what="a quiet server", every=1.0)
