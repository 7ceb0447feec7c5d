"""GET, HEAD and PROPFIND: ranges, conditions, and the reply details that sync clients break on."""

from __future__ import annotations

import os

import pytest
from lxml import etree

from dav.http import limits
from dav.webdav import get
from tests.support.davclient import parse_multistatus
from tests.unit.dav.served import Served, serving

FILES = "/dav/files/alice"
D, OC = "{DAV:}", "{http://owncloud.org/ns}"
DESKTOP = b"""<?xml version="1.0" encoding="utf-8"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop>
<d:resourcetype/><d:getlastmodified/><d:getcontentlength/><d:getetag/><oc:id/><oc:downloadURL/><oc:dDC/>
<oc:permissions/><oc:checksums/><oc:data-fingerprint/><oc:share-types/></d:prop>M</d:propfind>"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("read")) as made:
        client = made.dav()
        client.mkcol(b"Docs")
        client.put(b"Docs/a.txt", b"0123456789")
        client.mkcol(b"Docs/sub")
        client.put(b"Docs/sub/deep", b"12345")
        yield made


@pytest.fixture
def dav(served):
    return served.dav()


def ask(client, path=b"Docs", body=DESKTOP, depth="1", **headers):
    return client.request(
        "PROPFIND", path, body, {"Depth": depth, **{k.replace("_", "-"): v for k, v in headers.items()}}
    )


def names_by_status(response) -> list[tuple[str, set[str]]]:
    return [
        (stat.findtext(D + "status"), {prop.tag for prop in stat.find(D + "prop")})
        for stat in response.findall(D + "propstat")
    ]


# -- PROPFIND


def test_reply_details(dav):
    answer = ask(dav)
    assert answer.status == 207
    assert answer.headers["content-type"] == "application/xml; charset=utf-8"
    responses = etree.fromstring(answer.body).findall(D + "response")
    hrefs = [response.findtext(D + "href") for response in responses]
    assert hrefs == [f"{FILES}/Docs/", f"{FILES}/Docs/a.txt", f"{FILES}/Docs/sub/"]
    for response in responses:
        (ok, found), (missing, absent) = names_by_status(response)
        assert ok == "HTTP/1.1 200 OK" and missing == "HTTP/1.1 404 Not Found"
        assert {
            D + "getetag",
            OC + "id",
            OC + "permissions",
            D + "getlastmodified",
            D + "resourcetype",
        } <= found
        assert {OC + "downloadURL", OC + "dDC", OC + "share-types"} <= absent
        assert not found & absent
        local = [tag.rpartition("}")[2] for tag in found]
        assert len(local) == len(set(local))


def test_minimal_replies_drop_the_missing(dav):
    answer = ask(dav, Prefer="return=minimal")
    assert answer.headers["preference-applied"] == "return=minimal" and b"404 Not Found" not in answer.body


def test_sizes_ids_and_permissions(dav):
    own, file, sub = dav.propfind(b"Docs")
    assert (own.size, file.size, sub.size) == (15, 10, 5)
    assert (own.permissions, file.permissions) == ("RDNVCK", "RDNVW")
    assert len({own.id, file.id, sub.id}) == 3
    assert dav.stat(b"Docs/a.txt") == file


def test_depths(dav):
    assert len(parse_multistatus(ask(dav, depth="0", body=None).body, FILES)) == 1
    assert len(parse_multistatus(dav.request("PROPFIND", b"Docs").body, FILES)) == 3, "absent Depth means 1"
    answer = ask(dav, depth="infinity")
    assert answer.status == 403
    assert etree.fromstring(answer.body).find(D + "propfind-finite-depth") is not None
    assert ask(dav, depth="2").status == 400


def test_no_redirects_and_the_asked_spelling(served, dav):
    for path in (f"{FILES}/Docs", f"{FILES}/Docs/", "/dav/files/alice/%44ocs", "//dav/files/alice/Docs/"):
        answer = dav.raw("PROPFIND", path, DESKTOP, {"Depth": "1"})
        assert answer.status == 207
        responses = etree.fromstring(answer.body).findall(D + "response")
        # Two slashes at its beginning would make an href's first name a host (RFC 3986 section 4.2).
        spelled = path.replace("//", "/").rstrip("/")
        assert responses[0].findtext(D + "href") == spelled + "/"
        assert responses[1].findtext(D + "href") == spelled + "/a.txt"


def test_below_a_file_there_is_nothing(served, dav):
    dav.put(b"leaf", b"x")
    for method in ("GET", "HEAD", "PROPFIND", "DELETE", "COPY", "MOVE"):
        answer = dav.raw(method, dav.url(b"leaf/below"), None, {"Depth": "0", "Destination": dav.url(b"new")})
        assert answer.status == 404, method


def test_unencoded_bytes_in_a_request_come_back_encoded(served, dav):
    dav.mkcol("grün".encode())
    with served.wire() as wire:
        wire.send(served.head("PROPFIND", "/dav/files/alice/gr\xc3\xbcn", "Depth: 0"))
        answer = wire.answer()
    assert answer.status == 207 and b"<d:href>/dav/files/alice/gr%C3%BCn/</d:href>" in answer.body


def test_every_alias_shows_the_same_node(served, dav):
    record = served.personal()
    wanted = dav.stat(b"Docs/a.txt")
    space = record.id
    docs = dav.stat(b"Docs").id
    prefixes = [
        f"/dav/spaces/{space}/Docs",
        f"/dav/spaces/{space.replace('$', '%24')}/Docs",
        f"/remote.php/dav/spaces/{space}/Docs",
        f"/dav/spaces/{docs}",
        f"/dav/spaces/{docs.replace('!', '%21').replace('$', '%24')}",
        "/remote.php/webdav/Docs",
        "/webdav/Docs",
        "/remote.php/dav/files/alice/Docs",
        "/dav/home/alice/Docs",
    ]
    for prefix in prefixes:
        found = served.dav(prefix).propfind(b"")[1]
        assert found.href == f"{prefix}/a.txt"
        assert (found.id, found.etag, found.size) == (wanted.id, wanted.etag, wanted.size)


def test_every_parent_prefix_answers(served, dav):
    for path in (
        "/",
        "/dav",
        "/dav/",
        "/dav/spaces",
        "/dav/files/",
        "/dav/home",
        "/remote.php",
        "/remote.php/dav/",
    ):
        for depth in ("0", "1"):
            answer = dav.raw("PROPFIND", path, None, {"Depth": depth})
            assert answer.status == 207, path
            first = etree.fromstring(answer.body).find(D + "response")
            assert first.findtext(D + "href") == path.rstrip("/") + "/"
            assert first.find(f"{D}propstat/{D}prop/{D}resourcetype/{D}collection") is not None
        options = dav.raw("OPTIONS", path)
        assert options.status == 200 and "1, 2" in options.headers["dav"]
        assert options.headers["ms-author-via"] == "DAV"


@pytest.mark.parametrize("path", ["", "/dav", "/dav/home", "/remote.php", "/remote.php/dav"])
def test_a_collection_above_the_spaces_is_listed_as_it_says_of_itself(served, dav, path):
    dav.put(b"some", b"bytes")

    def said(of: str, depth: str) -> dict[str, list[str | None]]:
        responses = etree.fromstring(dav.raw("PROPFIND", of, None, {"Depth": depth}).body).findall(
            D + "response"
        )
        names = (D + "getetag", OC + "size", OC + "id", D + "getlastmodified")
        return {
            each.findtext(D + "href"): [each.findtext(f".//{name}") for name in names] for each in responses
        }

    members = {href: values for href, values in said(path + "/", "1").items() if href != path + "/"}
    assert members
    for href, values in members.items():
        assert said(href, "0")[href] == values


def test_options_under_encoded_paths(served, dav):
    space = served.personal().id
    for prefix in (f"/dav/spaces/{space}", f"/dav/spaces/{space.replace('$', '%24')}"):
        folder, file, nothing = (
            served.dav(prefix).request("OPTIONS", p) for p in (b"Docs", b"Docs/a.txt", b"no")
        )
        assert folder.status == file.status == nothing.status == 200
        assert "PUT" not in folder.headers["allow"] and "PUT" in file.headers["allow"]
        assert "MKCOL" in nothing.headers["allow"]


def test_home_lists_the_spaces_by_name(served, dav):
    assert {entry.path for entry in served.dav("/dav/home").propfind(b"")[1:]} == {b"alice", b"Shared"}
    home = served.dav("/dav/home").stat(b"").etag
    dav.put(b"ripple", b"x")
    assert served.dav("/dav/home").stat(b"").etag != home
    dav.delete(b"ripple")
    assert dav.raw("MKCOL", "/dav/home/new").status in (403, 404, 409)


def test_bodies_that_are_refused(served, dav):
    lots = b"".join(b"<d:p%d/>" % n for n in range(limits.PROPERTIES + 1))
    assert (
        ask(dav, body=b"<d:propfind xmlns:d='DAV:'><d:prop>" + lots + b"</d:prop></d:propfind>").status == 400
    )
    assert ask(dav, body=b"<" * (limits.XML_BODY_BYTES + 1)).status == 413
    assert (
        ask(
            dav, body=b"<!DOCTYPE a [<!ENTITY b 'c'>]><d:propfind xmlns:d='DAV:'><d:allprop/></d:propfind>"
        ).status
        == 400
    )
    assert ask(dav, body=b"<a>").status == 400
    assert ask(dav, body=b"<a/>").status == 400
    assert ask(dav, body=b"<d:propfind xmlns:d='DAV:'/>").status == 400
    assert ask(dav, body=b"<d>" * 20000).status == 400
    secret = b"<!DOCTYPE x [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><x>&f;</x>"
    assert b"root:" not in ask(dav, body=secret).body


def test_names_no_xml_can_carry(served, dav):
    root = os.fsencode(served.root())
    os.mkdir(root + b"/odd")
    for name in (b"bad\xff", b"line\nfeed", b"tab\tname", b"ctl\x01", b"<&>"):
        with open(root + b"/odd/" + name, "wb") as file:
            file.write(name)
    seen = dav.propfind(b"odd")[1:]
    assert {entry.path for entry in seen} == {
        b"odd/" + n for n in (b"bad\xff", b"line\nfeed", b"tab\tname", b"ctl\x01", b"<&>")
    }
    for entry in seen:
        answer = dav.raw("GET", entry.href)
        assert answer.status == 200 and b"odd/" + answer.body == entry.path
    assert dav.move(b"odd/bad\xff", b"odd/mended").status == 201
    assert dav.request("DELETE", b"odd/ctl\x01").status == 204
    body = b"<d:propfind xmlns:d='DAV:'><d:prop><d:displayname/></d:prop></d:propfind>"
    assert ask(dav, b"odd", body).status == 207


def test_what_cannot_be_served_is_still_listed(served, dav):
    root = served.root()
    (root / "mix").mkdir()
    (root / "mix" / "dangling").symlink_to("nowhere")
    (root / "mix" / "out").symlink_to("/etc")
    os.mkfifo(root / "mix" / "fifo")
    (root / "mix" / "plain").write_bytes(b"x")
    assert [entry.path for entry in dav.propfind(b"mix")[1:]] == [
        b"mix/" + n for n in (b"dangling", b"fifo", b"out", b"plain")
    ]
    for name in (b"mix/dangling", b"mix/out", b"mix/fifo"):
        assert dav.request("GET", name).status == 403
        assert dav.request("PUT", name, b"x").status == 403
        for depth in "01":
            answer = ask(dav, name, depth=depth)
            assert answer.status == 207 and answer.body.count(b"<d:response>") == 1
        assert dav.request("GET", name + b"/").status in (403, 404)
    for below in (b"mix/out/passwd", b"mix/dangling/x", b"mix/plain/x", b"mix/fifo/x"):
        assert dav.request("GET", below).status == 404
        assert [ask(dav, below, depth=depth).status for depth in "01"] == [404, 404]


def test_a_file_that_is_cut_off_while_it_is_opened(served, dav, monkeypatch):
    """Of the announced length there are no bytes any more: nothing was sent, so the client may ask again."""
    path = served.root() / "cut"
    path.write_bytes(b"0123456789")
    opened = []

    def cut(body: get.FileBody, fd: int, offset: int, count: int) -> None:
        made(body, fd, offset, count)
        opened.append(fd)
        path.write_bytes(b"0123")

    made = get.FileBody.__init__
    with monkeypatch.context() as patched:
        patched.setattr(get.FileBody, "__init__", cut)
        answer = dav.request("GET", b"cut")
    assert answer.status == 503 and answer.headers["retry-after"] and b"changed" in answer.body
    with pytest.raises(OSError):
        os.fstat(opened[0])
    assert dav.get(b"cut") == b"0123"


def test_many_entries_are_streamed_whole(served, dav):
    root = served.root() / "many"
    root.mkdir()
    for number in range(2500):
        (root / f"f{number:04}").touch()
    assert len(dav.propfind(b"many")) == 2501


def test_the_internal_directory_is_not_there(dav):
    for path in (b".fsd", b".fsd/space.json"):
        assert dav.request("PROPFIND", path, headers={"Depth": "0"}).status == 404
        assert dav.request("GET", path).status == 404
    assert b".fsd" not in dav.request("PROPFIND", b"").body


# -- GET and HEAD


def test_get_headers(dav):
    answer = dav.request("GET", b"Docs/a.txt")
    assert answer.body == b"0123456789" and answer.headers["content-length"] == "10"
    assert answer.headers["etag"] == answer.headers["oc-etag"] and answer.etag == dav.stat(b"Docs/a.txt").etag
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "text/plain" and "last-modified" in answer.headers
    head = dav.request("HEAD", b"Docs/a.txt")
    for name in ("etag", "content-length", "last-modified", "content-type"):
        assert head.headers[name] == answer.headers[name]
    assert head.body == b""


def test_odd_types_are_downloads(dav):
    dav.put(b"x.html", b"<script>")
    dav.put('ü".svg'.encode(), b"<svg/>")
    for name in (b"x.html", 'ü".svg'.encode()):
        answer = dav.request("GET", name)
        assert answer.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("spec", "status", "body", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=20-", 416, None, "bytes */10"),
        ("bytes=5-1", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=" + ",".join(["0-0"] * 10000), 200, b"0123456789", None),
    ],
)
def test_ranges(dav, spec, status, body, content_range):
    answer = dav.request("GET", b"Docs/a.txt", headers={"Range": spec})
    assert answer.status == status and answer.headers.get("content-range") == content_range
    assert body is None or answer.body == body


def test_several_ranges(dav):
    answer = dav.request("GET", b"Docs/a.txt", headers={"Range": "bytes=0-1,-2"})
    assert answer.status == 206
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    parts = [part.partition(b"\r\n\r\n") for part in answer.body.split(b"--" + boundary)[1:-1]]
    assert [part[2].removesuffix(b"\r\n") for part in parts] == [b"01", b"89"]
    assert b"Content-Range: bytes 8-9/10" in parts[1][0]


def test_get_conditions(dav):
    first = dav.request("GET", b"Docs/a.txt")
    etag, date = first.headers["etag"], first.headers["last-modified"]

    def get(**headers):
        return dav.request("GET", b"Docs/a.txt", headers={k.replace("_", "-"): v for k, v in headers.items()})

    assert get(If_None_Match=etag).status == 304
    assert get(If_None_Match=etag).headers["etag"] == etag
    assert get(If_None_Match=f'"x", W/{etag}').status == 304
    assert get(If_None_Match='"x"').status == 200
    assert get(If_Modified_Since=date).status == 304
    assert get(If_Match='"x"').status == 412
    assert get(If_Match=etag).status == 200
    assert get(If_Range=etag, Range="bytes=1-1").status == 206
    assert get(If_Range='"x"', Range="bytes=1-1").status == 200
    assert get(If_Range=date, Range="bytes=1-1").status == 206


def test_a_file_that_shrinks_ends_the_connection(served: Served, dav):
    path = served.root() / "shrink"
    path.write_bytes(b"x" * (64 << 20))
    with served.wire() as wire:
        wire.send(served.head("GET", f"{FILES}/shrink"))
        assert wire.socket.recv(1000).startswith(b"HTTP/1.1 200")
        path.write_bytes(b"")
        got = 0
        while data := wire.socket.recv(1 << 20):
            got += len(data)
        assert got < 64 << 20


def test_a_file_that_grows_keeps_its_length(served: Served, dav):
    path = served.root() / "grow"
    path.write_bytes(b"x" * (32 << 20))
    with served.wire() as wire:
        wire.send(served.head("GET", f"{FILES}/grow", "Connection: close"))
        head = wire.socket.recv(1000).partition(b"\r\n\r\n")
        with open(path, "ab") as file:
            file.write(b"y" * 1000)
        got = len(head[2])
        while data := wire.socket.recv(1 << 20):
            got += len(data)
    assert b"Content-Length: %d\r\n" % (32 << 20) in head[0] + b"\r\n" and got == 32 << 20


def test_large_files_come_whole(served: Served, dav):
    data = os.urandom(5 << 20)
    dav.put(b"large", data)
    assert dav.get(b"large") == data
    assert (
        dav.request("GET", b"large", headers={"Range": "bytes=1000000-3999999"}).body == data[1000000:4000000]
    )


def test_nothing_tells_the_versions_and_no_query_logs_out(dav):
    for answer in (dav.raw("GET", "/?logout"), dav.raw("GET", "/no?logout"), dav.raw("BREW", "/")):
        assert answer.status != 401
        text = str(answer.headers).lower() + answer.body.decode().lower()
        assert "cheroot" not in text and "wsgidav" not in text and "python" not in text


def test_missing_things(dav):
    assert dav.request("GET", b"nothing").status == 404
    assert dav.request("PROPFIND", b"nothing/", headers={"Depth": "0"}).status == 404
    assert dav.request("GET", b"a%2Fb").status in (400, 404)
    assert dav.raw("GET", f"{FILES}/a%2Fb").status == 400
    assert dav.raw("GET", f"{FILES}/%00").status == 400
    assert dav.raw("GET", f"{FILES}/../bob").status == 400
    assert dav.raw("GET", f"{FILES}/{'n' * 300}").status == 404
    assert dav.raw("PATCH", f"{FILES}/x").status == 405
