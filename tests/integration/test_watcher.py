"""The watcher on a real space: what is written directly becomes right, whatever happens to the watcher."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsd.core.commit import MEMORY_S
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.service import status
from tests.support.waiting import wait_for
from watcher.ears import Choice, Ears
from watcher.keeper import verified
from watcher.loop import Watcher
from watcher.sources import fanotify


class Rig:
    """An installation with one space, and a watcher in a thread, which hears by the best source of a kind."""

    def __init__(self, base: Path, kind: str = "auto") -> None:
        self.state = base / "state"
        self.kind = kind
        Installation.initialise(self.state, base / "data")
        self.registry = Registry(self.state)
        self.record = self.registry.create("p")
        self.root = Path(os.fsdecode(self.record.path))
        self.space = self.registry.open(self.record.id)
        self.watcher: Watcher | None = None
        self._stop = False
        self._thread: threading.Thread | None = None

    def start(self, *, state: str = "", **more: Any) -> Rig:
        self.ears = Ears(Choice(**{"source": self.kind, "stats": 20_000, **more}))
        self.watcher = Watcher(Registry(self.state), self.state / "run", self.ears)
        self._stop = False
        self._thread = threading.Thread(target=self.watcher.run, args=(lambda: self._stop,))
        self._thread.start()
        self.calm(state)
        return self

    def calm(self, state: str = "") -> None:
        """Wait until it is taken up and swept."""
        state = state or ("polling" if self.kind == "poll" else "watching")
        wait_for(lambda: self.told().get("state") == state, what=f"a space that is {state}")

    def source(self) -> Any:
        """The one source there is."""
        (held,) = self.ears.sources()
        return held.source

    def stop(self) -> None:
        if self._thread is not None:
            self._stop = True
            self._thread.join(20)
            assert not self._thread.is_alive()
            self._thread = None

    def told(self) -> dict[str, Any]:
        return status.read(self.state / "run").spaces.get(self.record.hex, {})

    def usage(self) -> int:
        with self.space.index.read() as db:
            return db.execute("SELECT total FROM dir WHERE n=1").fetchone()[0]

    def walk(self) -> int:
        """Bytes below the root: this test's own idea of the truth."""
        total = 0
        for here, names, files in os.walk(self.root):
            names[:] = [name for name in names if name != ".fsd"]
            found = [os.lstat(os.path.join(here, name)) for name in files]
            total += sum(info.st_size for info in found if stat.S_ISREG(info.st_mode))
        return total

    def right(self, timeout: float = 15.0) -> None:
        wait_for(lambda: self.usage() == self.walk(), timeout=timeout, what="the tree size", every=0.005)

    def close(self) -> None:
        self.stop()
        self.space.close()
        self.registry.installation.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["inotify", "fanotify", "poll"])
def any_rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """One after the other with each source."""
    if request.param == "fanotify" and fanotify.usable() is not None:
        pytest.skip("fanotify needs root")
    monkeypatch.setattr("watcher.sources.poll.ROUND_LEAST", 0.05)
    made = Rig(tmp_path, request.param)
    yield made
    assert made.watcher is None or {held.kind for held in made.ears.sources()} <= {request.param}
    made.close()


def write(path: Path, size: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def test_direct_writes(any_rig: Rig):
    rig = any_rig
    rig.start()
    write(rig.root / "a/b/c/f", 100)
    rig.right()
    os.truncate(rig.root / "a/b/c/f", 7)
    rig.right()
    with open(rig.root / "a/log", "ab", buffering=0) as log:
        for _ in range(5):
            log.write(b"line\n")
            rig.right()
    os.rename(rig.root / "a/b", rig.root / "z")
    write(rig.root / "z/c/g", 3)
    rig.right()
    os.link(rig.root / "z/c/g", rig.root / "hard")
    os.symlink("/etc", rig.root / "link")
    os.mkfifo(rig.root / "fifo")
    write(Path(os.fsdecode(os.fsencode(rig.root) + b"/n\xff\n")), 11)
    rig.right()
    shutil.rmtree(rig.root / "z")
    os.unlink(rig.root / "link")
    rig.right()


def test_a_directory_whose_name_is_taken_again_at_once_loses_nothing(any_rig: Rig):
    """What was written into it belongs to it, wherever it is when that is read."""
    rig = any_rig
    rig.start()
    for turn in range(150):
        where = rig.root / f"d{turn % 5}"
        where.mkdir(exist_ok=True)
        write(where / f"f{turn % 7}", turn + 1)
        if turn % 3 == 0:
            where.rename(rig.root / f"e{turn}")
            where.mkdir()
            write(where / "g", 1)
    rig.right()


def test_bulk_copy_and_removal(any_rig: Rig, tmp_path: Path):
    rig = any_rig
    rig.start()
    for number in range(20):
        for name in range(30):
            write(tmp_path / f"src/d{number}/f{name}", name)
    shutil.copytree(tmp_path / "src", rig.root / "copy")
    rig.right()
    shutil.rmtree(rig.root / "copy")
    rig.right()
    assert rig.usage() == 0


def test_changes_while_it_was_down(any_rig: Rig):
    rig = any_rig
    rig.start()
    write(rig.root / "a/f", 10)
    write(rig.root / "b/f", 10)
    rig.right()
    rig.stop()
    write(rig.root / "a/f", 3)
    write(rig.root / "new/deep/f", 5)
    shutil.rmtree(rig.root / "b")
    rig.start()
    rig.right()


def test_overflow_ends_right_and_shows(any_rig: Rig, allow_log):
    rig = any_rig
    if rig.kind == "poll":
        return  # it has no queue
    allow_log("overflowed")
    rig.start()
    queue = rig.source().queue
    queue._max_bytes = 3000
    queue.gate.clear()
    for number in range(300):
        write(rig.root / f"d{number}/f", number)
    queue.gate.set()
    rig.right()
    wait_for(lambda: rig.told().get("overflows", 0) >= 1, what="the overflow in the status")
    write(rig.root / "d5/late", 5)
    rig.right()


def test_exhausted_watches_end_right_and_show(rig: Rig, allow_log, monkeypatch: pytest.MonkeyPatch):
    allow_log("polled instead")
    monkeypatch.setattr("watcher.sources.inotify.POLL_EVERY", 0.3)
    for number in range(8):
        write(rig.root / f"d{number}/e/f", 1)
    rig.kind = "inotify"
    rig.start(max_watches=5)
    rig.right()
    wait_for(lambda: rig.told().get("unwatched", 0) > 0, what="unwatched directories in the status")
    for number in range(8):
        write(rig.root / f"d{number}/e/f", 100 + number)
        write(rig.root / f"d{number}/new/g", 1)
    rig.right()
    assert status.read(rig.state / "run").problems()


def test_spaces_come_and_go(any_rig: Rig):
    rig = any_rig
    rig.start()
    second = rig.registry.create("second")
    root = Path(os.fsdecode(second.path))
    write(root / "f", 5)
    space = rig.registry.open(second.id)

    def usage() -> int:
        with space.index.read() as db:
            return db.execute("SELECT total FROM dir WHERE n=1").fetchone()[0]

    wait_for(lambda: usage() == 5)
    rig.registry.disable(second.id)
    wait_for(lambda: second.hex not in status.read(rig.state / "run").spaces)
    write(root / "f", 50)
    rig.registry.restore(second.id)
    wait_for(lambda: usage() == 50)
    space.close()


def test_storage_that_goes_away_deletes_nothing(any_rig: Rig, allow_log, tmp_path: Path):
    rig = any_rig
    allow_log("is unavailable|reconciling")
    rig.start()
    write(rig.root / "a/f", 10)
    rig.right()
    os.rename(rig.root, tmp_path / "away")
    rig.root.mkdir()
    wait_for(lambda: rig.told().get("state") == "unavailable")
    assert rig.usage() == 10
    write(tmp_path / "away/a/g", 5)
    rig.root.rmdir()
    os.rename(tmp_path / "away", rig.root)
    rig.right()
    rig.calm()
    write(rig.root / "a/h", 1)
    rig.right()


@pytest.mark.root
def test_a_filesystem_inside_the_space_comes_and_goes(any_rig: Rig, allow_log):
    """No event tells of a mount. While it is away its sizes are kept, and its neighbours are not affected."""
    rig = any_rig
    allow_log("mounted inside the space is not mounted now")
    rig.start()
    inner = rig.root / "inner"
    inner.mkdir()
    write(rig.root / "f", 5)
    rig.right()
    mount = ["mount", "-t", "tmpfs", "none", str(inner)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        wait_for(lambda: inner_is_known(rig))
        rig.calm()
        write(inner / "d/g", 100)
        rig.right()
    finally:
        subprocess.run(["umount", "-l", str(inner)], check=True)
    wait_for(
        lambda: any(
            "at inner is not mounted now" in text for text in status.read(rig.state / "run").problems()
        )
    )
    write(rig.root / "beside", 7)
    wait_for(lambda: rig.usage() == 112)
    assert rig.told()["state"] != "unavailable"
    subprocess.run(mount, check=True)
    try:
        write(inner / "new", 1)
        rig.right(30)
        wait_for(lambda: not status.read(rig.state / "run").problems())
    finally:
        rig.stop()
        subprocess.run(["umount", "-l", str(inner)], check=True)


@pytest.mark.root
def test_directories_that_are_visible_twice(rig: Rig):
    """Bind mounts inside the space, even of the space itself: shown, never entered, and nothing goes in circles."""
    rig.start()
    write(rig.root / "a/deep/f", 5)
    (rig.root / "a/loop").mkdir()
    (rig.root / "b").mkdir()
    rig.right()
    mounted = []
    try:
        for source, target in (("a", "b"), ("", "a/loop")):
            command = ["mount", "--bind", str(rig.root / source), str(rig.root / target)]
            if subprocess.run(command, capture_output=True).returncode != 0:
                pytest.skip("needs the right to mount")
            mounted.insert(0, rig.root / target)
        write(rig.root / "a/deep/g", 3)
        wait_for(lambda: rig.usage() == 8)
        write(rig.root / "b/deep/h", 4)
        wait_for(lambda: rig.usage() == 12)
        wait_for(lambda: rig.told()["state"] == "watching" and rig.told()["unwatched"] == 0)
    finally:
        for target in mounted:
            subprocess.run(["umount", "-l", str(target)], check=True)
    rig.right()


def inner_is_known(rig: Rig) -> bool:
    with rig.space.index.read() as db:
        return db.execute("SELECT count(*) FROM dir WHERE mounted").fetchone()[0] == 1


def test_a_deleted_index_comes_back_under_the_running_watcher(rig: Rig):
    rig.start()
    write(rig.root / "a/b/f", 10)
    rig.right()
    for turn in range(2):
        (rig.state / f"{rig.record.hex}.index.db").unlink()
        if turn:
            write(rig.root / "a/g", 4)
        wait_for(lambda: verified(rig.space).complete, what="a whole new index", every=0.1)
        rig.right()
        write(rig.root / f"c/d/g{turn}", 4)
        rig.right()


def test_an_unreadable_neighbour_disturbs_nobody(any_rig: Rig, allow_log):
    rig = any_rig
    allow_log("polled instead")
    rig.start()
    write(rig.root / "closed/f", 10)
    rig.right()
    (rig.root / "closed").chmod(0)
    write(rig.root / "open/f", 5)
    wait_for(lambda: rig.usage() == 15)
    (rig.root / "closed").chmod(0o755)
    rig.right()


def test_our_own_labels_wake_nobody_for_long(rig: Rig):
    """Labelling and publishing are heard as attribute changes; they must come to rest."""
    rig.start()
    for number in range(30):
        write(rig.root / f"d{number}/f", 1)
    rig.right()
    label = "user.fsd.id"
    wait_for(
        lambda: all(label in os.listxattr(rig.root / f"d{number}/f") for number in range(30)),
        timeout=30,
        what="labels",
        every=0.1,
    )
    keeper = rig.watcher.keepers[rig.record.hex]
    seen: list[tuple[int, int]] = []

    def at_rest() -> bool:
        counts = keeper.drain.counts
        seen.append((counts["names"] + counts["whole"], counts["changed"]))
        return len(seen) > 4 and len(set(seen[-4:])) == 1

    wait_for(at_rest, timeout=20, every=0.7, what="rest")


def run_forked(rig: Rig) -> int:
    from fsd.service.config import Settings
    from watcher.main import run

    pid = os.fork()
    if pid == 0:
        try:
            run(Settings(state=rig.state))
        finally:
            os._exit(0)
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_work_and_started_again(tmp_path: Path, number: signal.Signals):
    rig = Rig(tmp_path)
    rig.space.close()
    rig.registry.installation.close()
    pid = run_forked(rig)
    wait_for(lambda: rig.told().get("state") == "watching")
    for turn in range(200):
        write(rig.root / f"d{turn % 20}/f{turn}", turn)
    os.kill(pid, number)
    os.waitpid(pid, 0)
    write(rig.root / "d3/late", 10)
    shutil.rmtree(rig.root / "d4")
    pid = run_forked(rig)
    try:
        rig.right(20)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        rig.close()
    assert not status.read(rig.state / "run").watcher_runs


def test_a_sweep_that_never_ended_is_finished_first(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    from fsd.core.sweep import Sweep

    for number in range(300):
        write(rig.root / f"d{number}/f", 1)
    partly = Sweep(rig.space)
    while partly.progress().done_dirs < 50:
        partly.step(0.0005)
    before = partly.progress()
    assert not before.finished
    begun: list[int] = []
    real: Callable[..., None] = Sweep.begin
    monkeypatch.setattr(Sweep, "begin", lambda self: (begun.append(self.progress().done_dirs), real(self))[1])
    rig.start()
    rig.right()
    assert begun, "a new epoch follows, as anything may have changed"
    assert begun[0] >= 300, "but only after the interrupted one was finished"


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
def test_the_clock_is_set_under_the_running_watcher(rig: Rig, monkeypatch: pytest.MonkeyPatch, step: float):
    """Sizes are right at once as ever; what is labelled, and what counts as deleted, is so in its time."""
    for name in ("kept", "moved", "gone", "late"):
        write(rig.root / name, 10)
    rig.start()
    (rig.root / "gone").unlink()
    (rig.root / "new").write_bytes(b"x" * 100)
    rig.right()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    (rig.root / "late").unlink()
    (rig.root / "moved").rename(rig.root / "there")
    (rig.root / "kept").write_bytes(b"y" * 1000)
    (rig.root / "after").write_bytes(b"z" * 10000)
    rig.right()

    def settled() -> bool:
        with rig.space.index.read() as db:
            (limbos,) = db.execute("SELECT count(*) FROM limbo").fetchone()
        labelled = all(
            "user.fsd.id" in os.listxattr(rig.root / name) for name in ("new", "after", "kept", "there")
        )
        return bool(limbos == 0 and labelled)

    wait_for(settled, timeout=MEMORY_S + 60, what="labels, and deletions that are settled")
    assert not rig.told()["errors"]
    rig.right()
