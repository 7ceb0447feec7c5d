"""Directories of very many entries, and very many directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsd.core import dirty, index, large, together
from fsd.core.commit import Commit
from fsd.core.observe import Seen
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from tests.support.waiting import wait_for
from tests.support.worlds import differences
from tests.unit.watcher.test_drain import Clock, hear, space, usage, verify
from watcher import passes
from watcher.drain import Drain
from watcher.hint import Hint, Kind

__all__ = ["space"]


def test_many_new_directories_are_taken_in_together(space: Space):
    """With what is in them, at hint rank, and with all sums right at the end."""
    root = Path(space.root.decode())
    verify(space)
    for number in range(100):
        (root / f"new/d{number:02d}/below").mkdir(parents=True)
        (root / f"new/d{number:02d}/below/f").write_bytes(b"12")
    drain = Drain(space)
    hear(drain, b"", b"new")
    wait_for(lambda: not drain.run(1.0) and _rest(drain), what="all of it is handled")
    assert usage(space) == 200
    assert differences(space) == []


def _rest(drain: Drain) -> bool:
    drain.refill(drain._clock(), force=True)
    return dirty.counts(drain.space).hinted == 0


def test_a_directory_of_very_many_entries_is_compared_in_parts(space: Space, monkeypatch: pytest.MonkeyPatch):
    """Others are served between the parts, names that are hinted meanwhile too, and at the end all is right."""
    monkeypatch.setattr(passes, "AT_ONCE", 50)
    monkeypatch.setattr(large, "_BATCH", 20)
    monkeypatch.setattr(passes, "STEP_S", 0.0)
    root = Path(space.root.decode())
    for name in ("many", "other"):
        (root / name).mkdir()
    verify(space)
    for number in range(100):
        (root / f"many/f{number:02d}").write_bytes(b"1")
    (root / "many/gone").write_bytes(b"1234")
    reconcile(space, b"many", [b"gone"])
    (root / "many/gone").unlink()
    clock = Clock()
    drain = Drain(space, clock=clock)

    def step() -> bool:
        """What one turn of the watcher does, and whether nothing waits after it."""
        clock.now += 0.01
        drain.run(1.0)
        return _rest(drain)

    hear(drain, b"many", kind=Kind.DIRECTORY)
    assert not step() and not step()
    assert 0 < usage(space) < 100, "a part was compared"
    (root / "other/f").write_bytes(b"1000")
    (root / "many/late").write_bytes(b"12345")
    hear(drain, b"other", b"f")
    hear(drain, b"many", b"late")
    step()
    assert usage(space) < 100 + 4 + 5, "these two are served, the rest is not compared yet"
    with space.index.read() as db:
        assert index.find(db, b"other/f") and index.find(db, b"many/late")
    wait_for(step, what="all of it is compared")
    assert usage(space) == 100 + 4 + 5
    assert differences(space) == []


@pytest.fixture
def hinted(space: Space) -> Space:
    """Thirty known directories, each with a new file of a byte."""
    for number in range(30):
        (Path(space.root.decode()) / f"t{number % 3}/d{number}").mkdir(parents=True)
    verify(space)
    for number in range(30):
        (Path(space.root.decode()) / f"t{number % 3}/d{number}/f").write_bytes(b"1")
    return space


def _hear_all(drain: Drain) -> None:
    for number in range(30):
        drain.hear(
            Hint(
                "s", Kind.ENTRIES, b"t%d/d%d" % (number % 3, number), frozenset([b"f"]), heard=drain._clock()
            )
        )
    drain.flush()


def test_many_hinted_directories_are_served_together(hinted: Space, monkeypatch: pytest.MonkeyPatch):
    """In a fraction of the transactions, and each is counted."""
    drain = Drain(hinted)
    _hear_all(drain)
    monkeypatch.setattr(passes, "HINTED_S", 60.0)  # on a busy machine few would fit
    monkeypatch.setattr(together, "LOCKED_S", 60.0)
    made = []
    commit = hinted.index.commit
    monkeypatch.setattr(hinted.index, "commit", lambda db: (made.append(1), commit(db)))
    while drain.run(1.0):
        pass
    assert len(made) <= 10
    assert drain.counts["names"] == drain.counts["changed"] == 30
    assert len(drain.latencies) == 30
    assert dirty.counts(hinted).hinted == 0
    assert differences(hinted) == []


def test_one_that_fails_among_many_is_tried_alone_and_later(
    hinted: Space, monkeypatch: pytest.MonkeyPatch, allow_log
):
    allow_log("reconciling b't1/d10' failed")
    put, broken = Commit.put, True

    def failing(work: Commit, seen: Seen) -> None:
        if broken and work.path == b"t1/d10":
            raise OSError(5, "refused")
        put(work, seen)

    monkeypatch.setattr(Commit, "put", failing)
    drain = Drain(hinted, clock=(clock := Clock()))
    _hear_all(drain)
    while drain.run(1.0):
        pass
    assert [item.path for item in dirty.pending(hinted, 100, sweep=False)] == [b"t1/d10"]
    assert drain.errors == {"EIO": 1}
    assert usage(hinted) == 29
    broken = False
    clock.now += 60
    assert not drain.run(1.0)
    assert usage(hinted) == 30
    assert differences(hinted) == []
