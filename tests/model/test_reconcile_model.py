"""Random histories against reconcile alone: hints repeated, reordered and dropped; a sweep heals what was
lost.

No server and no threads, so that a seed plays the same history again. The oracle is a walk of the disk.
"""

from __future__ import annotations

import os
import random
import shutil
import stat as stat_
import time
from pathlib import Path

import pytest

from fsd.core import dirty
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from tests.support.oracle import walk
from tests.support.worlds import Hint, differences, drain, grow_quiet, make_space, moved_ids, rows, sweep

FIRST_SEED = 1
"""A run without `--seed` or `--big` plays the same histories each time, as many as the time allows."""
NAMES = [b"a", b"b", b"c", b"d", b"e\xff", b"f~", b"f"]


class Shell:
    """Changes the tree and says what inotify would have said: (directory, name); name None is the whole
    directory."""

    def __init__(self, root: bytes, chance: random.Random) -> None:
        self.root, self.random = root, chance
        self.heard: list[Hint] = []
        self.done: list[str] = []

    def path(self, depth: int = 4) -> bytes:
        return b"/".join(self.random.choice(NAMES) for _ in range(self.random.randint(1, depth)))

    def existing(self) -> bytes:
        """Some path that is there."""
        paths = sorted(path for path in walk(self.root) if path)
        return self.random.choice(paths) if paths else self.path(1)

    def at(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    def hear(self, *paths: bytes) -> None:
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            self.heard.append((parent, name))
            if os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):
                # A new directory is listed by whoever begins to watch it, and so is all below it.
                below = (directory for directory, _, _ in os.walk(self.at(path)))
                self.heard += [(directory[len(self.root) + 1 :], None) for directory in below]

    def step(self) -> None:
        operation = self.random.choice(
            [self.write, self.write, self.edit, self.edit, self.mkdir, self.mkdir, self.move, self.move]
            + [self.remove, self.replace, self.backup, self.link, self.copy, self.symlink, self.chmod]
        )
        try:
            operation()
            self.done.append(operation.__name__)
        except OSError:
            pass

    def _file(self, path: bytes, mode: str = "wb") -> None:
        if os.path.lexists(self.at(path)) and not stat_.S_ISREG(os.lstat(self.at(path)).st_mode):
            return
        with open(self.at(path), mode) as file:
            file.write(b"x" * self.random.randrange(2000))

    def write(self) -> None:
        path = self.path()
        self._file(path)
        self.hear(path)

    def edit(self) -> None:
        path = self.existing()
        self._file(path, self.random.choice(["ab", "r+b"]))
        self.hear(path)

    def mkdir(self) -> None:
        path = self.path()
        os.makedirs(self.at(path))
        first = path.split(b"/")
        self.hear(*(b"/".join(first[: depth + 1]) for depth in range(len(first))))

    def move(self) -> None:
        source, target = self.existing(), self.path()
        os.rename(self.at(source), self.at(target))
        self.hear(source, target)

    def remove(self) -> None:
        path = self.existing()
        if os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):
            shutil.rmtree(self.at(path))
        else:
            os.unlink(self.at(path))
        self.hear(path)

    def replace(self) -> None:
        path = self.existing()
        if stat_.S_ISREG(os.lstat(self.at(path)).st_mode):
            self._file(path + b".tmp")
            self.hear(path + b".tmp")
            os.replace(self.at(path + b".tmp"), self.at(path))
            self.hear(path + b".tmp", path)

    def backup(self) -> None:
        path = self.existing()
        if stat_.S_ISREG(os.lstat(self.at(path)).st_mode):
            os.replace(self.at(path), self.at(path + b"~"))
            self.hear(path, path + b"~")
            self._file(path)
            self.hear(path)

    def link(self) -> None:
        source, target = self.existing(), self.path()
        os.link(self.at(source), self.at(target), follow_symlinks=False)
        self.hear(source, target)

    def copy(self) -> None:
        """With its attributes, as `cp -a`."""
        source, target = self.existing(), self.path()
        if not os.path.lexists(self.at(target)) and stat_.S_ISREG(os.lstat(self.at(source)).st_mode):
            shutil.copy2(self.at(source), self.at(target))
            self.hear(target)

    def symlink(self) -> None:
        path = self.path()
        os.symlink(b"nowhere", self.at(path))
        self.hear(path)

    def chmod(self) -> None:
        path = self.existing()
        if not os.path.islink(self.at(path)):
            os.chmod(self.at(path), self.random.choice([0o644, 0o755]))
            self.hear(path)


class Telephone:
    """Passes hints on, badly."""

    def __init__(
        self, space: Space, chance: random.Random, *, lose: float, repeat: float, shuffle: bool
    ) -> None:
        self.space, self.random = space, chance
        self.lose, self.repeat, self.shuffle = lose, repeat, shuffle
        self._waiting: list[Hint] = []

    def say(self, hints: list[Hint]) -> None:
        """Take hints; some arrive now, some later, some twice, some never."""
        for hint in hints:
            if self.random.random() >= self.lose:
                self._waiting += [hint] * (2 if self.random.random() < self.repeat else 1)
        if self.shuffle:
            self.random.shuffle(self._waiting)
        if self.random.random() < 0.5:
            self.deliver(self.random.randint(0, len(self._waiting)))

    def deliver(self, count: int | None = None) -> None:
        """Hand on the first hints, one way or another."""
        now, self._waiting = self._waiting[:count], self._waiting[count:] if count is not None else []
        for directory, name in now:
            names = None if name is None else [name]
            if self.random.random() < 0.5:
                dirty.mark(self.space, [(directory, names)])
            else:
                reconcile(self.space, directory, names)
        if self.random.random() < 0.3:
            drain(self.space)


def _seeds(request: pytest.FixtureRequest) -> tuple[int | None, float]:
    big = request.config.getoption("--big")
    return request.config.getoption("--seed"), request.config.getoption("--seconds") or (
        120.0 if big else 10.0
    )


def _history(base: Path, seed: int, *, bad: bool, label: str) -> None:
    chance = random.Random(seed)
    space = make_space(base, label=label)
    try:
        sweep(space)
        shell = Shell(space.root, chance)
        telephone = Telephone(
            space, chance, lose=0.3 if bad else 0.0, repeat=0.3, shuffle=bad and chance.random() < 0.5
        )
        for _ in range(4):
            before, known, touched = walk(space.root), rows(space), set[bytes]()
            for _ in range(30):
                shell.step()
                said, shell.heard = shell.heard, []
                touched |= {d + b"/" + name if d else name for d, name in said if name is not None}
                telephone.say(said)
            telephone.deliver()
            drain(space)
            grow_quiet(space)
            if bad:
                sweep(space)
            wrong = differences(space)
            assert not wrong, (seed, wrong[:8], shell.done)
            wrong = moved_ids(before, known, walk(space.root), rows(space), touched)
            assert not wrong, (seed, wrong[:8], shell.done)
    except Exception as error:
        error.add_note(f"--seed {seed}")
        raise
    finally:
        space.close()
        shutil.rmtree(base)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("label", ["now", "lazy", "none"])
@pytest.mark.parametrize("bad", [False, True], ids=["every-hint", "hints-lost-and-reordered"])
def test_rows_equal_the_disk(tmp_path: Path, request: pytest.FixtureRequest, bad: bool, label: str) -> None:
    given, seconds = _seeds(request)
    started, count = time.monotonic(), 0
    seed = given if given is not None else FIRST_SEED
    if given is None and request.config.getoption("--big"):
        seed = random.SystemRandom().randrange(10**9)
    first = seed
    while count == 0 or (given is None and time.monotonic() - started < seconds / 2):
        _history(tmp_path / str(count), seed, bad=bad, label=label)
        seed, count = seed + 1, count + 1
    print(f"seeds {first} to {seed - 1}")
