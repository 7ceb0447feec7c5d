"""A million real files: the first sweep and a later one, the size of the index, the start of the server, its memory.

Takes ten minutes and 2 GB of disk, most of both for making the files.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from scripts.benchmarks.disk import SETTLE, bare_loop, scan_seconds
from scripts.benchmarks.fsd_server import pss
from scripts.benchmarks.table import Row
from tests.support.serving import Server
from tests.support.waiting import wait_for

DIRECTORIES = 10_000
EACH = 100


def make(tree: Path) -> None:
    """Empty files in directories of a hundred, unless they are there from an earlier run."""
    if tree.exists():
        return
    for number in range(DIRECTORIES):
        directory = tree / f"d{number // 100:02d}/e{number:04d}"
        directory.mkdir(parents=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        for file in range(EACH):
            os.close(os.open(b"file %03d.txt" % file, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.close(fd)


def million_files(base: Path) -> list[Row]:
    """1,000,000 files on the filesystem of `base`."""
    files = DIRECTORIES * EACH
    make(base / "reference")
    make(base / "tree")
    time.sleep(SETTLE)
    server = Server(base / "fsd")
    server.fsd("init", str(server.data))
    (base / "empty").mkdir()
    server.fsd("space", "adopt", str(base / "empty"), "--name", "empty")
    nothing = scan_seconds(server, "empty")
    bare = bare_loop(base / "reference", base / "bare.db")
    server.fsd("space", "adopt", str(base / "tree"), "--name", "tree", "--label", "now")
    first = files / (scan_seconds(server, "tree") - nothing)
    again = files / (scan_seconds(server, "tree") - nothing)
    each = _index_bytes(server) / files
    return [
        Row("1,000,000 files: first sweep", "≥ 0.6 × a bare loop",
            f"{first:,.0f} files/s = {first / bare:.2f} × the bare loop's {bare:,.0f}", first >= 0.6 * bare),
        Row("… a later sweep, nothing changed", "", f"{again:,.0f} files/s", None),
        Row("… index", "< 400 bytes a file", f"{each:.0f} bytes a file", each < 400),
        *_served(server),
    ]  # fmt: skip


def _index_bytes(server: Server) -> int:
    key = server.space("tree")["id"].rpartition("$")[2]
    with sqlite3.connect(server.state / f"{key}.index.db") as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        pages, page = (
            connection.execute(f"pragma {what}").fetchone()[0] for what in ("page_count", "page_size")
        )
    return int(pages) * int(page)


def _served(server: Server) -> list[Row]:
    other = Server(server.data.parent.parent / "fsd of nothing")
    other.fsd("init", str(other.data))
    alone = _first_answer(other, "/dav/files/admin", b"", 1)
    other.close()
    record = server.space("tree")
    answered = _first_answer(server, f"/dav/spaces/{record['id']}", b"d07/e0707", EACH + 1)
    try:
        most = 0.0

        def verified() -> bool:
            nonlocal most
            most = max(most, pss(server, server.child("watcher")))
            (space,) = (each for each in server.json("status")["spaces"] if each["name"] == "tree")
            return space["sweep"] is None and (space["verified_at"] or 0) > started

        started = time.time()
        wait_for(verified, timeout=600, what="a sweep after the start", every=0.5)
    finally:
        server.close()
    said = f"{answered:.2f} s; a server with no files at all {alone:.2f} s"
    return [
        Row("… start → first answer (a listing of 100)", "< 1 s", said, answered < 1),
        Row(
            "… memory (PSS) of the watcher, most during the sweep", "< 400 MiB", f"{most:.0f} MiB", most < 400
        ),
    ]


def _first_answer(server: Server, prefix: str, path: bytes, entries: int) -> float:
    """Seconds from starting a server to its first whole listing."""
    began = time.perf_counter()
    server.start()
    dav = server.dav(prefix)
    wait_for(lambda: len(dav.propfind(path, 1)) >= entries, what="the first answer", every=0.005)
    return time.perf_counter() - began
