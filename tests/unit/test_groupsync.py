"""Group commit: one step for all that wait, the next for those who come later, errors reach every member."""

import os
import threading

import pytest

from fsd.core.groupsync import DirectorySync, Group


def run_all(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


class Gate:
    """A step that blocks until opened and remembers its batches."""

    def __init__(self, fail_on=()):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.fail_on = fail_on

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.open.acquire(timeout=10)
        if set(items) & set(self.fail_on):
            raise OSError(28, "full")


def waiting(group, count):
    """Wait until `count` items are queued behind the running step."""
    deadline = threading.Event()
    for _ in range(10_000):
        with group._changed:
            if len(group._next.items) >= count:
                return
        deadline.wait(0.001)
    raise AssertionError("nobody queued")


def test_a_single_caller_runs_the_step_at_once():
    seen = []
    Group(seen.append).submit(1)
    assert seen == [[1]]


def test_those_who_wait_share_one_step():
    gate = Gate()
    group = Group(gate)
    first = run_all(lambda: group.submit(0))
    assert gate.entered.acquire(timeout=10)
    rest = run_all(*(lambda n=n: group.submit(n) for n in range(1, 6)))
    waiting(group, 5)
    gate.open.release()
    assert gate.entered.acquire(timeout=10)
    gate.open.release()
    for thread in first + rest:
        thread.join(10)
    assert gate.batches[0] == [0]
    assert sorted(gate.batches[1]) == [1, 2, 3, 4, 5]
    assert len(gate.batches) == 2


def test_an_error_reaches_every_member_and_nobody_else():
    gate = Gate(fail_on={2})
    group = Group(gate)
    outcome = {}

    def submit(n):
        try:
            group.submit(n)
            outcome[n] = None
        except OSError as error:
            outcome[n] = error.errno

    threads = run_all(lambda: submit(0))
    assert gate.entered.acquire(timeout=10)
    threads += run_all(lambda: submit(1), lambda: submit(2))
    waiting(group, 2)
    gate.open.release()
    gate.open.release()
    for thread in threads:
        thread.join(10)
    assert outcome == {0: None, 1: 28, 2: 28}
    gate.open.release()
    group.submit(3)


def test_directories_are_told_apart_and_forgotten(tmp_path):
    synced = []
    sync = DirectorySync(synced.append)
    (tmp_path / "a").mkdir()
    one = os.open(tmp_path, os.O_RDONLY)
    two = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        sync(one)
        sync(two)
    finally:
        os.close(one)
        os.close(two)
    assert synced == [one, two]
    assert sync._groups == {}


def test_a_failing_fsync_is_reported(tmp_path):
    def broken(_fd):
        raise OSError(5, "no")

    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            DirectorySync(broken)(fd)
    finally:
        os.close(fd)
