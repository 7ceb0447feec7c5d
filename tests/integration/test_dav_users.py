"""Who may do what: credentials, roles, strangers, proxies, pages, and the audit line."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time

import pytest

from fsd.core import passwords
from fsd.core.grants import Role
from fsd.core.tokens import Tokens
from tests.support.waiting import wait_for
from tests.unit.dav.served import PASSWORDS, Served, basic, serving


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as made:
        yield made


def status(client, method, path, body=None, **headers):
    return client.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}).status


def count_hashes(monkeypatch) -> list[int]:
    calls: list[int] = []
    real = passwords.matches

    def counting(encoded: str, password: str) -> bool:
        calls.append(1)
        return real(encoded, password)

    monkeypatch.setattr(passwords, "matches", counting)
    return calls


# -- credentials


def test_a_challenge_without_credentials(served):
    for method, path in (
        ("PROPFIND", "/remote.php/webdav/"),
        ("GET", "/"),
        ("OPTIONS", "/dav/"),
        ("GET", "/x"),
    ):
        answer = served.ask(method, path, user=None)
        assert answer.status == 401 and answer.headers["www-authenticate"].startswith('Basic realm="')
    for header in ("Basic", "Basic !!", "Basic YQ==", "Bearer x", "Basic " + "QQ" * 5000):
        assert served.ask("GET", "/", f"Authorization: {header}", user=None).status in (400, 401)


def test_a_request_does_not_hash(served, monkeypatch):
    calls = count_hashes(monkeypatch)
    client = served.dav()
    for _ in range(20):
        assert client.request("PROPFIND", b"", None, {"Depth": "0"}).status == 207
    assert len(calls) == 1


def test_a_first_burst_hashes_once(served, monkeypatch):
    calls = count_hashes(monkeypatch)
    found: list[int] = []
    clients = [served.dav() for _ in range(40)]
    threads = [
        threading.Thread(target=lambda c=c: found.append(c.request("OPTIONS", b"").status)) for c in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 40 and len(calls) == 1


def test_a_changed_password_counts_at_once(served):
    client = served.dav()
    assert client.request("OPTIONS", b"").status == 200
    served.registry.accounts.set_password("alice", "another")
    assert client.request("OPTIONS", b"").status == 401
    assert served.dav(password="another").request("OPTIONS", b"").status == 200


def test_a_disabled_account_is_out_at_once(served):
    client = served.dav("/dav/home", "eve")
    assert client.request("OPTIONS", b"").status == 200
    served.registry.accounts.disable("eve")
    assert client.request("OPTIONS", b"").status == 401


def test_failures_are_slowed_without_hashing(served, monkeypatch):
    good = served.dav()
    assert good.request("OPTIONS", b"").status == 200
    calls = count_hashes(monkeypatch)
    seen = [served.dav(user="alice", password=f"guess{n}").request("OPTIONS", b"") for n in range(12)]
    assert [answer.status for answer in seen[:5]] == [401] * 5
    assert seen[-1].status == 429 and int(seen[-1].headers["retry-after"]) >= 1
    assert len(calls) < 12
    assert good.request("OPTIONS", b"").status == 200, "who is logged in stays in"


def test_unknown_users_cost_the_same_hash(served, monkeypatch):
    calls = count_hashes(monkeypatch)
    assert served.dav(user="nobody", password="x").request("OPTIONS", b"").status == 401
    assert len(calls) == 1


def test_the_same_wrong_credentials_are_hashed_once(served, monkeypatch):
    calls = count_hashes(monkeypatch)
    for _ in range(4):
        assert served.dav(password="wrong").request("OPTIONS", b"").status == 401
    assert len(calls) == 1


def test_a_burst_of_guesses_is_bounded(served, monkeypatch):
    calls = count_hashes(monkeypatch)
    found: list[int] = []

    def guess(number: int) -> None:
        found.append(served.dav(user="bob", password=f"guess{number}").request("OPTIONS", b"").status)

    threads = [threading.Thread(target=guess, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {401, 429, 503} and len(calls) <= 8


# -- roles


def test_a_viewer_reads_and_cannot_write(served):
    prefix = f"/dav/spaces/{served.shared.id}"
    alice, bob = served.dav(prefix), served.dav(prefix, "bob")
    alice.put(b"f", b"content")
    alice.mkcol(b"d")
    assert bob.get(b"f") == b"content"
    assert [entry.permissions for entry in bob.propfind(b"")] == ["", "", ""]
    assert {entry.path: entry.permissions for entry in served.dav("/dav/home", "bob").propfind(b"")[1:]} == {
        b"bob": "RCK",
        b"Shared": "",
    }
    before = alice.propfind(b"")
    patch = b'<d:propertyupdate xmlns:d="DAV:"><d:set><d:prop><x/></d:prop></d:set></d:propertyupdate>'
    lock = (
        b'<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/>'
        b"</d:locktype></d:lockinfo>"
    )
    for method, path, body in (
        ("PUT", b"f", b"x"),
        ("PUT", b"new", b"x"),
        ("MKCOL", b"new", None),
        ("DELETE", b"f", None),
        ("PROPPATCH", b"f", patch),
        ("LOCK", b"f", lock),
    ):
        assert status(bob, method, path, body) == 403, method
    assert status(bob, "MOVE", b"f", Destination=bob.url(b"g")) == 403
    assert status(bob, "COPY", b"f", Destination=bob.url(b"g")) == 403
    assert status(bob, "COPY", b"f", Destination="/dav/files/bob/mine") == 201
    assert status(bob, "MOVE", b"f", Destination="/dav/files/bob/mine2") == 403
    assert alice.propfind(b"") == before


def test_a_stranger_sees_nothing(served):
    prefix = f"/dav/spaces/{served.shared.id}"
    alice, eve = served.dav(prefix), served.dav(prefix, "eve")
    alice.put(b"f", b"content")
    ident = alice.stat(b"f").id
    for method in ("GET", "HEAD", "PROPFIND", "OPTIONS", "DELETE", "MKCOL", "PROPPATCH", "LOCK", "UNLOCK"):
        assert status(eve, method, b"f") == 404, method
        assert status(served.dav(f"/dav/spaces/{ident}", "eve"), method, b"") == 404
    assert status(eve, "PUT", b"f", b"x") == 404
    assert status(eve, "GET", b"not there") == 404
    for path in ("/dav/files/alice/", "/remote.php/dav/files/alice/f"):
        assert served.dav(path, "eve").raw("PROPFIND", path, None, {"Depth": "0"}).status == 404
    for path in ("/dav/home", "/dav/spaces", "/"):
        listed = served.dav("", "eve").raw("PROPFIND", path, None, {"Depth": "1"})
        assert (
            listed.status == 207
            and served.shared.id.encode() not in listed.body
            and b"Shared" not in listed.body
        )
    mine = served.dav("/dav/files/eve", "eve")
    mine.put(b"x", b"x")
    assert status(mine, "MOVE", b"x", Destination=f"{prefix}/x") == 409
    assert status(mine, "PUT", b"x", b"y", If=f"<{prefix}/f> (Not <a>)") == 204


def test_a_grant_and_its_end_count_at_once(served):
    eve = served.registry.accounts.get("eve")
    client = served.dav(f"/dav/spaces/{served.shared.id}", "eve")
    assert status(client, "PUT", b"f", b"1") == 404
    served.registry.grants.grant(served.shared, "user", eve.id, eve.name, Role.EDITOR)
    assert status(client, "PUT", b"f", b"1") == 201
    served.registry.grants.revoke(served.shared, "user", eve.id)
    assert status(client, "GET", b"f") == 404


def test_a_read_only_space(served, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "f").write_bytes(b"1")
    alice = served.registry.accounts.get("alice")
    record = served.registry.adopt(os.fsencode(tmp_path / "docs"), "Docs", managers=[alice], read_only=True)
    client = served.dav(f"/dav/spaces/{record.id}")
    assert client.get(b"f") == b"1"
    assert status(client, "PUT", b"f", b"2") == 403 and status(client, "DELETE", b"f") == 403
    assert {entry.permissions for entry in client.propfind(b"")} == {""}


def test_missing_storage_is_503_never_404(served):
    prefix = f"/dav/spaces/{served.shared.id}"
    client = served.dav(prefix)
    client.put(b"f", b"1")
    above = [(alias, served.dav(alias).propfind(b"")) for alias in ("/dav/home", "/dav/spaces")]
    path = served.shared.path.decode()
    os.rename(path, path + ".away")
    try:
        # The proof of the root holds for a moment.
        wait_for(lambda: status(client, "GET", b"f") == 503, what="an unavailable space")
        for method, target in (
            ("GET", b"f"),
            ("PROPFIND", b""),
            ("PROPFIND", b"f"),
            ("DELETE", b"f"),
            ("HEAD", b"nothing"),
        ):
            answer = client.request(method, target)
            assert answer.status == 503 and answer.headers["retry-after"], method
        assert status(client, "PUT", b"f", b"2") == 503
        os.mkdir(path)
        assert client.request("PROPFIND", b"f").status == 503, "an empty mount point is not the space"
        os.rmdir(path)
        home = served.dav("/dav/home").raw("PROPFIND", "/dav/home", None, {"Depth": "1"})
        assert home.status == 207 and b"Shared" in home.body, "the space stays in sight"
        for alias, listed in above:
            assert served.dav(alias).propfind(b"") == listed, (
                "as it was last known, the sums above it as well"
            )
        assert served.ask("GET", "/").status == 200
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.rename(path + ".away", path)
    assert client.get(b"f") == b"1"


@pytest.mark.parametrize("above", ["/dav/home", "/dav/files", "/dav", ""])
def test_nothing_is_made_beside_the_spaces(served, above):
    """Who has all spaces as a network drive may try: the answer is no, not that something is missing."""
    client = served.dav("/dav/files/alice")
    client.put(b"mine", b"1")
    for method, body in (("PUT", b"x"), ("MKCOL", None), ("LOCK", None)):
        answer = served.dav(above).raw(method, f"{above}/new", body, {})
        assert answer.status == 403 and b"inside a space" in answer.body, method
        assert served.dav(above).raw(method, f"{above}/new/below", body, {}).status == 404
    for method in ("COPY", "MOVE"):
        answer = client.request(method, b"mine", None, {"Destination": f"{above}/new"})
        assert answer.status == 403 and b"inside a space" in answer.body, method
    assert client.get(b"mine") == b"1"
    assert served.dav(above).raw("PROPFIND", f"{above}/new", None, {"Depth": "0"}).status == 404


def test_a_restored_space_shows_from_above(served):
    """Who syncs all spaces at once has to ask before newer files are deleted as well."""
    body = (
        b'<d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop><d:resourcetype/><d:getetag/><oc:id/>'
        b"<oc:fileid/><oc:data-fingerprint/></d:prop></d:propfind>"
    )

    def fingerprints(alias: str, depth: int = 1) -> dict[str, str]:
        found = served.dav(alias).propfind(b"", depth, body)
        return {each.href: each.properties["{http://owncloud.org/ns}data-fingerprint"] for each in found}

    assert set(fingerprints("/dav/home").values()) == {""}
    with served.registry.open(served.shared.id).state.write() as db:
        db.execute("UPDATE ident SET fingerprint = 'restored'")
    told = fingerprints("/dav/home")
    assert told["/dav/home/Shared/"] == "restored" and told["/dav/home/"] not in ("", "restored")
    assert fingerprints("/dav/home", 0) == {"/dav/home/": told["/dav/home/"]}
    assert [value for href, value in told.items() if href not in ("/dav/home/Shared/", "/dav/home/")] == [""]
    assert fingerprints("/dav/spaces")[f"/dav/spaces/{served.shared.id}/"] == "restored"


def test_a_disabled_space_is_gone(served):
    client = served.dav(f"/dav/spaces/{served.shared.id}")
    client.put(b"f", b"1")
    with served.registry.installation.write() as db:
        db.execute("UPDATE spaces SET state = 'disabled' WHERE id = ?", (served.shared.id,))
    assert status(client, "GET", b"f") == 404


def test_quota(served):
    client = served.dav(f"/dav/spaces/{served.shared.id}")
    served.registry.grants.set_quota(served.shared, 1000)
    body = b'<d:propfind xmlns:d="DAV:"><d:prop><d:quota-used-bytes/><d:quota-available-bytes/></d:prop></d:propfind>'
    client.put(b"f", b"x" * 600)
    answer = client.request("PROPFIND", b"", body, {"Depth": "0"}).body
    assert b"<d:quota-used-bytes>600<" in answer and b"<d:quota-available-bytes>400<" in answer
    assert status(client, "PUT", b"g", b"x" * 500) == 507
    with served.wire() as wire:
        wire.send(served.head("PUT", client.url(b"h"), "Content-Length: 5000", "Expect: 100-continue"))
        assert wire.answer().status == 507, "early, before the bytes are sent"
    assert status(client, "PUT", b"f", b"x" * 900) == 204
    assert status(client, "COPY", b"f", Destination=client.url(b"copy")) == 507


# -- proxies


def test_forwarded_headers_count_from_trusted_proxies_only(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fsd.audit")
    lines = ["X-Forwarded-For: 9.9.9.9", "X-Forwarded-Host: public.example", "X-Forwarded-Proto: https"]
    with serving(tmp_path / "a") as plain:
        answer = plain.ask("GET", "/dav/files/alice/", *lines)
        assert "strict-transport-security" not in answer.headers
        assert _addresses(caplog) == {"127.0.0.1"}
    caplog.clear()
    with serving(tmp_path / "b", http_trusted_proxies=("127.0.0.0/8",)) as proxied:
        answer = proxied.ask("GET", "/dav/files/alice/", *lines)
        assert "strict-transport-security" in answer.headers
        assert _addresses(caplog) == {"9.9.9.9"}
        proxied.dav().put(b"f", b"1")
        moved = proxied.ask(
            "MOVE", "/dav/files/alice/f", *lines, "Destination: https://public.example/dav/files/alice/g"
        )
        assert moved.status == 201


def test_the_largest_upload_is_a_setting(tmp_path):
    with serving(tmp_path, http_max_body=10) as limited:
        client = limited.dav()
        assert status(client, "PUT", b"f", b"x" * 10) == 201
        assert status(client, "PUT", b"f", b"x" * 11) == 413
        with limited.wire() as wire:
            wire.send(
                limited.head("PUT", client.url(b"f"), "Transfer-Encoding: chunked") + b"b\r\n" + b"x" * 11
            )
            assert wire.answer().status == 413
        assert client.get(b"f") == b"x" * 10


def test_the_public_url_names_this_server(tmp_path):
    with serving(tmp_path, http_public_url="https://files.example/") as served:
        served.dav().put(b"f", b"1")
        client = served.dav()
        assert status(client, "MOVE", b"f", Destination="https://files.example/dav/files/alice/g") == 201
        assert status(client, "MOVE", b"g", Destination="https://other.example/dav/files/alice/h") == 502


def _addresses(caplog) -> set[str]:
    return {record.fields["address"] for record in caplog.records if record.name == "fsd.audit"}


def test_audit_lines(served, caplog):
    caplog.set_level(logging.INFO, "fsd.audit")
    client = served.dav()
    client.put(b"f", b"1")
    status(client, "DELETE", b"gone")
    served.dav(password="wrong").request("GET", b"f")
    seen = [(record.getMessage(), record.fields) for record in caplog.records if record.name == "fsd.audit"]
    (put, put_fields), (delete, delete_fields), (login, login_fields) = seen
    assert (put, delete, login) == ("PUT", "DELETE", "login")
    assert put_fields["actor"] == "alice" and put_fields["target"] == "/f" and put_fields["status"] == 201
    assert put_fields["space"] == served.personal().id and put_fields["address"] == "127.0.0.1"
    assert (delete_fields["outcome"], delete_fields["status"]) == ("refused", 404)
    assert login_fields["outcome"] == "refused" and login_fields["actor"] == "alice"


def test_request_ids(served):
    assert served.ask("GET", "/", "X-Request-ID: abc-1").headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{16}", served.ask("GET", "/", "X-Request-ID: a b").headers["x-request-id"])


# -- pages


def links(body: bytes) -> list[str]:
    return [text.replace("&amp;", "&") for text in re.findall(r'<a href="([^"]*)"', body.decode())]


def test_pages(served: Served):
    client = served.dav()
    client.mkcol(b"<i>dir & more")
    client.put(b"<i>dir & more/f.txt", b"text")
    home = served.ask("GET", "/")
    assert home.status == 200 and home.headers["content-type"] == "text/html; charset=utf-8"
    policy = home.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe-eval" not in policy
    assert home.headers["x-frame-options"] == "DENY" and home.headers["x-content-type-options"] == "nosniff"
    assert b'<html lang="en">' in home.body and b"<main" in home.body and b"<script" not in home.body
    space = next(link for link in links(home.body) if served.personal().id in link)
    folder = served.ask("GET", space)
    assert b"&lt;i&gt;dir &amp; more" in folder.body and b"<i>dir" not in folder.body
    inner = served.ask("GET", next(link for link in links(folder.body) if "dir" in link))
    assert b'aria-label="Path"' in inner.body
    file = next(link for link in links(inner.body) if link.endswith("f.txt"))
    assert served.ask("GET", file).body == b"text"
    assert space.rstrip("/") in [link.rstrip("/") for link in links(inner.body)]


def test_a_page_links_to_this_server_alone(served: Served):
    dav = served.dav()
    dav.mkcol(b"slashes")
    dav.put(b"slashes/f", b"")
    page = served.ask("GET", "//dav/files/alice/slashes/", "Accept: text/html")
    assert page.status == 200 and b'href="/dav/files/alice/slashes/f"' in page.body
    assert b'href="//' not in page.body


def test_pages_show_only_what_is_mine(served):
    assert b"Shared" in served.ask("GET", "/", user="bob").body
    assert b"Shared" not in served.ask("GET", "/", user="eve").body
    assert served.ask("GET", f"/dav/spaces/{served.shared.id}/", user="eve").status == 404


def test_errors_for_people(served):
    for path in ("/no/such/page", "/dav/files/alice/%2e%2e/%2e%2e/etc/passwd", "/dav/files/alice/nothing"):
        answer = served.ask("GET", path, "Accept: text/html")
        assert answer.status in (400, 404) and b"<main" in answer.body and b"<d:error" not in answer.body
    login = served.ask("GET", "/", "Accept: text/html", user=None)
    assert login.status == 401 and "www-authenticate" in login.headers and b"<main" in login.body
    assert b"<d:error" in served.ask("GET", "/no/such/page").body


def test_passwords_are_not_in_the_log(served, caplog):
    caplog.set_level(logging.DEBUG)
    served.dav().request("OPTIONS", b"")
    served.dav(password="wrong-secret").request("OPTIONS", b"")
    text = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert PASSWORDS["alice"] not in text and "wrong-secret" not in text


def test_app_tokens_as_passwords_and_as_bearers(tmp_path):
    with serving(tmp_path) as served:
        tokens = Tokens(served.registry.accounts)
        _, text = tokens.create("alice", "laptop")
        served.dav().put(b"f", b"hers")
        path = "/dav/files/alice/f"

        def status(value, where=path):
            return served.ask("GET", where, f"Authorization: {value}", user=None).status

        good = (basic("alice", text), basic("ALICE", text), f"Bearer {text}", f"bearer  {text}")
        for _ in range(2):
            assert [status(value) for value in good] == [200] * 4
        assert status(basic("bob", text)) == 401, "another user's name with her token"
        assert status(f"Bearer {text}", f"/dav/spaces/{served.personal('bob').id}/") == 404
        assert status(f"Bearer {text[:-1]}") == 401 and status("Bearer") == 401 and status("Digest x") == 401
        tokens.revoke("alice", "laptop")
        assert {status(value) for value in good} <= {401, 429}


def test_guessed_bearers_are_slowed_by_address(tmp_path):
    with serving(tmp_path) as served:
        found = [
            served.ask("GET", "/", f"Authorization: Bearer fsd_{number}", user=None).status
            for number in range(30)
        ]
        assert found[0] == 401 and 429 in found


def test_a_cached_token_ends_with_its_expiry(tmp_path):
    with serving(tmp_path) as served:
        _, text = Tokens(served.registry.accounts).create("alice", "short", int(time.time()) + 2)

        def status():
            return served.ask("GET", "/dav/files/alice/", f"Authorization: Bearer {text}", user=None).status

        assert status() == 200
        wait_for(lambda: status() == 401, what="the end of the token")
