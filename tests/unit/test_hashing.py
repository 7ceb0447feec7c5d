"""The background that hashes what nobody has hashed: it leaves alone what somebody is about to tell."""

from __future__ import annotations

import time

import pytest

from fsd.core import hashing, tree
from fsd.core.hashing import Background
from fsd.core.sums import of_bytes
from tests.unit.core_space import put


@pytest.fixture
def background(space) -> Background:
    made = Background(space, lambda count: False)
    while made.step():
        pass
    return made


def put_without_a_sum(space, path, content, monkeypatch):
    """As from a process whose sums are not written yet."""
    with monkeypatch.context() as patch:
        patch.setattr(space.sums, "note", lambda *_: None)
        put(space, path, content)
    return tree.lookup(space, path).etag


def test_a_young_file_is_hashed_when_nobody_has_told_its_sum(space, background, monkeypatch):
    etag = put_without_a_sum(space, b"a", b"content", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "YOUNG_S", 3600.0)
        assert not background.step()
        assert space.sums.one(etag) is None
    monkeypatch.setattr(hashing, "YOUNG_S", 0.0)
    background._later = dict.fromkeys(background._later, 0.0)  # an hour later
    while background.step():
        pass
    assert space.sums.one(etag) == of_bytes(b"content")


def test_a_file_of_before_the_clock_was_set_back_is_not_young(space, background, monkeypatch):
    etag = put_without_a_sum(space, b"a", b"content", monkeypatch)
    now = time.time() - 86400
    monkeypatch.setattr(hashing.time, "time", lambda: now)
    while background.step():
        pass
    assert space.sums.one(etag) == of_bytes(b"content")


def test_what_was_told_meanwhile_is_not_read(space, background, monkeypatch):
    read = []
    monkeypatch.setattr(hashing, "of_file", lambda fd, rest=None: read.append(fd))
    etag = put_without_a_sum(space, b"a", b"content", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "YOUNG_S", 3600.0)
        background.step()
    space.sums.note(etag, tree.lookup(space, b"a").id, of_bytes(b"content"))
    monkeypatch.setattr(hashing, "YOUNG_S", 0.0)
    background._later = dict.fromkeys(background._later, 0.0)
    while background.step():
        pass
    assert read == []


def test_one_that_is_always_young_does_not_stop_the_others(space, background, monkeypatch):
    old = [put_without_a_sum(space, b"f%d" % n, b"%d" % n, monkeypatch) for n in range(3)]
    busy = put_without_a_sum(space, b"busy", b"0", monkeypatch)
    monkeypatch.setattr(hashing, "_is_young", lambda row: row.name == b"busy")
    last = put_without_a_sum(space, b"last", b"9", monkeypatch)
    for _ in range(4):
        background.step()
    assert [space.sums.one(etag) for etag in old] == [of_bytes(b"%d" % n) for n in range(3)]
    assert space.sums.one(last) == of_bytes(b"9")
    assert space.sums.one(busy) is None
