"""The storage misbehaves: not mounted, full, or the state disk is full. Nothing is ever answered with a false
404."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import disk
from tests.support.oracle import settled
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for

pytestmark = pytest.mark.root


def _unavailable(status: int, headers: object) -> bool:
    return status == 503 and "retry-after" in headers  # type: ignore[operator]


def test_storage_that_is_not_mounted_is_unavailable_not_empty(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server()
    server.allow_log(
        "storage|not available|unavailable|mount|internal directory|root of the space|registered"
    )
    with disk(tmp_path, "storage") as storage:
        tree = storage.place / "tree"
        (tree / "a/b").mkdir(parents=True)
        (tree / "a/b/f").write_text("kept")
        server.fsd("space", "adopt", str(tree), "--name", "away")
        record = server.space("away")
        dav = server.space_dav(record)
        before = settled(os.fsencode(tree), dav, wait=agree)
        for time in ("same device", "another device"):
            if time == "another device":
                storage.plug_elsewhere()
            device = os.stat(tree).st_dev
            storage.unmount()
            for method, path in (
                ("PROPFIND", b""),
                ("PROPFIND", b"a"),
                ("GET", b"a/b/f"),
                ("PUT", b"new"),
                ("DELETE", b"a"),
            ):
                answer = dav.request(method, path, b"x" if method == "PUT" else None, {"Depth": "1"})
                assert _unavailable(answer.status, answer.headers), (method, path, answer)
            assert dav.at("/dav/home").request("PROPFIND", b"", None, {"Depth": "1"}).status in (207, 503)
            storage.mount()
            assert time == "same device" or os.stat(tree).st_dev != device
            wait_for(
                lambda: dav.request("PROPFIND", b"", None, {"Depth": "0"}).status == 207,
                what="the storage again",
            )
            assert dav.request("PUT", b"written", b"x").status in (201, 204)
            after = settled(os.fsencode(tree), dav, wait=agree)
            ids = {p: r.id for p, r in after.served.items() if p != b"written"}
            assert ids == {p: r.id for p, r in before.served.items() if p != b"written"}
            (tree / "a/b/f").write_text("kept and changed")
            before = settled(os.fsencode(tree), dav, wait=agree)
            assert before.served[b""].size == len("kept and changed") + 1
            (tree / "a/b/f").write_text("kept")
            before = settled(os.fsencode(tree), dav, wait=agree)


def test_a_mount_inside_a_space_that_goes_away(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    server.allow_log("storage|not available|unavailable|mount")
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    with disk(tmp_path, "inner") as inner:
        (inner.place / "f").write_text("inside")
        inner.unmount()
        inner.place = tree / "inner"
        inner.mount()
        server.fsd("space", "adopt", str(tree), "--name", "outer")
        dav = server.space_dav(server.space("outer"))
        before = settled(os.fsencode(tree), dav, wait=agree)
        assert before.served[b"inner/f"].size == 6
        inner.unmount()
        for path in (b"inner/f", b"inner"):
            answer = dav.request("PROPFIND", path, None, {"Depth": "1"})
            assert _unavailable(answer.status, answer.headers), (path, answer)
        # What is known stays, sizes too: it is unavailable, not deleted.
        assert dav.stat(b"").size == before.served[b""].size
        inner.mount()
        wait_for(lambda: dav.request("GET", b"inner/f").status == 200, what="the inner mount again")
        after = settled(os.fsencode(tree), dav, wait=agree)
        assert after.served[b"inner/f"].id == before.served[b"inner/f"].id


def test_a_full_data_disk_is_507_and_reading_goes_on(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server()
    server.allow_log("space left|disk|full|507|quota")
    with disk(tmp_path, "storage") as storage:
        tree = storage.place / "tree"
        tree.mkdir()
        (tree / "old").write_bytes(b"o" * 1000)
        server.fsd("space", "adopt", str(tree), "--name", "full")
        dav = server.space_dav(server.space("full"))
        settled(os.fsencode(tree), dav, wait=agree)
        filler = storage.fill()
        for path in (b"new", b"old"):
            assert dav.request("PUT", path, b"n" * 200_000).status == 507
        assert dav.get(b"old") == b"o" * 1000
        assert {r.path for r in dav.propfind(b"")} == {b"", b"old"}
        seen = settled(os.fsencode(tree), dav, wait=agree)
        assert seen.served[b""].size == 1000
        filler.unlink()
        dav.put(b"new", b"n" * 200_000)
        assert settled(os.fsencode(tree), dav, wait=agree).served[b""].size == 201_000
        assert server.run("check", "full").returncode == 0
        server.stop()


def test_uploads_leave_the_reserve_of_the_disk(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(started=False)
    server.settings["FSD_DISK_RESERVE"] = "16M"
    server.start()
    with disk(tmp_path, "storage", megabytes=32) as storage:
        (storage.place / "tree").mkdir()
        server.fsd("space", "adopt", str(storage.place / "tree"), "--name", "tight")
        dav = server.space_dav(server.space("tight"))
        assert dav.request("PUT", b"small", b"s" * 1000).status == 201
        room = os.statvfs(storage.place)
        held_back = room.f_blocks * room.f_frsize // 32  # more would be half of this disk
        filler = storage.fill(leave=held_back)
        room = os.statvfs(storage.place)
        body = b"n" * (room.f_bfree * room.f_frsize - held_back + 8192)
        assert dav.request("PUT", b"large", body).status == 507
        assert dav.request("PUT", b"unannounced", [body]).status == 507
        assert dav.request("COPY", b"small", None, {"Destination": f"{dav.prefix}/copy"}).status == 201
        with open(filler, "ab") as file:
            file.write(body + b"n" * (1 << 16))
        assert dav.request("PUT", b"small", b"s" * 1001).status == 507
        assert dav.request("PUT", b"small", b"s" * 999).status == 204
        assert dav.get(b"copy") == b"s" * 1000
        assert {r.path for r in dav.propfind(b"")} == {b"", b"small", b"copy"}
        assert server.run("status").returncode in (0, 3)
        server.stop()


def test_a_full_state_disk_is_507_and_reading_goes_on(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server(started=False)
    server.allow_log("space left|disk|full|507|state|index|database|status|writ|audit lines were lost")
    with disk(tmp_path, "state", megabytes=64) as storage:
        server.state = storage.place / "state"
        server.start()
        tree = tmp_path / "tree"
        (tree / "d").mkdir(parents=True)
        (tree / "d/old").write_bytes(b"o" * 1000)
        server.fsd("space", "adopt", str(tree), "--name", "full")
        dav = server.space_dav(server.space("full"))
        settled(os.fsencode(tree), dav, wait=agree)
        filler = storage.fill()

        def refused() -> bool:
            # SQLite may still have room in pages and logs that it has already.
            answers = {dav.request("PUT", b"d/new%d" % number, b"n").status for number in range(50)}
            assert answers <= {201, 204, 507}, answers
            return 507 in answers

        wait_for(refused, timeout=60, what="a state disk that is really full")
        assert dav.get(b"d/old") == b"o" * 1000
        assert dav.request("PROPFIND", b"d", None, {"Depth": "1"}).status == 207
        filler.unlink()
        wait_for(lambda: dav.request("PUT", b"d/after", b"n").status in (201, 204), what="writing again")
        settled(os.fsencode(tree), dav, wait=agree, timeout=60)
        server.close()


FINGERPRINT = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop>'
    + (b"<d:getetag/><oc:id/><oc:fileid/><oc:data-fingerprint/></d:prop></d:propfind>")
)


def test_a_volume_that_was_rolled_back_is_noticed(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Clients must ask before they delete newer files of theirs, and no etag may come back with other content."""
    server = make_server()
    server.allow_log("restored|storage|unavailable")

    with disk(tmp_path, "storage") as storage:
        tree = storage.place / "tree"
        (tree / "d").mkdir(parents=True)
        server.fsd("space", "adopt", str(tree), "--name", "rolled")
        record = server.space("rolled")
        dav = server.space_dav(record)
        epoch = tree / ".fsd/epoch"

        def fingerprint() -> str:
            (root,) = dav.propfind(b"", 0, FINGERPRINT)
            return root.properties["{http://owncloud.org/ns}data-fingerprint"]

        def restarted(change: Callable[[], object] | None = None) -> None:
            before = epoch.read_bytes() if epoch.exists() else b""
            if change is not None:
                server.stop()
                change()
            else:
                server.stop()
            server.start()
            wait_for(
                lambda: epoch.exists() and epoch.read_bytes() != before, timeout=30, what="another epoch"
            )

        def swap(source: Path, target: Path) -> None:
            storage.unmount(lazy=False)
            shutil.copyfile(source, target)
            storage.mount()

        assert storage.image is not None
        image, old = storage.image, tmp_path / "old.img"
        dav.put(b"d/f", b"first")
        restarted(lambda: swap(image, old))
        assert fingerprint() == ""
        first = settled(os.fsencode(tree), dav, wait=agree)
        dav.put(b"d/f", b"other")
        dav.put(b"d/g", b"newer")
        second = settled(os.fsencode(tree), dav, wait=agree)
        restarted()
        assert fingerprint() == ""
        server.stop()
        swap(old, image)
        server.start()
        wait_for(lambda: fingerprint() != "", timeout=60, what="another data fingerprint")
        after = settled(os.fsencode(tree), dav, wait=agree)
        assert after.served[b"d/f"].id == first.served[b"d/f"].id
        assert dav.get(b"d/f") == b"first"
        for path in (b"", b"d", b"d/f"):
            assert after.served[path].etag != second.served[path].etag, path
        for path in (b"", b"d"):
            assert after.served[path].etag != first.served[path].etag, path
