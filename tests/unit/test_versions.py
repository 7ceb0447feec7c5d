"""Versions: kept by a rename, copied only where somebody could still write; thinned, bounded, ended with the file."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsd.core import limbo, operations, reverting, trash, tree, versions
from fsd.core.content import Upload
from fsd.core.sweep import Sweep
from fsd.core.versions import Version, superfluous
from tests.support.worlds import make_space

DAY = 86_400


def verify(space):
    """So that the index knows what is not there."""
    sweep = Sweep(space)
    sweep.begin()
    while not sweep.step(1.0).finished:
        pass


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    verify(made)
    versions.use(made.state_dir, 90 * DAY)
    yield made
    made.close()


def put(space, path, data, **more):
    with Upload(space, path, length=len(data), **more) as upload:
        upload.write(data)
        return upload.commit()[0]


def on_disk(space, path):
    return space.root + b"/" + path


def contents(space, node_id):
    found = []
    for version in versions.items(space, node_id):
        fd, _ = versions.open_version(space, node_id, version.key)
        with open(fd, "rb") as file:
            found.append(file.read())
    return found


def test_what_was_replaced_is_the_same_inode(space):
    entry = put(space, b"f", b"one", mtime_ns=10**18)
    before = os.stat(on_disk(space, b"f")).st_ino
    put(space, b"f", b"two")
    put(space, b"f", b"three")
    assert contents(space, entry.id) == [b"two", b"one"]
    oldest = versions.items(space, entry.id)[-1]
    fd, _ = versions.open_version(space, entry.id, oldest.key)
    assert os.fstat(fd).st_ino == before and oldest.mtime_ns == 10**18
    os.close(fd)
    assert tree.usage(space) == 5 and versions.usage(space) == 6


def test_restoring_makes_a_version_of_what_was_there(space):
    first = put(space, b"f", b"one", mtime_ns=10**18)
    put(space, b"f", b"two")
    (version,) = versions.items(space, first.id)
    entry = reverting.restore(space, first.id, version.key, b"f")
    assert entry.id == first.id and entry.etag != first.etag and entry.mtime_ns == 10**18
    assert (on_disk(space, b"f"), open(on_disk(space, b"f"), "rb").read())[1] == b"one"
    assert contents(space, first.id) == [b"two", b"one"]


def test_who_can_still_write_does_not_write_into_the_version(space):
    entry = put(space, b"f", b"one")
    writer = os.open(on_disk(space, b"f"), os.O_WRONLY)
    put(space, b"f", b"two")
    os.write(writer, b"XXX")
    os.close(writer)
    os.link(on_disk(space, b"f"), on_disk(space, b"g"))
    put(space, b"f", b"three")
    with open(on_disk(space, b"g"), "r+b") as file:
        file.write(b"YYY")
    assert contents(space, entry.id) == [b"two", b"one"]
    assert os.listdir(on_disk(space, b".fsd/staging")) == []


def test_none_where_none_are_wanted_or_nothing_was(space):
    entry = put(space, b"f", b"")
    put(space, b"f", b"one")
    assert versions.items(space, entry.id) == []
    versions.use(space.state_dir, 0)
    put(space, b"f", b"two")
    assert versions.items(space, entry.id) == [] and os.listdir(on_disk(space, b".fsd/staging")) == []


def test_they_follow_the_file_and_end_with_it(space):
    entry = put(space, b"f", b"one")
    put(space, b"f", b"two")
    operations.move(space, b"f", space, b"elsewhere", overwrite=False)
    later = time.time() + 2 * DAY
    assert versions.thin(space, 90 * DAY, now_s=later) == 0 and contents(space, entry.id) == [b"one"]
    operations.delete(space, b"elsewhere")
    assert versions.thin(space, 90 * DAY, now_s=later) == 0, "it may be restored from the trash"
    trash.empty(space)
    with space.index.write() as db:
        db.execute("DELETE FROM node WHERE id=?", (bytes.fromhex(entry.id),))
    assert versions.thin(space, 90 * DAY, now_s=later) == 1 and versions.items(space, entry.id) == []


def settle_limbo(space):
    while limbo.settle(space, time.time() + 60):
        pass


def test_those_of_a_file_in_a_deleted_folder_come_back_with_it(space):
    operations.make_directory(space, b"d")
    entry = put(space, b"d/f", b"one")
    put(space, b"d/f", b"two")
    operations.delete(space, b"d")
    settle_limbo(space)
    assert versions.thin(space, 90 * DAY, now_s=time.time() + 5 * DAY) == 0
    (item,) = trash.items(space)
    trash.restore(space, item.key)
    assert tree.lookup(space, b"d/f").id == entry.id and contents(space, entry.id) == [b"one"]


def test_those_of_what_somebody_removed_stay_a_day_from_then_on(space):
    entry = put(space, b"f", b"one")
    put(space, b"f", b"two")
    (key,) = os.listdir(on_disk(space, b".fsd/versions/" + entry.id[:2].encode() + b"/" + entry.id.encode()))
    below = on_disk(space, b".fsd/versions/" + entry.id[:2].encode() + b"/" + entry.id.encode() + b"/")
    os.rename(below + key, below + b"%d" % (int(key) - 10 * DAY * 10**9))
    os.unlink(on_disk(space, b"f"))
    verify(space)
    settle_limbo(space)
    assert versions.thin(space, 90 * DAY) == 0, "a backup may bring it back"
    assert versions.thin(space, 90 * DAY, now_s=time.time() + 2 * DAY) == 1


def test_the_oldest_go_beyond_the_limit(space):
    ids = [put(space, name, b"x" * 10).id for name in (b"a", b"b", b"c")]
    for name in (b"a", b"b", b"c"):
        put(space, name, b"new")
    assert versions.thin(space, 90 * DAY, limit=20) == 1
    assert [len(versions.items(space, each)) for each in ids] == [0, 1, 1]


@pytest.mark.parametrize("key", ["", "..", "../../space.json", "1", "x", "٣", "1" * 30])
def test_keys_lead_nowhere_else(space, key):
    entry = put(space, b"f", b"one")
    put(space, b"f", b"two")
    with pytest.raises(FileNotFoundError):
        versions.open_version(space, entry.id, key)
    with pytest.raises(FileNotFoundError):
        versions.remove(space, entry.id, key)


@given(st.lists(st.integers(0, 400 * DAY * 10), max_size=60), st.integers(1, 100 * DAY))
def test_thinning(tenths, keep):
    now = 2_000_000_000
    found = [Version(str(t), 1, 0, int((now - t / 10) * 1e9)) for t in sorted(set(tenths))]
    dropped = superfluous(found, now, keep)
    left = [version for version in found if version not in dropped]
    ages = [now - version.replaced / 1e9 for version in left]
    assert all(age <= keep for age in ages)
    assert superfluous(left, now, keep) == [], "thinning twice is thinning once"
    if found and now - found[0].replaced / 1e9 <= keep:
        assert left[0] == found[0], "the newest stays"
    for younger, older in zip(ages, ages[1:], strict=False):
        assert older - younger >= 1.9
    assert len([age for age in ages if DAY <= age < 30 * DAY]) <= 30
