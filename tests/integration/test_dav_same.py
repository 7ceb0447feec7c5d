"""One suite against both ways to an answer and both loops: they answer alike, byte for byte where clients look."""

from __future__ import annotations

import os
import random
import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from dav.webdav import propfind
from fsd.core import content, longlisting
from tests.support.waiting import wait_for
from tests.unit.dav.served import Served, serving

FILES = "/dav/files/alice"
SYNC = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop><d:resourcetype/>'
    b"<d:getlastmodified/><d:getcontentlength/><d:getetag/><d:getcontenttype/><d:displayname/><oc:id/><oc:fileid/>"
    b"<oc:permissions/><oc:size/><d:lockdiscovery/></d:prop></d:propfind>"
)
FIVE = b'<propfind xmlns="DAV:"><prop><getetag/><getcontentlength/><getlastmodified/><resourcetype/></prop></propfind>'
_OWN = {"date", "x-request-id", "connection", "server", "keep-alive", "oc-checksum"}
"""What may differ. Checksums become known to one after the other; test_dav_checksums has them."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same installation, served with and without shortcuts, and by cheroot's own loop."""
    base = tmp_path_factory.mktemp("same")
    with serving(base) as fast:
        others = [
            Served(base, again=True, http_fast=False).start(),
            Served(base, again=True, http_loop="stock").start(),
        ]
        try:
            yield (fast, *others)
        finally:
            for other in others:
                other.stop()


def answers(
    servers: tuple[Served, ...], method: str, path: str, *lines: str, body: bytes = b"", **who
) -> list:
    """What each of them says, without what may differ; all the same, or the test fails. Returns one of them."""
    found = []
    for served in servers:
        answer = served.ask(method, path, *lines, body=body, **who)
        headers = {name: value for name, value in answer.headers.items() if name not in _OWN}
        if headers.pop("transfer-encoding", None) is None and answer.status not in (204, 304):
            assert "content-length" in headers
        headers.pop("content-length", None)
        content = re.sub(rb"Second-\d+", b"Second-N", answer.body)
        content = re.sub(rb"\b[0-9a-f]{24}\b", b"BOUNDARY", content)
        headers = {k: re.sub(r"\b[0-9a-f]{24}\b", "BOUNDARY", v) for k, v in headers.items()}
        found.append((answer.status, headers, content))
    assert all(each == found[0] for each in found), f"{method} {path}:\n" + "\n".join(map(str, found))
    return found[0]


@pytest.fixture(scope="module")
def tree(pair) -> Path:
    root = pair[0].root()
    (root / "d" / "sub").mkdir(parents=True)
    for name in (
        b"a.txt",
        b"b & c.pdf",
        b"\xff\xfe",
        "ü<>\"'.html".encode(),
        b"x%20y#z?.svg",
        b" lead",
        b"new\nline",
    ):
        (root / "d" / os.fsdecode(name)).write_bytes(name * 100)
    (root / "d" / "sub" / "deep").write_bytes(b"deep")
    (root / "d" / "link").symlink_to("a.txt")
    (root / "d" / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "d" / "fifo")
    (root / "d" / "secret").write_bytes(b"s")
    return root


@pytest.mark.parametrize("body", [SYNC, FIVE, b""])
@pytest.mark.parametrize("depth", ["0", "1"])
@pytest.mark.parametrize("path", ["/d/", "/d", "/d/a.txt", "/", "/d/sub/", "/none", "/d/link", "/d/%ff%fe"])
def test_listings(pair, tree, path, depth, body):
    for _ in range(2):  # made, then kept
        answers(pair, "PROPFIND", FILES + path, f"Depth: {depth}", body=body)
    answers(pair, "PROPFIND", FILES + path, f"Depth: {depth}", "Prefer: return=minimal", body=body)


@pytest.mark.parametrize(
    "alias", ["/dav/home/", "/dav/spaces/", "/dav/", "/", "/remote.php/webdav/d/", "/webdav/d"]
)
def test_aliases_and_what_lies_above(pair, tree, alias):
    answers(pair, "PROPFIND", alias, "Depth: 1", body=SYNC)
    answers(pair, "OPTIONS", alias)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "/d/a.txt",
        "/d/b%20%26%20c.pdf",
        "/d/%ff%fe",
        "/d/x%2520y%23z%3F.svg",
        "/d/link",
        "/d/fifo",
        "/none",
        "/d/",
    ],
)
@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Range: bytes=0-9",),
        ("Range: bytes=-5",),
        ("Range: bytes=0-0,5-9",),
        ("Range: bytes=99999-",),
        ("If-None-Match: *",),
        ('If-Match: "no"',),
        ("If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",),
        ("If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",),
        ('If: (["no"])',),
        ("Range: bytes=0-4", 'If-Range: "no"'),
    ],
)
def test_reading(pair, tree, method, path, lines):
    answers(pair, method, FILES + path, *lines)


def test_the_etag_it_has_is_304_and_412(pair, tree):
    etag = answers(pair, "HEAD", f"{FILES}/d/a.txt")[1]["etag"]
    assert answers(pair, "GET", f"{FILES}/d/a.txt", f"If-None-Match: {etag}")[0] == 304
    assert answers(pair, "GET", f"{FILES}/d/a.txt", f"If-Match: {etag}")[0] == 200
    assert answers(pair, "PUT", f"{FILES}/d/a.txt", f"If-None-Match: {etag}", body=b"x")[0] == 412
    assert answers(pair, "GET", f"{FILES}/d/a.txt", f"If-Range: {etag}", "Range: bytes=1-2")[0] == 206


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("If-Match: *",), 412),
        (('If-Match: "x"',), 412),
        (("X-OC-Mtime: soon",), 400),
        (("OC-Checksum: SHA1:00",), 400),
        (("Content-Range: bytes 0-2/3",), 400),
        (("Content-Encoding: gzip",), 415),
        (("If: (<urn:uuid:0>)",), 412),
    ],
)
def test_refused_uploads(pair, tree, lines, status):
    assert answers(pair, "PUT", f"{FILES}/fresh", *lines, body=b"abc")[0] == status
    assert not (tree / "fresh").exists()


@pytest.mark.parametrize(
    "path", ["/d", "/d/new/", "", "/none/x", "/d/%2e%2e/x", "/d/a%2fb", "/d/new%0Aname", "/d/%ff"]
)
def test_uploads_to_odd_places(pair, tree, path):
    assert 400 <= answers(pair, "PUT", FILES + path, body=b"abc")[0] < 500


def test_strangers_and_viewers(pair, tree):
    shared = f"/dav/spaces/{pair[0].shared.id}"
    for user in ("alice", "bob", "eve", None):
        for method, body in (("PROPFIND", SYNC), ("GET", b""), ("PUT", b"x"), ("DELETE", b"")):
            path = f"{shared}/x" if method in ("PUT", "DELETE") else f"{shared}/"
            if (user, method) != ("alice", "PUT"):
                answers(pair, method, path, "Depth: 1", body=body, user=user)


def test_every_change_shows_at_once_in_all(pair, tree):
    """Random changes by each of them and by others on the disk; after each, all say the same as a fresh look."""
    rng = random.Random(7)
    work = tree / "work"
    work.mkdir()
    names = [f"n{number}" for number in range(6)]
    for step in range(60):
        name = rng.choice(names)
        path, url = work / name, f"{FILES}/work/{name}"
        match rng.randrange(7):
            case 0:
                rng.choice(pair).ask("PUT", url, body=os.urandom(step + 1))
            case 1 if path.is_file():
                path.write_bytes(os.urandom(path.stat().st_size or 1))  # the same size
            case 2:
                rng.choice(pair).ask("DELETE", url)
            case 3 if path.is_file():
                with suppress(IsADirectoryError):
                    path.rename(work / rng.choice(names))
            case 4:
                rng.choice(pair).ask("MKCOL", url)
            case 5 if path.is_dir():
                (path / "inside").write_bytes(b"x" * step)
            case 6 if path.is_file():
                path.chmod(0o600 + step % 8)
        answers(pair, "PROPFIND", f"{FILES}/work/", "Depth: 1", body=SYNC)


def test_a_lock_shows_at_once(pair, tree):
    answers(pair, "PROPFIND", f"{FILES}/d/", "Depth: 1", body=SYNC)
    body = (
        b'<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/></d:locktype>'
        b"</d:lockinfo>"
    )
    granted = pair[1].ask("LOCK", f"{FILES}/d/a.txt", "Timeout: Second-600", body=body)
    shown = answers(pair, "PROPFIND", f"{FILES}/d/", "Depth: 1", body=SYNC)
    assert b"activelock" in shown[2], (granted, shown)
    for served in pair:
        assert served.ask("PUT", f"{FILES}/d/a.txt", body=b"x").status == 423
    pair[2].ask("UNLOCK", f"{FILES}/d/a.txt", f"Lock-Token: {granted.headers['lock-token']}")
    assert b"activelock" not in answers(pair, "PROPFIND", f"{FILES}/d/", "Depth: 1", body=SYNC)[2]


def test_a_large_directory_is_whole_or_cut_off(pair, tree, monkeypatch, allow_log):
    """It comes in pieces; an error in the middle must never look like a shorter listing."""
    large = tree / "large"
    large.mkdir()
    for number in range(longlisting.LARGE + 200):
        (large / f"f{number:05d}").touch()
    fast = pair[0]
    pieces = []
    for _ in range(2):
        with fast.wire() as wire:
            wire.send(fast.head("PROPFIND", f"{FILES}/large/", "Depth: 1", "Connection: close"))
            pieces.append(_all(wire))
    for got in pieces:
        assert b"Transfer-Encoding: chunked" in got and got.endswith(b"\r\n0\r\n\r\n")
        assert got.count(b"</d:response>") == longlisting.LARGE + 201
    allow_log("a reply was cut off")
    made, real = [], propfind.response

    def failing(*arguments):
        made.append(None)
        if len(made) > 1000:
            raise RuntimeError("in the middle")
        return real(*arguments)

    monkeypatch.setattr(propfind, "response", failing)
    with fast.wire() as wire:
        wire.send(fast.head("PROPFIND", f"{FILES}/large/", "Depth: 1"))
        got = _all(wire)
    assert b" 207 " in got and b"</d:multistatus>" not in got and not got.endswith(b"0\r\n\r\n")


def _all(wire) -> bytes:
    got = b""
    while piece := wire.socket.recv(1 << 20):
        got += piece
    return got


def test_a_slow_reader_of_a_large_directory_holds_nobody(pair, tree):
    fast = pair[0]
    slow = []
    for _ in range(20):
        wire = fast.wire()
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.append(wire.send(fast.head("PROPFIND", f"{FILES}/large/", "Depth: 1")))
    assert fast.ask("PROPFIND", f"{FILES}/d/", "Depth: 1", body=SYNC).status == 207
    wait_for(lambda: fast.server.requests.idle == fast.server.requests.size, what="every thread free again")
    for wire in slow:
        wire.close()


def test_without_fsync_files_are_still_whole(tmp_path, monkeypatch):
    """`durability = none`: published as ever, but nothing waits for the disk."""
    synced = []
    monkeypatch.setattr(content.os, "fsync", synced.append)
    for durability in ("none", "fsync"):
        with serving(tmp_path / durability, durability=durability) as served:
            synced.clear()
            assert served.ask("PUT", f"{FILES}/f", body=b"whole").status == 201
            assert (served.root() / "f").read_bytes() == b"whole"
            assert bool(synced) == (durability == "fsync")
