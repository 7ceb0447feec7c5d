"""Asking what may never answer. A call into storage that hangs can't be interrupted (it sleeps in the kernel), but the
process that makes it can be left behind."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Hung(Exception):
    """No answer in time."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Do `work` in a child process and return its answer, or raise what it raised; Hung after so many seconds.

    For single-threaded callers: the child is a fork. A child that hangs is killed, which takes effect when the storage
    answers; until then it stays, and keeps nobody waiting. The answer must be picklable.
    """
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        _answer(into, work)
    os.close(into)
    try:
        raw = _read(out, time.monotonic() + seconds)
    finally:
        os.close(out)
        os.kill(child, signal.SIGKILL)
    _reap(child, hangs=raw is None)
    if raw is None:
        raise Hung(f"no answer within {seconds:g} s")
    if not raw:
        raise Hung("the process that asked ended without an answer")
    good, answer = pickle.loads(raw)
    if not good:
        raise answer
    result: T = answer
    return result


def _answer(into: int, work: Callable[[], T]) -> None:
    try:
        try:
            raw = pickle.dumps((True, work()))
        except Exception as error:
            raw = pickle.dumps((False, _plain(error)))
        view = memoryview(raw)
        while view:
            view = view[os.write(into, view) :]
    finally:
        os._exit(0)


def _plain(error: Exception) -> Exception:
    return OSError(error.errno, error.strerror) if isinstance(error, OSError) else RuntimeError(repr(error))


def _read(out: int, deadline: float) -> bytes | None:
    """All that comes until the end; None when the time is over."""
    parts: list[bytes] = []
    poll = select.poll()  # select(2) knows no descriptor above 1023
    poll.register(out, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        part = os.read(out, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _reap(child: int, *, hangs: bool) -> None:
    try:
        os.waitpid(child, os.WNOHANG if hangs else 0)
    except ChildProcessError:
        pass
