"""Files that are being written, through a running server: true sizes at every moment, ready when closed and quiet."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import ready
from fsd.core.registry import Registry
from fsd.core.space import Space
from tests.support.davclient import Dav
from tests.support.oracle import settled
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for
from tests.support.writers import Writer


class Site:
    """One space of the running server: its tree, a client, and what consumers of `ready` are told."""

    def __init__(self, server: Server) -> None:
        record = server.json("space", "create", "lab")
        self.root = Path(record["path"])
        self.dav: Dav = server.space_dav(record)
        self.space: Space = Registry(server.state).open(record["id"])

    def told(self) -> set[bytes]:
        """The files that were announced as ready."""
        return {each.path for each in ready.news(self.space, 0).ready}

    def size(self, name: bytes) -> int:
        """As a listing shows it."""
        return next(found.size for found in self.dav.propfind(b"") if found.path == name)


@pytest.fixture(scope="module")
def site(shared_server: Server) -> Iterator[Site]:
    made = Site(shared_server)
    yield made
    made.space.close()


def test_writers_of_all_kinds(site: Site) -> None:
    root = site.root
    with Writer() as instrument, Writer() as scanner, Writer() as database, Writer() as killed:
        instrument.do("open", root / "log")
        killed.do("open", root / "killed")
        killed.do("append", "never finished")
        scanner.do("open", root / "page.part")
        (root / "db").write_bytes(b"0" * 65536)
        database.do("open", root / "db")
        database.do("map")
        database.do("close")
        database.do("store", 0, "first")
        for turn in range(1, 20):
            instrument.do("append", "x" * 1000)
            scanner.do("append", "p" * 100)
            assert (site.size(b"log"), site.size(b"page.part")) == (1000 * turn, 100 * turn)
        scanner.do("close")
        scanner.do("rename", root / "page.part", root / "page")
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={root}/sparse", "bs=4k", "count=1", "seek=1000000"],
            check=True, capture_output=True,
        )  # fmt: skip
        assert site.size(b"page") == 1900 and site.size(b"sparse") == 4096 * 1000001
        served = site.dav.request("GET", b"db")
        assert served.body.startswith(b"first")
        database.do("store", 0, "second")
        killed.kill()
        wait_for(lambda: {b"page", b"sparse", b"killed"} <= site.told(), what="the finished ones are ready")
        assert not {b"log", b"db"} & site.told(), "somebody has them open"
        before = site.dav.stat(b"").etag
        database.do("unmap")
        wait_for(lambda: b"db" in site.told(), what="the database is ready")
        again = site.dav.request("GET", b"db", None, {"If-None-Match": served.headers["etag"]})
        assert again.status == 200 and again.body.startswith(b"second"), "no etag for two contents"
        assert site.dav.stat(b"").etag != before
        assert b"log" not in site.told()
        instrument.do("append", "the end")
        instrument.do("close")
        wait_for(lambda: b"log" in site.told(), what="the instrument's file is ready")
    assert site.size(b"log") == 19_007
    assert not os.path.exists(root / "page.part")
    settled(os.fsencode(root), site.dav, wait=agree)
    assert ready.waiting(site.space) == 0
