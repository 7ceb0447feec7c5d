"""Chunked uploads of version 1, as clients from before /dav/uploads send them: NAME-chunking-TRANSFER-COUNT-INDEX."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from fsd.core import partials, quota
from tests.support.serving import ADMIN, Server
from tests.support.syncclient import SyncClient
from tests.support.waiting import wait_for
from tests.unit.dav.served import serving

LOCK = b"""<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/></d:locktype>
</d:lockinfo>"""


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def dav(served):
    return served.dav("/remote.php/webdav")


def chunk(dav, path, count, index, data, transfer="4711", **headers):
    name = path + f"-chunking-{transfer}-{count}-{index}".encode()
    sent = {"OC-Chunked": "1", **{key.replace("_", "-"): value for key, value in headers.items()}}
    return dav.request("PUT", name, data, sent)


def left(served):
    """What is left of uploads: rows and directories."""
    space = served.space(served.personal())
    above = served.root() / ".fsd/uploads"
    return [each.id for each in partials.every(space)], os.listdir(above) if above.exists() else []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_chunk_that_completes_the_file_is_answered_as_a_put(served, dav, order):
    whole = b"aaaabbbbcc"
    sums = {"OC_Checksum": "SHA1:" + hashlib.sha1(whole).hexdigest()}
    for place, index in enumerate(order):
        headers = {"OC_Total_Length": "10", "X_OC_Mtime": "1500000000", **(sums if index == 2 else {})}
        answer = chunk(dav, "d é".encode(), 3, index, whole[4 * index : 4 * index + 4], **headers)
        assert answer.status == 201
        if place < 2:
            assert "etag" not in answer.headers and "oc-etag" not in answer.headers
            assert [each.path for each in dav.propfind(b"")] == [b""], "half of it is visible"
    (found,) = dav.propfind("d é".encode(), depth=0)
    assert answer.etag == found.etag and answer.headers["oc-fileid"] == found.id
    assert answer.headers["x-oc-mtime"] == "accepted" and found.mtime == 1_500_000_000
    assert dav.get("d é".encode()) == whole and left(served) == ([], [])


def test_more_than_ten_chunks_are_joined_by_number(dav):
    data = [b"%02d" % index for index in range(12)]
    answers = [chunk(dav, b"f", 12, index, each) for index, each in reversed(list(enumerate(data)))]
    assert ["etag" in answer.headers for answer in answers] == [False] * 11 + [True]
    assert dav.get(b"f") == b"".join(data)


def test_all_at_once(served, dav):
    data = [bytes([65 + index]) * 50_000 for index in range(8)]
    clients = [served.dav("/remote.php/webdav") for _ in data]
    answers = [None] * 8

    def send(index):
        answers[index] = chunk(clients[index], b"f", 8, index, data[index], OC_Total_Length="400000")

    threads = [threading.Thread(target=send, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} == {201}
    assert sum("etag" in answer.headers for answer in answers) == 1
    assert dav.get(b"f") == b"".join(data) and left(served) == ([], [])


def test_a_replacement_keeps_the_id_and_wants_the_etag_it_saw(served, dav):
    dav.put(b"f", b"old")
    (before,) = dav.propfind(b"f", depth=0)
    assert chunk(dav, b"f", 2, 0, b"ne", If_Match=f'"{"0" * 32}"').status == 412
    assert chunk(dav, b"f", 2, 0, b"ne", If_None_Match="*").status == 412
    assert left(served) == ([], [])
    match = {"If_Match": f'"{before.etag}"'}
    assert chunk(dav, b"f", 2, 0, b"ne", **match).status == 201 and dav.get(b"f") == b"old"
    assert chunk(dav, b"f", 2, 1, b"w!", **match).status == 204
    (after,) = dav.propfind(b"f", depth=0)
    assert after.id == before.id and after.etag != before.etag and dav.get(b"f") == b"new!"


def test_what_can_not_become_a_file_is_refused_and_changes_nothing(served, dav):
    dav.put(b"f", b"old")
    dav.mkcol(b"d")
    assert chunk(dav, b"f", 2, 2, b"x").status == 400, "numbered beyond their count"
    assert dav.request("PUT", b"f", b"x", {"OC-Chunked": "1"}).status == 400
    assert dav.request("PUT", b"-chunking-1-1-0", b"x", {"OC-Chunked": "1"}).status == 400
    assert chunk(dav, b"d", 1, 0, b"x").status == 405
    assert chunk(dav, b"none/f", 2, 0, b"x").status == 409
    assert chunk(dav, b"f", 2, 0, b"x", X_OC_Mtime="soon").status == 400
    assert chunk(dav, b"f", 2, 0, b"x", OC_Total_Length="many").status == 400
    assert chunk(dav, b"f", 2, 0, b"x", OC_Checksum="SHA1:short").status == 400
    assert left(served) == ([], [])
    chunk(dav, b"f", 2, 0, b"xx", OC_Total_Length="5")
    assert chunk(dav, b"f", 2, 1, b"yy", OC_Total_Length="5").status == 400, "one byte less than announced"
    chunk(dav, b"f", 2, 0, b"xx")
    assert chunk(dav, b"f", 2, 1, b"yy", OC_Checksum="SHA1:" + "0" * 40).status == 400
    assert dav.get(b"f") == b"old" and left(served) == ([], [])
    assert dav.request("PUT", b"a-chunking-1-2-0", b"x").status == 201, "without OC-Chunked it is a name"


def test_a_checksum_holds_whichever_chunk_brought_it(served, dav):
    chunk(dav, b"f", 2, 1, b"yy", OC_Checksum="SHA1:" + "0" * 40)
    assert chunk(dav, b"f", 2, 0, b"xx").status == 400
    assert dav.request("GET", b"f").status == 404 and left(served) == ([], [])


def test_rights_locks_and_places(served, dav):
    shared = served.dav(f"/dav/spaces/{served.shared.id}")
    assert chunk(served.dav(f"/dav/spaces/{served.shared.id}", "bob"), b"f", 2, 0, b"x").status == 403
    chunk(shared, b"f", 2, 0, b"1")
    lock = shared.request("LOCK", b"f", LOCK)
    assert chunk(shared, b"f", 2, 1, b"2").status == 423
    token = {"If": f"<{shared.url(b'f')}> ({lock.headers['lock-token']})"}
    assert chunk(shared, b"f", 2, 1, b"2", **token).status == 204
    assert shared.get(b"f") == b"12"


def test_a_lock_that_was_taken_meanwhile_costs_no_chunk(served, dav):
    chunk(dav, b"f", 2, 0, b"1")
    held = served.wire()
    name = "/remote.php/webdav/f-chunking-4711-2-1"
    held.send(served.head("PUT", name, "OC-Chunked: 1", "Content-Length: 1", "Expect: 100-continue"))
    assert held.answer(bodyless=True).status == 100
    lock = dav.request("LOCK", b"f", LOCK)
    assert held.send(b"2").answer().status == 423
    dav.request("UNLOCK", b"f", None, {"Lock-Token": lock.headers["lock-token"]})
    assert chunk(dav, b"f", 2, 1, b"2").status == 204 and dav.get(b"f") == b"12"


def test_room_is_reserved_with_the_first_chunk(served, dav):
    served.registry.grants.set_quota(served.personal(), 1000)
    space = served.space(served.personal())
    assert chunk(dav, b"f", 2, 0, b"x", OC_Total_Length="1001").status == 507
    assert chunk(dav, b"f", 2, 1, b"x" * 400, OC_Total_Length="800").status == 201
    assert quota.available(space) == 200
    assert dav.request("PUT", b"other", b"x" * 201).status == 507
    assert chunk(dav, b"f", 2, 0, b"x" * 400, OC_Total_Length="800").status == 201
    assert quota.available(space) == 200 and left(served) == ([], [])


def test_what_waited_too_long_is_dropped_and_can_begin_again(served, dav):
    space = served.space(served.personal())
    chunk(dav, b"f", 2, 0, b"1", OC_Total_Length="2")
    assert partials.expire(space, time.time() + partials.KEEP_S + 1) == 1 and left(served) == ([], [])
    assert "etag" not in chunk(dav, b"f", 2, 1, b"2", OC_Total_Length="2").headers
    with space.state.write() as db:
        db.execute("UPDATE upload SET expires=1")
    assert "etag" not in chunk(dav, b"f", 2, 0, b"1", OC_Total_Length="2").headers
    assert chunk(dav, b"f", 2, 1, b"2", OC_Total_Length="2").etag and dav.get(b"f") == b"12"


def test_a_file_of_another_length_begins_anew(served, dav):
    chunk(dav, b"f", 2, 0, b"old", OC_Total_Length="6")
    chunk(dav, b"f", 2, 0, b"new1", OC_Total_Length="8")
    assert chunk(dav, b"f", 2, 1, b"new2", OC_Total_Length="8").etag and dav.get(b"f") == b"new1new2"
    assert left(served) == ([], [])


def test_it_goes_on_after_the_server_was_killed(server):
    dav = server.dav("/remote.php/webdav")
    sums = {"OC_Checksum": "SHA1:" + hashlib.sha1(b"112233").hexdigest()}
    chunk(dav, b"f", 3, 2, b"33", OC_Total_Length="6", **sums)
    chunk(dav, b"f", 3, 0, b"11", OC_Total_Length="6")
    server.kill()
    server.start()
    (found,) = server.json("uploads", "list", "admin", "--json")
    assert (found["path"], found["received"], found["length"]) == ("f", 4, 6)
    answer = chunk(dav, b"f", 3, 1, b"22", OC_Total_Length="6")
    assert answer.status == 201 and answer.etag and dav.get(b"f") == b"112233"
    assert server.json("uploads", "list", "admin", "--json") == []
    assert server.run("check").returncode == 0


@pytest.fixture
def old_client(tmp_path, monkeypatch):
    if shutil.which("owncloudcmd") is None:
        pytest.fail("owncloudcmd is not installed; scripts/test installs it")
    monkeypatch.setenv("OWNCLOUD_CHUNKING_NG", "0")
    monkeypatch.setenv("OWNCLOUD_SQLITE_LOCKING_MODE", "NORMAL")  # so that its journal can be read
    server = Server(tmp_path, workers=1).start()
    yield SyncClient("owncloudcmd", server, tmp_path)
    server.close()
    assert not server.complaints()


def test_a_client_goes_on_after_it_and_the_server_were_killed(old_client):
    client, server = old_client, old_client.server
    content = os.urandom(45_000_000)
    (client.local / "big").write_bytes(content)
    above = server.data / "users" / ADMIN / ".fsd/uploads"

    def arrived():
        return [path for path in above.glob("*/[0-9]*") if path.exists()]

    def noted():
        """Whether the client knows what to go on with; before that it would begin anew."""
        for path in client.local.glob(".*sync*.db"):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                try:
                    return db.execute("SELECT count(*) FROM uploadinfo").fetchone()[0] > 0
                except sqlite3.OperationalError:
                    return False
        return False

    running = client.start()
    wait_for(lambda: noted() and len(arrived()) >= 2, what="two chunks on disk")
    running.kill()  # first: once it has seen an error it leaves the file alone for 25 s
    running.wait()
    server.kill()
    assert arrived() and not (server.data / "users" / ADMIN / "big").exists()
    server.start()
    trail = client.sync()
    assert (server.data / "users" / ADMIN / "big").read_bytes() == content
    puts = [path for method, path in trail if method == "PUT"]
    assert puts.count("big") == 1 and len({path.split("-")[2] for path in puts if path != "big"}) == 1
    assert client.sync() == [] and os.listdir(above) == []
