"""pyfuse3's waiting for requests, with less of it.

pyfuse3 takes a lock and waits for the descriptor before each request; each is a trip through trio's scheduler, and
together a third of a request's time. What replaces them (pyfuse3 is made for that: its asyncio module does the same)
asks the kernel first and goes on at once while requests keep coming; every 32nd time others get their turn.

Such a lock is not handed on. A handler that is about to await must therefore call `pause`, so that another of
pyfuse3's tasks takes over the waiting; else the mount stands still until the handler is done.
"""

from __future__ import annotations

import select
from collections import deque
from types import SimpleNamespace
from typing import Any

import pyfuse3
import trio

_TURNS = 32


class _Turnstile:
    """One task waits for requests; the others wait for `pause`."""

    def __init__(self) -> None:
        self._held = False
        self._ending = False
        self._waiting: deque[trio.Event] = deque()

    async def __aenter__(self) -> None:
        while self._held and not self._ending:
            event = trio.Event()
            self._waiting.append(event)
            try:
                await event.wait()
            except BaseException:
                if event.is_set():
                    self.pause()  # woken and cancelled: the turn goes to the next one
                elif event in self._waiting:
                    self._waiting.remove(event)
                raise
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False

    def pause(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()

    def end(self) -> None:
        """No more requests will come: nobody has to wait."""
        self._ending = True
        while self._waiting:
            self.pause()


class _Waiter:
    """Waits until the FUSE descriptor can be read."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fd = -1
        self._turns = 0

    async def wait_readable(self, fd: int) -> None:
        if fd != self._fd:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._fd = fd
        self._turns += 1
        if self._turns % _TURNS == 0:
            await trio.lowlevel.checkpoint()
        elif self._readable():
            return
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            _turnstile.end()
            raise
        self._readable()

    def _readable(self) -> bool:
        events = self._poll.poll(0)
        if events and events[0][1] & select.POLLERR:
            _turnstile.end()  # unmounted, or aborted
        return bool(events)


_turnstile = _Turnstile()


def pause() -> None:
    """Call this in a handler before anything that awaits: another task serves requests meanwhile."""
    _turnstile.pause()


def install() -> None:
    """Let pyfuse3 use this instead of trio's own, from the next `pyfuse3.main` on."""
    global _turnstile
    _turnstile = _Turnstile()
    waiter = _Waiter()
    lowlevel = SimpleNamespace(
        wait_readable=waiter.wait_readable,
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        notify_closing=trio.lowlevel.notify_closing,
    )
    replacement: Any = SimpleNamespace(
        Lock=lambda: _turnstile,
        open_nursery=trio.open_nursery,
        ClosedResourceError=trio.ClosedResourceError,
        lowlevel=lowlevel,
    )
    pyfuse3.trio = replacement  # type: ignore[attr-defined]
