"""Uploads in several requests: chunks moved into place, and TUS; resumed, refused, reserved, never half visible."""

from __future__ import annotations

import base64
import hashlib
import os
import time

import pytest

from fsd.core import partials, quota
from tests.support.waiting import wait_for
from tests.unit.dav.served import serving

LOCK = b"""<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/></d:locktype>
</d:lockinfo>"""
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def dav(served):
    return served.dav()


@pytest.fixture
def up(served):
    return served.dav("/remote.php/dav/uploads/alice")


def left(served):
    """What is left of uploads: rows and directories."""
    space = served.space(served.personal())
    above = served.root() / ".fsd/uploads"
    return [each.id for each in partials.every(space)], os.listdir(above) if above.exists() else []


def whole(up, dav, path, **headers):
    return up.request("MOVE", b"n/.file", None, {"Destination": dav.url(path), **headers})


# -- what is above the uploads ----------------------------------------------------------------------------------------


def test_uploads_under_way_are_listed(served, dav, up):
    assert [(each.href, each.size) for each in up.propfind(b"")] == [("/remote.php/dav/uploads/alice/", 0)]
    before = up.stat(b"").etag
    up.mkcol(b"one")
    up.mkcol(b"t w\xc3\xb6")
    assert up.request("PUT", b"one/1", b"12345").status == 201
    begun = dav.request(
        "POST",
        b"",
        None,
        {"Tus-Resumable": "1.0.0", "Upload-Length": "9", "Upload-Metadata": "filename eA=="},
    )
    assert begun.status == 201, "one that has another address of its own"
    for client in (up, served.dav("/dav/uploads/alice")):
        own, *listed = client.propfind(b"")
        assert [(each.path, each.size, each.is_dir) for each in listed] == [
            (b"one", 5, True),
            (b"t w\xc3\xb6", 0, True),
        ]
        assert own.size == 5 and own.etag != before and own.is_dir
        assert listed[0] == client.propfind(b"one", 0)[0]
    assert len(up.propfind(b"", 0)) == 1
    assert up.request("OPTIONS", b"").headers["allow"] == "OPTIONS, PROPFIND"
    for method in ("PUT", "DELETE", "MKCOL", "MOVE", "GET"):
        assert up.request(method, b"", None, {"Destination": dav.url(b"x")}).status == 405
    for other in ("bob", "alice"):
        stranger = served.dav(f"/dav/uploads/{other}", "bob" if other == "alice" else "alice")
        assert stranger.request("PROPFIND", b"").status == 404


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [b"0000000000000000", b"0000000000000004", b"0000000000000008"],
        [b"00001", b"00002", b"00003"],
        [
            b"000000000000000-000000000000003",
            b"000000000000004-000000000000007",
            b"000000000000008-00000000000000b",
        ],
        [b"a", b"b ", b"\xc3\xbc"],
    ],
)
def test_chunks_are_joined_in_the_order_of_their_names(served, dav, up, names):
    assert up.request("MKCOL", b"n", None, {"OC-Total-Length": "12"}).status == 201
    for name, data in reversed(list(zip(names, (b"aaaa", b"bbbb", b"cccc"), strict=True))):
        assert up.request("PUT", b"n/" + name, data).status == 201
    assert dav.request("GET", b"f").status == 404
    sums = {"OC-Checksum": "SHA1:" + hashlib.sha1(b"aaaabbbbcccc").hexdigest(), "X-OC-Mtime": "1500000000"}
    answer = whole(up, dav, b"f", **sums, **{"OC-Total-Length": "12"})
    assert answer.status == 201 and answer.headers["x-oc-mtime"] == "accepted"
    (found,) = dav.propfind(b"f", depth=0)
    assert answer.etag == found.etag and answer.headers["oc-fileid"] == found.id
    assert dav.get(b"f") == b"aaaabbbbcccc" and found.mtime == 1_500_000_000
    assert left(served) == ([], [])


def test_a_replacement_keeps_the_id_and_wants_the_etag_it_saw(dav, up):
    dav.put(b"f", b"old")
    (before,) = dav.propfind(b"f", depth=0)
    up.request("MKCOL", b"n")
    up.request("PUT", b"n/1", b"new!")
    wrong = {"If": f'<{dav.url(b"f")}> (["{"0" * 32}"])'}
    assert whole(up, dav, b"f", **wrong).status == 412 and dav.get(b"f") == b"old"
    assert whole(up, dav, b"f", Overwrite="F").status == 412
    right = {"If": f'<{dav.url(b"f")}> (["{before.etag}"])'}
    assert whole(up, dav, b"f", **right).status == 204
    (after,) = dav.propfind(b"f", depth=0)
    assert after.id == before.id and after.etag != before.etag and dav.get(b"f") == b"new!"


def test_what_arrived_can_be_listed_replaced_and_dropped(served, dav, up):
    up.request("MKCOL", b"n")
    assert up.request("MKCOL", b"n").status == 405
    assert up.request("PUT", b"n/.file", b"x").status == 400
    up.put(b"n/2", b"22")
    up.put(b"n/1", b"1")
    assert up.request("PUT", b"n/1", b"one").status == 204
    up.put(b"n/3", b"surplus")
    assert up.request("DELETE", b"n/3").status == 204 and up.request("DELETE", b"n/3").status == 404
    assert [(each.path, each.length) for each in up.propfind(b"n")] == [
        (b"n", None),
        (b"n/1", 3),
        (b"n/2", 2),
    ]
    assert whole(up, dav, b"f").status == 201 and dav.get(b"f") == b"one22"
    for method in ("PROPFIND", "DELETE", "MOVE"):
        headers = {"Destination": dav.url(b"g")} if method == "MOVE" else {}
        assert up.request(method, b"n/.file" if method == "MOVE" else b"n", None, headers).status == 404


def test_wrong_sums_and_lengths_change_nothing_and_cost_no_chunk(dav, up):
    dav.put(b"f", b"old")
    up.request("MKCOL", b"n", None, {"OC-Total-Length": "4"})
    up.put(b"n/1", b"12")
    assert whole(up, dav, b"f").status == 400, "two of four bytes"
    up.put(b"n/2", b"34")
    assert whole(up, dav, b"f", **{"OC-Total-Length": "5"}).status == 400
    assert whole(up, dav, b"f", **{"OC-Checksum": "SHA1:" + "0" * 40}).status == 400
    assert whole(up, dav, b"f", **{"X-OC-Mtime": "soon"}).status == 400
    assert dav.get(b"f") == b"old"
    assert whole(up, dav, b"f").status == 204 and dav.get(b"f") == b"1234"


def test_locks_rights_and_places(served, dav, up):
    up.request("MKCOL", b"n")
    up.put(b"n/1", b"1")
    lock = dav.request("LOCK", b"f", LOCK)
    assert whole(up, dav, b"f").status == 423
    token = lock.headers["lock-token"]
    assert whole(up, dav, b"f", If=f"<{dav.url(b'f')}> ({token})").status == 204
    up.request("MKCOL", b"n")
    up.put(b"n/1", b"1")
    assert whole(up, dav, b"none/f").status == 409
    assert up.request("MOVE", b"n/1", None, {"Destination": dav.url(b"f")}).status == 403
    shared = served.dav(f"/dav/spaces/{served.shared.id}")
    assert whole(up, shared, b"f").status == 201 and shared.get(b"f") == b"1"
    bobs = served.dav("/dav/uploads/bob", "bob")
    bobs.request("MKCOL", b"n")
    bobs.put(b"n/1", b"1")
    assert whole(bobs, shared, b"f").status == 403, "bob is a viewer there"
    assert served.dav("/dav/uploads/alice", "bob").request("PROPFIND", b"n").status == 404
    assert up.request("PUT", b"n/.file", b"1").status == 404
    assert up.request("MKCOL", b"n\x01").status == 400


def test_room_is_reserved_when_an_upload_begins(served, dav, up):
    grants, record = served.registry.grants, served.personal()
    grants.set_quota(record, 1000)
    assert up.request("MKCOL", b"n", None, {"OC-Total-Length": "1001"}).status == 507
    assert up.request("MKCOL", b"n", None, {"OC-Total-Length": "800"}).status == 201
    assert up.request("MKCOL", b"m", None, {"OC-Total-Length": "300"}).status == 507
    assert dav.request("PUT", b"other", b"x" * 300).status == 507
    assert dav.request("PUT", b"other", b"x" * 200).status == 201
    up.put(b"n/1", b"y" * 800)
    assert whole(up, dav, b"f").status == 201, "its own reservation is not in its way"
    assert quota.available(served.space(record)) == 0
    assert dav.request("PUT", b"more", b"1").status == 507
    headers = {"OC-Total-Length": "900", "Destination": dav.url(b"f")}
    assert up.request("MKCOL", b"n", None, headers).status == 507
    assert up.request("MKCOL", b"n", None, {**headers, "OC-Total-Length": "800"}).status == 201, (
        "it replaces 800"
    )
    up.request("DELETE", b"n")
    assert left(served) == ([], [])


# -- TUS --------------------------------------------------------------------------------------------------------------


def meta(**fields):
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items())
    return {"Upload-Metadata": ",".join(pairs)}


def create(dav, length, body=None, path=b"", **fields):
    headers = {**TUS, "Upload-Length": str(length), **meta(**fields)}
    if body is not None:
        headers["Content-Type"] = BYTES["Content-Type"]
    return dav.request("POST", path, body, headers)


def address(dav, answer):
    base = f"http://{dav.host}:{dav.port}"
    location = answer.headers["location"]
    assert location.startswith(base)
    return location[len(base) :]


def test_tus_in_steps(served, dav):
    sha = hashlib.sha1(b"0123456789").hexdigest()
    made = create(dav, 10, filename="ü f", mtime="1500000000", checksum=f"SHA1 {sha}")
    assert made.status == 201 and made.headers["upload-offset"] == "0" and "etag" not in made.headers
    where = address(dav, made)
    first = dav.raw("PATCH", where, b"0123", {**BYTES, "Upload-Offset": "0"})
    assert first.status == 204 and first.headers["upload-offset"] == "4"
    assert dav.request("GET", "ü f".encode()).status == 404
    head = dav.raw("HEAD", where, None, TUS)
    assert head.status == 200 and head.headers["cache-control"] == "no-store"
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("4", "10")
    assert dav.raw("PATCH", where, b"x", {**BYTES, "Upload-Offset": "3"}).status == 409
    assert dav.raw("PATCH", where, b"x" * 7, {**BYTES, "Upload-Offset": "4"}).status == 400, "too many bytes"
    head = dav.raw("HEAD", where, None, TUS)
    at = int(head.headers["upload-offset"])
    last = dav.raw("PATCH", where, b"0123456789"[at:], {**BYTES, "Upload-Offset": str(at)})
    (found,) = dav.propfind("ü f".encode(), depth=0)
    assert last.status == 204 and last.headers["upload-offset"] == "10"
    assert last.etag == found.etag and last.headers["oc-fileid"] == found.id and found.mtime == 1_500_000_000
    assert last.headers["x-oc-mtime"] == "accepted"
    again = dav.raw("HEAD", where, None, TUS)
    assert again.status == 200, "the last answer may have been lost"
    assert (again.headers["upload-offset"], again.headers["upload-length"]) == ("10", "10")
    assert dav.raw("PATCH", where, b"", {**BYTES, "Upload-Offset": "10"}).status == 404
    assert served.dav("/dav/files/bob", "bob").raw("HEAD", where, None, TUS).status in (403, 404)
    assert left(served) == ([], [])


def test_tus_creation_with_the_bytes(dav):
    made = create(dav, 3, b"abc", filename="f")
    assert made.status == 201 and made.headers["upload-offset"] == "3" and made.etag
    assert dav.get(b"f") == b"abc"
    half = create(dav, 6, b"abc", filename="g")
    assert half.headers["upload-offset"] == "3" and dav.request("GET", b"g").status == 404
    done = dav.raw("PATCH", address(dav, half), b"def", {**BYTES, "Upload-Offset": "3"})
    assert done.status == 204 and dav.get(b"g") == b"abcdef"


def test_tus_of_nothing_makes_the_file_at_once(dav):
    made = create(dav, 0, filename="empty")
    assert made.status == 201 and made.etag and dav.get(b"empty") == b""


def test_tus_names_with_paths(dav):
    dav.mkcol(b"d")
    dav.mkcol(b"d/e")
    assert create(dav, 1, b"1", b"d", filename="e//./f").status == 201 and dav.get(b"d/e/f") == b"1"
    assert create(dav, 1, b"1", filename="/d/g").status == 201 and dav.get(b"d/g") == b"1"
    for bad in ("../f", "d/../../f", "", "/", "a\x01b"):
        assert create(dav, 1, b"1", filename=bad).status == 400
    assert create(dav, 1, b"1", filename="missing/f").status == 409
    assert create(dav, 1, b"1", filename="d").status == 409
    assert create(dav, 1, b"1", b"d/g", filename="f").status == 405


def test_tus_conditions(served, dav):
    dav.put(b"f", b"old")
    (before,) = dav.propfind(b"f", depth=0)
    headers = {**TUS, "Upload-Length": "3", **meta(filename="f")}
    assert dav.request("POST", b"", None, {**headers, "If-Match": f'"{"0" * 32}"'}).status == 412
    assert dav.request("POST", b"", None, {**headers, "If-None-Match": "*"}).status == 412
    made = dav.request("POST", b"", None, {**headers, "If-Match": f'"{before.etag}"'})
    dav.put(b"f", b"somebody else's")
    assert dav.raw("PATCH", address(dav, made), b"new", {**BYTES, "Upload-Offset": "0"}).status == 412
    assert dav.get(b"f") == b"somebody else's" and left(served) == ([], [])


def test_tus_checksums(served, dav):
    where = address(dav, create(dav, 6, filename="f"))

    def patch(offset, data, digest):
        sums = {"Upload-Checksum": "sha1 " + base64.b64encode(digest).decode()}
        return dav.raw("PATCH", where, data, {**BYTES, "Upload-Offset": str(offset), **sums})

    assert patch(0, b"abc", hashlib.sha1(b"abd").digest()).status == 460
    assert dav.raw("HEAD", where, None, TUS).headers["upload-offset"] == "0"
    assert patch(0, b"abc", b"short").status == 400
    assert patch(0, b"abc", hashlib.sha1(b"abc").digest()).status == 204
    assert patch(3, b"def", hashlib.sha1(b"def").digest()).status == 204 and dav.get(b"f") == b"abcdef"
    wrong = create(dav, 3, b"abc", filename="f", checksum="SHA1 " + "0" * 40)
    assert wrong.status == 400 and dav.get(b"f") == b"abcdef" and left(served) == ([], [])


def test_tus_bytes_of_a_broken_connection_are_kept(served, dav):
    where = address(dav, create(dav, 1_000_000, filename="f"))
    with served.wire() as wire:
        lines = [
            *(f"{key}: {value}" for key, value in BYTES.items()),
            "Upload-Offset: 0",
            "Content-Length: 1000000",
        ]
        wire.send(served.head("PATCH", where, *lines) + b"x" * 300_000)
        (partial,) = partials.every(served.space(served.personal()))
        data = served.root() / ".fsd/uploads" / partial.id / "data"
        wait_for(lambda: data.exists() and data.stat().st_size == 300_000, what="the bytes on disk")
    assert dav.raw("HEAD", where, None, TUS).headers["upload-offset"] == "300000"

    def rest():
        answer = dav.raw("PATCH", where, b"y" * 700_000, {**BYTES, "Upload-Offset": "300000"})
        return answer if answer.status != 423 else None

    assert wait_for(rest, what="the end of the broken request").status == 204
    assert dav.get(b"f") == b"x" * 300_000 + b"y" * 700_000


def test_tus_lock_quota_rights_termination(served, dav):
    lock = dav.request("LOCK", b"f", LOCK)
    assert create(dav, 1, filename="f").status == 423
    dav.request("UNLOCK", b"f", None, {"Lock-Token": lock.headers["lock-token"]})
    made = create(dav, 3, filename="f")
    lock = dav.request("LOCK", b"f", LOCK)
    where = address(dav, made)
    assert dav.raw("PATCH", where, b"abc", {**BYTES, "Upload-Offset": "0"}).status == 423
    dav.request("UNLOCK", b"f", None, {"Lock-Token": lock.headers["lock-token"]})
    again = dav.raw("PATCH", where, b"", {**BYTES, "Upload-Offset": "3"})
    assert again.status == 204 and dav.get(b"f") == b"abc", (
        "the bytes were kept; only the end was asked for again"
    )
    made = create(dav, 10, filename="g")
    where = address(dav, made)
    bob = served.dav("/dav/files/bob", "bob")
    assert bob.raw("HEAD", where, None, TUS).status == 404
    assert dav.raw("DELETE", where, None, TUS).status == 204
    assert dav.raw("HEAD", where, None, TUS).status == 404 and left(served) == ([], [])
    served.registry.grants.set_quota(served.personal(), 100)
    assert create(dav, 1000, filename="h").status == 507
    shared = served.dav(f"/dav/spaces/{served.shared.id}", "bob")
    assert create(shared, 1, filename="f").status == 403
    assert create(served.dav(f"/dav/spaces/{served.shared.id}", "eve"), 1, filename="f").status == 404


def test_tus_is_found_by_probing_and_refuses_other_versions(dav):
    probe = dav.request("OPTIONS", b"")
    assert (
        probe.headers["tus-version"] == "1.0.0" and "creation-with-upload" in probe.headers["tus-extension"]
    )
    assert dav.request("POST", b"", None, {"Upload-Length": "1"}).status == 405
    for folder, name in ((b"", "no/f"), (b"no", "f")):
        headers = {**TUS, "Upload-Length": "1", **meta(filename=name)}
        assert dav.request("POST", folder, None, headers).status == 409
    old = dav.request("POST", b"", None, {"Tus-Resumable": "0.2.2", "Upload-Length": "1"})
    assert old.status == 412 and old.headers["tus-version"] == "1.0.0"
    assert dav.request("POST", b"", None, {**TUS, **meta(filename="f")}).status == 400
    assert (
        dav.request("POST", b"", None, {**TUS, "Upload-Length": "1", "Upload-Metadata": "filename ?"}).status
        == 400
    )


def test_tus_says_on_every_answer_what_it_speaks_and_again_what_it_was_told(dav):
    said = meta(filename="f", other="ü")
    made = dav.request("POST", b"", None, {**TUS, "Upload-Length": "4", **said})
    where = address(dav, made)
    assert dav.raw("HEAD", where, None, TUS).headers["upload-metadata"] == said["Upload-Metadata"]
    for answer in (
        made,
        dav.raw("HEAD", where, None, TUS),
        dav.raw("PATCH", where, b"x", {**BYTES, "Upload-Offset": "3"}),
        dav.raw("PATCH", where, b"x", {**TUS, "Upload-Offset": "0"}),
        dav.raw("PATCH", where, b"12345", {**BYTES, "Upload-Offset": "0"}),
        dav.raw("PUT", where, b"x", TUS),
        dav.raw("HEAD", where + "0", None, TUS),
        dav.request("POST", b"", None, {**TUS, "Upload-Length": "-1"}),
        dav.request("POST", b"", None, {**TUS, "Upload-Length": "1", **meta(filename="no/f")}),
        dav.request("POST", b"no", None, {**TUS, "Upload-Length": "1", **meta(filename="f")}),
    ):
        assert answer.headers["tus-resumable"] == "1.0.0", answer


def test_tus_without_patch(dav):
    where = address(dav, create(dav, 3, filename="f"))
    instead = {**BYTES, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert dav.raw("POST", where, b"abc", instead).status == 204 and dav.get(b"f") == b"abc"
    assert dav.raw("POST", where, b"", TUS).status == 405


# -- their end --------------------------------------------------------------------------------------------------------


def test_what_waited_too_long_is_dropped(served, dav, up):
    up.request("MKCOL", b"n", None, {"OC-Total-Length": "10"})
    create(dav, 5, filename="f")
    space = served.space(served.personal())
    orphan = served.root() / ".fsd/uploads/orphan"
    orphan.mkdir()
    (orphan / "1").write_bytes(b"1")
    os.utime(orphan, (1, 1))
    assert partials.reserved(space) == 15
    assert partials.expire(space) == 0 and not orphan.exists()
    assert partials.expire(space, time.time() + partials.KEEP_S + 1) == 2
    assert left(served) == ([], [])


def test_both_go_on_after_the_server_was_killed(server):
    dav, up = server.dav("/dav/files/admin"), server.dav("/dav/uploads/admin")
    up.request("MKCOL", b"n", None, {"OC-Total-Length": "8"})
    up.put(b"n/1", b"1111")
    where = address(dav, create(dav, 6, b"abc", filename="tus"))
    server.kill()
    server.start()
    assert [each.path for each in up.propfind(b"n")] == [b"n", b"n/1"]
    up.put(b"n/2", b"2222")
    assert whole(up, dav, b"chunks").status == 201
    offset = dav.raw("HEAD", where, None, TUS).headers["upload-offset"]
    assert dav.raw("PATCH", where, b"abcdef"[int(offset) :], {**BYTES, "Upload-Offset": offset}).status == 204
    assert (dav.get(b"chunks"), dav.get(b"tus")) == (b"11112222", b"abcdef")
    assert server.json("uploads", "list", "admin", "--json") == []
    create(dav, 6, b"abc", filename="dropped")
    (found,) = server.json("uploads", "list", "admin", "--json")
    assert (found["user"], found["path"], found["received"], found["length"]) == ("admin", "dropped", 3, 6)
    server.fsd("uploads", "drop", "admin", found["id"], "--yes")
    assert server.json("uploads", "list", "admin", "--json") == []
    assert server.run("check").returncode == 0
