"""Many threads in several processes change the same few names at once, and some of the processes are killed.

Afterwards, with nobody having watched: the rows are the disk's, nothing is staged, trash and info fit. `--seconds`
and `--seed` choose another history.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import operations, properties, trash
from fsd.core.content import Upload
from fsd.core.space import Space
from tests.support.seeds import seed_of
from tests.support.worlds import differences, drain, make_space, sweep

NAMES = (b"a", b"b", b"d", b"d/a", b"d/b", b"d/e", b"d/e/a")
PROCESSES, THREADS = 2, 3


def one_change(space: Space, dice: random.Random) -> None:
    path, other = dice.choice(NAMES), dice.choice(NAMES)
    kind = dice.random()
    if kind < 0.4:
        content = b"%d" % dice.randrange(10 ** dice.randrange(1, 9))
        with Upload(space, path, length=len(content)) as upload:
            upload.write(content)
            upload.commit()
    elif kind < 0.5:
        operations.make_directory(space, path)
    elif kind < 0.6:
        operations.delete(space, path)
    elif kind < 0.75:
        operations.move(space, path, space, other, overwrite=dice.random() < 0.7)
    elif kind < 0.85:
        operations.copy(space, path, space, other, overwrite=dice.random() < 0.7)
    elif kind < 0.9:
        properties.update(space, path, {"{n}x": b"x" * dice.randrange(3000)})
    elif kind < 0.95:
        operations.set_mtime(space, path, dice.randrange(10**18))
    else:
        _use_trash(space, dice)


def _use_trash(space: Space, dice: random.Random) -> None:
    found = trash.items(space)
    if found and dice.random() < 0.5:
        trash.restore(space, dice.choice(found).key, taken="rename")
    elif found:
        trash.remove(space, dice.choice(found).key)


def _work(space: Space, dice: random.Random, until: float, bad: list[str]) -> None:
    while time.monotonic() < until:
        try:
            one_change(space, dice)
        except OSError:
            continue  # the answers that collisions give; what counts is what is left
        except BaseException as error:
            bad.append(repr(error))
            return


def _process(space: Space, seed: int, until: float) -> None:
    bad: list[str] = []
    dice = [random.Random(seed * 100 + n) for n in range(THREADS)]
    threads = [threading.Thread(target=_work, args=(space, each, until, bad)) for each in dice]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(1 if bad else 0)


@pytest.fixture
def space() -> Iterator[Space]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-together-") as base:
        made = make_space(Path(base))
        yield made
        made.close()


@pytest.mark.parametrize("killed", [False, True], ids=["to the end", "killed"])
def test_nothing_is_wrong_afterwards(
    killed: bool, space: Space, request: pytest.FixtureRequest, allow_log
) -> None:
    allow_log("left to the next|two writers met|could neither")
    seconds = request.config.getoption("--seconds") or 3.0
    seed = seed_of(request.config)
    print(f"seed {seed}, {seconds} s")
    sweep(space)
    space.close()
    until = time.monotonic() + seconds
    children = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            _process(space, seed * 10 + number, until)
        children.append(pid)
    statuses = []
    for pid in children:
        if killed:
            dice = random.Random(seed)
            threading.Event().wait(seconds * dice.uniform(0.2, 0.8))
            os.kill(pid, signal.SIGKILL)
        statuses.append(os.waitpid(pid, 0)[1])
    if not killed:
        assert statuses == [0] * PROCESSES
        drain(space)
        assert differences(space) == []
    operations.replay(space)
    sweep(space)
    assert differences(space) == []
    internals = Path(os.fsdecode(space.root)) / ".fsd"
    assert os.listdir(internals / "staging") == []
    info = {name.removesuffix(".trashinfo") for name in os.listdir(internals / "trash/info")}
    assert info == set(os.listdir(internals / "trash/files"))
