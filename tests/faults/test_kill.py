"""SIGKILL before each system call that changes something, for every operation; then what a restart does, and all
that must hold: the old tree or the new one whole, ids kept, sizes equal to a walk, nothing left over, nothing lost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cases import ONE, TWO, Case
from tests.faults.world import World
from tests.support import killpoints


@pytest.fixture
def world_dir() -> Iterator[Path]:
    # In memory: the order of calls is what counts here, and hundreds of worlds are made.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-faults-") as name:
        yield Path(name)


def run(world: World, case: Case) -> None:
    outcomes = []
    for stop in killpoints.kill_at_each(world.opened, case.operate, fresh=world.fresh):
        assert stop.error is None, stop
        try:
            outcomes.append(world.check(case.allowed))
            world.preserved(*case.preserved)
        except AssertionError as error:
            raise AssertionError(f"{case.name}, killed before call {stop.index} ({stop.call}): {error}") from error
    new = 1 if case.allowed[0] != case.allowed[1] else 0
    assert outcomes[-1] == new, "the unharmed run has to go through"
    assert len(outcomes) > 3


@pytest.mark.parametrize("case", ONE, ids=lambda case: case.name.replace(" ", "-"))
def test_killed_at_each_call(case: Case, world_dir: Path) -> None:
    world = World(world_dir)
    try:
        run(world, case)
    finally:
        world.remove()


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.name.replace(" ", "-"))
def test_killed_at_each_call_of_a_move_between_spaces(case: Case, world_dir: Path) -> None:
    world = World(world_dir, spaces=2)
    try:
        run(world, case)
    finally:
        world.remove()
