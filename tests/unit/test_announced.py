"""What a mount announces, and the reader that settles it: other processes' announcements, kills, moves, a full log."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import announced, tree
from fsd.core.announced import Announcer
from fsd.core.space import Space
from tests.support.worlds import differences, make_space, sweep


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path)
    sweep(made)
    yield made
    made.close()


@pytest.fixture
def other(space: Space) -> Iterator[Space]:
    """The same space as another process sees it."""
    made = Space(space.record, space.state_dir)
    yield made
    made.close()


def root(space: Space) -> Path:
    return Path(os.fsdecode(space.root))


def test_what_was_announced_is_right_at_the_next_look(space: Space, other: Space) -> None:
    announcer = Announcer(other)
    etag = tree.lookup(space, b"").etag
    (root(space) / "d").mkdir()
    (root(space) / "d/f").write_bytes(b"12345")
    announcer.changed(b"", b"d")
    announcer.changed(b"d", b"f")
    now = tree.lookup(space, b"")
    assert now.size == 5 and now.etag != etag and not differences(space)
    assert announcer.backlog == 0
    announcer.close()


def test_a_file_that_is_open_is_compared_at_each_look(space: Space, other: Space) -> None:
    announcer = Announcer(other)
    with open(root(space) / "f", "wb", buffering=0) as file:
        token = announcer.opened(b"", b"f")
        for number in range(1, 4):
            file.write(b"1234")
            assert tree.usage(space) == 4 * number
        file.write(b"1234")
    announcer.closed(token)
    assert tree.usage(space) == 16
    (root(space) / "f").write_bytes(b"")
    assert tree.usage(space) == 16, "closed and not announced: a look does not compare it any more"
    announcer.changed(b"", b"f")
    assert tree.usage(space) == 0
    announcer.close()


def test_a_moved_directory_takes_its_announcements_along(space: Space, other: Space) -> None:
    announcer = Announcer(other)
    (root(space) / "a/b").mkdir(parents=True)
    announcer.changed(b"", b"a")
    with open(root(space) / "a/b/f", "wb", buffering=0) as file:
        announcer.opened(b"a/b", b"f")
        os.rename(root(space) / "a", root(space) / "z")
        announcer.moved(b"a", b"z")
        announcer.changed(b"", b"a")
        announcer.changed(b"", b"z")
        assert tree.usage(space) == 0
        file.write(b"123")
        assert tree.usage(space) == 3 and not differences(space)
    announcer.close()


def test_the_announcements_of_a_killed_mount_are_settled_and_its_slot_is_free(space: Space) -> None:
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        mine = Space(space.record, space.state_dir)
        announcer = Announcer(mine)
        (root(space) / "f").write_bytes(b"123")
        announcer.opened(b"", b"f")
        os.write(go, b"x")
        signal.pause()
    os.read(ready, 1)
    assert tree.usage(space) == 3
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (root(space) / "f").write_bytes(b"12345")
    assert tree.usage(space) == 5
    assert not space.board.waiting()
    os.close(ready)
    os.close(go)


def test_two_mounts_at_once(space: Space, other: Space) -> None:
    first, second = Announcer(space), Announcer(other)
    assert first.slot != second.slot
    (root(space) / "a").write_bytes(b"1")
    (root(space) / "b").write_bytes(b"22")
    first.changed(b"", b"a")
    second.changed(b"", b"b")
    assert tree.usage(other) == 3
    first.close()
    (root(space) / "a").write_bytes(b"")
    second.changed(b"", b"a")
    assert tree.usage(space) == 2
    second.close()
    assert not space.board.waiting() and not other.board.waiting()


def test_a_full_log_is_settled_and_begun_anew(
    space: Space, other: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announced, "LOG_BYTES", 4096)
    announcer = Announcer(other)
    with open(root(space) / "open", "wb", buffering=0) as file:
        announcer.opened(b"", b"open")
        for number in range(300):
            name = f"file{number}"
            (root(space) / name).write_bytes(b"1")
            announcer.changed(b"", name.encode())
        file.write(b"22")
        assert tree.usage(space) == 302 and not differences(space)
    announcer.close()


def test_what_can_not_be_compared_waits_for_the_next_look(
    space: Space, other: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    announcer = Announcer(other)
    (root(space) / "f").write_bytes(b"123")
    announcer.changed(b"", b"f")

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as patch:
        patch.setattr("fsd.core.reconcile.reconcile", fails)
        assert tree.usage(space) == 0 and announcer.backlog > 0
    assert tree.usage(space) == 3 and announcer.backlog == 0
    announcer.close()
