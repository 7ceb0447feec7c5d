"""Volumes that go back in time, and what is restored out of their snapshots: with a real server and a real sync client
that holds newer files.

Promised: listings and sizes at once, ids as they were, no etag that stands for two contents, another data fingerprint
where all of the space went back; so the client keeps what is newer, and gives it back to the server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Disk, disk
from tests.support.oracle import Snapshot, settled
from tests.support.serving import Server
from tests.support.syncclient import SyncClient
from tests.support.waiting import agree, wait_for

pytestmark = pytest.mark.root
LABEL = "user.fsd.id"
FINGERPRINT = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop>'
    b"<d:getetag/><oc:id/><oc:fileid/><oc:data-fingerprint/></d:prop></d:propfind>"
)


def btrfs(*words: str | Path) -> None:
    subprocess.run(["btrfs", "subvolume", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


class Volume:
    """A btrfs with a subvolume that is a user's own space, and a client that syncs it."""

    def __init__(self, server: Server, storage: Disk, root: Path, base: Path) -> None:
        self.server, self.storage, self.root = server, storage, root
        live = storage.place / "live"
        self.live = live if live.exists() else root
        server.data = storage.place
        server.start()
        assert server.space("admin")["path"] == str(root)
        self.dav = server.space_dav(server.space("admin"))
        self.client = SyncClient("owncloudcmd", server, base / "client")

    def fingerprint(self) -> str:
        (root,) = self.dav.propfind(b"", 0, FINGERPRINT)
        return root.properties["{http://owncloud.org/ns}data-fingerprint"]

    def files(self) -> dict[str, bytes]:
        """What the client's user has."""
        return {path: text for path, (text, _) in self.client.tree().items() if text is not None}

    def right(self, what: str) -> Snapshot:
        return settled(os.fsencode(self.root), self.dav, wait=agree, timeout=60, what=what)

    def labelled(self, *paths: str) -> None:
        wait_for(
            lambda: all(LABEL in os.listxattr(self.root / path) for path in paths), timeout=30, what="labels"
        )


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path, "volume", megabytes=160, kind="btrfs") as made:
        (made.place / "users").mkdir()
        yield made


def mount_subvolume(storage: Disk, name: str, at: Path) -> None:
    at.mkdir(exist_ok=True)
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", "--target", str(storage.place)], capture_output=True, text=True, check=True
    ).stdout.split("[")[0].strip()  # fmt: skip
    subprocess.run(["mount", "-o", f"subvol={name}", device, str(at)], check=True)


def aside_and_in(volume: Volume) -> None:
    """The subvolume is set aside and the snapshot put in its place."""
    volume.live.rename(volume.storage.place / "aside")
    (volume.storage.place / "snap").rename(volume.live)


def mounted_instead(volume: Volume) -> None:
    """The snapshot is mounted where the subvolume was."""
    subprocess.run(["umount", "-l", str(volume.root)], check=True)
    mount_subvolume(volume.storage, "snap", volume.root)


WAYS = [
    pytest.param(aside_and_in, True, id="renamed-running"),
    pytest.param(aside_and_in, False, id="renamed-stopped"),
    pytest.param(mounted_instead, True, id="mounted-running"),
]


@pytest.mark.parametrize(("put_back", "running"), WAYS)
def test_a_snapshot_in_the_place_of_its_subvolume(
    make_server: Callable[..., Server],
    storage: Disk,
    tmp_path: Path,
    put_back: Callable[[Volume], None],
    running: bool,
) -> None:
    server = make_server(started=False)
    server.allow_log("restored|storage|unavailable|not available|registered|watched|internal directory")
    root = storage.place / "users/admin"
    if put_back is mounted_instead:
        btrfs("create", storage.place / "live")
        mount_subvolume(storage, "live", root)
    else:
        btrfs("create", root)
    try:
        volume = Volume(server, storage, root, tmp_path)
        (root / "d/deep").mkdir(parents=True)
        for name in ("d/f", "d/deep/same", "top"):
            (root / name).write_text("first")
        volume.client.sync()
        volume.labelled("d", "d/deep", "d/f", "d/deep/same")
        first = volume.right("before the snapshot")
        btrfs("snapshot", volume.live, storage.place / "snap")
        (volume.client.local / "d/f").write_text("newer, by the client")
        (volume.client.local / "d/g").write_text("new")
        (root / "d/server").write_text("new")
        volume.right("new files")
        volume.client.sync()
        second = volume.right("after the snapshot")
        assert (root / "d/g").read_text() == "new" and volume.fingerprint() == ""
        if not running:
            server.stop()
        put_back(volume)
        if not running:
            server.start()
        wait_for(lambda: volume.fingerprint() != "", timeout=60, what="another data fingerprint")
        third = volume.right("rolled back")
        check_rolled_back(first, second, third)
        volume.client.sync()
        kept = volume.files()
        assert kept["d/g"] == kept["d/server"] == b"new"
        # Both are kept of what differs: the old one under the name, the client's beside it.
        assert b"newer, by the client" in {text for path, text in kept.items() if path.startswith("d/f")}
        after = volume.right("after the client's sync")
        assert {b"d/g", b"d/server"} <= after.disk.keys(), "given back to the server"
        wait_for(lambda: server.run("check", "admin").returncode == 0, what="a clean check", every=0.5)
    finally:
        if put_back is mounted_instead:
            subprocess.run(["umount", "-l", str(root)], check=True)


def check_rolled_back(first: Snapshot, second: Snapshot, third: Snapshot) -> None:
    assert third.disk.keys() == first.disk.keys() != second.disk.keys()
    for path, resource in third.served.items():
        assert resource.id == first.served[path].id, path
        assert resource.size == first.served[path].size, path
        if resource.is_dir:
            assert resource.etag not in (first.served[path].etag, second.served[path].etag), path
    assert third.served[b"d/f"].etag != second.served[b"d/f"].etag


def test_what_is_restored_out_of_a_snapshot(
    make_server: Callable[..., Server], storage: Disk, tmp_path: Path
) -> None:
    """A directory out of a snapshot, over and beside the living one: a change, not a rollback. And the snapshot
    itself, inside the space: copies, with ids of their own."""
    server = make_server(started=False)
    server.allow_log("storage|unavailable|not available")
    root = storage.place / "users/admin"
    btrfs("create", root)
    volume = Volume(server, storage, root, tmp_path)
    (root / "d/deep").mkdir(parents=True)
    for name in ("d/f", "d/deep/same"):
        (root / name).write_text("first")
    volume.client.sync()
    volume.labelled("d", "d/deep", "d/f", "d/deep/same")
    # A copy is known as one when its original is there and it has been quiet for some seconds; the snapshot's nodes
    # are as old as what they are of, and a younger one could be taken for what is restored below.
    wait_for(lambda: time.time() - os.stat(root / "d/deep/same").st_ctime > 7, what="nodes that are quiet")
    first = volume.right("before the snapshot")
    btrfs("snapshot", "-r", root, root / "snapshot")
    inside = volume.right("a snapshot inside the space")
    assert {path: inside.served[path].id for path in first.served} == {
        path: resource.id for path, resource in first.served.items()
    }
    assert inside.served[b""].size == 2 * first.served[b""].size
    (root / "d/f").write_text("changed")
    shutil.rmtree(root / "d/deep")
    volume.right("changed")
    shutil.rmtree(root / "d")
    volume.right("deleted")
    copy = ["cp", "-a", "--reflink=auto", str(root / "snapshot/d")]
    subprocess.run([*copy, str(root / "d")], check=True)

    def ids_are_back() -> None:
        after = volume.right("restored")
        for path in (b"d", b"d/f"):
            assert after.served[path].id == first.served[path].id, path

    agree(ids_are_back, timeout=60, what="the ids of what was restored")
    subprocess.run([*copy, str(root / "beside")], check=True)
    ids_are_back()
    btrfs("delete", root / "snapshot")
    after = volume.right("without the snapshot")
    assert after.served[b""].size == 2 * first.served[b""].size
    volume.client.sync()
    assert volume.files()["d/f"] == b"first" == volume.files()["beside/f"]
    assert volume.fingerprint() == ""
    (root / "snapshot").mkdir()
    (root / "snapshot/f").write_text("a plain directory where a subvolume was")
    volume.right("a directory where a subvolume was")
