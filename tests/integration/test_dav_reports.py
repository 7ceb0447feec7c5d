"""REPORT: sync-collection, favourites, tags, search; against a plain listing as the truth."""

from __future__ import annotations

import os
import random
import re
import shutil
from urllib.parse import unquote

import pytest

from fsd.core import journal
from tests.unit.dav.served import serving

NS = 'xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("reports")) as made:
        yield made


@pytest.fixture
def here(served, request):
    """(client, directory on disk) of the test's own; the space is known whole."""
    name = re.sub(r"\W", "", request.node.name)
    served.dav().mkcol(name.encode())
    with served.space(served.personal()).index.write() as db:
        db.execute("UPDATE head SET complete=1")
    return served.dav(f"/dav/files/alice/{name}"), served.root() / name


def sync(dav, token="", level="infinite", path=b"", limit=None, status=207):
    """(name below the prefix to etag or None if gone, new token, whether there is more)."""
    most = f"<d:limit><d:nresults>{limit}</d:nresults></d:limit>" if limit else ""
    body = (
        f"<d:sync-collection {NS}><d:sync-token>{token}</d:sync-token><d:sync-level>{level}</d:sync-level>{most}"
        "<d:prop><d:getetag/></d:prop></d:sync-collection>"
    )
    answer = dav.raw("REPORT", dav.url(path), body.encode(), {"Depth": "0"})
    assert answer.status == status, answer
    text = answer.body.decode()
    if status != 207:
        return text
    found, more = {}, False
    for part in re.findall("<d:response>(.*?)</d:response>", text, re.S):
        name = unquote(re.search("<d:href>([^<]*)</d:href>", part)[1]).removeprefix(dav.prefix + "/")
        if "507 Insufficient" in part:
            more = True
        elif "404 Not Found" in part:
            found[name] = None
        else:
            found[name] = re.search("<d:getetag>&?[^<]*?([0-9a-f]{32})", part)[1]
    return found, re.search("<d:sync-token>([^<]*)</d:sync-token>", text)[1], more


def truth(dav, path=b""):
    """The same names and etags by listing every collection."""
    found = {}
    _, *entries = dav.propfind(path)
    for entry in entries:
        slash = "/" if entry.is_dir else ""
        found[entry.path.decode() + slash] = entry.etag
        if entry.is_dir:
            found |= truth(dav, entry.path)
    return found


def merge(held, news):
    """A client's picture after some news: what has gone takes along what was below it."""
    for name, etag in news.items():
        bare = name.rstrip("/")
        if etag is None or (name not in held and any(old.rstrip("/") == bare for old in held)):
            for old in [old for old in held if old.rstrip("/") == bare or old.startswith(bare + "/")]:
                del held[old]
        if etag is not None:
            held[name] = etag


def test_a_client_that_follows_sees_what_is_there(served, here):
    dav, disk = here
    for name in ("a/b/c", "d", "e/f"):
        (disk / name).mkdir(parents=True)
    (disk / "a/b/c/deep").write_bytes(b"1")
    truth(dav)
    held, token, more = sync(dav)
    assert held == truth(dav) and not more
    assert sync(dav, token) == ({}, token, False)
    rng = random.Random(5)
    for step in range(120):
        folders = [disk, *(path for path in disk.rglob("*") if path.is_dir())]
        things = list(disk.rglob("*"))
        where, what = rng.choice(folders), rng.choice(things) if things else disk
        relative = str(what.relative_to(disk)).encode()
        target = rng.choice(folders) / f"n{rng.randrange(20)}"
        inside = str(target).startswith(str(what))
        match rng.randrange(7):
            case 0:
                (where / f"n{rng.randrange(20)}x").write_bytes(os.urandom(5))
            case 1:
                dav.request(
                    "PUT", str(where.relative_to(disk) / f"p{rng.randrange(20)}").encode(), os.urandom(4)
                )
            case 2:
                dav.request("DELETE", relative)
            case 3 if not inside and not target.exists():
                what.rename(target)
            case 4 if not inside:
                place = f"{dav.prefix}/{target.relative_to(disk)}"
                dav.request("MOVE", relative, None, {"Destination": place})
            case 5 if not inside and what.is_dir() and not target.exists():
                shutil.copytree(what, target)
            case 6:
                (where / f"k{step}/l").mkdir(parents=True)
        if step % 6 == 5:
            expected = truth(dav)  # looking makes known what was done on disk
            news, token, _ = sync(dav, token)
            merge(held, news)
            etags = {name: etag for name, etag in held.items() if not name.endswith("/")}
            assert set(held) == set(expected), f"step {step}"
            assert etags == {name: etag for name, etag in expected.items() if not name.endswith("/")}


def test_members_alone(here):
    dav, disk = here
    for name in ("one", "two"):
        (disk / name / "below").mkdir(parents=True)
    truth(dav)
    held, token, _ = sync(dav, level="1")
    assert set(held) == {"one/", "two/"}
    dav.request("PUT", b"one/below/f", b"x")
    dav.request("PUT", b"three", b"y")
    news, token, _ = sync(dav, token, "1")
    assert news == {
        "one/": dav.propfind(b"one", depth=0)[0].etag,
        "three": dav.propfind(b"three", depth=0)[0].etag,
    }
    dav.request("DELETE", b"two")
    assert sync(dav, token, "1")[0] == {"two/": None}


def test_in_portions(here):
    dav, _ = here
    _, token, _ = sync(dav)
    for index in range(7):
        dav.request("PUT", b"f%d" % index, b"x")
    seen = {}
    for _ in range(10):
        news, token, more = sync(dav, token, limit=3)
        assert len(news) <= 3
        seen |= news
        if not more:
            break
    assert set(seen) == {f"f{index}" for index in range(7)}
    assert "number-of-matches-within-limits" in sync(dav, limit=2, level="1", status=507)


def test_tokens_that_do_not_hold(served, here):
    dav, disk = here
    (disk / "sub").mkdir()
    _, token, _ = sync(dav)
    head, _, number = token.rpartition(":")
    for wrong in (
        "rubbish",
        f"{head}:{int(number) + 10**9}",
        f"{head}:1",
        f"{head[:-1]}{'1' if head[-1] == '0' else '0'}:{number}",
        f"{head}:x",
    ):
        assert "<d:valid-sync-token/>" in sync(dav, wrong, status=403), wrong
    _, inner, _ = sync(dav, path=b"sub")
    dav.delete(b"sub")
    dav.mkcol(b"sub")
    assert "<d:valid-sync-token/>" in sync(dav, inner, path=b"sub", status=403)
    space = served.space(served.personal())
    _, token, _ = sync(dav)
    dav.request("PUT", b"f", b"x")
    with space.index.write() as db:
        journal.set_floor(db, journal.last(space))
    assert "<d:valid-sync-token/>" in sync(dav, token, status=403)
    for body, status in (
        (b"<d:version-tree xmlns:d='DAV:'/>", 403),
        (b"<d:sync-collection xmlns:d='DAV:'><d:sync-level>2</d:sync-level></d:sync-collection>", 400),
        (b"no xml", 400),
    ):
        assert dav.raw("REPORT", dav.url(b""), body, {"Depth": "0"}).status == status
    assert dav.raw("REPORT", dav.url(b"f"), b"<d:sync-collection xmlns:d='DAV:'/>", {}).status == 403


def test_tokens_hold_over_restarts(make_server):
    server = make_server(workers=1)
    dav = server.space_dav(server.space("admin"))
    dav.request("PUT", b"before", b"x")
    _, token, _ = sync(dav)
    server.stop()
    server.start()
    dav.request("PUT", b"after", b"y")
    assert set(sync(dav, token)[0]) == {"after"}
    ask = f"<d:propfind {NS}><d:prop><d:sync-token/><d:supported-report-set/></d:prop></d:propfind>".encode()
    text = dav.request("PROPFIND", b"", ask, {"Depth": "0"}).body.decode()
    token = re.search("<d:sync-token>([^<]*)</d:sync-token>", text)[1]
    assert "<d:report><d:sync-collection/></d:report>" in text
    server.kill()
    server.start()
    dav.request("PUT", b"later", b"z")
    assert set(sync(dav, token)[0]) == {"later"}


def report(dav, body, path=b""):
    """The hrefs of an answer, below the prefix, sorted."""
    answer = dav.raw(
        "REPORT", dav.url(path), f"<oc:{body}".replace(" X", f" {NS}", 1).encode(), {"Depth": "1"}
    )
    assert answer.status == 207, answer
    found = re.findall("<d:href>([^<]*)</d:href>", answer.body.decode())
    return sorted(unquote(each).removeprefix(dav.prefix + "/") for each in found)


FAVORITES = (
    "filter-files X><d:prop><d:getetag/></d:prop><oc:filter-rules><oc:favorite>1</oc:favorite></oc:filter-rules>"
    "</oc:filter-files>"
)


def patch(prop):
    """A PROPPATCH that sets a property."""
    return f"<d:propertyupdate {NS}><d:set><d:prop>{prop}</d:prop></d:set></d:propertyupdate>".encode()


def like(dav, path, value):
    answer = dav.request("PROPPATCH", path, patch(f"<oc:favorite>{value}</oc:favorite>"))
    assert answer.status == 207 and b"200 OK" in answer.body, answer


def liked(dav, path):
    ask = f"<d:propfind {NS}><d:prop><oc:favorite/></d:prop></d:propfind>".encode()
    return re.search(
        "<oc:favorite>(.)</oc:favorite>", dav.request("PROPFIND", path, ask, {"Depth": "0"}).body.decode()
    )[1]


def test_favourites_are_each_users_own(served):
    alice = served.dav(f"/dav/spaces/{served.shared.id}")
    bob = served.dav(f"/dav/spaces/{served.shared.id}", "bob")
    alice.mkcol(b"d")
    for name in (b"d/one", b"d/two", b"three"):
        alice.request("PUT", name, b"x")
    etag = alice.propfind(b"d/one", depth=0)[0].etag
    like(alice, b"d/one", 1)
    like(bob, b"d/two", 1)
    like(bob, b"d", 1)
    assert liked(alice, b"d/one") == "1" and liked(bob, b"d/one") == "0"
    assert report(alice, FAVORITES) == ["d/one"] and report(bob, FAVORITES) == ["d/", "d/two"]
    assert report(bob, FAVORITES, b"d/two") == ["d/two"]
    assert alice.propfind(b"d/one", depth=0)[0].etag == etag
    alice.move(b"d/one", b"moved")
    assert report(alice, FAVORITES) == ["moved"]
    assert b"urn:fsd" not in alice.request("PROPFIND", b"moved", b"", {"Depth": "0"}).body
    like(alice, b"moved", 0)
    assert report(alice, FAVORITES) == [] and liked(alice, b"moved") == "0"
    root = served.dav("/dav/spaces", "bob")
    assert report(root, FAVORITES) == [f"{served.shared.id}/d/", f"{served.shared.id}/d/two"]
    eve = served.dav("/dav/spaces", "eve")
    assert report(eve, FAVORITES) == []
    forged = patch('<x:y xmlns:x="urn:fsd:favorite">1</x:y>')
    assert b"403" in alice.request("PROPPATCH", b"three", forged).body
    assert bob.request("PROPPATCH", b"three", patch("<x xmlns='y'>1</x>")).status == 403


def test_tags(here):
    dav, _ = here
    for name, tags in ((b"one", "red,new"), (b"two", "red"), (b"three", "")):
        dav.request("PUT", name, b"x")
        assert dav.request("PROPPATCH", name, patch(f"<oc:tags>{tags}</oc:tags>")).status == 207
    rules = "filter-files X><oc:filter-rules>{}</oc:filter-rules></oc:filter-files>"
    assert report(dav, rules.format("<oc:tag>red</oc:tag>")) == ["one", "two"]
    assert report(dav, rules.format("<oc:tag>red</oc:tag><oc:tag>new</oc:tag>")) == ["one"]
    assert report(
        dav,
        'search-files X><oc:search><oc:pattern>tag:red name:"*w*"</oc:pattern></oc:search></oc:search-files>',
    ) == ["two"]


def search(dav, pattern, more=""):
    asked = f"<oc:search><oc:pattern>{pattern}</oc:pattern>{more}</oc:search>"
    return report(dav, f"search-files X>{asked}</oc:search-files>")


def test_search_by_name(served, here):
    dav, disk = here
    (disk / "Sub").mkdir()
    for name in ("Report.txt", "Sub/my report.pdf", "Sub/ÜBER uns", "100%_x", "other"):
        (disk / name).write_bytes(b"x")
        dav.propfind(name.rpartition("/")[0].encode())
    assert search(dav, "report") == ["Report.txt", "Sub/my report.pdf"]
    assert search(dav, 'name:"*report*"') == ["Report.txt", "Sub/my report.pdf"]
    assert search(dav, "report*") == ["Report.txt"]
    assert search(dav, "über") == ["Sub/ÜBER uns"]
    assert search(dav, "%_") == ["100%_x"] and search(dav, "nothing like it") == []
    assert len(search(dav, "r", "<oc:limit>1</oc:limit>")) == 1
    assert search(served.dav("/remote.php/dav/spaces", "eve"), "report") == []
    for wrong in ("", "size:3", "a OR b"):
        body = (
            f"<oc:search-files {NS}><oc:search><oc:pattern>{wrong}</oc:pattern></oc:search></oc:search-files>"
        )
        assert dav.raw("REPORT", dav.url(b""), body.encode(), {}).status == 400
