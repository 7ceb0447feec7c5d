"""Dead properties: where they are kept, that an update is all or nothing, and that ids and etags don't notice."""

import errno
import os

import pytest

from fsd.core import intents, operations, properties, tree
from fsd.core.errors import NameRefused, QuotaExceeded
from fsd.core.operations import replay
from tests.support.worlds import make_space
from tests.unit.core_space import assert_right, on_disk, put, root_etag

LARGE = b"<v>" + b"x" * 2000 + b"</v>"


@pytest.fixture(params=["now", "none"])
def space(tmp_path, request):
    made = make_space(tmp_path, label=request.param)
    put(made, b"a")
    yield made
    made.close()


def overflow(space):
    return os.listdir(on_disk(space, b".fsd/meta"))


def test_a_small_one_is_an_attribute(space):
    properties.update(space, b"a", {"{http://example.org/ns}größe": b"<v/>"})
    assert os.getxattr(on_disk(space, b"a"), "user.fsd.p.{http://example.org/ns}gr%C3%B6%C3%9Fe") == b"<v/>"
    assert properties.get_all(space, b"a") == {"{http://example.org/ns}größe": b"<v/>"}
    assert overflow(space) == []


def test_names_survive_whatever_they_are():
    for clark in ("{DAV:}x", "plain", "{a b}c%d#e", "{n}\u2028", "{urn:x}a/b", "#"):
        name = properties.attribute_name(clark)
        assert name is not None and name.isascii()
        assert properties.unquote(name.removeprefix("user.fsd.p.")) == clark
    assert properties.attribute_name("{n}" + "ü" * 50) is None


def test_what_does_not_fit_overflows(space):
    long_name = "{n}" + "l" * 300
    properties.update(
        space, b"a", {"{n}large": LARGE, "{n}small": b"s", long_name: b"l", "{n}bytes": b"\xff\x00"}
    )
    expected = {"{n}large": LARGE, "{n}small": b"s", long_name: b"l", "{n}bytes": b"\xff\x00"}
    assert properties.get_all(space, b"a") == expected
    assert overflow(space) == [tree.lookup(space, b"a").id.encode() + b".json"]
    properties.update(space, b"a", {"{n}large": b"small now"}, {long_name, "{n}never"})
    assert properties.get_all(space, b"a") == {
        "{n}large": b"small now",
        "{n}small": b"s",
        "{n}bytes": b"\xff\x00",
    }
    assert overflow(space) == []


def test_kinds_that_take_no_attributes(space):
    os.symlink(b"a", on_disk(space, b"link"))
    os.mkfifo(on_disk(space, b"fifo"))
    for name in (b"link", b"fifo"):
        properties.update(space, name, {"{n}x": name})
        assert properties.get_all(space, name) == {"{n}x": name}
    assert properties.get_all(space, b"a") == {}


def test_the_root_has_them_too(space):
    properties.update(space, b"", {"{n}x": b"1", "{n}y": LARGE})
    assert properties.get_all(space, b"") == {"{n}x": b"1", "{n}y": LARGE}


def test_a_files_etag_stays_and_rows_are_right(space):
    before = tree.lookup(space, b"a")
    properties.update(space, b"a", {"{n}x": b"1", "{n}y": LARGE})
    after = tree.lookup(space, b"a")
    assert (after.etag, after.id) == (before.etag, before.id)
    assert root_etag(space)
    assert_right(space)


def test_they_stay_through_put_move_and_delete(space):
    expected = {"{n}x": b"1", "{n}y": LARGE}
    properties.update(space, b"a", expected)
    put(space, b"a", b"new content")
    assert properties.get_all(space, b"a") == expected
    operations.move(space, b"a", space, b"b", overwrite=False)
    assert properties.get_all(space, b"b") == expected


def test_all_or_nothing(space, monkeypatch):
    properties.update(space, b"a", {"{n}x": b"old", "{n}gone": b"g", "{n}y": LARGE})
    before = properties.get_all(space, b"a")
    real, count = os.setxattr, []

    def third_fails(*args, **options):
        count.append(1)
        if len(count) == 2:
            raise OSError(errno.EIO, "broken")
        real(*args, **options)

    monkeypatch.setattr(os, "setxattr", third_fails)
    with pytest.raises(OSError):
        properties.update(space, b"a", {"{n}x": b"new", "{n}z": b"z", "{n}u": b"u"}, {"{n}gone", "{n}y"})
    monkeypatch.undo()
    assert properties.get_all(space, b"a") == before
    assert intents.of(space).pending() == []
    replay(space)
    assert properties.get_all(space, b"a") == before


def test_no_room_for_attributes(space, monkeypatch):
    real = os.setxattr

    def only_short(target, name, value, *args, **options):
        if name.startswith("user.fsd.p.{"):
            raise OSError(errno.ENOSPC, "the block is full")
        real(target, name, value, *args, **options)

    monkeypatch.setattr(os, "setxattr", only_short)
    properties.update(space, b"a", {"{n}x": b"1", "{n}y": b"2"})
    assert properties.get_all(space, b"a") == {"{n}x": b"1", "{n}y": b"2"}
    assert len(overflow(space)) == 1


def test_refusals(space):
    with pytest.raises(NameRefused):
        properties.update(space, b"a", {"": b"x"})
    with pytest.raises(QuotaExceeded):
        properties.update(space, b"a", {"{n}x": b"x" * 300_000})
    with pytest.raises(FileNotFoundError):
        properties.update(space, b"no", {"{n}x": b"x"})
    with pytest.raises(FileNotFoundError):
        properties.get_all(space, b".fsd")
    assert properties.get_all(space, b"a") == {}


def test_an_intent_left_behind_is_taken_back_once(space):
    """As after a kill in the middle: the old state comes back; a later change stays."""
    properties.update(space, b"a", {"{n}x": b"old"})
    real = intents.Intents.delete
    intents.Intents.delete = lambda *_args: None
    try:
        properties.update(space, b"a", {"{n}x": b"new", "{n}y": LARGE})
    finally:
        intents.Intents.delete = real
    assert len(intents.of(space).pending()) == 1
    replay(space)
    assert properties.get_all(space, b"a") == {"{n}x": b"old"}
    assert intents.of(space).pending() == []
    properties.update(space, b"a", {"{n}x": b"newer"})
    replay(space)
    assert properties.get_all(space, b"a") == {"{n}x": b"newer"}
