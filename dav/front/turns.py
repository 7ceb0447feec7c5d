"""One thread of the process computes at a time, and they take turns.

The interpreter lets only one run in any case.  Left to its lock, eight busy threads take it from each other at every
system call: a PUT of 4 KiB then cost a thousand futex(2) calls.  Here a thread has its turn from one event, or one
wait for the disk, to the next; then the one that has waited longest goes on.
"""

import threading
import time
from collections import deque

WATCH = 0.025
"""Seconds after which a turn is looked at."""


def _asleep(thread: int) -> bool:
    """Whether a thread of this process waits in the kernel (proc(5): state S or D)."""
    try:
        with open(f"/proc/self/task/{thread}/stat", "rb") as file:
            return file.read(256).rpartition(b") ")[2][:1] in b"SD"
    except OSError:
        return False


class _Seat:
    """One thread: since when it has its turn (monotonic clock), and where it waits for it."""

    __slots__ = ("called", "depth", "left", "since", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_native_id()
        self.since = 0.0
        self.depth = 0
        self.left = False
        self.called = threading.Lock()
        self.called.acquire()


class _Player(threading.local):
    def __init__(self) -> None:
        self.seat = _Seat()


class Turns:
    """Who may compute.  A turn that ends in a system call which hangs is taken away by ``take_from_stuck``."""

    def __init__(self) -> None:
        self._player = _Player()
        self._guard = threading.Lock()
        self._owner: _Seat | None = None
        self._queue: deque[_Seat] = deque()
        self._suspect: tuple[_Seat, float] | None = None

    def take(self) -> None:
        """Wait for the calling thread's turn.  It must not have it already."""
        seat = self._player.seat
        with self._guard:
            if self._owner is None:
                seat.since = time.monotonic()
                self._owner = seat
                return
            self._queue.append(seat)
        seat.called.acquire()

    def give(self) -> bool:
        """Let the next one have its turn; False if it was not, or not any more, the calling thread's."""
        seat = self._player.seat
        with self._guard:
            if self._owner is not seat:
                return False
            self._pass()
        return True

    def leave(self) -> None:
        """Before a wait, which may be a part of another one: ``give``."""
        seat = self._player.seat
        seat.depth += 1
        if seat.depth == 1:
            seat.left = self.give()

    def back(self) -> None:
        """After it: ``take``, if the thread had its turn before."""
        seat = self._player.seat
        seat.depth -= 1
        if seat.depth == 0 and seat.left:
            seat.left = False
            self.take()

    def _pass(self) -> None:
        if not self._queue:
            self._owner = None
            return
        seat = self._queue.popleft()
        seat.since = time.monotonic()
        self._owner = seat
        seat.called.release()

    @property
    def busy(self) -> bool:
        """Whether anybody has a turn."""
        return self._owner is not None

    def take_from_stuck(self, now: float) -> int:
        """The native id of a thread that lost its turn now, because it has slept in it for a while; else 0.

        One that computes, or waits for a processor that others have, goes on: a second one would only fight with it.
        Call it regularly: a turn is suspected when it is met for the second time.
        """
        owner = self._owner
        if owner is None or now - owner.since < WATCH or self._suspect != (owner, owner.since):
            self._suspect = None if owner is None else (owner, owner.since)
            return 0
        since = owner.since
        if not _asleep(owner.thread):
            return 0
        with self._guard:
            if self._owner is not owner or owner.since != since:
                return 0
            self._pass()
        return owner.thread
