"""Stopping and starting again, the way an administrator does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.davclient import Dav, Resource
from tests.support.oracle import settled
from tests.support.serving import Server
from tests.support.waiting import agree


def test_restart_at_once_on_the_same_ports(make_server: Callable[..., Server]) -> None:
    """Connections that the old server closed linger in TIME_WAIT; they must not forbid the new one its ports."""
    server = make_server()
    for _ in range(3):
        assert server.ops("/healthz")[0] == 200
        assert server.dav("/dav/files/admin").propfind(b"", 0)
        assert server.stop() == 0
        server.start()
    assert server.dav("/dav/files/admin").propfind(b"", 0)


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_everything_that_can_happen_in_downtime(
    make_server: Callable[..., Server], tmp_path: Path, end: str
) -> None:
    """At the first request each listing is right; in the end sizes and etags of all above are, and ids were kept."""
    server = make_server()
    trees = [tmp_path / "one", tmp_path / "two"]
    for tree in trees:
        for name in (
            "edited/in/place",
            "renamed/from",
            "moved/here",
            "leaving/it",
            "gone/soon",
            "untouched/deep",
        ):
            (tree / name).mkdir(parents=True)
            (tree / name / "f").write_text(f"content of {name}")
        server.fsd("space", "adopt", str(tree), "--name", tree.name)
    one, two = (server.space_dav(server.space(tree.name)) for tree in trees)
    before = settled(os.fsencode(trees[0]), one, wait=agree).served
    other = settled(os.fsencode(trees[1]), two, wait=agree).served
    (server.stop if end == "stopped" else server.kill)()

    here, there = trees
    _happen(here, there)
    server.start()
    for path in ("", "new/deep/deeper", "untouched", "untouched/deep", "untouched/deep/moved", "renamed", "moved",
                 "renamed/to", "leaving", "gone", "edited/in/place"):  # fmt: skip
        assert _names(one, path) == set(os.listdir(here / path)) - {".fsd"}, path
    assert _names(two, "arrived") == {"f"}
    assert one.stat(b"edited/in/place/f").etag != before[b"edited/in/place/f"].etag
    assert one.get(b"edited/in/place/f") == b"CONTENT OF edited/in/place"

    after = settled(os.fsencode(here), one, wait=agree).served
    elsewhere = settled(os.fsencode(there), two, wait=agree).served
    for old, new in ((b"renamed/from/f", b"renamed/to/f"), (b"moved/here", b"untouched/deep/moved"),
                     (b"moved/here/f", b"untouched/deep/moved/f"), (b"edited/in/place/f",) * 2):  # fmt: skip
        assert after[new].id == before[old].id, new
    for path in (
        b"",
        b"renamed",
        b"moved",
        b"untouched",
        b"untouched/deep",
        b"leaving",
        b"gone",
        b"edited/in/place",
    ):
        assert after[path].etag != before[path].etag, path
    assert elsewhere[b""].etag != other[b""].etag
    assert elsewhere[b"untouched/deep"].etag == other[b"untouched/deep"].etag


def _names(dav: Dav, path: str) -> set[str]:
    found: list[Resource] = dav.propfind(os.fsencode(path), 1)
    return {os.fsdecode(each.path.rpartition(b"/")[2]) for each in found} - {os.path.basename(path)}


def _happen(here: Path, there: Path) -> None:
    (here / "new/deep/deeper").mkdir(parents=True)
    (here / "new/deep/deeper/f").write_text("created")
    (here / "untouched/created").write_text("created too")
    edited = here / "edited/in/place/f"
    status = edited.stat()
    edited.write_text("CONTENT OF edited/in/place")
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))
    (here / "renamed/from").rename(here / "renamed/to")
    (here / "moved/here").rename(here / "untouched/deep/moved")
    (here / "leaving/it").rename(there / "arrived")
    (here / "gone/soon/f").unlink()
    (here / "gone/soon").rmdir()
