"""When a waiting directory may be handled."""

from __future__ import annotations

import pytest

from watcher.pace import MAX_FAILURE, MAX_WAIT, MAX_WAIT_NAMES, SOFT_AGAIN, SOFT_FIRST, Pacer, failure_wait


def due(pacer: Pacer, now: float, *, whole: bool = False, soft: bool = False) -> float:
    return pacer.due(b"d", now, whole=whole, soft=soft)


def test_a_quiet_directory_is_due_at_once():
    assert due(Pacer(), 5.0) == 5.0
    assert due(Pacer(), 5.0, whole=True) == 5.0
    assert due(Pacer(), 5.0, soft=True) == 5.0 + SOFT_FIRST


def test_under_fire_it_waits_ten_times_its_own_cost():
    pacer = Pacer()
    pacer.done(b"d", 100.0, 0.001, whole=False)
    assert due(pacer, 100.0) == pytest.approx(100.01)
    assert due(pacer, 101.0) == 101.0
    pacer.done(b"d", 100.0, 0.02, whole=False)
    assert due(pacer, 100.0) == pytest.approx(100.0 + MAX_WAIT_NAMES), (
        "names are work that is owed in any case"
    )
    assert pacer.due(b"other", 100.0, whole=False, soft=False) == 100.0


def test_a_whole_pass_does_not_hold_up_names():
    pacer = Pacer()
    pacer.done(b"d", 100.0, 0.3, whole=True)
    assert due(pacer, 100.0) == 100.0
    assert due(pacer, 100.0, whole=True) == pytest.approx(103.0)


def test_the_wait_is_bounded():
    pacer = Pacer()
    pacer.done(b"d", 100.0, 60.0, whole=True)
    assert due(pacer, 100.0, whole=True) == 100.0 + MAX_WAIT


def test_stores_alone_wait_longer():
    pacer = Pacer()
    pacer.done(b"d", 100.0, 0.0001, whole=False)
    assert due(pacer, 100.0, soft=True) == pytest.approx(100.0 + SOFT_AGAIN)
    assert due(pacer, 100.0) < 100.01


def test_failures_back_off_and_are_forgotten_after_a_success():
    pacer = Pacer()
    assert [pacer.failed(b"d", 0.0) for _ in range(3)] == [1, 2, 3]
    assert due(pacer, 0.0) == failure_wait(3)
    pacer.done(b"d", 10.0, 0.0, whole=False)
    assert due(pacer, 10.0) == 10.0
    pacer.failed(b"d", 20.0)
    pacer.forget_failures()
    assert due(pacer, 20.0) == 20.0


def test_waits_after_failures_grow_to_a_bound():
    waits = [failure_wait(number) for number in range(60)]
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == MAX_FAILURE


def test_memory_is_bounded():
    pacer = Pacer(max_known=10)
    for number in range(100):
        pacer.done(b"%d" % number, 1.0, 1.0, whole=True)
    assert pacer.due(b"0", 1.0, whole=True, soft=False) == 1.0
    assert pacer.due(b"99", 1.0, whole=True, soft=False) > 1.0
