"""The real desktop clients against a real server, with programs writing straight into the tree beside them."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.support.serving import ADMIN, Server
from tests.support.syncclient import CLIENTS, SyncClient, tree


@pytest.fixture(params=CLIENTS)
def client(request, tmp_path):
    if shutil.which(request.param) is None:
        pytest.fail(f"{request.param} is not installed; scripts/test installs it")
    server = Server(tmp_path, workers=1).start()
    yield SyncClient(request.param, server, tmp_path)
    server.close()
    assert not server.complaints()


@pytest.fixture
def remote(client):
    return client.server.data / "users" / ADMIN


def both(client, remote):
    """Everything is in both trees, with the same mtimes; returns it. Conflict copies stay local."""
    here = {path: found for path, found in client.tree().items() if "conflict" not in path}
    there = tree(remote)
    assert here == there
    return here


def first_sync_in_both_directions(client, remote):
    (remote / "deep/er").mkdir(parents=True)
    for name in ("plain", "ü b+%#&.txt", "semi;colon?", "empty", "a'quote\"d"):
        (remote / "deep/er" / name).write_bytes(b"" if name == "empty" else name.encode())
    os.utime(remote / "deep/er/plain", (1_500_000_000, 1_500_000_000))
    (client.local / "mine").mkdir()
    (client.local / "mine/große Datei").write_bytes(os.urandom(3_000_000))
    os.utime(client.local / "mine/große Datei", (1_400_000_000, 1_400_000_000))
    client.sync()
    found = both(client, remote)
    assert len(found) >= 9 and found["deep/er/plain"][1] == 1_500_000_000
    assert client.sync() == []


def a_change_deep_in_the_tree_is_found(client, remote):
    (remote / "deep/er/plain").write_bytes(b"written straight to disk")
    assert client.sync() == [("GET", "deep/er/plain")]
    both(client, remote)


def other_content_of_the_same_size_and_time_is_found(client, remote):
    path = remote / "deep/er/plain"
    before = path.stat()
    path.write_bytes(b"WRITTEN STRAIGHT TO DISK")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert client.sync() == [("GET", "deep/er/plain")]
    both(client, remote)


def renames_move_no_bytes(client, remote):
    os.rename(client.local / "mine/große Datei", client.local / "mine/umbenannt")
    assert [method for method, _ in client.sync()] == ["MOVE"]
    both(client, remote)
    os.rename(remote / "deep", remote / "moved")
    assert client.sync() == []
    assert "moved/er/plain" in both(client, remote)


def a_file_replaced_by_rename_is_the_same_file(client, remote):
    (remote / "moved/er/.plain.swp").write_bytes(b"saved by an editor")
    os.rename(remote / "moved/er/.plain.swp", remote / "moved/er/plain")
    assert client.sync() == [("GET", "moved/er/plain")]
    both(client, remote)


def what_is_deleted_goes_on_both_sides(client, remote):
    os.unlink(remote / "moved/er/empty")
    shutil.rmtree(client.local / "mine")
    assert client.sync() == [("DELETE", "mine")]
    found = both(client, remote)
    assert "moved/er/empty" not in found and "mine" not in found


def a_conflict_keeps_both(client, remote):
    (client.local / "moved/er/plain").write_bytes(b"the local one")
    (remote / "moved/er/plain").write_bytes(b"the one on the server")
    client.sync()
    client.sync()
    assert (remote / "moved/er/plain").read_bytes() == b"the one on the server"
    contents = {content for content, _ in client.tree().values()}
    assert {b"the local one", b"the one on the server"} <= contents
    both(client, remote)


def after_a_restart_nothing_is_transferred(client, remote):
    (remote / "kept").write_bytes(b"kept")
    client.sync()
    client.server.stop()
    (remote / "while down").write_bytes(b"written while the server was down")
    client.server.start()
    assert client.sync() == [("GET", "while down")]
    both(client, remote)
    assert client.sync() == []


def test_a_history(client, remote):
    """One after the other: a client remembers what it did."""
    for step in (
        first_sync_in_both_directions,
        a_change_deep_in_the_tree_is_found,
        other_content_of_the_same_size_and_time_is_found,
        renames_move_no_bytes,
        a_file_replaced_by_rename_is_the_same_file,
        what_is_deleted_goes_on_both_sides,
        a_conflict_keeps_both,
        after_a_restart_nothing_is_transferred,
    ):
        step(client, remote)


def test_a_big_file_goes_up_in_chunks(client, remote):
    content = os.urandom(25_000_000)
    (client.local / "big").write_bytes(content)
    trail = client.sync()
    assert (
        trail[-1] == ("PUT", "big") and len(trail) >= 3 and all("/uploads/" in path for _, path in trail[:-1])
    )
    assert (remote / "big").read_bytes() == content
    both(client, remote)
    with open(client.local / "big", "ab") as file:
        file.write(b"grown")
    client.sync()
    assert (remote / "big").read_bytes() == content + b"grown"
    assert client.sync() == [] and os.listdir(remote / ".fsd/uploads") == []
