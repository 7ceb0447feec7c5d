"""Random histories against reconcile alone: whatever people and programs do to a tree, hints repeated, reordered and
dropped, failing calls, full disks, killed processes, clocks that are set, indexes that are lost. A sweep heals it.

No server and no threads, so that a seed plays the same history again; `--seed`, `--seconds` and `--big` make it another
or longer. The oracles are a walk of the disk and a ledger of identities, neither of which knows fsd.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fsd.core import check, dirty, limbo, relabel, tree
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from tests.model.trouble import Trouble
from tests.support.ledger import Ledger, Said
from tests.support.mounts import KINDS, Disk, disk
from tests.support.oracle import walk
from tests.support.seeds import explores, seed_of
from tests.support.shell import Shell
from tests.support.worlds import Hint, differences, drain, grow_quiet, make_space, moved_ids, rows, sweep

FIRST_SEED = 1
"""A run without `--seed` or `--big` plays the same histories each time, as many as the time allows."""
SECONDS = 2.5


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
            drain(self.space, together=self.random.random() < 0.5)

    def overflow(self) -> None:
        """The queue was full: what waits is lost, and that is known."""
        self._waiting.clear()
        dirty.mark_tree(self.space)


def said(space: Space, paths: object) -> dict[bytes, Said]:
    """Ids and etags as a reader gets them."""
    found = {}
    for path in paths:  # type: ignore[attr-defined]
        entry = tree.lookup(space, path)
        found[path] = Said(entry.id, entry.etag)
    return found


class World:
    """A space, somebody at a shell, and what is known of both."""

    def __init__(self, base: Path, seed: int, label: str) -> None:
        self.random = random.Random(seed)
        self.space = make_space(base, label=label)
        outside = base / "outside"
        outside.mkdir()
        self.shell = Shell(self.space.root, self.random, os.fsencode(outside))
        self.ledger = Ledger(self.space.root)
        sweep(self.space)

    def heard(self) -> list[Hint]:
        hints, self.shell.heard = self.shell.heard, []
        return hints

    def agree(self, what: object) -> None:
        """Rows and disk say the same."""
        wrong = differences(self.space)
        assert not wrong, (what, wrong[:8], self.shell.done[-30:])

    def check(self, what: object) -> None:
        """`check` finds nothing, in the rows and in what would be left without them."""
        found = list(check.check(self.space))
        assert not found, (what, found[:8], self.shell.done[-30:])

    def learn(self, what: object) -> None:
        """The ledger finds nothing wrong."""
        disk_now = walk(self.space.root)
        wrong = self.ledger.learn(disk_now, said(self.space, disk_now))
        assert not wrong, (what, wrong[:8], self.shell.done[-30:])

    def housekeeping(self) -> None:
        """What the watcher does once a second, at some moment."""
        self.random.choice([relabel.label_due, relabel.publish_trees, limbo.settle, grow_quiet])(self.space)
        drain(self.space, together=self.random.random() < 0.5)

    def close(self) -> None:
        self.space.close()


def _play(world: World, mode: str, trouble: Trouble) -> None:
    shell, chance = world.shell, world.random
    lossy = mode == "lossy"
    telephone = Telephone(
        world.space,
        chance,
        lose=0.3 if lossy else 0.0,
        repeat=0.3,
        shuffle=lossy and chance.random() < 0.5,
    )
    for _ in range(4):
        before, known, touched = walk(world.space.root), rows(world.space), set[bytes]()
        for _ in range(30):
            operation = shell.step()
            hints = world.heard()
            touched |= {d + b"/" + name if d else name for d, name in hints if name is not None}
            if mode == "attentive":
                dirty.mark(world.space, [(d, None if name is None else [name]) for d, name in hints])
                drain(world.space)
                if chance.random() < 0.1:
                    world.housekeeping()
                world.agree(operation)
                world.learn(operation)
                continue
            if lossy and chance.random() < 0.02:
                telephone.overflow()
            trouble.during(lambda hints=hints: telephone.say(hints))
        trouble.end()
        telephone.deliver()
        drain(world.space)
        grow_quiet(world.space)
        if lossy:
            sweep(world.space)
        world.agree(mode)
        world.check(mode)
        wrong = moved_ids(before, known, walk(world.space.root), rows(world.space), touched)
        assert lossy or trouble.kinds or not wrong, (mode, wrong[:8], shell.done)


def _history(base: Path, seed: int, mode: str, label: str, volume: Disk | None) -> Counter[str]:
    with ExitStack() as stack:
        world = World(base, seed, label)
        trouble = Trouble(world, volume if mode == "lossy" else None, troubled=mode == "lossy")
        try:
            _play(world, mode, trouble)
            return Counter(world.shell.done) + Counter(trouble.done)
        except BaseException as error:
            error.add_note(f"--seed {seed}")
            raise
        finally:
            trouble.end()
            world.close()
            stack.callback(shutil.rmtree, base)


def _seeds(request: pytest.FixtureRequest) -> Iterator[int]:
    """The seeds to play, until the time is up; one of them at least."""
    given, big = request.config.getoption("--seed"), request.config.getoption("--big")
    if given is not None:
        yield given
        return
    until = time.monotonic() + (request.config.getoption("--seconds") or (120.0 if big else SECONDS))
    seed = seed_of(request.config) if explores(request.config) else FIRST_SEED
    while True:
        yield seed
        seed += 1
        if time.monotonic() > until:
            return


def _run(
    base: Path, request: pytest.FixtureRequest, mode: str, label: str, volume: Disk | None = None
) -> None:
    done: Counter[str] = Counter()
    seeds = []
    for seed in _seeds(request):
        done += _history(base / str(seed), seed, mode, label, volume)
        seeds.append(seed)
    print(f"seeds {seeds[0]} to {seeds[-1]}: {done.total()} operations: {dict(done)}")


MODES = ["attentive", "every-hint", "lossy"]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("label", ["now", "lazy", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_rows_equal_the_disk(tmp_path: Path, request: pytest.FixtureRequest, mode: str, label: str) -> None:
    _run(tmp_path, request, mode, label)


@pytest.mark.root
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["attentive", "lossy"])
def test_on_a_filesystem_of_its_own(
    tmp_path: Path, request: pytest.FixtureRequest, mode: str, kind: str
) -> None:
    """ext4, xfs and btrfs, which number, time and label their nodes each in its own way; and which can be full."""
    with disk(tmp_path, "volume", megabytes=48, kind=kind) as volume:
        _run(volume.place, request, mode, "now", volume)
