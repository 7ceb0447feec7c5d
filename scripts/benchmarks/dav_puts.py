"""What a PUT costs, as ratios against the peers in the same run, and how often it asks the disk to be sure."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from scripts.benchmarks import peers
from scripts.benchmarks.fsd_server import PASSWORD, USER, adopt, quiet, served
from scripts.benchmarks.load import Connection, Job, rate
from scripts.benchmarks.table import Row, percentile

SECONDS = 5.0
BODY = b"\x5a" * 4096


def _putting(prefix: str) -> Job:
    def put(connection: Connection, number: int) -> None:
        status, answer = connection.ask("PUT", f"{prefix}/f{number}", BODY)
        assert status in (200, 201, 204), (status, answer[:200])

    return put


def small_puts(base: Path) -> list[Row]:
    """PUT of new files of 4 KiB, at 1 and at 8 connections."""
    found: dict[str, dict[int, float]] = {}
    slow: dict[int, float] = {}
    with served(base / "fsd") as server:
        (base / "tree").mkdir()
        record = adopt(server, base / "tree", "tree")
        quiet(server)
        prefix = f"/dav/spaces/{record['id']}"
        found["fsd"] = {}
        for connections in (1, 8):
            per_second, times = rate(
                server.port,
                _putting(prefix),
                connections=connections,
                seconds=SECONDS,
                user=USER,
                password=PASSWORD,
            )
            found["fsd"][connections] = per_second
            slow[connections] = percentile(times, 0.95) * 1000
    for name in peers.PEERS:
        with peers.running(name, base / name.split()[0]) as peer:
            if peer is not None:
                found[name] = {
                    n: rate(
                        peer[0],
                        _putting(""),
                        connections=n,
                        seconds=SECONDS,
                        user=peers.USER,
                        password=peers.PASSWORD,
                    )[0]
                    for n in (1, 8)
                }
    rows = []
    for connections in (1, 8):
        ours, stock = found["fsd"][connections], found["wsgidav"][connections]
        others = ", ".join(
            f"{name} {values[connections]:.0f}" for name, values in found.items() if name != "fsd"
        )
        rows.append(
            Row(
                f"PUT of 4 KiB, {connections} connection{'s' * (connections > 1)}",
                "≥ stock wsgidav",
                f"{ours:.0f}/s = {ours / stock:.2f} × wsgidav, p95 {slow[connections]:.1f} ms ({others})",
                ours >= stock,
            )
        )
    return rows


def syncs_per_put(base: Path) -> list[Row]:
    """fsync(2) and fdatasync(2) of all processes for each PUT, counted with strace."""
    rows = []
    with served(base / "fsd") as server:
        (base / "tree").mkdir()
        record = adopt(server, base / "tree", "tree")
        quiet(server)
        prefix = f"/dav/spaces/{record['id']}"
        for connections in (1, 8):
            traced = base / f"trace{connections}"
            pids = [argument for pid in server.children() for argument in ("-p", str(pid))]
            command = [
                "strace",
                "-f",
                "-qq",
                "-e",
                "trace=fsync,fdatasync,syncfs,sync",
                "-o",
                str(traced),
                *pids,
            ]
            strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(1.0)
            _, times = rate(
                server.port,
                _putting(prefix),
                connections=connections,
                seconds=3,
                user=USER,
                password=PASSWORD,
            )
            strace.terminate()
            strace.wait()
            calls = [line for line in traced.read_text().splitlines() if "sync(" in line]
            each = len(calls) / (len(times) + connections)
            measured = f"{each:.2f} ({len(times)} PUTs)"
            rows.append(
                Row(f"fsyncs per PUT, {connections} connections", "≤ 3, grouped", measured, each <= 3.0)
            )
    return rows
