"""Figures of hard links: snapshots of a tree that share its files (`cp -al`, `rsync --link-dest`)."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmarks.fsd_server import adopt, cpu, quiet, served, tree_size
from scripts.benchmarks.main import Root
from scripts.benchmarks.table import Row, percentile
from tests.support.mounting import mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for

FILES, DIRECTORIES, SNAPSHOTS, EDITS = 5_000, 100, 20, 20


def _tree(place: Path) -> None:
    for number in range(FILES):
        directory = place / f"d{number % DIRECTORIES}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(b"x" * (number % 1000 + 1))


@contextmanager
def _writes(root: Root, place: Path, times: list[float]) -> Iterator[None]:
    """Somebody writes a file elsewhere again and again: how long until its directory's etag says so."""
    done = threading.Event()

    def work() -> None:
        number = 0
        while not done.wait(0.05):
            number += 1
            before, started = root.etag("elsewhere"), time.perf_counter()
            (place / "elsewhere/file").write_bytes(b"%d" % number)
            while root.etag("elsewhere") == before:
                time.sleep(0.002)
            times.append(time.perf_counter() - started)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _figures(server: Server, tree: Path, through: Path, what: str) -> list[Row]:
    root, other = Root(server, server.space("tree")), Root(server, server.space("tree"))
    one, took, used, times = tree_size(tree / "base"), list[float](), list[float](), list[float]()
    (through / "elsewhere/file").write_bytes(b"1")
    for number in range(1, SNAPSHOTS + 1):
        before, started, size = cpu(server), time.perf_counter(), one * (number + 1)
        with _writes(other, through, times):
            subprocess.run(["cp", "-al", through / "base", through / f"s{number}"], check=True)
            while root.size() < size:
                time.sleep(0.02)
        took.append(time.perf_counter() - started)
        quiet(server, timeout=600)
        used.append(cpu(server) - before)
    told = [
        f"{took[at]:.1f} s, {used[at] / FILES * 1e6:.0f} µs CPU a name" for at in (0, SNAPSHOTS // 2 - 1, -1)
    ]
    p50, p95, most = (at * 1e3 for at in (percentile(times, 0.5), percentile(times, 0.95), max(times)))
    middle = f"1, {SNAPSHOTS // 2}, {SNAPSHOTS}"
    return [
        Row(f"{what}: snapshot {middle} of {FILES} files, all sizes right", "", " / ".join(told)),
        Row(
            f"{what}: a write elsewhere meanwhile",
            "p95 < 50 ms",
            f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, most {most:.0f} ms",
            p95 < 50,
        ),
        *_edits(server, root, through, what),
        _removed(server, root, tree, through, what),
    ]


def _edits(server: Server, root: Root, through: Path, what: str) -> list[Row]:
    size, times, used = root.size(), list[float](), cpu(server)
    for number in range(EDITS):
        started = time.perf_counter()
        name = f"s{number % SNAPSHOTS + 1}/d3/f{DIRECTORIES * number % FILES + 3}"
        with (through / name).open("ab") as file:
            file.write(b"more")
        size += 4 * (SNAPSHOTS + 1)
        wait_for(lambda size=size: root.size() == size, timeout=60, what="all sizes right", every=0.005)  # type: ignore[misc]
        times.append(time.perf_counter() - started)
    quiet(server, timeout=600)
    measured = f"p50 {percentile(times, 0.5) * 1e3:.0f} ms, most {max(times) * 1e3:.0f} ms"
    measured += f", {(cpu(server) - used) / EDITS * 1e3:.0f} ms CPU"
    return [Row(f"{what}: an edit through one of {SNAPSHOTS + 1} names, right at all", "", measured)]


def _removed(server: Server, root: Root, tree: Path, through: Path, what: str) -> Row:
    used, started = cpu(server), time.perf_counter()
    subprocess.run(["rm", "-rf", through / "s2"], check=True)
    size = tree_size(tree)
    wait_for(lambda: root.size() == size, timeout=120, what="all sizes right", every=0.02)
    took = time.perf_counter() - started
    time.sleep(12)  # what vanished is remembered for ten seconds
    quiet(server, timeout=600)
    return Row(f"{what}: rm -rf of a snapshot", "", f"{took:.1f} s, {cpu(server) - used:.1f} s CPU")


@contextmanager
def _served_tree(base: Path) -> Iterator[tuple[Server, Path]]:
    tree = base / "tree"
    _tree(tree / "base")
    (tree / "elsewhere").mkdir()
    with served(base / "fsd") as server:
        adopt(server, tree, "tree")
        quiet(server)
        yield server, tree


def snapshots(base: Path) -> list[Row]:
    """Made straight on disk."""
    with _served_tree(base) as (server, tree):
        return _figures(server, tree, tree, "cp -al on disk")


def snapshots_mounted(base: Path) -> list[Row]:
    """Made through a mount. The CPU is the server's alone."""
    (base / "mount").mkdir()
    with _served_tree(base) as (server, tree), mounted(server, base / "mount", "tree"):
        return _figures(server, tree, base / "mount", "cp -al in a mount")
