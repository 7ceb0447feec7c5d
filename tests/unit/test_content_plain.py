"""Uploads on filesystems that can do less: no exchange of two names, no nameless files."""

import errno
import os

import pytest

from fsd.core import content, intents, publish, tree
from fsd.core.content import Upload
from fsd.core.errors import PreconditionFailed
from fsd.core.replay import replay
from tests.support import killpoints
from tests.support.worlds import make_space
from tests.unit.core_space import assert_right, on_disk, put, read, staging, write


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    yield made
    made.close()


def test_without_exchange_a_link_and_a_rename_do(space, monkeypatch):
    old, _ = put(space, b"a", b"old")

    def refuse(*_args):
        raise OSError(errno.EINVAL, "no exchange")

    monkeypatch.setattr(publish, "rename_exchange", refuse)
    new, _ = put(space, b"a", b"new")
    assert read(space, b"a") == b"new"
    assert new.id == old.id
    assert_right(space)


def no_exchange(monkeypatch, before=lambda: None):
    """As CephFS is: no exchange, no nameless files. `before` runs once, in the last moment."""
    done = []

    def refuse(*_args):
        if not done:
            done.append(1)
            before()
        raise OSError(errno.EINVAL, "no exchange")

    monkeypatch.setattr(publish, "rename_exchange", refuse)
    monkeypatch.setattr(content, "O_TMPFILE", os.O_DIRECTORY)


@pytest.mark.parametrize("last_moment", ["replaced", "deleted", "a directory"])
def test_without_exchange_what_came_in_the_last_moment_is_kept(space, monkeypatch, last_moment):
    old, _ = put(space, b"a", b"old")

    def before():
        if last_moment == "replaced":
            write(space, b"a.tmp", b"the program's")
            os.rename(on_disk(space, b"a.tmp"), on_disk(space, b"a"))
            return
        os.unlink(on_disk(space, b"a"))
        if last_moment == "a directory":
            os.mkdir(on_disk(space, b"a"))

    no_exchange(monkeypatch, before)
    kind = IsADirectoryError if last_moment == "a directory" else PreconditionFailed
    with pytest.raises(kind):
        put(space, b"a", b"ours", if_match={old.etag})
    if last_moment == "replaced":
        assert read(space, b"a") == b"the program's"
        put(space, b"a", b"ours")
        assert read(space, b"a") == b"ours"
    assert staging(space) == []
    assert_right(space, outside=True)


def test_without_exchange_a_replacement_that_cannot_be_recorded_is_taken_back(space, monkeypatch):
    old, _ = put(space, b"a", b"old")
    no_exchange(monkeypatch)

    def full(*_args, **_new):
        raise OSError(errno.ENOSPC, "the state disk is full")

    with monkeypatch.context() as failing:
        failing.setattr(content, "make_known", full)
        with pytest.raises(OSError, match="full"):
            put(space, b"a", b"new")
    assert read(space, b"a") == b"old" and staging(space) == []
    assert tree.lookup(space, b"a").id == old.id


@pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child")
def test_a_replacement_without_exchange_is_whole_wherever_it_is_killed(space, monkeypatch):
    no_exchange(monkeypatch)
    put(space, b"a", b"before")
    contents = set()

    def prepare():
        put(space, b"a", b"old")

    for _ in killpoints.kill_at_each(prepare, lambda _: put(space, b"a", b"new")):
        replay(space)
        contents.add(read(space, b"a"))
        assert os.stat(on_disk(space, b"a")).st_nlink == 1 and staging(space) == []
        assert_right(space)
    assert contents == {b"old", b"new"}


def test_without_nameless_files_staging_does(space, monkeypatch):
    monkeypatch.setattr(content, "O_TMPFILE", os.O_DIRECTORY)  # EISDIR, as an old kernel says
    put(space, b"a", b"one")
    put(space, b"a", b"two")
    with Upload(space, b"b", length=None) as upload:
        upload.write(b"dropped")
        assert len(staging(space)) == 1
        intents.of(space)
    assert read(space, b"a") == b"two"
    assert_right(space)
