"""The thread that empties a kernel's queue: when it rings."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.waiting import wait_for
from watcher.sources import queue
from watcher.sources.queue import Queue


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


def test_what_is_not_urgent_rings_later(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "PATIENCE", 3600.0)
    made = Queue(pipe[0], "test", urgent=lambda chunk: b"theirs" in chunk)
    try:
        os.write(pipe[1], b"ours")
        wait_for(lambda: made.held() == 4)
        os.write(pipe[1], b"ours too")
        wait_for(lambda: made.held() == 12)
        assert not made.bell.is_set()
        os.write(pipe[1], b"theirs")
        wait_for(made.bell.is_set)
        assert [made.take(), made.take(), made.take(), made.take()] == [b"ours", b"ours too", b"theirs", None]
    finally:
        made.close()


def test_later_comes(pipe: tuple[int, int]) -> None:
    made = Queue(pipe[0], "test", urgent=lambda chunk: False)
    try:
        os.write(pipe[1], b"ours")
        wait_for(made.bell.is_set)
        assert made.take() == b"ours"
    finally:
        made.close()
