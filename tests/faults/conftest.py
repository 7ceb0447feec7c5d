"""Where the worlds of the fault tests are made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fsd.core import commit, lease, populate
from tests.faults.cases import TWO, Case
from tests.faults.disks import may_mount, small_disk
from tests.faults.two_hosts import Clock
from tests.faults.world import World


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[Case], World]]:
    """make_world(case) -> a World with as many spaces as the case needs, removed at the end.

    In memory: the order of calls is what counts, and hundreds of worlds are made. A second filesystem is another
    tmpfs, or without the right to mount the disk.
    """
    with ExitStack() as stack:
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-faults-")))

        def make(case: Case) -> World:
            other = None
            if case.elsewhere:
                other = stack.enter_context(small_disk(memory / "other", "64m")) if may_mount() else tmp_path
            world = World(
                memory,
                spaces=2 if case in TWO else 1,
                other_base=other,
                before=case.before,
            )
            stack.callback(world.remove)
            return world

        yield make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(lease, "boottime", made)
    # Whatever is there is quiet, so that labels are written as soon as it is seen.
    monkeypatch.setattr(commit, "QUIET_S", -1e6)
    monkeypatch.setattr(populate, "QUIET_S", -1e6)
    yield made
