"""The parts of a remote mount that need neither a mount nor a server."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from fsd.cli.mount_remote import size
from fsd.core.errors import UserError
from fsd.mount.remote import credentials, multistatus
from fsd.mount.remote.contents import BLOCK, Contents
from fsd.mount.remote.errors import Refused
from fsd.mount.remote.ledger import Ledger, Row
from fsd.mount.remote.listening import Parser
from fsd.mount.remote.multistatus import Found
from fsd.mount.remote.nodes import Tree
from fsd.mount.remote.pending import conflict_name

NOON = 1_700_000_000.0


def test_names_of_conflict_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert conflict_name(b"a.tar.gz", "ann", NOON).startswith(b"a.tar (conflicted copy ann 2023-11-1")
    assert conflict_name(b"a.tar.gz", "ann", NOON).endswith(b").gz")
    assert b"copy 2023" in conflict_name(b"README", "", NOON)
    assert conflict_name(b".profile", "ann", NOON).startswith(b".profile (conflicted")
    long = conflict_name("ä".encode() * 127, "a/b", NOON)
    assert len(long) <= 255 and b"/" not in long and long.decode()


def test_events_in_any_pieces() -> None:
    told = (
        b'retry: 3000\n: hello\n\nid: 1\r\nevent: change\r\ndata: {"kind":\r\ndata: "many"}\r\n\r\n'
        b'data: no json\n\ndata: [1]\n\ndata: {"a": 1}\n\ndata: {"cut'
    )
    for step in (1, 7, len(told)):
        parser = Parser()
        found = [event for at in range(0, len(told), step) for event in parser.feed(told[at : at + step])]
        assert found == [{"kind": "many"}, {"a": 1}]


def _read(document: bytes, step: int = 40) -> list[Found]:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(document), step):
            yield document[at : at + step]

    return trio.run(multistatus.read, chunks())


_ONE = (
    b"<d:response><d:href>/dav/a%20b%2f%ff</d:href><d:propstat><d:prop><d:resourcetype/>"
    b'<d:getcontentlength>5</d:getcontentlength><d:getetag>"e"</d:getetag><oc:id>s!n</oc:id>'
    b"<d:getlastmodified>Sat, 21 Nov 2026 10:40:10 GMT</d:getlastmodified><oc:permissions>RDNVW</oc:permissions>"
    b"</d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat><d:propstat><d:prop><oc:id>wrong</oc:id></d:prop>"
    b"<d:status>HTTP/1.1 404 Not Found</d:status></d:propstat></d:response>"
)
_DOCUMENT = (
    b'<?xml version="1.0"?><d:multistatus xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns">%s</d:multistatus>'
)


def test_a_listing_is_whole_or_an_error() -> None:
    whole = _DOCUMENT % (_ONE * 50)
    found = _read(whole)
    assert len(found) == 50 and set(found) == {Found(b"a b/\xff", False, 5, 1795257610, "e", "s!n", "RDNVW")}
    for cut in (whole[:-1], whole[: len(whole) // 2], _DOCUMENT % b"", b"", b"<html>no</html>"):
        with pytest.raises(Refused):
            _read(cut)


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    bomb = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'.encode()
    told = bomb + (_DOCUMENT % _ONE.replace(b"s!n", b"&x;"))[21:]
    try:
        found = _read(told)
    except Refused:
        return
    assert "secret" not in found[0].id


def test_sizes() -> None:
    assert size("10G") == 10 << 30 and size("1.5 MiB") == 3 << 19 and size("5000000") == 5_000_000
    for wrong in ("", "-1G", "10X", "1K", "ten"):
        with pytest.raises(argparse.ArgumentTypeError):
            size(wrong)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(credentials.VARIABLE, "fsd_secret")
    assert credentials.find("https://host", "", None, save=True) == "Bearer fsd_secret"
    monkeypatch.delenv(credentials.VARIABLE)
    (saved,) = (tmp_path / "fsd/remote").iterdir()
    assert saved.stat().st_mode & 0o777 == 0o600
    assert credentials.find("https://host", "", None, save=False) == "Bearer fsd_secret"
    saved.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        credentials.find("https://host", "", None, save=False)


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    return Contents(tmp_path, Ledger(tmp_path), 10 * BLOCK)


def _fetch(contents: Contents, ident: str, blocks: int) -> None:
    content = contents.cached(ident, "e", blocks * BLOCK)
    fd = contents.open(content)
    for block in content.missing(0, blocks * BLOCK):
        os.pwrite(fd, b"x" * BLOCK, block * BLOCK)
        contents.got(content, block)
    contents.close(content)


def test_the_least_recently_used_goes_first(contents: Contents) -> None:
    for ident in "abc":
        _fetch(contents, ident, 3)
    _fetch(contents, "a", 3)
    held = contents.cached("b", "e", 3 * BLOCK)
    contents.open(held)
    _fetch(contents, "d", 3)
    assert contents.bytes <= 10 * BLOCK
    assert contents.is_here("b", "e") and contents.is_here("d", "e") and not contents.is_here("c", "e")
    contents.close(held)


def test_what_is_cached_is_known_to_the_next_mount(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    contents = Contents(tmp_path, ledger, 10 * BLOCK)
    _fetch(contents, "whole", 2)
    half = contents.cached("half", "e", 4 * BLOCK)
    os.pwrite(contents.open(half), b"y" * BLOCK, BLOCK)
    contents.got(half, 1)
    contents.close(half)
    contents.save()
    _fetch(contents, "not written down", 1)
    ledger.put(Row(7, None, "s!p", b"\xff", None, 5, "p", None))
    ledger.close()
    ledger = Ledger(tmp_path)
    again = Contents(tmp_path, ledger, 10 * BLOCK)
    assert again.is_here("whole", "e") and not again.is_here("not written down", "e")
    assert again.cached("half", "e", 4 * BLOCK).missing(0, 4 * BLOCK) == [0, 2, 3]
    assert len(list((tmp_path / "content").iterdir())) == 2
    assert [(row.n, row.name) for row in ledger.pending()] == [(7, b"\xff")] and ledger.last_number() == 7
    ledger.close()


def _found(name: str, ident: str, etag: str = "1") -> tuple[Found, int]:
    return Found(name.encode(), False, 1, 1, etag, ident, "RDNVW"), 0


def test_a_listing_from_before_a_change_does_not_undo_it() -> None:
    tree = Tree()
    folder = tree.root
    tree.apply(folder, None, [_found("a", "s!a"), _found("b", "s!b")], tree.clock)
    since = tree.clock
    node = folder.children[b"a"]  # type: ignore[index]
    tree.touch(folder, b"a")
    tree.touch(folder, b"c")
    tree.put(folder, b"c", node)
    orders = tree.apply(folder, None, [_found("a", "s!a"), _found("b", "s!b", "2")], since)
    assert set(folder.children or {}) == {b"b", b"c"} and orders == [(tree.by_id["s!b"].ino, None)]
    tree.apply(folder, None, [_found("c", "s!a")], tree.clock)
    assert list((folder.children or {}).items()) == [(b"c", node)]


def test_a_node_that_moved_stays_the_same() -> None:
    tree = Tree()
    tree.apply(
        tree.root,
        None,
        [(Found(n, True, 0, 1, "1", f"s!{n.decode()}", "RDNVCK"), 0) for n in (b"x", b"y")],
        0,
    )
    x, y = (tree.root.children or {})[b"x"], (tree.root.children or {})[b"y"]
    tree.apply(x, None, [_found("f", "s!f")], tree.clock)
    tree.apply(y, None, [], tree.clock)
    node = tree.by_id["s!f"]
    node.lookups = 1
    assert (x.ino, b"f") in tree.apply(x, None, [], tree.clock)
    assert node.dead and tree.by_ino[node.ino] is node
    tree.apply(y, None, [_found("g", "s!f")], tree.clock)
    assert (y.children or {})[b"g"] is node and not node.dead and node.parent is y
    tree.apply(y, None, [], tree.clock)
    tree.forget(node.ino, 1)
    assert node.ino not in tree.by_ino and "s!f" not in tree.by_id
