"""The Graph API below a drive: items, their children, addresses for downloads, tags; it says what PROPFIND says."""

from __future__ import annotations

import json
from urllib.parse import quote, urlsplit

import pytest

from tests.support.davclient import Dav
from tests.unit.dav.served import serving

LOCK = b"""<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/></d:locktype>
</d:lockinfo>"""
TAGS = "/graph/v1.0/extensions/org.libregraph/tags"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("graph")) as made:
        dav = made.dav(f"/dav/spaces/{made.shared.id}")
        dav.mkcol(b"d")
        dav.mkcol("d/ü +%".encode())
        dav.put("d/ü +%/f.txt".encode(), b"12345")
        dav.put(b"d/empty", b"")
        yield made


@pytest.fixture
def ask(served):
    """ask(path, user=…, method=…, body=…) -> (status, JSON or None)"""

    def ask(path, user="alice", method="GET", body=None):
        data = None if body is None else json.dumps(body).encode()
        answer = served.dav(user=user).raw(method, path, data, None)
        return answer.status, json.loads(answer.body) if answer.body else None

    return ask


def drive(served, rest=""):
    return f"/graph/v1.0/drives/{served.shared.id}{rest}"


def test_drives_one_by_one(served, ask):
    _, listed = ask("/graph/v1.0/me/drives")
    for found in listed["value"]:
        status, alone = ask(f"/graph/v1.0/drives/{quote(found['id'])}")
        # How much room the disk has changes by itself.
        assert status == 200 and {**alone, "quota": None} == {**found, "quota": None}
    (personal,) = [found for found in listed["value"] if found["driveType"] == "personal"]
    assert ask("/graph/v1.0/me/drive")[1]["id"] == personal["id"]
    assert ask(drive(served), user="eve")[0] == ask("/graph/v1.0/drives/none")[0] == 404


def test_items_are_what_propfind_says(served, ask):
    dav = served.dav(f"/dav/spaces/{served.shared.id}")
    entries = {entry.path: entry for entry in dav.propfind(b"d")}
    status, root = ask(drive(served, "/root"))
    assert status == 200 and root["root"] == {} and root["id"] == served.shared.id
    assert root["eTag"] == ask(drive(served))[1]["root"]["eTag"]
    _, children = ask(drive(served, "/root/children"))
    (folder,) = children["value"]
    assert folder["parentReference"]["id"] == root["id"] and "file" not in folder and folder["folder"] == {}
    assert (folder["id"], folder["eTag"]) == (entries[b"d"].id, f'"{entries[b"d"].etag}"')
    assert folder["size"] == 5
    _, below = ask(drive(served, f"/items/{quote(folder['id'])}/children"))
    assert {item["name"]: item["id"] for item in below["value"]} == {
        "empty": entries[b"d/empty"].id,
        "ü +%": entries["d/ü +%".encode()].id,
    }
    (again,) = [item for item in below["value"] if item["name"] == "empty"]
    assert again["file"]["mimeType"] == "application/octet-stream"
    assert again["parentReference"] == {
        "driveId": served.shared.id,
        "driveType": "project",
        "id": folder["id"],
        "name": "d",
        "path": "/d",
    }
    bare = folder["id"].partition("!")[2]
    assert ask(drive(served, f"/items/{bare}")) == ask(drive(served, f"/items/{folder['id']}"))
    assert ask(drive(served, f"/items/{served.shared.id}"))[1]["id"] == root["id"]


def test_a_file_has_an_address_that_needs_no_login(served, ask):
    dav = served.dav(f"/dav/spaces/{served.shared.id}")
    (entry,) = dav.propfind("d/ü +%/f.txt".encode(), depth=0)
    status, item = ask(drive(served, f"/items/{entry.id}"))
    assert status == 200 and item["file"]["mimeType"] == "text/plain" and item["size"] == 5
    assert item["lastModifiedDateTime"].endswith("Z") and item["name"] == "f.txt"
    assert dav.raw("GET", urlsplit(item["webDavUrl"]).path).body == b"12345"
    stranger = Dav(dav.host, dav.port, "", "")
    url = urlsplit(item["@microsoft.graph.downloadUrl"])
    target = f"{url.path}?{url.query}"
    assert stranger.raw("GET", target).body == b"12345"
    assert stranger.raw("DELETE", target).status == 401
    assert stranger.raw("GET", target.replace("f.txt", "g.txt")).status == 401
    assert stranger.raw("GET", target.replace("3600", "360000")).status == 401


def test_what_is_not_there(served, ask):
    _, personal = ask("/graph/v1.0/me/drive/root/children")
    assert personal["value"] == []
    (entry,) = served.dav(f"/dav/spaces/{served.shared.id}").propfind(b"d/empty", depth=0)
    assert ask(f"/graph/v1.0/me/drive/items/{entry.id}")[0] == 404, "of another space"
    for rest, expected in (
        ("/items/x", 404),
        ("/items/..", 400),
        ("/items/%2e%2e", 400),
        ("/children", 404),
        (f"/items/{entry.id}/children", 400),
        ("/nothing", 404),
    ):
        status, said = ask(drive(served, rest))
        assert status == expected and said["error"]["message"], rest
    assert ask(drive(served, f"/items/{entry.id}"), user="eve")[0] == 404
    assert ask(drive(served, f"/items/{entry.id}"), user="bob")[0] == 200
    assert ask(drive(served, f"/items/{entry.id}"), method="DELETE")[0] == 405
    stranger = Dav("127.0.0.1", served.port, "", "").raw("GET", drive(served, "/root"))
    assert stranger.status == 401 and json.loads(stranger.body)["error"]["code"] == "unauthenticated"


def test_tags(served, ask):
    dav = served.dav(f"/dav/spaces/{served.shared.id}")
    (entry,) = dav.propfind(b"d/empty", depth=0)
    assert ask(TAGS) == (200, {"value": []})
    body = {"resourceId": entry.id, "tags": ["red", "blue & green"]}
    assert ask(TAGS, method="PUT", body=body)[0] == 200
    assert ask(TAGS, method="PUT", body={**body, "tags": ["red"]})[0] == 200
    assert ask(TAGS)[1]["value"] == ["blue & green", "red"] == ask(TAGS, user="bob")[1]["value"]
    assert ask(TAGS, user="eve")[1]["value"] == []
    find = b"""<d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop><oc:tags/></d:prop></d:propfind>"""
    assert b">red,blue &amp; green<" in dav.request("PROPFIND", b"d/empty", find, {"Depth": "0"}).body
    assert ask(TAGS, method="PUT", body=body, user="bob")[0] == 403
    assert ask(TAGS, method="PUT", body=body, user="eve")[0] == 404
    lock = dav.request("LOCK", b"d/empty", LOCK)
    assert ask(TAGS, method="DELETE", body=body)[0] == 423
    dav.request("UNLOCK", b"d/empty", None, {"Lock-Token": lock.headers["lock-token"]})
    assert ask(TAGS, method="DELETE", body=body)[0] == 200
    assert ask(TAGS) == (200, {"value": []})


@pytest.mark.parametrize(
    "body", [None, [], {}, {"resourceId": 1, "tags": ["x"]}, {"resourceId": "x", "tags": []}, {"tags": ["x"]}]
)
def test_tags_that_are_not_understood(ask, body):
    assert ask(TAGS, method="PUT", body=body)[0] == 400


def test_tags_in_a_body_that_is_deep(served):
    answer = served.ask("PUT", TAGS, body=b"[" * 200_000)
    assert answer.status == 400, answer.body


def test_tags_that_can_not_be(served, ask):
    (entry,) = served.dav(f"/dav/spaces/{served.shared.id}").propfind(b"d/empty", depth=0)
    for tags in (["a,b"], [" "], ["x" * 101], [1]):
        assert ask(TAGS, method="PUT", body={"resourceId": entry.id, "tags": tags})[0] == 400
    assert ask(TAGS) == (200, {"value": []})
