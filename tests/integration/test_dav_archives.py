"""Folders as archives, and addresses that carry their own signature."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from dav.auth.signed import signature
from tests.unit.dav.served import serving


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("archives")) as made:
        root = made.root() / "Photos"
        (root / "2026/März").mkdir(parents=True)
        (root / "2026/März/a.jpg").write_bytes(os.urandom(300_000))
        (root / "2026/b").write_bytes(b"b")
        (root / "empty").mkdir()
        (root / "link").symlink_to("/etc/passwd")
        yield made


@pytest.fixture
def dav(served):
    return served.dav()


def expected(served):
    root = served.root() / "Photos"
    files = {
        f"Photos/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    return files, {"Photos/", "Photos/2026/", "Photos/2026/März/", "Photos/empty/"}


def unzipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        return {n: archive.read(n) for n in names if not n.endswith("/")}, {
            n for n in names if n.endswith("/")
        }


def untarred(data):
    archive = tarfile.open(fileobj=io.BytesIO(data))
    files = {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    return files, {m.name + "/" for m in archive.getmembers() if m.isdir()}


@pytest.mark.parametrize(("kind", "read"), [("zip", unzipped), ("tar", untarred)])
def test_a_folder_in_one_piece(served, dav, kind, read):
    answer = dav.raw("GET", f"{dav.url(b'Photos')}/?format={kind}")
    assert answer.status == 200 and read(answer.body) == expected(served)
    assert answer.headers["content-disposition"].endswith(f"Photos.{kind}")
    assert int(answer.headers["content-length"]) == len(answer.body)
    head = dav.raw("HEAD", f"{dav.url(b'Photos')}/?accept={kind}")
    assert head.status == 200 and head.etag == answer.etag and head.body == b""
    assert head.headers["content-length"] == answer.headers["content-length"]
    conditions = {"Range": "bytes=1000-", "If-Range": f'"{answer.etag}"'}
    rest = dav.raw("GET", f"{dav.url(b'Photos')}/?format={kind}", None, conditions)
    assert rest.status == 206 and rest.body == answer.body[1000:]
    beyond = dav.raw("GET", f"{dav.url(b'Photos')}/?format={kind}", None, {"Range": "bytes=99999999-"})
    assert beyond.status == 416
    accept = {"Accept": {"zip": "application/zip", "tar": "application/x-tar"}[kind]}
    assert dav.raw("GET", f"{dav.url(b'Photos')}/", None, accept).body == answer.body
    page = dav.raw("GET", f"{dav.url(b'Photos')}/", None, {"Accept": f"text/html,{accept['Accept']}"})
    assert page.headers["content-type"].startswith("text/html")
    dav.request("PUT", b"Photos/2026/b", b"another")
    again = dav.raw("GET", f"{dav.url(b'Photos')}/?format={kind}", None, conditions)
    assert again.status == 200 and again.etag != answer.etag and read(again.body) == expected(served)
    dav.request("PUT", b"Photos/2026/b", b"b")


def test_a_file_that_changes_ends_it(served, dav):
    path = served.root() / "growing"
    path.mkdir()
    for name in ("a", "b"):
        (path / name).write_bytes(b"x" * 20_000_000)
    with served.wire() as wire:
        wire.send(served.head("GET", "/dav/files/alice/growing/?format=tar"))
        assert wire.socket.recv(1000).startswith(b"HTTP/1.1 200")
        (path / "b").write_bytes(b"y" * 20_000_000)
        got = 0
        try:
            while data := wire.socket.recv(1 << 20):
                got += len(data)
        except ConnectionResetError:
            pass
    assert got < 40_000_000, "what arrives whole must be what was listed"


def test_several_things_at_once(served, dav):
    dav.request("PUT", b"note", b"1")
    folder, note = dav.propfind(b"Photos", depth=0)[0].id, dav.propfind(b"note", depth=0)[0].id
    answer = dav.raw("GET", f"/archiver?id={quote(folder)}&id={quote(note)}&output-format=zip")
    files, folders = unzipped(answer.body)
    wanted = expected(served)
    assert files == {**wanted[0], "note": b"1"} and folders == wanted[1]
    for query, status in (("", 400), ("?id=x", 404), (f"?id={quote(note)}&output-format=rar", 400)):
        assert dav.raw("GET", f"/archiver{query}").status == status
    eve = served.dav("", "eve")
    assert eve.raw("GET", f"/archiver?id={quote(note)}").status == 404


def sign(served, path, *, user="alice", key=None, verb="GET", date=None, expires=1200, host=None):
    """A URL as the web client signs it."""
    if key is None:
        document = json.loads(
            served.dav("", user).raw("GET", "/ocs/v2.php/cloud/user/signing-key?format=json").body
        )
        key = document["ocs"]["data"]["signing-key"]
        assert document["ocs"]["data"]["user"] == user
    moment = quote((date or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.000Z"), safe="")
    mark = "&" if "?" in path else "?"
    path += f"{mark}OC-Credential={user}&OC-Date={moment}&OC-Expires={expires}&OC-Verb={verb}"
    made = signature(f"http://{host or f'127.0.0.1:{served.port}'}{path}", key.encode())
    return f"{path}&OC-Algo=PBKDF2%2F10000-SHA512&OC-Signature={made}", key


def test_signed_addresses(served, dav):
    dav.request("PUT", b"signed", b"secret")
    nobody = served.dav("", "")
    url, key = sign(served, "/dav/files/alice/signed")
    assert nobody.raw("GET", url).body == b"secret" and nobody.raw("HEAD", url).status == 200
    assert nobody.raw("GET", url, None, {"Range": "bytes=2-3"}).body == b"cr"
    zipped, _ = sign(served, "/dav/files/alice/Photos/?format=zip")
    assert unzipped(nobody.raw("GET", zipped).body) == expected(served)
    for method in ("PUT", "DELETE", "PROPFIND"):
        assert nobody.raw(method, url, b"x").status == 401
    old = datetime.now(UTC) - timedelta(hours=1)
    for wrong in (
        url.replace("signed?", "other?"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        sign(served, "/dav/files/alice/signed", date=old)[0],
        sign(served, "/dav/files/alice/signed", verb="DELETE")[0],
        sign(served, "/dav/files/alice/signed", expires=10**9)[0],
        sign(served, "/dav/files/alice/signed", key="guess")[0],
        sign(served, "/dav/files/alice/signed", host="example.org")[0],
        "/dav/files/alice/signed?OC-Signature=00",
        url[:-64] + "%C3%A9" * 64,
        url[:-1] + "%ED%A0%80",
    ):
        assert nobody.raw("GET", wrong).status in (401, 429), wrong
    assert dav.raw("GET", "/dav/files/alice/signed?OC-Signature=00").body == b"secret", (
        "who logs in needs none"
    )


def test_a_signature_gives_no_more_than_its_user_has(served):
    url, key = sign(served, "/dav/files/alice/signed", user="eve")
    assert served.dav("", "").raw("GET", url).status in (404, 429)
    served.registry.accounts.set_password("eve", "another password")
    assert served.dav("", "").raw("GET", url).status in (401, 429)
