"""The oracle itself: it must notice what it is there to notice."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tests.support.davclient import Resource, parse_multistatus
from tests.support.oracle import Snapshot, ancestors, compare, etag_errors, unstable_ids, walk


def _served(disk: dict) -> dict[bytes, Resource]:
    return {
        path: Resource(
            path=path,
            href="/" + path.decode(),
            is_dir=entry.kind == "d",
            size=entry.size,
            length=entry.size if entry.kind == "f" else None,
            etag=path.hex()[:32] or "00",
            id="id" + path.decode(),
            permissions="",
            mtime=entry.mtime,
        )
        for path, entry in disk.items()
    }


def _tree(base: Path) -> bytes:
    (base / "a/b").mkdir(parents=True)
    (base / ".fsd").mkdir()
    (base / ".fsd/hidden").write_bytes(b"12345")
    (base / "a/b/f").write_bytes(b"123")
    (base / "a/g").write_bytes(b"4567")
    os.link(base / "a/g", base / "h")
    os.symlink("a/g", base / "l")
    os.mkfifo(base / "p")
    return os.fsencode(base)


def test_walk_counts_each_name_and_leaves_internals_out(tmp_path: Path) -> None:
    disk = walk(_tree(tmp_path))
    assert disk[b""].size == 11 and disk[b"a"].size == 7 and disk[b"a/b"].size == 3
    assert (disk[b"l"].kind, disk[b"l"].size, disk[b"p"].kind, disk[b"p"].size) == ("l", 0, "o", 0)
    assert b".fsd" not in disk


def test_compare_notices_each_kind_of_difference(tmp_path: Path) -> None:
    disk = walk(_tree(tmp_path))
    assert compare(disk, _served(disk)) == []
    served = _served(disk)
    served[b"a"] = replace(served[b"a"], size=8)
    served[b"h"] = replace(served[b"h"], id="ida/g", mtime=1)
    served[b"ghost"] = replace(served[b"l"], path=b"ghost", id="ghost")
    del served[b"p"]
    text = "\n".join(compare(disk, served))
    for part in (
        "oc:size 8",
        "one id at two names",
        "not on disk: b'ghost'",
        "missing from the listing: b'p'",
        "mtime",
    ):
        assert part in text
    assert len(text.splitlines()) == 5


def test_etags_exactly_the_ancestors(tmp_path: Path) -> None:
    disk = walk(_tree(tmp_path))
    old = Snapshot(disk, _served(disk))
    served = dict(old.served)
    for path in (b"", b"a"):
        served[path] = replace(served[path], etag="ff" + served[path].etag)
    new = Snapshot(disk, served)
    assert etag_errors(old, new, [b"a/g"]) == []
    assert etag_errors(old, new, [b"a/b/f"]) == ["the etag of b'a/b' did not change"]
    assert etag_errors(old, new, [b"h"]) == ["the etag of b'a' changed for nothing"]
    assert ancestors([b"a/b/f", b"x"]) == {b"", b"a", b"a/b"}


def test_ids_follow_the_inode(tmp_path: Path) -> None:
    root = _tree(tmp_path)
    disk = walk(root)
    old = Snapshot(disk, _served(disk))
    os.rename(tmp_path / "a/b/f", tmp_path / "f2")
    moved = walk(root)
    served = _served(moved)
    assert unstable_ids(old, Snapshot(moved, served)) == ["b'a/b/f' moved to b'f2' and lost its id"]
    served[b"f2"] = replace(served[b"f2"], id="ida/b/f")
    assert unstable_ids(old, Snapshot(moved, served)) == []


def test_a_multistatus_is_read_by_its_bytes() -> None:
    body = b"""<d:multistatus xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:response>
      <d:href>/dav/spaces/a$b/x%FF%0Ay/</d:href><d:propstat><d:prop><d:resourcetype><d:collection/></d:resourcetype>
      <d:getetag>"0a"</d:getetag><oc:id>i</oc:id><oc:fileid>i</oc:fileid><oc:size>7</oc:size></d:prop>
      <d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response></d:multistatus>"""
    (resource,) = parse_multistatus(body, "/dav/spaces/a%24b")
    assert (resource.path, resource.is_dir, resource.size, resource.etag) == (b"x\xff\ny", True, 7, "0a")
