"""Versions over WebDAV: list, read, restore, delete; who may."""

from __future__ import annotations

import pytest

from tests.support.davclient import parse_multistatus
from tests.unit.dav.served import serving

ASK = b"""<d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop><d:resourcetype/><d:getcontentlength/>
<d:getetag/><d:getlastmodified/><oc:id/><oc:fileid/><oc:size/><oc:permissions/><oc:meta-path-for-user/></d:prop>
</d:propfind>"""


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as made:
        client = made.dav()
        client.mkcol(b"d")
        for content, mtime in (
            (b"first", "1400000000"),
            (b"the second", "1500000000"),
            (b"third", "1600000000"),
        ):
            client.request("PUT", b"d/f.txt", content, {"X-OC-Mtime": mtime})
        yield made


@pytest.fixture
def dav(served):
    return served.dav()


@pytest.fixture
def meta(dav, served):
    (found,) = dav.propfind(b"d/f.txt", depth=0)
    return served.dav(f"/dav/meta/{found.id}")


def listed(meta, path="/v"):
    answer = meta.raw("PROPFIND", meta.prefix + path, ASK, {"Depth": "1"})
    assert answer.status == 207, answer
    return parse_multistatus(answer.body, meta.prefix)


def test_list_and_read(meta):
    own, *found = listed(meta)
    assert own.is_dir and [(each.length, each.mtime) for each in found] == [
        (10, 1_500_000_000),
        (5, 1_400_000_000),
    ]
    answer = meta.request("GET", found[0].path)
    assert answer.status == 200 and answer.body == b"the second" and answer.etag == found[0].etag
    assert answer.headers["content-type"].startswith("text/plain")
    part = meta.request("GET", found[0].path, None, {"Range": "bytes=4-"})
    assert part.status == 206 and part.body == b"second"
    head = meta.request("HEAD", found[0].path)
    assert head.status == 200 and head.body == b"" and head.headers["content-length"] == "10"


def test_restore_keeps_the_id_and_makes_a_version(dav, meta):
    (before,) = dav.propfind(b"d/f.txt", depth=0)
    (root,) = dav.propfind(b"", depth=0)
    oldest = listed(meta)[-1]
    onto = {"Destination": dav.url(b"d/f.txt")}
    assert meta.request("COPY", oldest.path, None, onto).status == 204
    (after,) = dav.propfind(b"d/f.txt", depth=0)
    assert dav.get(b"d/f.txt") == b"first" and after.id == before.id and after.etag != before.etag
    assert dav.propfind(b"", depth=0)[0].etag != root.etag
    assert [each.length for each in listed(meta)[1:]] == [5, 10, 5]
    assert meta.request("COPY", oldest.path, None, {"Destination": dav.url(b"other")}).status == 403
    assert meta.request("COPY", oldest.path).status == 400
    assert meta.request("COPY", b"v/123", None, onto).status == 404


def test_a_lock_and_a_condition_are_in_the_way(dav, meta):
    oldest = listed(meta)[-1]
    onto = {"Destination": dav.url(b"d/f.txt")}
    assert meta.request("COPY", oldest.path, None, {**onto, "If-Match": f'"{"0" * 32}"'}).status == 412
    body = b'<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/>'
    assert dav.request("LOCK", b"d/f.txt", body + b"</d:locktype></d:lockinfo>").status == 200
    assert meta.request("COPY", oldest.path, None, onto).status == 423
    assert dav.get(b"d/f.txt") == b"third"


def test_delete_one(meta):
    newest, oldest = listed(meta)[1:]
    assert meta.request("DELETE", newest.path).status == 204
    assert [each.path for each in listed(meta)[1:]] == [oldest.path]
    assert (
        meta.request("DELETE", newest.path).status == 404 and meta.request("GET", newest.path).status == 404
    )


def test_the_path_of_an_id(meta):
    (found,) = [each for each in listed(meta, "") if each.path == b""]
    assert found.properties["{http://owncloud.org/ns}meta-path-for-user"] == "/d/f.txt"


def test_who_may(served, dav, meta):
    key = listed(meta)[-1].path
    eve = served.dav(meta.prefix, "eve")
    assert (
        eve.raw("PROPFIND", f"{meta.prefix}/v", ASK).status == 404 and eve.request("GET", key).status == 404
    )
    shared = served.dav(f"/dav/spaces/{served.shared.id}")
    shared.put(b"f", b"one")
    shared.put(b"f", b"two")
    ident = shared.propfind(b"f", depth=0)[0].id
    bob = served.dav(f"/remote.php/dav/meta/{ident}", "bob")
    (_, version) = listed(bob)
    assert bob.request("GET", version.path).body == b"one", "who may read the file may read its versions"
    assert bob.request("DELETE", version.path).status == 403
    assert bob.request("COPY", version.path, None, {"Destination": shared.url(b"f")}).status == 403


@pytest.mark.parametrize("path", ["/v/x/y", "/w", "/v/..%2f", "/v/%2e%2e"])
def test_nothing_else_is_there(meta, path):
    assert meta.raw("GET", meta.prefix + path).status in (400, 404, 405)
    assert meta.raw("PROPFIND", f"/dav/meta/{'0' * 8}$x!y/v", ASK).status == 404
    assert meta.raw("PUT", f"{meta.prefix}/v/1", b"1").status == 405
    assert meta.raw("OPTIONS", meta.prefix).status == 200
