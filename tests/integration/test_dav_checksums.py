"""Checksums over WebDAV: which are known when, that none outlives its content, and how clients get them at once."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from pathlib import Path

import pytest

from tests.support.waiting import wait_for
from tests.unit.dav.served import serving

ASK = b"""<d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop><d:getetag/><oc:checksums/></d:prop>
</d:propfind>"""
DESKTOP = {"User-Agent": "Mozilla/5.0 (Linux) mirall/5.3.1 (ownCloud)"}


def sums(data: bytes) -> str:
    """All checksums of a content, as the property has them."""
    sha1, md5 = hashlib.sha1(data).hexdigest(), hashlib.md5(data).hexdigest()
    return f"SHA1:{sha1} MD5:{md5} ADLER32:{zlib.adler32(data):08x}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sums")) as made:
        yield made


@pytest.fixture
def here(served, request):
    """(client, directory on disk) of the test's own."""
    name = request.node.name.encode()
    served.dav().mkcol(name)
    return served.dav(f"/dav/files/alice/{name.decode()}"), served.root() / name.decode()


def listed(dav, path=b"", depth="1", headers=None) -> dict[str, str | None]:
    """Name to what oc:checksums says, None where it is not known."""
    answer = dav.request("PROPFIND", path, ASK, {"Depth": depth, **(headers or {})})
    assert answer.status == 207
    found = {}
    for part in answer.body.decode().split("<d:response>")[1:]:
        name = re.search("<d:href>[^<]*?([^/<]*)/?</d:href>", part)
        value = re.search("<oc:checksums><oc:checksum>([^<]*)</oc:checksum></oc:checksums>", part)
        found[name[1]] = value[1] if value else None
    return found


def test_small_uploads_have_all_of_them(here):
    dav, _ = here
    answer = dav.request("PUT", b"small", b"content")
    assert answer.headers["oc-checksum"] == sums(b"content").split()[0]
    dav.request("PUT", b"empty", b"")
    assert listed(dav) == {here[1].name: None, "small": sums(b"content"), "empty": sums(b"")}
    for method in ("GET", "HEAD"):
        assert dav.request(method, b"small").headers["oc-checksum"] == sums(b"content").split()[0]
    part = dav.request("GET", b"small", None, {"Range": "bytes=2-"})
    assert part.status == 206 and part.headers["oc-checksum"] == sums(b"content").split()[0]


def test_of_large_uploads_only_if_the_client_sent_one(here):
    dav, _ = here
    data = os.urandom(200_000)
    md5 = "MD5:" + hashlib.md5(data).hexdigest()
    answer = dav.request("PUT", b"large", data, {"OC-Checksum": md5})
    assert answer.headers["oc-checksum"] == sums(data).split()[0]
    assert listed(dav)["large"] == sums(data)
    assert "oc-checksum" not in dav.request("PUT", b"silent", data).headers


def test_no_sum_outlives_its_content(here):
    dav, disk = here
    dav.request("PUT", b"f", b"one", {"X-OC-Mtime": "1500000000"})
    assert listed(dav)["f"] == sums(b"one")
    with open(disk / "f", "r+b") as file:
        file.write(b"two")
    os.utime(disk / "f", (1_500_000_000, 1_500_000_000))
    assert listed(dav)["f"] in (None, sums(b"two"))
    assert dav.request("HEAD", b"f").headers.get("oc-checksum") in (None, sums(b"two").split()[0])
    dav.request("PUT", b"f", b"six", {"X-OC-Mtime": "1500000000"})
    assert listed(dav)["f"] == sums(b"six")


def test_renames_copies_trash_and_versions_keep_them(served, here):
    dav, disk = here
    at = disk.name
    large = os.urandom(100_000)
    sha1, every = "SHA1:" + hashlib.sha1(large).hexdigest(), sums(large)
    dav.mkcol(b"d")
    dav.request("PUT", b"d/large", large, {"OC-Checksum": sha1})
    dav.move(b"d/large", b"d/moved")
    dav.request("COPY", b"d/moved", None, {"Destination": f"/dav/files/alice/{at}/d/copy"})
    dav.request("COPY", b"d", None, {"Destination": f"/dav/files/alice/{at}/e"})
    assert listed(dav, b"e") == {"e": None, "moved": every, "copy": every}
    assert listed(dav, b"d") == {"d": None, "moved": every, "copy": every}
    dav.delete(b"d/moved")
    space = served.personal().id
    bin_ = served.dav(f"/dav/spaces/trash-bin/{space}")
    answer = bin_.request("PROPFIND", b"", b"", {"Depth": "1"})
    (key,) = re.findall(rb"/([^/<]+)</d:href>", answer.body)
    bin_.request("MOVE", key, None, {"Destination": f"/dav/files/alice/{at}/d/back"})
    assert listed(dav, b"d")["back"] == every
    dav.request("PUT", b"d/back", b"new")
    (found,) = dav.propfind(b"d/back", depth=0)
    meta = served.dav(f"/dav/meta/{found.id}")
    (version,) = re.findall(rb"/v/(\d+)</d:href>", meta.raw("PROPFIND", meta.prefix + "/v", b"", {}).body)
    assert meta.request("GET", b"v/" + version).headers["oc-checksum"] == sha1
    meta.request("COPY", b"v/" + version, None, {"Destination": f"/dav/files/alice/{at}/d/back"})
    assert listed(dav, b"d")["back"] == every


def test_written_on_disk(make_server):
    """Who lists gets them soon, who can't do without them at once, and without anybody they come in the background."""
    server = make_server(started=False)
    server.settings["FSD_CHECKSUMS_RATE"] = "0"
    server.start()
    record = server.space("admin")
    disk, dav = Path(record["path"]), server.space_dav(record)
    for name in ("one", "two"):
        (disk / name).write_bytes(name.encode() * 1000)
    wait_for(lambda: set(listed(dav, headers=DESKTOP).values()) >= {sums(b"one" * 1000), sums(b"two" * 1000)})
    (disk / "three").write_bytes(b"3")
    wait_for(lambda: listed(dav)["three"] == sums(b"3"))
    (disk / "four").write_bytes(b"4")
    wait_for(lambda: listed(dav, b"four", "0") == {"four": sums(b"4")})
    (disk / "five").write_bytes(b"5")
    (disk / "old").write_bytes(b"o" * 100_000)
    server.stop()
    server.settings["FSD_CHECKSUMS_RATE"] = "10M"
    server.start()
    for name, expected in (("five", sums(b"5")), ("old", sums(b"o" * 100_000))):
        wait_for(
            lambda: dav.request("HEAD", name.encode()).headers.get("oc-checksum") == expected.split()[0],
            timeout=60,
        )
    (disk / "old").write_bytes(b"n" * 100_000)
    wait_for(
        lambda: dav.request("HEAD", b"old").headers.get("oc-checksum") == sums(b"n" * 100_000).split()[0],
        timeout=60,
    )


def test_nothing_is_asked_that_nobody_wants(served, here, monkeypatch):
    dav, disk = here
    (disk / "f").write_bytes(b"x")
    space = served.space(served.personal())
    asked = []
    monkeypatch.setattr(type(space.sums), "known", lambda self, etags: asked.append(etags) or {})
    for body in (b"", b'<d:propfind xmlns:d="DAV:"><d:propname/></d:propfind>'):
        assert dav.request("PROPFIND", b"", body, {"Depth": "1"}).status == 207
    dav.propfind(b"")
    assert asked == []
