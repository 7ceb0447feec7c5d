"""What clients ask before they sync: who gets which document, and that it says what the other doors say."""

from __future__ import annotations

import json
import shutil

import pytest
from lxml import etree

from tests.support.davclient import Dav
from tests.unit.dav.served import serving


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("discovery")) as made:
        yield made


@pytest.fixture
def ask(served):
    """ask(path, login=…, method=…) -> (status, headers, JSON or None)"""
    client = served.dav()
    stranger = Dav(client.host, client.port, "", "")

    def ask(path, *, login=True, method="GET", **headers):
        answer = (client if login else stranger).raw(method, path, None, headers)
        kind = answer.headers.get("content-type", "")
        return answer, json.loads(answer.body) if answer.body and "json" in kind else None

    return ask


def personal(document):
    (drive,) = [found for found in document["value"] if found["driveType"] == "personal"]
    return drive


def test_status_needs_no_login(ask):
    answer, document = ask("/status.php", login=False)
    assert answer.status == 200
    assert document["installed"] is True and document["maintenance"] is False
    assert int(document["version"].split(".")[0]) >= 10 and document["productversion"]


@pytest.mark.parametrize("path", ["/status.php", "/ocs/v1.php/config", "/graph/v1.0/me"])
def test_documents_are_only_read(ask, path):
    assert ask(path, method="PUT")[0].status == 405
    answer, _ = ask(path, method="HEAD")
    assert answer.status == 200 and answer.body == b"" and int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "path",
    [
        "/ocs/v1.php/cloud/capabilities",
        "/ocs/v2.php/cloud/user",
        "/graph/v1.0/me/drives",
        "/ocs/x",
        "/graph/",
    ],
)
def test_the_rest_needs_a_login(ask, path):
    answer, _ = ask(path, login=False)
    assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic ")


def test_the_two_versions_of_ocs(ask):
    for version, code in ((1, 100), (2, 200)):
        _, document = ask(f"/ocs/v{version}.php/cloud/capabilities?format=json")
        assert document["ocs"]["meta"] == {"status": "ok", "statuscode": code, "message": "OK"}
    answer, document = ask("/ocs/v1.php/nothing?format=json")
    assert answer.status == 200 and document["ocs"]["meta"]["statuscode"] == 998
    answer, document = ask("/ocs/v2.php/nothing?format=json")
    assert answer.status == 404 and document["ocs"]["meta"]["statuscode"] == 404


def test_ocs_without_a_format_is_xml(ask):
    answer, _ = ask("/ocs/v1.php/cloud/user")
    assert answer.headers["content-type"] == "application/xml; charset=utf-8"
    root = etree.fromstring(answer.body)
    assert root.findtext("meta/statuscode") == "100" and root.findtext("data/id") == "alice"


def test_nothing_is_advertised_that_is_not_there(ask):
    _, document = ask("/ocs/v2.php/cloud/capabilities?format=json")
    found = document["ocs"]["data"]["capabilities"]
    assert found["files_sharing"]["api_enabled"] is False
    assert not found["files"]["privateLinks"]
    for name in found["checksums"]["supportedTypes"]:
        answer, _ = ask("/dav/files/alice/sum", method="PUT", **{"OC-Checksum": f"{name}:00"})
        assert answer.status == 400 and b"checksum" in answer.body.lower()


@pytest.mark.parametrize(
    ("agent", "tus"),
    [
        ("Mozilla/5.0 (Linux) mirall/2.11.0 (build 8300)", False),
        ("Mozilla/5.0 (Linux) mirall/5.3.1 (ownCloud)", True),
        ("OpenCloud-android/1.0", True),
        ("", True),
    ],
)
def test_each_client_is_offered_the_uploads_it_does_well(ask, agent, tus):
    _, document = ask("/ocs/v2.php/cloud/capabilities?format=json", **{"User-Agent": agent})
    found = document["ocs"]["data"]["capabilities"]
    assert found["dav"]["chunking"] == "1.0" and ("tus_support" in found["files"]) is tus


def test_who_am_i(ask):
    _, ocs = ask("/ocs/v2.php/cloud/user?format=json")
    _, me = ask("/graph/v1.0/me")
    data = ocs["ocs"]["data"]
    assert data["id"] == me["onPremisesSamAccountName"] == "alice"
    assert data["display-name"] == data["displayname"] == me["displayName"]
    assert data["quota"]["total"] == data["quota"]["free"] + data["quota"]["used"]


def test_who_i_am_by_my_name_and_nobody_else(ask):
    _, mine = ask("/ocs/v1.php/cloud/user?format=json")
    _, named = ask("/ocs/v1.php/cloud/users/alice?format=json")
    assert named["ocs"]["meta"]["statuscode"] == 100
    assert named["ocs"]["data"]["id"] == mine["ocs"]["data"]["id"] == "alice"
    for other in ("bob", "nobody", "alice/groups", ""):
        assert ask(f"/ocs/v2.php/cloud/users/{other}?format=json")[0].status == 404


def test_a_drive_says_what_propfind_of_its_root_says(ask, served):
    client = served.dav()
    client.put(b"in a drive", b"12345")
    _, document = ask("/graph/v1.0/me/drives")
    drive = personal(document)
    (root,) = client.at(f"/dav/spaces/{drive['id']}").propfind(b"", depth=0)
    assert drive["root"]["eTag"] == f'"{root.etag}"'
    assert drive["root"]["webDavUrl"] == f"http://127.0.0.1:{client.port}/dav/spaces/{drive['id']}"
    assert drive["quota"]["used"] == root.size
    before = drive["root"]["eTag"]
    client.put(b"in a drive", b"54321")
    assert personal(ask("/graph/v1.0/me/drives")[1])["root"]["eTag"] != before


def test_a_drive_whose_storage_is_away_stays_in_the_list(ask, served):
    client = served.dav()
    client.put(b"kept", b"k")
    before = personal(ask("/graph/v1.0/me/drives")[1])
    root = served.root("alice")
    shutil.move(root, f"{root}.away")
    try:
        drive = personal(ask("/graph/v1.0/me/drives")[1])
    finally:
        shutil.move(f"{root}.away", root)
    assert drive["id"] == before["id"] and drive["root"]["eTag"] == before["root"]["eTag"]


def test_that_nobody_answers_in_the_servers_place(ask):
    answer, _ = ask("/index.php/204", login=False)
    assert answer.status == 204 and answer.body == b""


def test_well_known_addresses(ask):
    answer, document = ask("/.well-known/webfinger?resource=https%3A%2F%2Fhost", login=False)
    assert answer.status == 200 and document["subject"] == "https://host"
    assert ask("/.well-known/webfinger", login=False)[0].status == 400
    assert ask("/.well-known/webdav", login=False)[0].headers["location"].endswith("/remote.php/dav/")
    # Clients that find no OpenID Connect ask for a password.
    assert ask("/.well-known/openid-configuration", login=False)[0].status == 404
