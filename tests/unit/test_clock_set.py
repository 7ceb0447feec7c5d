"""The wall clock is set back or forward under a running service; files keep the times that the kernel gave them."""

import os
import time

import pytest

from fsd.core import index, limbo, relabel
from fsd.core.commit import MEMORY_S
from fsd.core.labels import ID_ATTRIBUTE
from fsd.core.memory import SETTLE_S
from fsd.core.reconcile import reconcile
from tests.support.worlds import differences, make_space, sweep
from tests.unit.core_space import on_disk, write

DAY = 86400.0
_real = time.time


class Clock:
    """time.time(), as it is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        patch.setattr(time, "time", lambda: _real() + self.ahead)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    sweep(made)
    yield made
    made.close()


def _count(space, table):
    with space.index.read() as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


@pytest.mark.parametrize("step", [-DAY, -60.0, DAY])
def test_what_vanished_before_the_clock_was_set_is_settled_in_its_time(space, clock, step):
    write(space, b"f", b"1")
    reconcile(space, b"", [b"f"])
    os.unlink(on_disk(space, b"f"))
    reconcile(space, b"", [b"f"])
    assert _count(space, "limbo") == 1
    clock.ahead += step
    limbo.settle(space)
    if step < 0:
        assert _count(space, "limbo") == 1, "it may still reappear"
    clock.ahead += MEMORY_S + 1
    limbo.settle(space)
    assert _count(space, "limbo") == 0


def test_a_name_is_not_remembered_for_as_long_as_the_clock_was_set_back(space, clock):
    """What was renamed away a while ago leaves its id to no new file of its name."""
    with space.index.write() as db:
        db.execute("INSERT INTO recent VALUES (1, ?, 99, ?)", (b"f", time.time()))
    clock.ahead -= DAY
    limbo.settle(space)
    clock.ahead += MEMORY_S + 1
    limbo.settle(space)
    assert _count(space, "recent") == 0


@pytest.mark.parametrize("step", [-DAY, -3600.0, DAY])
def test_labels_are_written_in_their_time(space, clock, step):
    write(space, b"f", b"1")
    reconcile(space, b"", [b"f"])
    with pytest.raises(OSError, match="No data"):
        os.getxattr(on_disk(space, b"f"), ID_ATTRIBUTE)
    clock.ahead += step
    relabel.label_due(space)
    clock.ahead += SETTLE_S + 1
    relabel.label_due(space)
    with space.index.read() as db:
        row = index.at(db, index.ROOT, b"f")
    assert row.id.hex() in os.getxattr(on_disk(space, b"f"), ID_ATTRIBUTE).decode()
    assert _count(space, "pending") == 0
    assert not differences(space)
