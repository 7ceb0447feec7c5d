"""What every source that hears owes, whichever it is, against a real kernel."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ears import Listener, hidden
from tests.support.waiting import wait_for
from watcher.hint import Hint, Kind
from watcher.sources import fanotify
from watcher.sources.base import Source, check_source, covers
from watcher.sources.fanotify import FanotifySource
from watcher.sources.inotify import InotifySource

Make = Callable[..., Source]


@pytest.fixture(params=["inotify", "fanotify"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "inotify":
        return InotifySource
    if fanotify.usable() is not None:
        pytest.skip("fanotify needs root")
    return FanotifySource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "space").mkdir()
    return tmp_path / "space"


@pytest.fixture
def ear(make: Make, root: Path) -> Iterator[Listener]:
    made = Listener(make(), root)
    yield made
    made.source.close()


def test_conformance(make: Make, tmp_path: Path):
    check_source(make, str(tmp_path))


def names(hints: list[Hint]) -> set[bytes]:
    return {name for hint in hints for name in hint.names}


def test_chains_of_new_directories_lose_nothing(ear: Listener):
    chains = 100

    def write() -> None:
        for number in range(chains):
            deep = ear.root / f"a{number}/b/c"
            os.makedirs(deep)
            (deep / "f").write_bytes(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(lambda: (ear.hear() or True) and not writer.is_alive(), every=0.001)
    writer.join()
    ear.settle()
    for number in range(chains):
        base = b"a%d" % number
        for directory, name in ((b"", base), (base, b"b"), (base + b"/b", b"c"), (base + b"/b/c", b"f")):
            assert covers(ear.hints, directory, name), (directory, name)


def test_moved_directories_are_told_with_their_old_place(ear: Listener):
    os.makedirs(ear.root / "a/b")
    ear.settle()
    ear.hints = []
    os.rename(ear.root / "a", ear.root / "z")
    heard = ear.until(lambda hints: covers(hints, b"", b"z"), "the rename")
    assert any(hint.kind is Kind.MOVED and (hint.peer, hint.dir) == (b"a", b"z") for hint in heard)
    (ear.root / "z/b/f").write_bytes(b"x")
    ear.until(lambda hints: covers(hints, b"z/b", b"f"), "a write below the new place")


def test_what_happens_while_the_reader_is_behind_is_told_at_the_present_place(ear: Listener):
    for turn in range(10):
        ear.source.queue.gate.clear()
        os.makedirs(ear.root / "a/b/c")
        (ear.root / "a/b/c/f").write_bytes(b"x")
        os.rename(ear.root / "a", ear.root / f"x{turn}")
        os.makedirs(ear.root / "a/b/d")
        os.rename(ear.root / "a/b", ear.root / f"x{turn}/moved")
        os.rename(ear.root / f"x{turn}/b/c", ear.root / "a/c")
        (ear.root / "a/c/g").write_bytes(b"x")
        ear.source.queue.gate.set()
        ear.settle()
        assert covers(ear.hints, b"a/c", b"g")
        assert covers(ear.hints, b"x%d" % turn, b"moved")
        ear.hints = []
        shutil.rmtree(ear.root / "a")
    ear.settle()


def test_a_move_between_two_spaces(ear: Listener, tmp_path: Path):
    ear.add("t", tmp_path / "other")
    os.makedirs(ear.root / "a/b")
    ear.settle()
    os.rename(ear.root / "a", tmp_path / "other/a")
    ear.settle()
    assert {hint.space for hint in ear.hints if b"a" in hint.names} == {"s", "t"}
    ear.hints = []
    (tmp_path / "other/a/b/f").write_bytes(b"x")
    heard = ear.until(lambda hints: covers(hints, b"a/b", b"f"), "the file in the other space")
    assert {hint.space for hint in heard} == {"t"}


def test_a_tree_that_leaves_and_comes_back_is_looked_through(ear: Listener, tmp_path: Path):
    """Nobody heard what was done to it outside."""
    os.makedirs(ear.root / "a/b")
    ear.settle()
    os.rename(ear.root / "a", tmp_path / "away")
    ear.settle()
    ear.hints = []
    (tmp_path / "away/b/f").write_bytes(b"x")
    (ear.root / "mark").write_bytes(b"x")
    heard = ear.until(lambda hints: covers(hints, b"", b"mark"), "a file in the space")
    assert names(heard) == {b"mark"}
    os.rename(tmp_path / "away", ear.root / "a")
    ear.until(lambda hints: covers(hints, b"a/b", b"f"), "the tree that came back")


def test_the_kernels_own_overflow(
    make: Make, root: Path, allow_log: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    allow_log("overflowed")
    limit = Path(f"/proc/sys/fs/{make.name}/max_queued_events")  # type: ignore[attr-defined]
    if not os.access(limit, os.W_OK):
        pytest.skip("needs to set max_queued_events")
    before = limit.read_text()
    monkeypatch.setattr(f"{make.__module__}.raise_queue_limit", lambda kind: 0)
    limit.write_text("50")
    try:
        ear = Listener(make(), root)
    finally:
        limit.write_text(before)
    try:
        ear.source.queue.gate.clear()
        for number in range(100):
            os.makedirs(root / f"d{number}/e")
        ear.source.queue.gate.set()
        ear.until(lambda hints: any(hint.kind is Kind.GAP for hint in hints), "a GAP")
        ear.settle()
        assert ear.source.status("s").overflows >= 1
        (root / "d7/e/f").write_bytes(b"x")
        ear.until(lambda hints: covers(hints, b"d7/e", b"f"), "what comes after it")
    finally:
        ear.source.close()


def test_what_is_read_and_not_taken_is_bounded(make: Make, root: Path, allow_log: Callable[[str], None]):
    allow_log("overflowed")
    ear = Listener(make(max_bytes=2000), root)
    try:
        ear.source.queue.gate.clear()
        for number in range(200):
            os.makedirs(root / f"d{number}/e")
        ear.source.queue.gate.set()
        ear.until(lambda hints: any(hint.kind is Kind.GAP for hint in hints), "a GAP")
        ear.settle()
        assert ear.source.status("s").overflows >= 1
    finally:
        ear.source.close()


def test_the_hidden_directory_is_not_heard_under_another_name_either(ear: Listener):
    os.rename(ear.root / ".fsd", ear.root / "moved")
    ear.settle()
    ear.hints = []
    (ear.root / "moved/in").mkdir()
    (ear.root / "moved/in/f").write_bytes(b"x")
    (ear.root / "mark").write_bytes(b"x")
    heard = ear.until(lambda hints: covers(hints, b"", b"mark"), "a file in the space")
    assert names(heard) == {b"mark"}


def test_links_are_not_followed(ear: Listener, tmp_path: Path):
    (tmp_path / "outside/deep").mkdir(parents=True)
    (ear.root / "link").symlink_to(tmp_path / "outside")
    ear.settle()
    ear.hints = []
    (tmp_path / "outside/deep/f").write_bytes(b"x")
    (ear.root / "link/deep/g").write_bytes(b"x")
    (ear.root / "mark").write_bytes(b"x")
    heard = ear.until(lambda hints: covers(hints, b"", b"mark"), "a file in the space")
    assert names(heard) == {b"mark"}


def test_a_root_that_is_moved_is_lost(ear: Listener, tmp_path: Path):
    assert not ear.source.lost("s")
    os.rename(ear.root, tmp_path / "elsewhere")
    wait_for(lambda: (ear.hear() or True) and ear.source.lost("s"))
    ear.source.remove("s")
    assert ear.source.status("s") is None
    assert ear.source.spaces() == set()


def test_a_removed_space_is_not_heard(ear: Listener, tmp_path: Path):
    ear.add("t", tmp_path / "other")
    ear.source.remove("s")
    (ear.root / "f").write_bytes(b"x")
    (tmp_path / "other/g").write_bytes(b"x")
    heard = ear.until(lambda hints: covers(hints, b"", b"g"), "a file in the other space")
    assert {hint.space for hint in heard} == {"t"}


def test_a_part_of_a_space_is_told_by_its_path_in_it(make: Make, tmp_path: Path):
    """A filesystem inside a space: its hints name directories of the space."""
    part = tmp_path / "space/mnt/in"
    part.mkdir(parents=True)
    source = make()
    try:
        source.add("s", os.fsencode(part), hidden(tmp_path / "space"), base=b"mnt/in")
        heard: list[Hint] = []
        os.makedirs(part / "a/b")
        (part / "a/b/f").write_bytes(b"x")
        (part / "top").write_bytes(b"x")
        wait_for(
            lambda: (
                heard.extend(source.collect(0.05))
                or (covers(heard, b"mnt/in/a/b", b"f") and covers(heard, b"mnt/in", b"top"))
            )
        )
        os.rename(part / "a", part / "z")
        wait_for(
            lambda: (
                heard.extend(source.collect(0.05))
                or any((hint.peer, hint.dir) == (b"mnt/in/a", b"mnt/in/z") for hint in heard)
            )
        )
        assert source.spaces() == {"s"}
    finally:
        source.close()
