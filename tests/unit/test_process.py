"""Backoff of restarts, and what a child plans after it ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fsd.service.process import FIRST_WAIT, LONGEST_WAIT, STEADY, Child, restart_wait
from fsd.service.signals import Awaited
from tests.support.waiting import wait_for


def test_waits_double_up_to_a_bound():
    assert restart_wait(0) == 0.0
    assert restart_wait(1) == FIRST_WAIT
    assert restart_wait(3) == 4 * FIRST_WAIT
    assert restart_wait(500) == LONGEST_WAIT


def ended(child: Child, lived: float, status: int = 0) -> float:
    child.started = 1000.0
    child.ended(status, 1000.0 + lived)
    return child.start_at - (1000.0 + lived)


def test_short_lives_add_up_and_a_steady_one_starts_over(allow_log):
    allow_log("ended unexpectedly")
    child = Child("c", lambda: None)
    waits = [ended(child, 0.1) for _ in range(3)]
    assert waits == pytest.approx([restart_wait(1), restart_wait(2), restart_wait(3)])
    assert ended(child, STEADY) == pytest.approx(restart_wait(1))
    assert child.restarts == 4


def test_the_reason_is_kept(allow_log):
    allow_log("ended unexpectedly")
    child = Child("c", lambda: None)
    ended(child, 1.0, signal.SIGKILL)
    assert child.last_exit == "signal SIGKILL"
    ended(child, 1.0, 3 << 8)
    assert child.last_exit == "exit code 3"


def test_an_end_that_was_asked_for_is_no_restart():
    child = Child("c", lambda: None, wanted=False)
    ended(child, 1.0)
    assert child.restarts == 0


def test_telling_a_process_that_is_gone_is_fine():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    Child("c", lambda: None, pid=pid).tell(signal.SIGTERM)


def suspended_and_resumed(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T", every=0.001)
    os.kill(pid, signal.SIGCONT)


def test_being_suspended_is_not_a_signal():
    hear, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        waiting = Awaited({signal.SIGTERM})
        os.write(say, b"x")
        while (got := waiting.wait(0.001)) is None:
            pass
        os._exit(0 if got == signal.SIGTERM else 1)
    os.read(hear, 1)
    os.close(hear)
    os.close(say)
    for _ in range(50):
        suspended_and_resumed(pid)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
