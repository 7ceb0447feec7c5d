"""The inotify source's own matters, against a real kernel: its forest of watches, exhausted watches. What every source
owes is in `test_sources`."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ears import Listener
from tests.support.waiting import wait_for
from watcher.hint import Kind
from watcher.nodes import below, place
from watcher.sources.base import covers
from watcher.sources.inotify import InotifySource


class Ear(Listener):
    """One that also says which directories are watched."""

    source: InotifySource

    def __init__(self, root: Path, source: InotifySource | None = None) -> None:
        super().__init__(source or InotifySource(), root)

    def watched(self) -> set[bytes]:
        root = self.source._roots["s", b""]
        return {spot[1] for node in below(root) if (spot := place(node)) is not None}

    def disk(self) -> set[bytes]:
        found = set()
        for here, names, _ in os.walk(os.fsencode(self.root)):
            names[:] = [name for name in names if name != b".fsd"]
            relative = os.path.relpath(here, os.fsencode(self.root))
            found.add(b"" if relative == b"." else relative)
        return found

    def status(self):
        return self.source.status("s")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "space/.fsd").mkdir(parents=True)
    return tmp_path / "space"


@pytest.fixture
def ear(root: Path) -> Iterator[Ear]:
    made = Ear(root)
    yield made
    made.source.close()


def test_chains_of_new_directories_lose_nothing(ear: Ear):
    chains = 150

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
    assert ear.watched() == ear.disk()


def test_renames_while_the_reader_is_behind(ear: Ear):
    """What a walk sees may be newer than the events: it ends right all the same."""
    for turn in range(30):
        ear.source.queue.gate.clear()
        os.makedirs(ear.root / "a/b/c")
        os.rename(ear.root / "a", ear.root / f"x{turn}")
        os.makedirs(ear.root / "a/b/d")
        os.rename(ear.root / "a/b", ear.root / f"x{turn}/moved")
        os.rename(ear.root / f"x{turn}/b/c", ear.root / "a/c")
        ear.source.queue.gate.set()
        ear.settle()
        assert ear.watched() == ear.disk(), turn
        shutil.rmtree(ear.root / "a")
    ear.settle()
    assert ear.watched() == ear.disk()
    assert ear.status().watched == len(ear.disk())


def test_a_tree_that_leaves_is_no_longer_watched(ear: Ear, tmp_path: Path):
    os.makedirs(ear.root / "a/b")
    ear.settle()
    assert ear.status().watched == 3
    os.rename(ear.root / "a", tmp_path / "away")
    ear.settle()
    ear.settle()
    assert ear.status().watched == 1
    ear.hints = []
    (tmp_path / "away/b/f").write_bytes(b"x")
    (ear.root / "f").write_bytes(b"x")
    heard = ear.until(lambda hints: covers(hints, b"", b"f"), "the file in the space")
    assert all(hint.dir == b"" for hint in heard)


def test_overflow_walks_again_and_says_gap(root: Path, allow_log):
    allow_log("overflowed")
    ear = Ear(root, InotifySource(max_bytes=2000))
    try:
        ear.source.queue.gate.clear()
        for number in range(200):
            os.makedirs(root / f"d{number}/e")
        ear.source.queue.gate.set()
        ear.until(lambda hints: any(hint.kind is Kind.GAP for hint in hints), "a GAP")
        ear.settle()
        assert ear.status().overflows >= 1
        assert ear.status().ready
        assert ear.watched() == ear.disk()
    finally:
        ear.source.close()


def test_exhausted_watches_are_polled_and_tried_again(root: Path, allow_log):
    allow_log("cannot be watched and is polled")
    for number in range(10):
        os.makedirs(root / f"d{number}/e")
    ear = Ear(root, InotifySource(max_watches=8))
    try:
        status = ear.status()
        assert status.watched == 8
        assert status.unwatched > 0
        assert status.errors["ENOSPC"] > 0
        left = {path.split(b"/")[0] for path in ear.source.unwatched("s")}
        assert left | {path.split(b"/")[0] for path in ear.watched()} >= {b"d%d" % n for n in range(10)}
        ear.until(lambda hints: any(hint.kind is Kind.SUBTREE for hint in hints), "polling")
        ear.source.walker._max = 1000
        ear.source._next_retry = 0.0
        ear.settle()
        assert ear.watched() == ear.disk()
        assert ear.status().unwatched == 0
        assert ear.source.unwatched("s") == []
    finally:
        ear.source.close()


def test_the_kernels_own_limit(root: Path, allow_log, monkeypatch: pytest.MonkeyPatch):
    """inotify_add_watch(2) answers ENOSPC beyond max_user_watches; other errors are treated alike."""
    allow_log("cannot be watched and is polled")
    for number in range(4):
        (root / f"d{number}").mkdir()
    source = InotifySource()
    real, refused = source.inotify.add_watch, [True]

    def add_watch(path: bytes, mask: int) -> int:
        if refused[0] and path.endswith(b"d2"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mask)

    monkeypatch.setattr(source.inotify, "add_watch", add_watch, raising=False)
    ear = Ear(root, source)
    try:
        assert ear.source.unwatched("s") == [b"d2"]
        assert ear.status().unwatched == 1
        refused[0] = False
        ear.source._next_retry = 0.0
        ear.settle()
        assert ear.watched() == ear.disk()
    finally:
        ear.source.close()


def test_a_directory_that_becomes_readable_is_watched(root: Path, allow_log, monkeypatch: pytest.MonkeyPatch):
    """Without the right to read a directory inotify_add_watch(2) answers EACCES; a chmod is heard at its parent."""
    allow_log("cannot be watched and is polled")
    (root / "closed/in").mkdir(parents=True)
    source = InotifySource()
    real, refused = source.inotify.add_watch, [True]

    def add_watch(path: bytes, mask: int) -> int:
        if refused[0] and path.endswith(b"closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, mask)

    monkeypatch.setattr(source.inotify, "add_watch", add_watch, raising=False)
    ear = Ear(root, source)
    try:
        assert ear.watched() == {b""}
        assert ear.status().errors == {"EACCES": 1}
        refused[0] = False
        (root / "closed").chmod(0o700)
        ear.settle()
        assert ear.watched() == ear.disk()
    finally:
        ear.source.close()


def test_a_root_that_is_moved_or_removed_is_lost(ear: Ear, tmp_path: Path):
    assert not ear.source.lost("s")
    os.rename(ear.root, tmp_path / "elsewhere")
    wait_for(lambda: (ear.hear() or True) and ear.source.lost("s"))
    ear.source.remove("s")
    assert ear.source.status("s") is None
    assert not ear.source.walker.nodes


def test_removing_a_space_gives_its_watches_back(ear: Ear):
    for number in range(20):
        os.makedirs(ear.root / f"d{number}/e")
    ear.settle()
    assert len(ear.source.walker.nodes) == 41
    ear.source.remove("s")
    assert not ear.source.walker.nodes
    (ear.root / "d1/late").write_bytes(b"x")
    time.sleep(0)
    assert not [hint for hint in ear.source.collect(0.05) if hint.names]


def test_many_writers_renaming_directories(ear: Ear):
    stop = threading.Event()

    def churn(mine: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            deep = ear.root / f"{mine}{number % 7}/s{number % 3}"
            try:
                os.makedirs(deep, exist_ok=True)
                os.rename(ear.root / f"{mine}{number % 7}", ear.root / f"{mine}{(number + 3) % 7}-{number}")
                if number % 5 == 0:
                    shutil.rmtree(ear.root / f"{mine}{(number + 3) % 7}-{number}")
            except OSError:
                pass

    threads = [threading.Thread(target=churn, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        ear.hear()
    stop.set()
    for thread in threads:
        thread.join()
    ear.settle()
    ear.settle()
    assert ear.watched() == ear.disk()
    assert ear.status().watched == len(ear.disk())
