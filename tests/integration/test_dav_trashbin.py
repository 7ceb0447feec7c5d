"""The trash over WebDAV: what clients list, restore and delete for good."""

from __future__ import annotations

import os

import pytest

from fsd.core import trash
from fsd.core.grants import Role
from tests.support.davclient import parse_multistatus
from tests.unit.dav.served import serving

OC = "{http://owncloud.org/ns}"
ASK = b"""<d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop><d:resourcetype/><d:getcontentlength/>
<oc:trashbin-original-filename/><oc:trashbin-original-location/><oc:trashbin-delete-timestamp/>
<oc:trashbin-delete-datetime/><oc:size/><oc:checksums/><d:getetag/><d:getlastmodified/><oc:id/><oc:fileid/>
<oc:permissions/></d:prop></d:propfind>"""

LOCK = b"""<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/></d:locktype>
</d:lockinfo>"""


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def dav(served):
    return served.dav()


@pytest.fixture
def bin_(served):
    return served.dav(f"/dav/spaces/trash-bin/{served.personal().id}")


def listed(bin_, depth="1", **headers):
    answer = bin_.raw("PROPFIND", f"{bin_.prefix}/", ASK, {"Depth": depth, **headers})
    assert answer.status == 207
    return parse_multistatus(answer.body, bin_.prefix)


def keys(bin_):
    """Original path -> key."""
    return {found.properties[f"{OC}trashbin-original-location"]: found.path for found in listed(bin_)[1:]}


def restore(bin_, dav, key, to, **headers):
    return bin_.request("MOVE", key, None, {"Destination": dav.url(to), **headers})


def test_what_was_deleted_is_listed_with_what_it_was(dav, bin_):
    dav.mkcol(b"d")
    dav.put(b"d/\xc3\xbc &<.txt", b"12345")
    dav.put(b"d/x", b"1")
    dav.delete(b"d/\xc3\xbc &<.txt")
    dav.delete(b"d")
    own, newest, oldest = listed(bin_)
    assert own.is_dir and own.path == b""
    assert newest.is_dir and newest.properties[f"{OC}trashbin-original-location"] == "d"
    assert newest.properties[f"{OC}size"] == "1"
    assert oldest.properties[f"{OC}trashbin-original-filename"] == "ü &<.txt"
    assert oldest.properties[f"{OC}trashbin-original-location"] == "d/ü &<.txt"
    assert oldest.length == 5 and int(oldest.properties[f"{OC}trashbin-delete-timestamp"]) > 1_700_000_000
    assert len(listed(bin_, depth="0")) == 1
    assert bin_.raw("PROPFIND", f"{bin_.prefix}/", ASK, {"Depth": "infinity"}).status == 403


def test_restore_gives_back_id_and_content(dav, bin_):
    dav.put(b"f", b"content")
    before = dav.propfind(b"f", depth=0)[0]
    dav.delete(b"f")
    answer = restore(bin_, dav, keys(bin_)["f"], b"f")
    assert answer.status == 201 and answer.etag == before.etag
    after = dav.propfind(b"f", depth=0)[0]
    assert (after.id, after.etag) == (before.id, before.etag) and dav.get(b"f") == b"content"
    assert listed(bin_)[1:] == []


def test_restore_where_something_is(dav, bin_):
    dav.put(b"f", b"old")
    dav.delete(b"f")
    dav.put(b"f", b"new")
    key = keys(bin_)["f"]
    assert restore(bin_, dav, key, b"f", Overwrite="F").status == 412
    assert dav.get(b"f") == b"new"
    assert restore(bin_, dav, key, b"f").status == 204
    assert dav.get(b"f") == b"old" and list(keys(bin_)) == ["f"], "what was in the way is in the trash now"


def test_a_restore_that_fails_leaves_what_is_there(served, dav, bin_):
    dav.put(b"f", b"a long old content")
    dav.delete(b"f")
    dav.put(b"f", b"new")
    before = dav.stat(b"f")
    key = keys(bin_)["f"]
    served.registry.grants.set_quota(served.personal(), 10)
    assert restore(bin_, dav, key, b"f").status == 507
    assert dav.stat(b"f") == before and list(keys(bin_).values()) == [key], "nothing moved"
    served.registry.grants.set_quota(served.personal(), 20)
    assert restore(bin_, dav, key, b"f").status == 204, "what is replaced makes room"


def test_the_trash_heeds_conditions(dav, bin_):
    dav.put(b"f", b"1")
    dav.delete(b"f")
    key = keys(bin_)["f"]
    etag = listed(bin_)[1].etag
    for refused in ({"If-Match": '"x"'}, {"If": '(["x"])'}, {"If": "(<urn:uuid:none>)"}):
        assert restore(bin_, dav, key, b"f", **refused).status == 412
        assert bin_.request("DELETE", key, None, refused).status == 412
    dav.put(b"g", b"2")
    there = f'<{dav.url(b"g")}> (["{dav.stat(b"g").etag}"])'
    assert restore(bin_, dav, key, b"g", **{"If-Match": f'"{etag}"', "If": there}).status == 204
    assert dav.get(b"g") == b"1"
    key = keys(bin_)["g"]
    etag = listed(bin_)[1].etag
    assert bin_.request("DELETE", key, None, {"If-Match": f'"{etag}"'}).status == 204


def test_restore_needs_a_parent_and_a_place_of_its_own_space(served, dav, bin_):
    dav.mkcol(b"d")
    dav.put(b"d/f", b"1")
    dav.delete(b"d/f")
    dav.delete(b"d")
    key = keys(bin_)["d/f"]
    assert restore(bin_, dav, key, b"d/f").status == 409
    shared = served.dav(f"/dav/spaces/{served.shared.id}")
    assert restore(bin_, shared, key, b"f").status == 403
    assert bin_.request("MOVE", key).status == 400
    assert restore(bin_, dav, key, b"elsewhere").status == 201
    assert dav.get(b"elsewhere") == b"1"


def test_locks_and_quota_count_for_a_restore(served, dav, bin_):
    dav.put(b"f", b"12345")
    dav.delete(b"f")
    key = keys(bin_)["f"]
    lock = dav.request("LOCK", b"f", LOCK)
    assert lock.status == 201
    assert restore(bin_, dav, key, b"f").status == 423
    dav.request("UNLOCK", b"f", None, {"Lock-Token": lock.headers["lock-token"]})
    served.registry.grants.set_quota(served.personal(), 3)
    assert restore(bin_, dav, key, b"g").status == 507
    served.registry.grants.set_quota(served.personal(), None)
    assert restore(bin_, dav, key, b"g").status == 201


def test_delete_for_good(served, dav, bin_):
    for name in (b"a", b"b", b"c"):
        dav.put(name, b"1")
        dav.delete(name)
    assert bin_.request("DELETE", keys(bin_)["b"]).status == 204
    assert sorted(keys(bin_)) == ["a", "c"]
    assert bin_.request("DELETE", b"0123").status == 404
    assert bin_.raw("DELETE", bin_.prefix).status == 204
    assert listed(bin_)[1:] == []
    space = served.space(served.personal())
    assert trash.items(space) == [] and os.listdir(served.root() / ".fsd/staging") == []


def test_who_may(served, dav):
    dav.put(b"f", b"1")
    dav.delete(b"f")
    for prefix in (f"/dav/spaces/trash-bin/{served.personal().id}", "/remote.php/dav/trash-bin/alice"):
        assert len(listed(served.dav(prefix))) == 2
        assert served.dav(prefix, "eve").raw("PROPFIND", prefix, ASK).status == 404
        assert served.dav(prefix, "eve").raw("DELETE", prefix).status == 404
    shared = f"/remote.php/dav/spaces/trash-bin/{served.shared.id}"
    assert served.dav(shared, "bob").raw("PROPFIND", shared, ASK).status == 403, "bob is a viewer"
    assert served.dav(shared, "bob").raw("DELETE", shared).status == 403
    bob = served.registry.accounts.get("bob")
    served.registry.grants.grant(served.shared, "user", bob.id, bob.name, Role.EDITOR)
    assert served.dav(shared, "bob").raw("PROPFIND", shared, ASK).status == 207


def test_other_addresses_and_methods(dav, bin_, served):
    assert bin_.raw("GET", bin_.prefix).status == 405
    assert bin_.raw("PUT", f"{bin_.prefix}/x", b"1").status == 405
    assert "MOVE" in bin_.raw("OPTIONS", bin_.prefix).headers["allow"]
    assert bin_.raw("PROPFIND", f"{bin_.prefix}/key/inside", ASK).status == 404
    assert bin_.raw("PROPFIND", "/dav/spaces/trash-bin/nothing", ASK).status == 404
    assert bin_.raw("PROPFIND", "/dav/trash-bin/nobody", ASK).status == 404
    dav.mkcol(b"trash-bin")
    dav.put(b"trash-bin/f", b"a folder of that name is a folder")
    assert dav.get(b"trash-bin/f").startswith(b"a folder")


def test_what_lies_in_a_deleted_folder(dav, bin_):
    dav.mkcol(b"d")
    dav.mkcol(b"d/sub")
    dav.put(b"d/f %", b"12345")
    dav.put(b"d/sub/g", b"1")
    (ident,) = [entry.id for entry in dav.propfind(b"d") if entry.path == b"d/f %"]
    dav.delete(b"d")
    key = keys(bin_)["d"]
    own, file, folder = parse_multistatus(
        bin_.request("PROPFIND", key, ASK, {"Depth": "1"}).body, bin_.prefix
    )
    assert (own.path, own.is_dir) == (key, True)
    assert (file.path, file.length, file.id) == (key + b"/f %", 5, ident)
    assert (folder.path, folder.is_dir) == (key + b"/sub", True)
    answer = bin_.request("PROPFIND", key + b"/sub", ASK, {"Depth": "1"})
    assert [each.path for each in parse_multistatus(answer.body, bin_.prefix)] == [
        key + b"/sub",
        key + b"/sub/g",
    ]
    assert b"<oc:trashbin-original-location>d/sub/g<" in answer.body
    (alone,) = parse_multistatus(
        bin_.request("PROPFIND", key + b"/f %", ASK, {"Depth": "1"}).body, bin_.prefix
    )
    assert alone.length == 5
    for path in (key + b"/none", key + b"/f %/x"):
        assert bin_.request("PROPFIND", path, ASK).status == 404
    assert bin_.request("PROPFIND", key + b"/../x", ASK).status == 400
    assert bin_.request("DELETE", key + b"/sub").status == 403
    assert bin_.request("MOVE", key + b"/sub", None, {"Destination": "/dav/files/alice/x"}).status == 403
