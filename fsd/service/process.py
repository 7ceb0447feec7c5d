"""One child of the supervisor: fork, what the child does first, and when to start it again after it died."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
FIRST_WAIT = 0.1
LONGEST_WAIT = 30.0
STEADY = 30.0
"""A child that lived so many seconds starts with no failures counted."""

MANAGED = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGQUIT}
)
"""Signals that the supervisor keeps blocked and waits for."""

_libc = ctypes.CDLL(None, use_errno=True)


def restart_wait(failures: int) -> float:
    """Seconds to wait before start number `failures` + 1 in a row; the first restart is nearly immediate."""
    return 0.0 if failures <= 0 else min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 20))


@dataclass(slots=True)
class Child:
    """A process of its own. `main` runs in it; its return is exit code 0, an exception is logged and is 1."""

    name: str
    main: Callable[[], None]
    close: Iterable[int] = ()
    """Descriptors that belong to the supervisor alone."""
    pid: int = 0
    started: float = 0.0
    restarts: int = 0
    failures: int = 0
    start_at: float = 0.0
    last_exit: str = ""
    wanted: bool = True
    retired: set[int] = field(default_factory=set)
    """Earlier processes that were told to end and have not yet."""

    def start(self, now: float) -> None:
        """Fork. The supervisor must have no threads."""
        sys.stdout.flush()
        sys.stderr.flush()
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = self._run(supervisor)
            finally:
                os._exit(code)  # whatever happens, a child never goes on with the supervisor's work
        self.pid = pid
        self.started = now

    def ended(self, status: int, now: float) -> None:
        """The process was reaped with this wait status: plan the next start."""
        code = os.waitstatus_to_exitcode(status)
        self.last_exit = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.failures = 1 if now - self.started >= STEADY else self.failures + 1
        self.start_at = now + restart_wait(self.failures)
        self.pid = 0
        if self.wanted:
            self.restarts += 1
            log.error(
                "%s ended unexpectedly with %s, restarting in %.1f s",
                self.name,
                self.last_exit,
                self.start_at - now,
            )

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the process and to its retired predecessors."""
        for pid in {self.pid, *self.retired} - {0}:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def _run(self, supervisor: int) -> int:
        try:
            prepare(self.name, supervisor, self.close)
            self.main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
        except KeyboardInterrupt:
            return 130
        except BaseException:
            log.exception("%s failed", self.name)
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            logging.shutdown()
        return 0


def prepare(name: str, supervisor: int, close: Iterable[int]) -> None:
    """Make a forked process a child: it dies with the supervisor, default signals, and a name that ps shows.

    A terminal's ctrl-C goes to all processes of the group; only the supervisor acts on it.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)  # it died before the line above
    _libc.prctl(_PR_SET_NAME, f"fsd-{name}".encode()[:15], 0, 0, 0)
    for fd in close:
        os.close(fd)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, MANAGED)


def monotonic() -> float:
    """The clock of all supervision, seconds."""
    return time.monotonic()
