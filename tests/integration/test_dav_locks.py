"""Locks: one table for all aliases, never left behind, and PROPPATCH beside them."""

from __future__ import annotations

import itertools
import os
from urllib.parse import unquote

import pytest
from lxml import etree

from dav.webdav import locks as lock_module
from tests.unit.dav.served import Served, serving, tokens

D = "{DAV:}"
WITH_A = b'<d:propfind xmlns:d="DAV:"><d:prop><a xmlns="u:"/></d:prop></d:propfind>'
INFO = (
    b'<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:%s/></d:lockscope><d:locktype><d:write/></d:locktype>'
    b"<d:owner><d:href>mailto:a&amp;b</d:href></d:owner></d:lockinfo>"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("locks")) as made:
        yield made


@pytest.fixture
def dav(served, request):
    name = request.node.name.encode().replace(b"/", b"_")[:100]
    client = served.dav()
    client.mkcol(name)
    return served.dav(client.url(name))


def lock(client, path, scope=b"exclusive", **headers):
    given = {k.replace("_", "-"): v for k, v in headers.items()}
    return client.request("LOCK", path, INFO % scope, {"Timeout": "Second-3600", **given})


def status(client, method, path, body=None, **headers):
    return client.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}).status


def aliases(served: Served, dav) -> list[str]:
    space, below = served.personal().id, dav.prefix.removeprefix("/dav/files/alice")
    return [
        f"/dav/spaces/{space}{below}",
        f"/dav/spaces/{space.replace('$', '%24')}{below}",
        f"/remote.php/dav/spaces/{space}{below}",
        f"/remote.php/webdav{below}",
        f"/webdav{below}",
        f"/remote.php/dav/files/alice{below}",
        f"/dav/home/alice{below}",
        f"/dav/spaces/{dav.stat(b'').id}",
    ]


def test_a_lock_holds_under_every_alias(served, dav):
    dav.put(b"f", b"1")
    for prefix in aliases(served, dav):
        other = served.dav(prefix)
        granted = lock(other, b"f")
        assert granted.status == 200, prefix
        token = tokens(granted)
        root = etree.fromstring(granted.body).findtext(f".//{D}lockroot/{D}href")
        assert root == f"{prefix}/f"
        assert status(dav, "PUT", b"f", b"2") == 423
        assert status(dav, "DELETE", b"f") == 423
        assert status(dav, "MOVE", b"f", Destination=dav.url(b"g")) == 423
        assert lock(dav, b"f").status == 423
        assert status(dav, "PUT", b"f", b"2", If=f"(<{token}>)") == 204
        assert status(dav, "UNLOCK", b"f", Lock_Token=f"<{token}>") == 204
        assert status(dav, "PUT", b"f", b"3") == 204


@pytest.mark.parametrize("name", ["a$b!c@d", "with space", "ünï", "q?h#%25"])
def test_locks_under_odd_names(dav, name):
    path = name.encode()
    for target in (path, path + b".new"):
        if target == path:
            dav.put(path, b"1")
        granted = lock(dav, target)
        assert granted.status in (200, 201)
        assert etree.fromstring(granted.body).findtext(f".//{D}lockroot/{D}href") == dav.url(target).replace(
            "%24", "$"
        ).replace("%21", "!").replace("%40", "@")
        assert status(dav, "PUT", target, b"2") == 423
        assert status(dav, "PUT", target, b"2", If=f"<{dav.url(target)}> (<{tokens(granted)}>)") == 204
        assert status(dav, "UNLOCK", target, Lock_Token=f"<{tokens(granted)}>") == 204


def test_locks_protect_against_changes_of_the_parent(dav):
    dav.mkcol(b"d")
    dav.put(b"d/f", b"1")
    token = tokens(lock(dav, b"d/f"))
    assert status(dav, "DELETE", b"d") == 423
    assert status(dav, "MOVE", b"d", Destination=dav.url(b"e")) == 423
    dav.mkcol(b"x")
    assert status(dav, "COPY", b"x", Destination=dav.url(b"d")) == 423
    assert status(dav, "DELETE", b"d", If=f"<{dav.url(b'd/f')}> (<{token}>)") == 204
    dav.mkcol(b"d")
    assert status(dav, "PUT", b"d/f", b"new") == 201, "locks do not outlive what was deleted"


def test_a_deep_lock_covers_what_comes_later(dav):
    dav.mkcol(b"d")
    token = tokens(lock(dav, b"d"))
    assert status(dav, "PUT", b"d/new", b"x") == 423
    assert status(dav, "MKCOL", b"d/new") == 423
    assert lock(dav, b"d/new").status == 423
    assert status(dav, "PUT", b"d/new", b"x", If=f"<{dav.url(b'd')}> (<{token}>)") == 201
    seen = dav.request("PROPFIND", b"d/new", None, {"Depth": "0"})
    assert token.encode() in seen.body


def test_shallow_and_shared_locks(dav):
    dav.mkcol(b"d")
    dav.put(b"d/f", b"1")
    token = tokens(lock(dav, b"d", Depth="0"))
    assert status(dav, "PUT", b"d/f", b"2") == 204
    assert status(dav, "PUT", b"d/new", b"2") == 423, "a new name changes the locked folder"
    assert status(dav, "PUT", b"d/new", b"2", If=f"<{dav.url(b'd')}> (<{token}>)") == 201
    assert status(dav, "DELETE", b"d/f") == 423
    dav.put(b"s", b"1")
    first, second = lock(dav, b"s", b"shared"), lock(dav, b"s", b"shared")
    assert first.status == second.status == 200
    assert lock(dav, b"s").status == 423
    assert status(dav, "PUT", b"s", b"2") == 423
    assert status(dav, "PUT", b"s", b"2", If=f"(<{tokens(second)}>)") == 204


def test_locking_what_is_not_there_makes_an_empty_file(dav):
    granted = lock(dav, b"new")
    assert granted.status == 201 and dav.get(b"new") == b""
    token = tokens(granted)
    assert status(dav, "PUT", b"new", b"x", If=f"(<{token}>)") == 204
    assert status(dav, "UNLOCK", b"new", Lock_Token=f"<{token}>") == 204
    assert dav.get(b"new") == b"x"
    assert lock(dav, b"no/parent").status == 409
    assert lock(dav, b"a\x01b").status == 400


def test_a_lock_that_fails_is_not_left_behind(served, dav, monkeypatch, allow_log):
    allow_log("request failed")

    def broken(*_args, **_kwargs):
        raise RuntimeError("no reply")

    dav.put(b"f", b"1")
    monkeypatch.setattr(lock_module, "_reply", broken)
    assert lock(dav, b"f").status == 500
    monkeypatch.undo()
    assert status(dav, "PUT", b"f", b"2") == 204
    assert lock(dav, b"no/where").status == 409
    dav.mkcol(b"no")
    assert status(dav, "PUT", b"no/where", b"2") == 201


def test_refresh_and_unlock(served, dav):
    dav.put(b"f", b"1")
    dav.put(b"other", b"1")
    token = tokens(lock(dav, b"f"))
    again = dav.request("LOCK", b"f", None, {"If": f"(<{token}>)", "Timeout": "Second-7200"})
    assert again.status == 200 and b"Second-7200" in again.body and "lock-token" not in again.headers
    assert dav.request("LOCK", b"f", None, {}).status == 400
    assert dav.request("LOCK", b"f", None, {"If": "(<urn:uuid:no>)"}).status == 412
    assert status(dav, "UNLOCK", b"f", Lock_Token="<urn:uuid:no>") == 409
    assert status(dav, "UNLOCK", b"other", Lock_Token=f"<{token}>") == 409
    assert status(dav, "UNLOCK", b"f", Lock_Token=token) == 400
    assert status(dav, "UNLOCK", b"f", Lock_Token=f"<{token}>") == 204


def locked_by(answer, condition):
    """What a 423 says is locked."""
    assert answer.status == 423
    return etree.fromstring(answer.body).findtext(f"{D}{condition}/{D}href")


def test_a_refusal_names_what_is_locked(served, dav):
    dav.mkcol(b"d")
    dav.put(b"d/f & g", b"1")
    lock(dav, b"d/f & g")
    url = dav.url(b"d/f & g").replace("%26", "&")
    assert locked_by(lock(dav, b"d"), "no-conflicting-lock") == url
    assert locked_by(dav.request("DELETE", b"d"), "lock-token-submitted") == url
    assert locked_by(dav.request("PUT", b"d/f & g", b"2"), "lock-token-submitted") == url
    assert locked_by(dav.request("PUT", b"d/f & g", b"2" * 100_000), "lock-token-submitted") == url
    move = {"Destination": dav.url(b"elsewhere")}
    assert locked_by(dav.request("MOVE", b"d", None, move), "lock-token-submitted") == url
    shared = served.dav(f"/dav/spaces/{served.shared.id}")
    lock(shared, b"held")
    copy = {"Destination": shared.url(b"held")}
    assert locked_by(dav.request("COPY", b"d", None, copy), "lock-token-submitted") == shared.url(b"held")


def test_unlock_heeds_conditions(dav):
    etag = dav.put(b"f", b"1").headers["etag"]
    token = f"<{tokens(lock(dav, b'f'))}>"
    for refused in ({"If": '(["x"])'}, {"If": "(<urn:uuid:none>)"}, {"If_Match": '"x"'}):
        assert status(dav, "UNLOCK", b"f", Lock_Token=token, **refused) == 412
    assert status(dav, "UNLOCK", b"f", Lock_Token=token, If=f"({token} [{etag}])") == 204


def test_locks_belong_to_their_user(served):
    carol = served.registry.accounts.get("eve")
    from fsd.core.grants import Role

    served.registry.grants.grant(served.shared, "user", carol.id, carol.name, Role.EDITOR)
    prefix = f"/dav/spaces/{served.shared.id}"
    alice, eve = served.dav(prefix), served.dav(prefix, "eve")
    alice.put(b"f", b"1")
    token = tokens(lock(alice, b"f"))
    assert status(eve, "PUT", b"f", b"2", If=f"(<{token}>)") == 423
    assert status(eve, "UNLOCK", b"f", Lock_Token=f"<{token}>") == 403
    assert eve.request("LOCK", b"f", None, {"If": f"(<{token}>)"}).status == 403
    assert status(alice, "UNLOCK", b"f", Lock_Token=f"<{token}>") == 204


def test_locks_survive_a_restart(served):
    served.dav().put(b"restart", b"1")
    token = tokens(lock(served.dav(), b"restart"))
    served.stop()
    served.start()
    assert status(served.dav(), "PUT", b"restart", b"2") == 423
    assert status(served.dav(), "PUT", b"restart", b"2", If=f"(<{token}>)") == 204


@pytest.mark.parametrize(
    "body",
    [
        b"<a/>",
        b'<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope></d:lockinfo>',
        INFO % b"both",
        b"<",
    ],
)
def test_malformed_locks(dav, body):
    dav.put(b"f", b"")
    assert dav.request("LOCK", b"f", body, {}).status == 400
    assert dav.request("LOCK", b"f", INFO % b"exclusive", {"Depth": "1"}).status == 400
    assert status(dav, "PUT", b"f", b"x") == 204


def test_if_with_other_resources(served, dav):
    dav.put(b"a", b"1")
    etag = dav.put(b"b", b"1").headers["etag"]
    assert status(dav, "PUT", b"a", b"2", If=f"<{dav.url(b'b')}> ([{etag}])") == 204
    assert status(dav, "PUT", b"a", b"2", If=f'<{dav.url(b"b")}> (["x"])') == 412
    assert status(dav, "PUT", b"a", b"2", If="(<urn:uuid:unknown>)") == 412
    assert status(dav, "PUT", b"a", b"2", If="(Not <urn:uuid:unknown>)") == 204
    assert status(dav, "PUT", b"a", b"2", If="junk") == 400
    space = f"/dav/spaces/{served.personal().id}{dav.prefix.removeprefix('/dav/files/alice')}"
    assert status(dav, "PUT", b"a", b"2", If=f"<{space}/b> ([{etag}])") == 204


# -- PROPPATCH


def patch(client, path, *sets, removes=()):
    parts = "".join(f"<d:set><d:prop>{text}</d:prop></d:set>" for text in sets)
    parts += "".join(f"<d:remove><d:prop>{text}</d:prop></d:remove>" for text in removes)
    spaces = 'xmlns:d="DAV:" xmlns:u="u:" xmlns:w="urn:schemas-microsoft-com:"'
    body = f"<d:propertyupdate {spaces}>{parts}</d:propertyupdate>"
    answer = client.request("PROPPATCH", path, body.encode())
    found = {}
    if answer.status == 207:
        for stat in etree.fromstring(answer.body).iter(D + "propstat"):
            for prop in stat.find(D + "prop"):
                found[prop.tag] = stat.findtext(D + "status").split()[1]
    return answer.status, found


def get_property(client, path, name):
    body = f'<d:propfind xmlns:d="DAV:" xmlns:u="u:"><d:prop>{name}</d:prop></d:propfind>'
    return client.request("PROPFIND", path, body.encode(), {"Depth": "0"}).body


def test_dead_properties(dav):
    etag = dav.put(b"f", b"1").etag
    assert patch(dav, b"f", "<u:a x='1'>v<u:b/>&lt;</u:a>", "<u:c/>") == (
        207,
        {"{u:}a": "200", "{u:}c": "200"},
    )
    assert b"v<u:b" in get_property(dav, b"f", "<u:a/>")
    assert dav.stat(b"f").etag == etag, "properties leave a file's etag alone"
    assert patch(dav, b"f", removes=["<u:a/>"])[1] == {"{u:}a": "200"}
    assert b"404" in get_property(dav, b"f", "<u:a/>") and b"404" not in get_property(dav, b"f", "<u:c/>")
    assert patch(dav, b"", "<u:onfolder>x</u:onfolder>")[1] == {"{u:}onfolder": "200"}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        (b"{u:}a", b"just text", "just text"),
        (b"{u:}a", b"<", "<"),
        (b"{u:}a", b'</d:prop></d:propstat></d:response><d:response xmlns:d="DAV:"/>', "</d:prop>"),
        (b"{u:}a", b'<x xmlns="u:">another</x>', "<x"),
        (b"{u:}a", b'<?xml version="1.0"?><!-- --><a xmlns="u:">&lt;</a>', "<"),
        (b"{u:}a", b'<!DOCTYPE a [<!ENTITY e "x">]><a xmlns="u:">&e;</a>', "<!DOCTYPE"),
        (b"{u:}a", b"\xff\x00\x1b[2J", "\ufffd"),
        (b"{u:}a", b"<x:a/>", "<x:a/>"),
        (b"{u:}a><evil", b"x", None),
        (b"\xff", b"x", None),
        (b"{%01}%02", b"x", None),
        (b"", b"x", None),
    ],
    ids=itertools.count(),
)
def test_properties_that_were_written_beside_the_server(served, dav, name, value, shown):
    dav.put(b"f", b"1")
    dav.put(b"g", b"1")
    file = served.root().joinpath(unquote(dav.prefix.rpartition("/")[2]), "f")
    os.setxattr(os.fsencode(file), b"user.fsd.p." + name, value)
    for body in (b"", b'<d:propfind xmlns:d="DAV:"><d:propname/></d:propfind>', WITH_A):
        answer = dav.request("PROPFIND", b"", body, {"Depth": "1"})
        assert answer.status == 207, answer
        responses = etree.fromstring(answer.body).findall(f"{D}response")
        assert [each.findtext(f"{D}href").rpartition("/")[2] for each in responses] == ["", "f", "g"]
        found = responses[1].find(".//{u:}a")
        if body == WITH_A and shown is not None:
            assert shown in found.text
    assert patch(dav, b"f", "<u:b>1</u:b>")[1] == {"{u:}b": "200"}


def test_the_language_of_a_property_stays(dav):
    dav.put(b"f", b"1")
    body = b"""<d:propertyupdate xmlns:d="DAV:" xmlns:u="u:" xml:lang="fr"><d:set><d:prop><u:c>oui</u:c></d:prop>
    <d:prop xml:lang="de"><u:a>ja</u:a><u:b xml:lang="en">yes</u:b></d:prop></d:set></d:propertyupdate>"""
    assert dav.request("PROPPATCH", b"f", body).status == 207
    found = etree.fromstring(get_property(dav, b"f", "<u:a/><u:b/><u:c/>"))
    languages = {e.tag[4:]: e.get("{http://www.w3.org/XML/1998/namespace}lang") for e in found.iter("{u:}*")}
    assert languages == {"a": "de", "b": "en", "c": "fr"}


def test_all_or_nothing(dav):
    dav.put(b"f", b"1")
    code, found = patch(dav, b"f", "<u:a>1</u:a>", "<d:getetag>x</d:getetag>")
    assert (code, found) == (207, {"{u:}a": "424", D + "getetag": "403"})
    assert b"404" in get_property(dav, b"f", "<u:a/>")


@pytest.mark.parametrize(
    ("name", "text", "seconds"),
    [
        ("d:lastmodified", "1234567890", 1234567890),
        ("d:lastmodified", "Fri, 13 Feb 2009 23:31:30 GMT", 1234567890),
        ("d:getlastmodified", "Fri, 13 Feb 2009 23:31:30 GMT", 1234567890),
        ("w:Win32LastModifiedTime", "Fri, 13 Feb 2009 23:31:30 GMT", 1234567890),
    ],
)
def test_modification_times_are_live(dav, name, text, seconds):
    dav.put(b"f", b"1")
    code, found = patch(dav, b"f", f"<{name}>{text}</{name}>")
    assert code == 207 and set(found.values()) == {"200"}
    assert dav.stat(b"f").mtime == seconds
    assert set(patch(dav, b"f", f"<{name}>soon</{name}>")[1].values()) == {"409"}


def test_windows_times_are_accepted(dav):
    dav.put(b"f", b"1")
    code, found = patch(
        dav,
        b"f",
        "<w:Win32CreationTime>x</w:Win32CreationTime>",
        "<w:Win32FileAttributes>0</w:Win32FileAttributes>",
    )
    assert code == 207 and set(found.values()) == {"200"}


def test_malformed_patches(dav):
    dav.put(b"f", b"1")
    for body in (b"", b"<a/>", b'<d:propertyupdate xmlns:d="DAV:"/>', b"<"):
        assert dav.request("PROPPATCH", b"f", body).status == 400
    assert patch(dav, b"missing", "<u:a/>")[0] == 404
    tokens(lock(dav, b"f"))
    assert patch(dav, b"f", "<u:a/>")[0] == 423
