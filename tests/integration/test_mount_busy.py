"""A mount under many small requests, which are answered in C: who answers is seen from outside, the event loop's other
tasks get their turn, and nothing is interrupted that would be done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounting import WAYS, Mount, mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root
SOON = 5.0
"""Seconds: an order of magnitude less than what the kernel keeps."""
_LOOK_UP = """
import itertools, os, sys
for number in itertools.count():
    try:
        os.stat(f"{sys.argv[1]}/missing-{number}")
    except FileNotFoundError:
        pass
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A data root with one space, served by nobody."""
    made = Server(tmp_path_factory.mktemp("busy"))
    made.fsd("init")
    made.fsd("space", "create", "posix")
    return made


@pytest.fixture
def mount(server: Server, tmp_path: Path) -> Iterator[Mount]:
    with mounted(server, tmp_path / "mnt", "posix") as made:
        yield made


@contextmanager
def asking(mount: Mount) -> Iterator[subprocess.Popen[bytes]]:
    """A program that looks up one name after the other."""
    process = subprocess.Popen([sys.executable, "-c", _LOOK_UP, str(mount.path)], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def _threads(mount: Mount) -> set[str]:
    return {task.joinpath("comm").read_text().strip() for task in Path(f"/proc/{mount.pid}/task").iterdir()}


@pytest.mark.parametrize("way", WAYS)
def test_frequent_requests_are_answered_in_c_where_that_was_compiled(
    server: Server, tmp_path: Path, way: str
) -> None:
    with mounted(server, tmp_path / "mnt", "posix", way=way) as mount:
        if way == "none":
            assert not os.listdir(mount.path) and "turns" not in _threads(mount)
        else:
            wait_for(lambda: "turns" in _threads(mount), what="the thread that waits beside the loop")


def test_other_tasks_get_their_turn(server: Server, mount: Mount) -> None:
    direct = server.data / "projects/posix"
    with asking(mount), asking(mount):
        for number in range(20):
            assert not (mount.path / f"new-{number}").exists()
            (direct / f"new-{number}").write_bytes(b"1")
            wait_for((mount.path / f"new-{number}").exists, timeout=SOON, what="a name that was told missing")
            (direct / f"new-{number}").write_bytes(b"12")
            wait_for(
                lambda n=number: (mount.path / f"new-{n}").stat().st_size == 2, timeout=SOON, what="its size"
            )
            (direct / f"new-{number}").unlink()
            wait_for(
                lambda n=number: not (mount.path / f"new-{n}").exists(), timeout=SOON, what="that it is gone"
            )


def test_it_ends_when_told_to_while_requests_come(mount: Mount) -> None:
    with asking(mount), asking(mount):
        assert mount.stop(signal.SIGTERM) == 0


def test_callers_that_are_killed_leave_nothing_behind(mount: Mount) -> None:
    for _ in range(10):
        with asking(mount) as process:
            wait_for(lambda p=process: Path(f"/proc/{p.pid}/stat").read_text().split()[13] > "0", what="work")
    (mount.path / "after").write_bytes(b"x")
    assert (mount.path / "after").stat().st_size == 1
    (mount.path / "after").unlink()


def test_a_create_is_never_interrupted(mount: Mount) -> None:
    """The event loop's turn comes at all times, also when a request has just been taken: one that is begun again would
    find its own file there."""
    (mount.path / "made").mkdir()
    chance = random.Random(5)
    failed: list[OSError] = []

    def make(who: int) -> None:
        for number in range(400):
            until = time.perf_counter() + chance.uniform(0, 0.003)
            while time.perf_counter() < until:
                pass
            try:
                os.close(os.open(mount.path / f"made/{who}-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=make, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(os.listdir(mount.path / "made")) == 1200
