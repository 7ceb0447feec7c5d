"""Waiting for signals that are blocked: signalfd(2) and poll(2).

Not `signal.sigtimedwait` with a timeout: interrupted by SIGSTOP and SIGCONT (a shell's ctrl-Z, a frozen container, a
debugger) after its time is over, CPython 3.11 returns a `struct_siginfo` that nobody filled in.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Iterable
from types import TracebackType

_SIGSET_BYTES = 128
_libc = ctypes.CDLL(None, use_errno=True)


class Awaited:
    """Blocks signals in the calling thread, and waits for them. Make it before the process has other threads.

    The signals stay blocked after `close`. A child that forks off inherits the mask, not the waiting.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = frozenset(numbers)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        mask = ctypes.create_string_buffer(_SIGSET_BYTES)
        _libc.sigemptyset(mask)
        for number in self._numbers:
            _libc.sigaddset(mask, int(number))
        self._fd: int = _libc.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def wait(self, seconds: float) -> signal.Signals | None:
        """The next of the signals, taken from the queue; None if none came in so many seconds."""
        if not self._poll.poll(max(0.0, seconds) * 1000):
            return None
        got = signal.sigtimedwait(self._numbers, 0)
        return None if got is None else signal.Signals(got.si_signo)

    def fileno(self) -> int:
        """The descriptor, which forked children have no use for."""
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()
