"""Threads that compute one at a time: order, waits within a turn, and turns that are taken away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dav.front.turns import WATCH, Turns
from fsd.core import waits
from tests.support.waiting import wait_for


@contextmanager
def running(*mains: Callable[[], None]) -> Iterator[list[threading.Thread]]:
    threads = [threading.Thread(target=main, daemon=True) for main in mains]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def queued(turns: Turns, count: int) -> None:
    wait_for(lambda: len(turns._queue) == count, what=f"{count} that wait", every=0.001)


def test_one_at_a_time_and_in_the_order_of_waiting():
    turns, order = Turns(), []
    turns.take()

    def taking(number: int) -> Callable[[], None]:
        def main() -> None:
            turns.take()
            order.append(number)
            assert turns.give()

        return main

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=taking(number), daemon=True))
        threads[-1].start()
        queued(turns, number + 1)
    assert order == []
    assert turns.give()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]
    assert not turns.busy


def test_who_comes_again_queues_behind_those_who_wait():
    turns, seen = Turns(), []
    turns.take()

    def other() -> None:
        turns.take()
        seen.append("other")
        turns.give()

    with running(other):
        queued(turns, 1)
        turns.give()
        turns.take()
        seen.append("again")
        turns.give()
    assert seen == ["other", "again"]


def test_others_compute_while_one_waits_for_the_disk():
    turns, disk, seen = Turns(), threading.Event(), []

    def writer() -> None:
        waits.tell(turns.leave, turns.back)
        turns.take()
        with waits.aside, waits.aside:  # a wait may be a part of another one
            seen.append("waits")
            disk.wait(10)
        seen.append("goes on")
        assert turns.give()

    with running(writer):
        wait_for(lambda: seen == ["waits"], what="the wait")
        turns.take()
        disk.set()
        queued(turns, 1)
        assert seen == ["waits"]
        turns.give()
    assert seen == ["waits", "goes on"]


def test_who_had_no_turn_gets_none_by_waiting():
    turns = Turns()
    turns.leave()
    turns.back()
    assert not turns.busy
    assert turns.give() is False


def test_a_turn_that_hangs_is_taken_away():
    turns, hung, result = Turns(), threading.Event(), []

    def hanging() -> None:
        turns.take()
        hung.wait(10)
        turns.leave()
        turns.back()
        result.append(turns.give())

    with running(hanging) as (thread,):
        wait_for(lambda: turns.busy, what="its turn")
        wait_for(lambda: turns.take_from_stuck(time.monotonic()) == thread.native_id, what="its end")
        turns.take()
        hung.set()
        thread.join(10)
        assert turns.give(), "the one that came back did not end another's turn"
    assert result == [False]


def test_a_turn_that_computes_is_not_taken_away():
    turns = Turns()
    turns.take()
    until = time.monotonic() + 4 * WATCH
    while (now := time.monotonic()) < until:
        assert turns.take_from_stuck(now) == 0
    assert turns.give()
