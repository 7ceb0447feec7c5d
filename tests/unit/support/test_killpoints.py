"""The fault harness itself: it stops where it says, counts all calls, and injects what it says."""

import errno
import os

import pytest

from tests.support import killpoints

pytestmark = pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child")


def test_each_call_is_a_stop_and_the_last_run_is_whole(tmp_path):
    target, other = tmp_path / "a", tmp_path / "b"

    def operate(_ready):
        os.mkdir(target)
        os.rename(target, other)
        os.rmdir(other)
        os.mkdir(other)

    def fresh():
        for path in (target, other):
            if path.exists():
                path.rmdir()

    seen = []
    for stop in killpoints.kill_at_each(lambda: None, operate, fresh=fresh):
        seen.append((stop.call, target.exists(), other.exists()))
        assert stop.error is None
    assert seen == [
        ("mkdir", False, False),
        ("rename", True, False),
        ("rmdir", False, True),
        ("mkdir", False, False),
        (None, False, True),
    ]


def test_every_call_can_be_a_stop(tmp_path):
    stops = list(killpoints.kill_at_each(lambda: None, lambda _: os.getppid(), every=True))
    assert len(stops) >= 2


def test_an_injected_error_reaches_the_caller_and_nothing_was_done(tmp_path):
    def operate(_ready):
        os.mkdir(tmp_path / "a")
        os.mkdir(tmp_path / "b")

    def fresh():
        for path in tmp_path.iterdir():
            path.rmdir()

    seen = []
    for stop in killpoints.fail_at_each(lambda: None, operate, [errno.ENOSPC], fresh=fresh):
        seen.append(("28" in (stop.error or ""), sorted(p.name for p in tmp_path.iterdir())))
    assert seen == [(True, []), (True, ["a"]), (False, ["a", "b"])]


def test_a_crash_of_the_operation_is_told():
    (stop,) = killpoints.kill_at_each(lambda: None, lambda _: 1 / 0)
    assert stop.error and "ZeroDivisionError" in stop.error


def test_what_runs_afterwards_may_use_every_processor():
    allowed = os.sched_getaffinity(0)
    list(killpoints.kill_at_each(lambda: None, lambda _: None))
    assert os.sched_getaffinity(0) == allowed
