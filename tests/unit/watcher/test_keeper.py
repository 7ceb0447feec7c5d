"""Sweeps of one space: when one begins, and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import dirty
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from tests.support.mounts import disk
from watcher.hint import Hint, Kind
from watcher.keeper import Keeper, verified
from watcher.report import latency


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    registry = Registry(tmp_path / "state")
    made = Keeper(registry.open(registry.create("p").id), verify_every=1000.0)
    yield made
    made.close()
    registry.installation.close()


def root(keeper: Keeper) -> Path:
    return Path(keeper.space.root.decode())


def gap(keeper: Keeper) -> None:
    keeper.hear(Hint("s", Kind.GAP, heard=time.monotonic()))
    keeper.flush()


def test_a_gap_is_answered_by_a_sweep(keeper: Keeper):
    (root(keeper) / "a/b").mkdir(parents=True)
    gap(keeper)
    assert keeper.gap
    assert keeper.wants_slice(time.monotonic())
    keeper.sweep(5.0)
    assert not keeper.sweeping
    assert keeper.verified_at > 0
    assert verified(keeper.space).complete


def test_a_sweep_has_not_ended_while_a_directory_it_left_to_its_hint_was_never_looked_at(keeper: Keeper):
    gap(keeper)
    keeper.sweep(5.0)
    before = keeper.verified_at
    for number in range(6):
        (root(keeper) / f"d{number}").mkdir()
        (root(keeper) / f"d{number}/f").write_bytes(b"x" * 10)
    # The root is looked at by name only: three directories are known, and wait with their own hints.
    names = frozenset(b"d%d" % number for number in range(3))
    keeper.hear(Hint("s", Kind.ENTRIES, b"", names, heard=time.monotonic()))
    keeper.flush()
    (item,) = dirty.pending(keeper.space, 10, sweep=False)
    keeper.drain._work(keeper.space, b"", item.names, item=item)
    gap(keeper)
    keeper.sweep(5.0)
    assert keeper.sweeping
    assert keeper.verified_at == before
    keeper.drain.refill(time.monotonic(), force=True)
    while keeper.drain.waiting():
        keeper.run(1.0)
    keeper.sweep(5.0)
    assert not keeper.sweeping
    with keeper.space.index.read() as db:
        assert db.execute("SELECT total FROM dir WHERE n=1").fetchone() == (60,)


def test_an_index_that_is_deleted_before_any_housekeeping_is_swept_again(keeper: Keeper):
    (root(keeper) / "a").mkdir()
    gap(keeper)
    keeper.sweep(5.0)
    keeper.space.index.path.unlink()
    keeper.tick(time.monotonic())
    keeper.sweep(5.0)
    assert verified(keeper.space).complete
    keeper.tick(time.monotonic() + 10.0)
    assert not keeper.gap


@pytest.mark.root
def test_a_filesystem_that_came_and_went_between_two_looks_is_missed(keeper: Keeper):
    inner = root(keeper) / "inner"
    with disk(root(keeper), "inner", kind="tmpfs"):
        gap(keeper)
        keeper.sweep(5.0)
        keeper.tick(time.monotonic())
        assert keeper.inner_away == []
    keeper.tick(time.monotonic() + 10.0)
    assert [path for path, _ in keeper.inner_away] == [b"inner"]
    inner.rmdir()
    keeper.tick(time.monotonic() + 20.0)
    assert keeper.inner_away == []


def test_what_fails_rests_and_is_said_once(keeper: Keeper, allow_log, caplog: pytest.LogCaptureFixture):
    allow_log("no space")
    gap(keeper)
    for turn in range(3):
        keeper.failed(OSError(28, "no space left"), float(turn))
    assert len([record for record in caplog.records if "no space" in record.message]) == 1
    assert keeper.drain.errors["OSError"] == 3
    assert not keeper.wants_slice(2.5)
    assert keeper.wants_slice(100.0)


def test_latency_of_nothing_and_of_something():
    assert latency([]) == {}
    assert latency([0.3, 0.1, 0.2]) == {"p50": 0.2, "p95": 0.3, "max": 0.3}


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
def test_the_next_verification_does_not_wait_for_a_clock_that_was_set(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, step: float
):
    gap(keeper)
    keeper.sweep(5.0)
    keeper.tick(time.monotonic())
    assert not keeper.gap
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    keeper.tick(time.monotonic() + 100.0)
    assert keeper.gap
    keeper.sweep(5.0)
    keeper.tick(time.monotonic() + 200.0)
    assert not keeper.gap
    assert abs(keeper.verified_at - time.time()) < 60
