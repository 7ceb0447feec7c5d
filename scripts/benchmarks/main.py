"""Figures of changes made straight on disk: latency, storms, large directories, memory."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmarks.disk import SETTLE
from scripts.benchmarks.fsd_server import PASSWORD, USER, adopt, cpu, pss, quiet, served
from scripts.benchmarks.load import Connection
from scripts.benchmarks.table import Row, percentile
from tests.support.serving import Server

ASK = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns">'
    b"<d:prop><d:getetag/><oc:size/></d:prop></d:propfind>"
)
_ETAG = re.compile(rb"getetag>(?:&quot;|\")([0-9a-f]+)")
_SIZE = re.compile(rb":size>(\d+)<")


class Root:
    """Etag and size of a space's directories, over one connection."""

    def __init__(self, server: Server, record: dict[str, Any]) -> None:
        self._connection = Connection(server.port, USER, PASSWORD)
        self._prefix = f"/dav/spaces/{record['id']}"

    def _ask(self, path: str) -> bytes:
        status, body = self._connection.ask(
            "PROPFIND", f"{self._prefix}/{path}", ASK, "Depth: 0\r\nContent-Type: application/xml\r\n"
        )
        assert status == 207, (status, body[:200])
        return body

    def etag(self, path: str = "") -> bytes:
        """The etag now."""
        found = _ETAG.search(self._ask(path))
        assert found
        return found[1]

    def size(self, path: str = "") -> int:
        """oc:size now."""
        found = _SIZE.search(self._ask(path))
        assert found
        return int(found[1])


def _until(condition: Callable[[], bool], timeout: float = 60) -> float:
    """Seconds until the condition holds, asked again at once."""
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > timeout:
            raise TimeoutError(f"not within {timeout} s")
    return time.perf_counter() - started


def _paced_writes(root: Root, files: list[Path], rounds: int, directories: list[str]) -> list[float]:
    """Latency of `rounds` single writes, with pauses between them, until the etags of all `directories`
    moved."""
    picker, times = random.Random(1), []
    for number in range(rounds):
        time.sleep(picker.uniform(0.02, 0.12))
        before = [root.etag(path) for path in directories]
        started = time.perf_counter()
        picker.choice(files).write_bytes(b"%d" % number * picker.randrange(1, 50))
        for path, etag in zip(directories, before, strict=True):
            _until(lambda path=path, etag=etag: root.etag(path) != etag)  # type: ignore[misc]
        times.append(time.perf_counter() - started)
    return times


def direct_write(base: Path) -> list[Row]:
    """A file is written straight into a space: when are its parents' and the root's etag right?"""
    tree = base / "tree"
    for number in range(200):
        (tree / f"a/b{number % 10}/c").mkdir(parents=True, exist_ok=True)
        (tree / f"a/b{number % 10}/c/f{number}").write_bytes(b"x" * number)
    with served(base / "fsd") as server:
        root = Root(server, adopt(server, tree, "tree"))
        quiet(server)
        files = [tree / "a/b3/c/f3", tree / "a/b3/c/f13", tree / "a/b3/c/new"]
        times = _paced_writes(root, files, 200, ["a/b3/c", "a/b3", "a", ""])
    p50, p95 = percentile(times, 0.5) * 1000, percentile(times, 0.95) * 1000
    measured = f"p50 {p50:.1f} ms, p95 {p95:.1f} ms (200 writes)"
    return [Row("direct write → parents' and root's etag", "p95 < 50 ms", measured, p95 < 50)]


def copy_and_remove(base: Path) -> list[Row]:
    """`cp -r` of 10,000 files in 100 directories into a space, then `rm -rf`."""
    source, tree = base / "source", base / "tree"
    tree.mkdir()
    for number in range(100):
        (source / f"d{number}").mkdir(parents=True)
        for file in range(100):
            (source / f"d{number}/f{file}").write_bytes(b"x" * (file + 1))
    expected = 100 * sum(range(1, 101))
    rows = []
    with served(base / "fsd") as server:
        root = Root(server, adopt(server, tree, "tree"))
        quiet(server)
        for what, command, size in (
            (
                "cp -r of 10,000 files: all visible, sizes right",
                ["cp", "-r", str(source), str(tree / "copy")],
                expected,
            ),
            ("rm -rf of them", ["rm", "-rf", str(tree / "copy")], 0),
        ):
            used, started = cpu(server), time.perf_counter()
            subprocess.run(command, check=True)
            alone = time.perf_counter() - started
            while root.size() != size:
                time.sleep(0.05)
            took = time.perf_counter() - started
            # What vanished is remembered for ten seconds; dropping its rows then belongs to the price.
            time.sleep(12)
            quiet(server)
            used = cpu(server) - used
            measured = f"{took:.1f} s (the command alone {alone:.1f} s), {used:.1f} s CPU"
            rows.append(Row(what, "< 3 s, < 6 s CPU", measured, took < 3 and used < 6))
    return rows


def large_directory(base: Path) -> list[Row]:
    """One change at a time in a directory of 100,000 entries."""
    tree = base / "tree"
    (tree / "large").mkdir(parents=True)
    for number in range(100_000):
        os.close(os.open(tree / f"large/file{number:06d}", os.O_WRONLY | os.O_CREAT))
    time.sleep(SETTLE)  # labelled by the sweep, not while it is measured
    with served(base / "fsd") as server:
        root = Root(server, adopt(server, tree, "tree"))
        quiet(server)
        files = [tree / f"large/file{number:06d}" for number in range(0, 100_000, 9973)]
        times = _paced_writes(root, files, 60, [""])
        quiet(server)
        # CPU without the questions: the same changes, and one question at the end
        used, etag = cpu(server), root.etag()
        for number in range(100):
            files[number % len(files)].write_bytes(b"y" * (number + 60))
            time.sleep(0.05)
        _until(lambda: root.etag() != etag)
        quiet(server)
        used = (cpu(server) - used) / 100 * 1000
    p95 = percentile(times, 0.95) * 1000
    measured = f"p50 {percentile(times, 0.5) * 1000:.1f} ms, p95 {p95:.1f} ms, {used:.1f} ms CPU"
    return [
        Row(
            "one change among 100,000 entries → root etag",
            "p95 < 50 ms, < 5 ms CPU",
            measured,
            p95 < 50 and used < 5,
        )
    ]


def memory(base: Path) -> list[Row]:
    """PSS of all processes with two workers: idle, and after 100,000 files."""
    tree = base / "tree"
    tree.mkdir()
    with served(base / "fsd") as server:
        record = adopt(server, tree, "tree")
        quiet(server)
        idle = pss(server)
        source = base / "source"
        for number in range(1000):
            (source / f"d{number}").mkdir(parents=True)
            for file in range(100):
                (source / f"d{number}/f{file}").write_bytes(b"1")
        subprocess.run(["cp", "-r", str(source), str(tree / "copy")], check=True)
        root = Root(server, record)
        while root.size() != 100_000:
            time.sleep(0.2)
        dav = server.space_dav(record)
        for number in range(0, 1000, 10):
            dav.propfind(f"copy/d{number}".encode(), 1)
        quiet(server)
        full = pss(server)
        shutil.rmtree(source)
    measured = f"{idle:.0f} / {full:.0f} MiB"
    return [
        Row(
            "PSS of all processes, two workers: idle / after 100,000 files",
            "< 150 / < 300 MiB",
            measured,
            idle < 150 and full < 300,
        )
    ]
