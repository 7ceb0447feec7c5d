"""Waiting for a disk or for another thread, announced: `with waits.aside: os.fsync(fd)`.

Python computes in one thread at a time. A server that lets its threads take turns, instead of letting them fight for
the interpreter's lock at every system call, must know when the one whose turn it is stops computing. What may take as
long as a disk, or waits for somebody who may have to wait for a turn, stands in such a block; without a server it does
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

_Hooks = tuple[Callable[[], object], Callable[[], object]]


class _Told(threading.local):
    """Who is told of the calling thread's waiting."""

    hooks: _Hooks | None = None


_told = _Told()


def tell(leaving: Callable[[], object], back: Callable[[], object]) -> None:
    """From now on `leaving()` is called before the calling thread waits, and `back()` afterwards, which may wait for
    its turn. Neither may raise."""
    _told.hooks = leaving, back


class _Aside:
    """Keeps nothing, so one serves all threads. Blocks may be nested; both hooks are called for each."""

    __slots__ = ()

    def __enter__(self) -> None:
        hooks = _told.hooks
        if hooks is not None:
            hooks[0]()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hooks = _told.hooks
        if hooks is not None:
            hooks[1]()


aside = _Aside()
