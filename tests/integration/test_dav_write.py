"""PUT, MKCOL, DELETE, COPY, MOVE: what clients.md says is lost or broken elsewhere."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib

import pytest

from dav.http import limits
from tests.unit.dav.served import Served, serving

FILES = "/dav/files/alice"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("write")) as made:
        yield made


@pytest.fixture
def dav(served, request):
    """alice's files, in a directory of this test's own."""
    name = request.node.name.encode().replace(b"/", b"_")[:200]
    client = served.dav()
    client.mkcol(name)
    return served.dav(client.url(name))


def status(client, method, path, body=None, **headers):
    return client.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}).status


def root_etag(served: Served) -> str:
    return served.dav().stat(b"").etag


# -- PUT


def test_put_answers_with_the_etag_of_the_next_listing(served, dav):
    before = root_etag(served)
    made = dav.put(b"a.txt", b"one")
    assert made.status == 201 and made.headers["oc-etag"] == made.headers["etag"]
    seen = dav.stat(b"a.txt")
    assert (seen.etag, seen.id) == (made.etag, made.headers["oc-fileid"])
    assert dav.request("HEAD", b"a.txt").etag == made.etag
    again = dav.put(b"a.txt", b"two")
    assert again.status == 204 and again.etag != made.etag
    assert again.headers["oc-fileid"] == made.headers["oc-fileid"]
    assert root_etag(served) != before


@pytest.mark.parametrize("chunked", [False, True])
def test_an_early_answer_reaches_who_sends_everything_first(served: Served, chunked: bool):
    """Most clients read nothing before all of the body has left: a reset would take the answer from them."""
    size = 48 << 20
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    with served.wire() as wire:
        wire.send(served.head("PUT", f"{FILES}/refused", framing, 'If-Match: "other"'))
        if chunked:
            wire.send(b"%x\r\n" % size)
        for _ in range(size >> 20):
            wire.send(b"z" * (1 << 20))
        answer = wire.answer()
        assert answer is not None and answer.status == 412
        assert wire.closed()
    assert not (served.root() / "refused").exists()


def test_a_truncated_put_changes_nothing(served, dav):
    dav.put(b"keep", b"old content")
    for name in ("keep", "fresh"):
        with served.wire() as wire:
            url = dav.url(name.encode())
            wire.send(served.head("PUT", url, "Content-Length: 1000000") + b"x" * 300000)
            wire.socket.shutdown(1)
            answer = wire.answer()
            assert answer is None or answer.status == 400
    assert dav.get(b"keep") == b"old content"
    assert status(dav, "GET", b"fresh") == 404
    assert [entry.path for entry in dav.propfind(b"")[1:]] == [b"keep"]


def test_a_truncated_chunked_put_changes_nothing(served, dav):
    with served.wire() as wire:
        wire.send(served.head("PUT", dav.url(b"c"), "Transfer-Encoding: chunked") + b"5\r\nabcde\r\n")
        wire.socket.shutdown(1)
        wire.answer()
    assert status(dav, "GET", b"c") == 404


def test_if_match_on_a_missing_file_is_412(dav):
    assert status(dav, "PUT", b"no", b"x", If_Match='"abc"') == 412
    assert status(dav, "PUT", b"no", b"x", If_Match="*") == 412
    assert status(dav, "GET", b"no") == 404


def test_put_preconditions(dav):
    etag = dav.put(b"f", b"1").headers["etag"]
    assert status(dav, "PUT", b"f", b"2", If_None_Match="*") == 412
    assert status(dav, "PUT", b"f", b"2", If_Match='"other"') == 412
    assert status(dav, "PUT", b"f", b"2", If_Match=f"W/{etag}") == 412
    assert status(dav, "PUT", b"f", b"2", If_Unmodified_Since="Sat, 01 Jan 2000 00:00:00 GMT") == 412
    assert status(dav, "PUT", b"f", b"2", If=f"([{etag}])") == 204
    assert status(dav, "PUT", b"f", b"3", If=f"([{etag}])") == 412
    assert dav.get(b"f") == b"2"
    assert status(dav, "PUT", b"new", b"n", If_None_Match="*") == 201


def test_put_checksums(dav):
    data = b"checked"
    good = {
        "SHA1": hashlib.sha1(data).hexdigest(),
        "MD5": hashlib.md5(data).hexdigest().upper(),
        "SHA256": hashlib.sha256(data).hexdigest(),
        "ADLER32": f"{zlib.adler32(data):08x}",
    }
    for name, digest in good.items():
        assert status(dav, "PUT", b"sum", data, OC_Checksum=f"{name}:{digest}") in (201, 204)
    assert status(dav, "PUT", b"sum", b"broken!", OC_Checksum=f"SHA1:{good['SHA1']}") == 400
    assert status(dav, "PUT", b"sum", b"broken!", OC_Checksum="MD5:12") == 400
    assert dav.get(b"sum") == data


@pytest.mark.parametrize(("sent", "kept"), [("1234567890", 1234567890), ("-7", -7), ("1000.75", 1000)])
def test_put_mtime(dav, sent, kept):
    answer = dav.put(b"m", b"x", X_OC_Mtime=sent)
    assert answer.headers["x-oc-mtime"] == "accepted"
    assert dav.stat(b"m").mtime == kept
    assert status(dav, "PUT", b"m", b"y", X_OC_Mtime="soon") == 400


def test_put_same_size_same_mtime_changes_the_etag(dav):
    first = dav.put(b"s", b"aaaa", X_OC_Mtime="1500000000")
    second = dav.put(b"s", b"bbbb", X_OC_Mtime="1500000000")
    assert first.etag != second.etag


def test_put_refusals(dav):
    dav.mkcol(b"dir")
    assert status(dav, "PUT", b"dir", b"x") == 405
    assert status(dav, "PUT", b"dir/", b"x") == 405
    assert status(dav, "PUT", b"", b"x") == 405
    assert status(dav, "PUT", b"no/parent", b"x") == 409
    dav.put(b"file", b"")
    assert status(dav, "PUT", b"file/below", b"x") == 409
    assert status(dav, "PUT", b"r", b"x", Content_Range="bytes 0-0/1") == 400
    assert status(dav, "PUT", b"z", b"x", Content_Encoding="gzip") == 415
    assert status(dav, "PUT", b"f", b"x", OC_Chunked="1") == 400
    assert {entry.path for entry in dav.propfind(b"")[1:]} == {b"dir", b"file"}


def test_put_without_a_length_is_411(served, dav):
    assert served.ask("PUT", dav.url(b"n")).status == 411


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"a\rb", b"a\x01b", b"x" * 256])
def test_new_names_that_are_refused(dav, name):
    assert status(dav, "PUT", name, b"x") == 400
    assert status(dav, "MKCOL", name) == 400
    dav.put(b"source", b"x")
    assert status(dav, "MOVE", b"source", Destination=dav.url(name)) == 400


@pytest.mark.parametrize(
    "name", ["q?mark.txt", "semi;colon", "hash#", "per%25cent", "plus+ ü", "a&b<c>'\"", "e\u0301"]
)
def test_odd_names_come_back_as_they_are(served, dav, name):
    raw = name.encode()
    dav.put(raw, name.encode())
    assert dav.get(raw) == raw
    assert [entry.path for entry in dav.propfind(b"")[1:]] == [raw]
    assert dav.move(raw, b"moved " + raw).status == 201
    assert dav.copy(b"moved " + raw, raw).status == 201
    assert {entry.path for entry in dav.propfind(b"")[1:]} == {raw, b"moved " + raw}


def test_a_put_over_what_expect_continue_promised_stays_whole(served, dav):
    data = os.urandom(limits.BLOCK * 3 + 17)
    with served.wire() as wire:
        wire.send(served.head("PUT", dav.url(b"big"), f"Content-Length: {len(data)}", "Expect: 100-continue"))
        assert wire.answer().status == 100
        assert wire.send(data).answer().status == 201
    assert dav.get(b"big") == data


@pytest.mark.parametrize(
    ("there", "condition"),
    [
        (True, 'If: (["{etag}"])'),
        (True, 'If: (Not ["x"])'),
        (True, "If-Unmodified-Since: {date}"),
        (True, 'If-None-Match: "x"'),
        (True, 'If-Match: "{etag}"'),
        (False, 'If: (Not ["x"])'),
        (False, 'If-None-Match: "x"'),
    ],
)
def test_what_changes_while_a_body_arrives_is_not_overwritten(served, dav, there, condition):
    if there:
        seen = dav.put(b"f", b"seen").etag
        date = dav.request("GET", b"f").headers["last-modified"]
        condition = condition.format(etag=seen, date=date)
    with served.wire() as wire:
        wire.send(served.head("PUT", dav.url(b"f"), condition, "Content-Length: 4", "Expect: 100-continue"))
        assert wire.answer().status == 100
        dav.put(b"f", b"somebody else's")
        assert wire.send(b"mine").answer().status == 412
    assert dav.get(b"f") == b"somebody else's"


# -- MKCOL and DELETE


def test_mkcol(served, dav):
    before = root_etag(served)
    made = dav.mkcol(b"new")
    assert made.status == 201 and made.headers["oc-fileid"] == dav.stat(b"new").id
    assert made.headers["oc-perm"] == dav.stat(b"new").permissions == "RDNVCK"
    assert root_etag(served) != before
    assert status(dav, "MKCOL", b"new") == 405
    assert status(dav, "MKCOL", b"a/b") == 409
    assert status(dav, "MKCOL", b"body", b"<x/>") == 415
    assert status(dav, "MKCOL", b"slash/") == 201
    dav.put(b"file", b"")
    assert status(dav, "MKCOL", b"file") == 405
    assert status(dav, "MKCOL", b"file/x") == 409


def test_delete(served, dav):
    dav.mkcol(b"d")
    etag = dav.put(b"d/f", b"1").headers["etag"]
    assert status(dav, "DELETE", b"d/f", If_Match='"x"') == 412
    assert status(dav, "DELETE", b"d", Depth="0") == 400
    assert status(dav, "DELETE", b"d/f", If_Match=etag) == 204
    before = root_etag(served)
    assert status(dav, "DELETE", b"d") == 204
    assert root_etag(served) != before
    assert status(dav, "DELETE", b"d") == 404
    assert status(served.dav(), "DELETE", b"") == 403


def test_what_is_replaced_all_the_time_is_never_in_doubt(served, dav):
    dav.put(b"f", b"0")
    path = served.root() / dav.prefix.removeprefix(FILES).strip("/") / "f"
    stop = threading.Event()

    def replace() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path.unlink()
            path.write_bytes(b"%d" % number)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        found = [status(dav, method, b"f", Depth="0") for method in ("PROPFIND", "HEAD") * 30]
    finally:
        stop.set()
        thread.join()
    assert set(found) <= {200, 207, 404}


# -- COPY and MOVE


def test_move_and_copy_statuses(dav):
    dav.put(b"a", b"a")
    dav.put(b"b", b"b")
    ident = dav.stat(b"a").id
    assert dav.move(b"a", b"c").status == 201
    assert dav.stat(b"c").id == ident
    moved = dav.move(b"c", b"b")
    assert moved.status == 204 and dav.stat(b"b").id == ident and dav.get(b"b") == b"a"
    assert moved.headers["oc-fileid"] == ident
    assert moved.headers["oc-perm"] == "RDNVW"
    assert dav.copy(b"b", b"d").status == 201
    assert dav.stat(b"d").id != ident
    assert dav.copy(b"b", b"d").status == 204
    assert status(dav, "MOVE", b"b", Destination=dav.url(b"d"), Overwrite="F") == 412
    assert status(dav, "COPY", b"b", Destination=dav.url(b"d"), Overwrite="f") == 412
    assert status(dav, "COPY", b"b", Destination=dav.url(b"d"), Overwrite="maybe") == 400


def test_transfers_that_are_refused(served, dav):
    dav.mkcol(b"d")
    dav.mkcol(b"d/e")
    dav.put(b"f", b"")
    cases = [
        (b"d", {"Destination": dav.url(b"d")}, {403}),
        (b"d", {"Destination": dav.url(b"d/e/x")}, {403, 409}),
        (b"d/e", {"Destination": dav.url(b"d")}, {403, 409}),
        (b"f", {"Destination": dav.url(b"no/x")}, {409}),
        (b"f", {"Destination": "http://elsewhere/x"}, {502}),
        (b"f", {"Destination": dav.url(b"").rstrip("/") + "/a%2Fb"}, {400}),
        (b"f", {"Destination": dav.url(b"").rstrip("/") + "/../x"}, {400}),
        (b"f", {"Destination": "nonsense"}, {400}),
        (b"f", {"Destination": "/dav/spaces/nosuch/x"}, {409}),
        (b"f", {"Destination": "/dav/home/"}, {403}),
        (b"f", {"Destination": "/dav/files/alice/"}, {403}),
        (b"f", {}, {400}),
        (b"missing", {"Destination": dav.url(b"x")}, {404}),
    ]
    for method in ("MOVE", "COPY"):
        for path, headers, expected in cases:
            assert status(dav, method, path, None, **headers) in expected, (method, path, headers)
    assert {entry.path for entry in dav.propfind(b"")[1:]} == {b"d", b"f"}
    assert status(served.dav(), "MOVE", b"", Destination=dav.url(b"x")) == 403
    assert status(dav, "MOVE", b"d", Destination=dav.url(b"x"), Depth="0") == 400


def test_forwarded_hosts_of_strangers_do_not_make_a_destination_local(dav):
    dav.put(b"f", b"")
    headers = {"Destination": "http://evil/dav/files/alice/x", "X_Forwarded_Host": "evil"}
    assert status(dav, "MOVE", b"f", None, **headers) == 502


def test_destination_forms(served, dav):
    dav.put(b"f", b"1")
    url = f"http://127.0.0.1:{served.port}{dav.url(b'one')}"
    assert status(dav, "COPY", b"f", Destination=url) == 201
    space = f"/dav/spaces/{served.personal().id}"
    name = dav.prefix.removeprefix(FILES)
    assert status(dav, "COPY", b"f", Destination=f"{space}{name}/two") == 201
    assert status(dav, "COPY", b"f", Destination=f"{space.replace('$', '%24')}{name}/three") == 201
    assert status(dav, "COPY", b"f", Destination=f"/remote.php/webdav{name}/four") == 201
    assert {entry.path for entry in dav.propfind(b"")[1:]} == {b"f", b"one", b"two", b"three", b"four"}


def test_destination_is_parsed_before_it_is_decoded(dav):
    dav.put(b"w", b"old")
    dav.put(b"src", b"new")
    assert status(dav, "MOVE", b"src", Destination=dav.url(b"") + "w%3Fx.txt") == 201
    assert (
        status(dav, "COPY", b"w%3Fx.txt".replace(b"%3F", b"?"), Destination=dav.url(b"") + "w%3Bx.txt") == 201
    )
    assert dav.get(b"w") == b"old"
    assert dav.get(b"w?x.txt") == dav.get(b"w;x.txt") == b"new"


def test_move_across_spaces(served, dav):
    dav.mkcol(b"tree")
    dav.put(b"tree/f", b"content")
    other = served.dav(f"/dav/spaces/{served.shared.id}")
    before, theirs = root_etag(served), other.stat(b"").etag
    assert dav.move(b"tree", b"arrived", to=other).status == 201
    assert other.get(b"arrived/f") == b"content"
    assert status(dav, "GET", b"tree/f") == 404
    assert root_etag(served) != before and other.stat(b"").etag != theirs
    assert other.copy(b"arrived", b"back", to=dav).status == 201
    assert dav.get(b"back/f") == b"content"


def test_shallow_copy(dav):
    dav.mkcol(b"d")
    dav.put(b"d/f", b"1")
    assert status(dav, "COPY", b"d", Destination=dav.url(b"shallow"), Depth="0") == 201
    assert [entry.path for entry in dav.propfind(b"shallow")] == [b"shallow"]
    assert status(dav, "COPY", b"d", Destination=dav.url(b"x"), Depth="1") == 400


def test_copy_keeps_dead_properties_but_not_the_id(dav):
    dav.put(b"f", b"1")
    patch = b'<d:propertyupdate xmlns:d="DAV:"><d:set><d:prop><x xmlns="u:">v</x></d:prop></d:set></d:propertyupdate>'
    assert dav.request("PROPPATCH", b"f", patch).status == 207
    dav.copy(b"f", b"g")
    ask = b'<d:propfind xmlns:d="DAV:"><d:prop><x xmlns="u:"/></d:prop></d:propfind>'
    assert b">v<" in dav.request("PROPFIND", b"g", ask, {"Depth": "0"}).body
