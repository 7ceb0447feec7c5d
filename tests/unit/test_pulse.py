"""Signs of life of a child that may hang, and how their absence is told from a machine that stood still."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fsd.service.pulse import Beating, Listened

US = os.getpid()


def test_silence_is_told_only_of_who_has_spoken(tmp_path: Path) -> None:
    listened = Listened(tmp_path / "pulse", 3)
    listened.begin(0)
    assert not any(listened.silent(now, US) for now in range(1, 100)), "it takes its time to begin"
    beating = Beating(str(listened.path))
    for now in range(100, 110):
        beating.beat()
        assert not listened.silent(now, US)
    assert [listened.silent(now, US) for now in range(110, 115)] == [False, False, False, True, True]
    beating.beat()
    assert not listened.silent(115, US)
    listened.begin(200)
    assert not any(listened.silent(now, US) for now in range(201, 300)), "another one has said nothing yet"


def test_a_machine_that_stood_still_makes_nobody_look_dead(tmp_path: Path) -> None:
    listened = Listened(tmp_path / "pulse", 8)
    listened.begin(0)
    beating = Beating(str(listened.path))
    beating.beat()
    assert not listened.silent(1, US) and not listened.silent(1_000_000, US)
    beating.beat()
    assert not listened.silent(1_000_001, US)


def test_nobody_ever_waits(tmp_path: Path) -> None:
    listened = Listened(tmp_path / "pulse", 3)
    listened.begin(0)
    beating = Beating(str(listened.path))
    for _ in range(100_000):  # the pipe is full, nobody listens
        beating.beat()
    assert not listened.silent(1, US) and listened.path.is_fifo()
    never = Listened(tmp_path / "pulse", 0)
    never.begin(0)
    Beating(str(never.path)).beat()
    assert not any(never.silent(now, US) for now in range(1, 1000))
    assert not Listened(tmp_path / "none/pulse", 1).silent(5, subprocess.Popen("true").pid)
