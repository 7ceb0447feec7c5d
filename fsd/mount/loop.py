"""pyfuse3's waiting for requests, with less of it.

pyfuse3 takes a lock and waits for the descriptor before each request; each is a trip through trio's scheduler, and
together more than half of a request's time. What replaces them (pyfuse3 is made for that: its asyncio module does the
same) asks the kernel itself, and waits there for a millisecond, as the next request usually follows the last answer.
Every 32nd time, when nothing comes, when something else is heard and while a handler awaits, trio's own way is gone.

Such a lock is not handed on. A handler that awaits must therefore do it by `in_thread`, or within `away`, so that
another of pyfuse3's tasks takes over the waiting; else the mount stands still until the handler is done.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio

if TYPE_CHECKING:
    from fsd.mount.shim import Shim

T = TypeVar("T")
_TURNS = 32
_PATIENCE = 1
"""Milliseconds to wait in the kernel for the next request, as long as no handler awaits."""


class _Turnstile:
    """One task waits for requests; the others wait for `pause`."""

    def __init__(self) -> None:
        self._held = False
        self._ending = False
        self.absent = 0
        """Handlers that await: they are done when trio hears of it."""
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

    def __init__(self, others: Iterable[int], shim: Shim | None) -> None:
        self.shim = shim
        self._poll = select.poll()
        self._others = list(others)
        self._fd = -1
        self.turns = 0
        self._closing = False

    async def wait_readable(self, fd: int) -> None:
        if fd != self._fd:
            self._poll = select.poll()
            for each in (fd, *self._others):
                self._poll.register(each, select.POLLIN)
            self._fd = fd
        self.turns += 1
        by_itself = self.shim is not None and self.shim.answers and not _turnstile.absent
        if by_itself and self.shim is not None and not self.shim.tired:
            return  # until there is something else to do
        if by_itself or self.turns % _TURNS == 0:
            await trio.lowlevel.checkpoint()
            if self._closing:
                _turnstile.end()
                raise trio.ClosedResourceError
        if self._readable(0 if by_itself or _turnstile.absent else _PATIENCE):
            return
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            _turnstile.end()
            raise
        self._readable(0)

    def notify_closing(self, fd: int) -> None:
        """No more requests are wanted. Nobody may be waiting in trio at the moment."""
        self._closing = True
        trio.lowlevel.notify_closing(fd)

    def _readable(self, patience: int) -> bool:
        for fd, events in self._poll.poll(patience):
            if fd == self._fd:
                if events & select.POLLERR:
                    _turnstile.end()  # unmounted, or aborted
                return True
        return False


_turnstile = _Turnstile()
_waiter: _Waiter | None = None


def turns() -> int:
    """How often a request was waited for: rises by about one with each."""
    return _waiter.turns if _waiter is not None else 0


@contextmanager
def away() -> Iterator[None]:
    """For handlers, around what they await: another task serves requests meanwhile, and nobody waits in the kernel."""
    _turnstile.pause()
    _absent(1)
    try:
        yield
    finally:
        _absent(-1)


def _absent(more: int) -> None:
    _turnstile.absent += more
    if _waiter is not None and _waiter.shim is not None:
        _waiter.shim.away(_turnstile.absent)


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """For handlers: do what blocks in a thread."""
    with away():
        return await trio.to_thread.run_sync(work, *args)


def install(others: Iterable[int] = (), shim: Shim | None = None) -> None:
    """Let pyfuse3 use this instead of trio's own, from the next `pyfuse3.main` on. `others`: descriptors that trio's
    tasks wait for, too. `shim`: what answers some requests before they get here."""
    global _turnstile, _waiter
    _turnstile = _Turnstile()
    waiter = _waiter = _Waiter(others, shim)
    lowlevel = SimpleNamespace(
        wait_readable=waiter.wait_readable,
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        notify_closing=waiter.notify_closing,
    )
    replacement: Any = SimpleNamespace(
        Lock=lambda: _turnstile,
        open_nursery=trio.open_nursery,
        ClosedResourceError=trio.ClosedResourceError,
        lowlevel=lowlevel,
    )
    pyfuse3.trio = replacement  # type: ignore[attr-defined]
