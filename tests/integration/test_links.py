"""Public links: what each role gives and what it does not, passwords, expiry, who is behind them, all addresses."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from fsd.core import links
from fsd.core.errors import Forbidden, NameRefused
from fsd.core.grants import Role
from fsd.core.links import LinkRole
from tests.support.davclient import Dav
from tests.unit.dav.served import serving

PAGE = {"Accept": "text/html"}


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as made:
        dav = made.dav(f"/dav/spaces/{made.shared.id}")
        dav.mkcol(b"shown")
        dav.mkcol(b"shown/sub")
        dav.put(b"shown/f.txt", b"seen")
        dav.put(b"shown/sub/g", b"deep")
        dav.put(b"secret", b"not for you")
        yield made


@pytest.fixture
def link(served):
    """link(path, role, …) -> (link, token), made by alice"""

    def make(path=b"shown", role=LinkRole.VIEWER, by="alice", **more):
        creator = served.registry.accounts.get(by)
        return links.create(served.registry.grants, served.space(served.shared), path, creator, role, **more)

    return make


@pytest.fixture
def visit(served):
    """visit(token, password=…, name=…) -> a client without an account"""
    clients = []

    def visit(token, prefix="/dav/public-files/", password="", name=""):
        client = Dav("127.0.0.1", served.port, name, password, f"{prefix}{token}")
        clients.append(client)
        return client

    yield visit
    for client in clients:
        client.close()


@pytest.fixture
def owner(served):
    return served.dav(f"/dav/spaces/{served.shared.id}")


def denied(client, *requests):
    """Each of (method, path, headers) is refused, and none changes anything."""
    for method, path, headers in requests:
        answer = client.request(method, path, b"x" if method == "PUT" else None, headers)
        assert answer.status in (400, 403, 404, 405, 409, 412), (method, path, answer)


@pytest.mark.parametrize(
    "prefix", ["/s/", "/dav/public-files/", "/remote.php/dav/public-files/", "/public.php/dav/files/"]
)
def test_who_may_look_looks_and_changes_nothing(served, link, visit, owner, prefix):
    _, token = link()
    guest = visit(token, prefix)
    before = owner.stat(b"").etag
    assert {entry.path for entry in guest.propfind(b"")} == {b"", b"f.txt", b"sub"}
    assert guest.get(b"f.txt") == b"seen" and guest.get(b"sub/g") == b"deep"
    assert guest.propfind(b"f.txt", depth=0)[0].permissions == ""
    target = {"Destination": f"{prefix}{token}/new"}
    denied(
        guest,
        ("PUT", b"new", {}),
        ("PUT", b"f.txt", {}),
        ("MKCOL", b"new", {}),
        ("DELETE", b"f.txt", {}),
        ("DELETE", b"", {}),
        ("MOVE", b"f.txt", target),
        ("COPY", b"f.txt", target),
        ("LOCK", b"f.txt", {}),
        ("PROPPATCH", b"f.txt", {}),
        ("REPORT", b"", {}),
        ("POST", b"", {"Tus-Resumable": "1.0.0", "Upload-Length": "1"}),
        ("GET", b"../secret", {}),
        ("GET", b"%2e%2e/secret", {}),
    )
    assert owner.stat(b"").etag == before


def test_a_page_for_people_that_shows_nothing_above(link, visit):
    _, token = link()
    page = visit(token, "/s/").request("GET", b"", None, PAGE)
    text = page.body.decode()
    assert page.status == 200 and "f.txt" in text and f"/s/{token}/sub/" in text
    assert "Shared" not in text and 'href="/"' not in text and "secret" not in text
    assert visit(token, "/s/").raw("GET", f"/s/{token}/?format=zip").body[:2] == b"PK"


def test_who_may_edit_stays_below(served, link, visit, owner):
    _, token = link(role=LinkRole.EDITOR)
    guest = visit(token)
    assert guest.request("PUT", b"new", b"1").status == 201 and owner.get(b"shown/new") == b"1"
    assert guest.request("MKCOL", b"d").status == 201
    moved = {"Destination": f"/dav/public-files/{token}/d/moved"}
    assert guest.request("MOVE", b"new", None, moved).status == 201
    assert guest.request("DELETE", b"d/moved").status == 204
    outside = f"/dav/spaces/{served.shared.id}/out"
    for target in (outside, "/dav/files/alice/out", f"/dav/public-files/{token}", "/s/other/out"):
        denied(
            guest, ("MOVE", b"f.txt", {"Destination": target}), ("COPY", b"f.txt", {"Destination": target})
        )
    denied(
        guest, ("DELETE", b"", {}), ("MOVE", b"", moved), ("LOCK", b"f.txt", {}), ("PROPPATCH", b"f.txt", {})
    )
    assert owner.get(b"shown/f.txt") == b"seen" and owner.request("GET", b"out").status == 404


def test_who_brings_files_sees_none(link, visit, owner):
    _, token = link(role=LinkRole.UPLOADER)
    guest = visit(token)
    assert guest.request("PUT", b"mine", b"1").status == 201 and owner.get(b"shown/mine") == b"1"
    assert [entry.path for entry in guest.propfind(b"")] == [b""]
    for headers in ({}, {"OC-Chunked": "1"}, {"If-Match": "*"}):
        denied(guest, ("PUT", b"mine", headers), ("PUT", b"sub/x", headers))
    denied(
        guest,
        ("GET", b"mine", {}),
        ("GET", b"", {}),
        ("PROPFIND", b"mine", {}),
        ("OPTIONS", b"mine", {}),
        ("OPTIONS", b"sub/x", {}),
        ("DELETE", b"mine", {}),
        ("MKCOL", b"x", {}),
    )
    assert owner.get(b"shown/mine") == b"1"
    chunked = {"OC-Chunked": "1"}
    assert guest.request("PUT", b"big-chunking-1-2-0", b"1", chunked).status == 201
    assert guest.request("PUT", b"big-chunking-1-2-1", b"2", chunked).status == 201
    assert owner.get(b"shown/big") == b"12"


def test_one_file(link, visit, owner):
    _, token = link(b"shown/f.txt")
    guest = visit(token)
    assert guest.get(b"") == guest.get(b"f.txt") == b"seen"
    denied(guest, ("GET", b"g", {}), ("GET", b"f.txt/x", {}), ("PUT", b"", {}))
    _, token = link(b"shown/f.txt", LinkRole.EDITOR)
    assert visit(token).request("PUT", b"f.txt", b"changed").status == 204
    assert owner.get(b"shown/f.txt") == b"changed"
    denied(visit(token), ("DELETE", b"f.txt", {}), ("PUT", b"other", {}))


def test_it_follows_what_it_shows(served, link, visit, owner):
    _, token = link()
    moved = {"Destination": owner.url(b"elsewhere")}
    assert owner.request("MOVE", b"shown", None, moved).status == 201
    assert visit(token).get(b"f.txt") == b"seen"
    assert owner.request("DELETE", b"elsewhere").status == 204
    assert visit(token).request("GET", b"f.txt").status in (404, 503)


def test_passwords(served, link, visit):
    _, token = link(password="open sesame")
    assert visit(token).request("PROPFIND", b"").status == 401
    assert "basic" in visit(token).request("GET", b"f.txt").headers["www-authenticate"].lower()
    guest = visit(token, password="open sesame", name="public")
    assert guest.get(b"f.txt") == b"seen" and guest.get(b"f.txt") == b"seen"
    statuses = [
        visit(token, password=f"guess {number}", name="public").request("GET", b"f.txt").status
        for number in range(12)
    ]
    assert statuses[0] == 401 and statuses[-1] == 429
    assert guest.get(b"f.txt") == b"seen", "who knows it is not kept out"
    assert visit(token, password="alice-secret", name="alice").request("GET", b"f.txt").status == 429


def test_the_token_as_user_name(link, visit):
    _, token = link(password="open sesame")
    guest = visit("", "/public.php/webdav", password="open sesame", name=token)
    assert guest.get(b"f.txt") == b"seen"
    assert {entry.path for entry in guest.propfind(b"")} == {b"", b"f.txt", b"sub"}
    assert visit("", "/public.php/webdav").request("PROPFIND", b"").status == 401
    assert visit("", "/public.php/webdav", name="wrong").request("PROPFIND", b"").status == 404


def test_it_ends(served, link, visit):
    registry, grants = served.registry, served.registry.grants
    with pytest.raises(NameRefused):
        link(expires=int(time.time()) - 1)
    made, token = link(expires=int(time.time()) + 1000)
    assert visit(token).get(b"f.txt") == b"seen"
    past = made._replace(expires=int(time.time()) - 1)
    grants.change(served.shared, lambda acl: replace(acl, links=(past,)))
    assert visit(token).request("GET", b"f.txt").status == 404
    made, token = link()
    assert visit(token).get(b"f.txt") == b"seen"
    links.revoke(grants, served.shared, made.id)
    assert visit(token).request("GET", b"f.txt").status == 404
    with pytest.raises(FileNotFoundError):
        links.revoke(grants, served.shared, made.id)
    for wrong in ("", "x", token + "x", token[:-1]):
        assert visit(wrong).request("GET", b"f.txt").status in (401, 404)
    assert registry.grants.verify(served.shared) is None, "the file in the space says the same"


def test_no_more_than_whoever_made_it(served, link, visit):
    registry, grants = served.registry, served.registry.grants
    with pytest.raises(Forbidden):
        link(role=LinkRole.EDITOR, by="bob")
    with pytest.raises(Forbidden):
        link(by="eve")
    bob = registry.accounts.get("bob")
    _, looks = link(by="bob")
    assert visit(looks).get(b"f.txt") == b"seen"
    grants.grant(served.shared, "user", bob.id, "bob", Role.EDITOR)
    _, edits = link(role=LinkRole.EDITOR, by="bob")
    assert visit(edits).request("PUT", b"n", b"1").status == 201
    grants.grant(served.shared, "user", bob.id, "bob", Role.VIEWER)
    assert visit(edits).request("GET", b"n").status == 404 and visit(looks).get(b"n") == b"1"
    registry.accounts.disable("bob")
    assert visit(looks).request("GET", b"n").status == 404
    registry.accounts.enable("bob")
    assert visit(looks).get(b"n") == b"1"
    grants.revoke(served.shared, "user", bob.id)
    assert visit(looks).request("GET", b"n").status == 404
    _, token = link()
    registry.disable(served.shared.id)
    assert visit(token).request("GET", b"f.txt").status == 404


def test_what_can_not_be_shown(served, link):
    with pytest.raises(NameRefused):
        link(b"shown/f.txt", LinkRole.UPLOADER)
    with pytest.raises(FileNotFoundError):
        link(b"none")
    with pytest.raises(NameRefused):
        link(name="a\nb")


def test_from_the_command_line(server):
    server.dav("/dav/files/admin").put(b"f", b"seen")
    made = server.json("link", "create", "admin/f", "--name", "for you", "--expires", "1.5")
    assert made["path"] == "f" and made["role"] == "viewer" and made["address"] == f"/s/{made['token']}"
    guest = Dav("127.0.0.1", server.port, "", "")
    assert guest.raw("GET", made["address"]).body == b"seen"
    protected = server.fsd("link", "create", "admin", "--password-stdin", stdin="open sesame\n").split()[-1]
    assert guest.raw("GET", protected).status == 401
    (first, second) = server.json("link", "list", "admin")
    assert (first["id"], first["name"], second["password"]) == (made["id"], "for you", True)
    assert made["token"] not in server.fsd("link", "list")
    server.fsd("link", "revoke", made["id"])
    assert guest.raw("GET", made["address"]).status == 404
    assert server.run("link", "revoke", made["id"]).returncode == 1
    assert server.run("link", "create", "admin/none").returncode == 1
    token = server.fsd("link", "create", "admin", "--role", "editor").split("/s/")[-1].strip()
    assert guest.raw("MOVE", f"/s/{token}/f", None, {"Destination": f"/s/{token}/g"}).status == 201
    said = (server.state / "audit.log").read_text()
    assert token not in said and '"event": "MOVE"' in said
    assert f'"actor": "link {made["id"]}"' in said and '"link create"' in said and made["token"] not in said
    assert server.run("check").returncode == 0
