"""Whose turn it is. No disk, no clock."""

from __future__ import annotations

from watcher.coalesce import Waiting
from watcher.schedule import Schedule


def enter(schedule: Schedule, path: bytes, *names: bytes) -> None:
    schedule.put(path, Waiting(set(names) or None, False, False, 1.0, 1.0))
    schedule.enter(path, 1.0)


def taken(schedule: Schedule, path: bytes, most: int) -> int:
    """How many come before it."""
    for turn in range(most):
        if schedule.take()[0] == path:
            return turn
    raise AssertionError(f"{path!r} is not among the next {most}")


def test_a_name_does_not_wait_for_new_directories_in_a_hundred_places() -> None:
    schedule = Schedule(20_000)
    for number in range(5_000):
        enter(schedule, b"t%d/d%d" % (number % 100, number))
    schedule.ripen(2.0)
    enter(schedule, b"calm", b"f")
    schedule.ripen(2.0)
    assert taken(schedule, b"calm", 3) <= 1


def test_new_directories_do_not_wait_for_names_that_never_end() -> None:
    schedule = Schedule(20_000)
    for number in range(5_000):
        enter(schedule, b"t%d/d%d" % (number % 100, number), b"f")
    enter(schedule, b"new")
    schedule.ripen(2.0)
    assert taken(schedule, b"new", 3) <= 1


def test_names_in_a_directory_that_is_new_wait_for_the_one_above_it() -> None:
    """Served first they would have to make it known alone, each for itself."""
    schedule = Schedule(20_000)
    enter(schedule, b"t/new", b"f")
    enter(schedule, b"t", b"new")
    enter(schedule, b"calm/old", b"f")
    schedule.ripen(2.0)
    order = [schedule.take()[0] for _ in range(3)]
    assert order.index(b"t") < order.index(b"t/new")


def test_all_that_is_due_is_taken_once() -> None:
    schedule = Schedule(20_000)
    for number in range(300):
        enter(schedule, b"t%d/d%d" % (number % 7, number), *([b"f"] if number % 3 else []))
    assert schedule.ripen(2.0)
    found: list[bytes] = []
    while schedule.ripen(2.0):
        path, item = schedule.take()
        found.append(path)
        if item.names is None:
            beside = schedule.take_beside(path, 5, lambda each: True)
            assert all(each.partition(b"/")[0] == path.partition(b"/")[0] for each in beside)
        else:
            beside = schedule.take_more(5, lambda each, waiting: each != b"t1/d1")
            assert b"t1/d1" not in beside
        assert all((each.names is None) == (item.names is None) for each in beside.values())
        found += beside
    assert sorted(found) == sorted({b"t%d/d%d" % (number % 7, number) for number in range(300)})
    assert not schedule.items
    assert schedule.next_due() is None
