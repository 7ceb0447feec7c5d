"""Logging in with a form: the cookie, what it is good for and what not, when it ends."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from itsdangerous import URLSafeTimedSerializer

from dav.auth import session
from tests.unit.dav.served import PASSWORDS, Served, serving

FORM = "Content-Type: application/x-www-form-urlencoded"
HTML = "Accept: text/html"


@pytest.fixture(params=["fsd", "stock"])
def served(tmp_path, request):
    with serving(tmp_path, http_loop=request.param) as made:
        yield made


def log_in(served: Served, user="alice", password=None, onward="/", *lines):
    form = {
        "user": user,
        "password": PASSWORDS.get(user, "") if password is None else password,
        "next": onward,
    }
    return served.ask("POST", "/login", FORM, HTML, *lines, body=urlencode(form).encode(), user=None)


def cookie(answer) -> str:
    return "Cookie: other=1; " + answer.headers["set-cookie"].partition(";")[0]


def test_the_form_and_a_session(served: Served):
    served.dav().put(b"f.txt", b"text")
    refused = served.ask("GET", "/", HTML, user=None)
    assert (
        refused.status == 401 and "www-authenticate" in refused.headers and b'href="/login"' in refused.body
    )
    form = served.ask("GET", "/login?next=/dav/files/alice/", HTML, user=None)
    assert (
        form.status == 200 and b'name="password"' in form.body and b'value="/dav/files/alice/"' in form.body
    )
    assert "form-action 'self'" in form.headers["content-security-policy"]
    entered = log_in(served, onward="/dav/files/alice/?x=1")
    assert (entered.status, entered.headers["location"]) == (303, "/dav/files/alice/?x=1")
    told = entered.headers["set-cookie"]
    assert "HttpOnly" in told and "SameSite=Lax" in told and "Path=/" in told and "Secure" not in told
    mine = cookie(entered)
    page = served.ask("GET", "/dav/files/alice/", HTML, mine, user=None)
    assert page.status == 200 and b"f.txt" in page.body and b'action="/logout"' in page.body
    file = served.ask("GET", "/dav/files/alice/f.txt", mine, user=None)
    assert (
        file.body == b"text"
        and "private" in file.headers["cache-control"]
        and file.headers["vary"] == "Cookie"
    )
    assert b"/logout" not in served.ask("GET", "/", HTML).body, "who logged in with the dialog can't log out"
    left = served.ask("POST", "/logout", mine, user=None)
    assert left.status == 303 and "Max-Age=0" in left.headers["set-cookie"]


def test_it_changes_nothing_and_counts_less_than_credentials(served: Served):
    mine = cookie(log_in(served))
    for method in (
        "PUT",
        "DELETE",
        "MKCOL",
        "PROPFIND",
        "POST",
        "PROPPATCH",
        "MOVE",
        "COPY",
        "LOCK",
        "OPTIONS",
    ):
        answer = served.ask(
            method, "/dav/files/alice/new", mine, body=b"x" if method == "PUT" else b"", user=None
        )
        assert answer.status == 401, method
    assert served.ask("GET", "/dav/files/alice/", HTML, mine, user="bob").status == 404


def test_wrong_passwords_and_other_forms(served: Served):
    for user, password in (("alice", "wrong"), ("nobody", "x"), ("", ""), ("a:b", "c"), ('"><b>', "x")):
        answer = log_in(served, user, password)
        assert answer.status in (403, 429) and "set-cookie" not in answer.headers and b"<main" in answer.body
        assert "www-authenticate" not in answer.headers and b'"><b>' not in answer.body
    body = b"user=alice&password=x"
    assert served.ask("POST", "/login", body=body, user=None).status == 415
    assert served.ask("POST", "/login", FORM, body=b"x=" + b"y" * 9000, user=None).status == 413
    assert served.ask("POST", "/login", FORM, body="user=\xfc".encode("latin-1"), user=None).status == 400
    for line in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"):
        assert log_in(served, "alice", None, "/", line).status == 403
        assert served.ask("POST", "/logout", line, user=None).status == 403
    assert served.ask("GET", "/logout", user=None).status == 405
    assert served.ask("PUT", "/login", body=b"x", user=None).status == 405


@pytest.mark.parametrize(
    "onward", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:x", "/a\r\nb"]
)
def test_the_way_on_leads_nowhere_else(served: Served, onward: str):
    assert log_in(served, onward=onward).headers["location"] == "/"


def test_it_ends(served: Served, monkeypatch: pytest.MonkeyPatch):
    mine = cookie(log_in(served))
    path = "/dav/files/alice/"
    assert served.ask("GET", path, mine, user=None).status == 200
    served.registry.accounts.disable("alice")
    assert served.ask("GET", path, mine, user=None).status == 401
    served.registry.accounts.enable("alice")
    assert served.ask("GET", path, mine, user=None).status == 401, "what a lock ended stays ended"
    mine = cookie(log_in(served))
    served.registry.accounts.set_password("alice", "another one")
    ended = served.ask("GET", path + "?a=b&c", HTML, mine, user=None)
    assert (ended.status, ended.headers["location"]) == (303, "/login?next=/dav/files/alice/%3Fa%3Db%26c")
    mine = cookie(log_in(served, "alice", "another one"))
    monkeypatch.setattr(session, "LONGEST_S", -1)
    assert served.ask("GET", path, mine, user=None).status == 401


def test_over_tls_browsers_keep_it_for_this_host_alone():
    (_, told) = session.Sessions.end({"wsgi.url_scheme": "https"})
    assert told.startswith("__Host-fsd-session=;") and "; Secure" in told and "; Path=/;" in told


def test_nobody_else_can_make_one(served: Served):
    entered = log_in(served)
    name, _, value = entered.headers["set-cookie"].partition(";")[0].partition("=")
    alice = served.registry.accounts.get("alice")
    forged = URLSafeTimedSerializer(b"guess", salt=b"session of the pages").dumps(
        ["alice", alice.id, alice.epoch]
    )
    for wrong in (value[:-1], value + "x", value.upper(), "", "a.b.c", forged, "\xff" * 20, "x" * 5000):
        assert served.ask("GET", "/", f"Cookie: {name}={wrong}", user=None).status == 401, wrong
    assert re.fullmatch(r"[\w.-]+", value), "nothing that needs quoting"
