"""Each system call of each operation fails once with ENOSPC, EIO or EACCES, and the operation goes on from there.

By default ENOSPC everywhere and the others where the paths differ; `--big` tries all.

Either it reports an error and nothing has changed, or it goes through; never a change that was reported as failed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.faults.cases import ONE, TWO, Case
from tests.faults.world import World
from tests.support import killpoints

pytestmark = pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child")

BROKEN = {
    "put new",
    "put two together",
    "put over",
    "mkcol",
    "move file",
    "move over file",
    "move file over dir",
    "delete file",
}
"""Those that take every kind of step; the others are made of the same."""


@pytest.mark.parametrize("case", ONE + TWO, ids=lambda case: case.name.replace(" ", "-"))
def test_a_full_disk_at_each_call(
    case: Case,
    make_world: Callable[[Case], World],
    allow_log: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    allow_log(".")  # failures are logged, as they should be
    _fail_at_each(case, make_world(case), (errno.ENOSPC,), case.step(bool(request.config.getoption("--big"))))


@pytest.mark.parametrize("case", ONE + TWO, ids=lambda case: case.name.replace(" ", "-"))
def test_a_broken_disk_at_each_call(
    case: Case,
    make_world: Callable[[Case], World],
    allow_log: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    allow_log(".")
    if case.name in BROKEN or request.config.getoption("--big"):
        _fail_at_each(case, make_world(case), (errno.EIO, errno.EACCES), 1)


def _fail_at_each(case: Case, world: World, errors: tuple[int, ...], step: int) -> None:
    count = 0
    for stop in killpoints.fail_at_each(world.opened, case.operate, errors, fresh=world.fresh, step=step):
        count += 1
        where = f"{case.name}, call {stop.index} ({stop.call}) fails: {stop.error or 'no error is reported'}"
        assert "CRASH" not in (stop.error or ""), where
        try:
            outcome = world.check(case.allowed)
            world.preserved(*case.preserved)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        if case.visible:
            assert (outcome == 1) == (not stop.error), where
    assert count > 3 or not case.visible
