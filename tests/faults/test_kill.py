"""SIGKILL before each system call that changes something, for every operation; then what a restart does, and all
that must hold: the old tree or the new one whole, ids kept, sizes equal to a walk, nothing left over, nothing lost.

`--big` stops at every system call of every operation, those that only look included.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fsd.core import intents
from fsd.core.operations import replay
from tests.faults.cases import ONE, TWO, Case
from tests.faults.world import World
from tests.support import killpoints

pytestmark = pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child")

MakeWorld = Callable[[Case], World]


@pytest.mark.parametrize("case", ONE + TWO, ids=lambda case: case.name.replace(" ", "-"))
def test_killed_at_each_call(case: Case, make_world: MakeWorld, request: pytest.FixtureRequest) -> None:
    world = make_world(case)
    outcomes = []
    every = bool(request.config.getoption("--big"))
    for stop in killpoints.kill_at_each(
        world.opened, case.operate, fresh=world.fresh, every=every, step=case.step(every)
    ):
        assert stop.error is None, stop
        try:
            outcomes.append(world.check(case.allowed))
            world.preserved(*case.preserved)
        except AssertionError as error:
            where = f"{case.name}, killed before call {stop.index} ({stop.call})"
            raise AssertionError(f"{where}: {error}") from error
    assert outcomes[-1] == case.visible, "the unharmed run has to go through"
    assert outcomes[0] == 0
    assert len(outcomes) > 3


@pytest.mark.parametrize(
    "name",
    ["put if-match", "move over file", "move dir over dir", "copy dir over dir", "move dir across over dir"],
)
def test_killed_again_while_replaying(
    name: str, make_world: MakeWorld, request: pytest.FixtureRequest
) -> None:
    """The first kill leaves an intent; the second one hits at each call of the replay that settles it."""
    (case,) = [case for case in ONE + TWO if case.name == name]
    world = make_world(case)
    hit = 0
    big = bool(request.config.getoption("--big"))
    for first in _kills_with_an_intent(world, case) if big else [_last_with_an_intent(world, case)]:

        def fresh(first: int = first) -> None:
            world.fresh()
            next(killpoints.kill_at_each(world.opened, case.operate, first=first))

        for _ in killpoints.kill_at_each(lambda: world.spaces, _replay_all, fresh=fresh, step=case.step(big)):
            world.check(case.allowed)
            world.preserved(*case.preserved)
            hit += 1
    assert hit > 5


def _replay_all(spaces: list) -> None:
    by_id = {space.record.id: space for space in spaces}
    for space in spaces:
        replay(space, by_id.get)


def _kills_with_an_intent(world: World, case: Case) -> list[int]:
    """The kill points after which an intent is pending, of those that leave different names."""
    found: dict[tuple, int] = {}
    for stop in killpoints.kill_at_each(world.opened, case.operate, fresh=world.fresh):
        pending = _pending(world)
        if pending and stop.call:
            found.setdefault((pending, world.fingerprint()), stop.index)
    return sorted(found.values())


def _last_with_an_intent(world: World, case: Case) -> int:
    """The last kill point after which an intent is pending: all was done but to say so."""
    world.fresh()
    for last in reversed(range(len(killpoints.calls_made(world.opened, case.operate, killpoints.KILLING)))):
        world.fresh()
        next(killpoints.kill_at_each(world.opened, case.operate, first=last))
        if _pending(world):
            return last
    raise AssertionError("no kill leaves an intent")


def _pending(world: World) -> tuple[str, ...]:
    return tuple(intent.kind for space in world.spaces for intent in intents.of(space).pending())
