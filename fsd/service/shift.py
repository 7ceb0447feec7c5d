"""Threads that a storage may hang without holding up the others.

A shift is a loop over subjects (spaces, sources). One thread runs it; a subject that keeps the thread longer
than PATIENCE keeps it for good, and a new thread goes on with the rest. The old one, once it is through, sees
that it was relieved and ends. So there is one thread more for each subject that hangs, and none while nothing
does.

A thread that hangs in the kernel can't be stopped; all that can be done is not to wait for it, and to say so.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE = 1.0
SUSPECT = 0.05
"""Seconds, for a subject on the same storage as one that hangs already."""
MAX_HELD = 200
"""Threads that may hang at once; then the shift itself waits."""
SILENT = 5.0
"""Seconds without any use of CPU after which a subject counts as hung: before, it may just be large."""


class Subject:
    """What one thread at a time works on. `storage` tells which of them are likely to hang together."""

    def __init__(self, storage: str = "") -> None:
        self.storage = storage
        self._lock = threading.Lock()
        self._since = 0.0
        self._thread = 0
        self._seen = (0.0, 0.0)

    @contextmanager
    def held(self, timeout: float = 0.0) -> Iterator[bool]:
        """Work on it; False, without waiting longer than `timeout` seconds, if another thread does."""
        if not self._lock.acquire(timeout=timeout) if timeout else not self._lock.acquire(blocking=False):
            yield False
            return
        self._thread = threading.get_native_id()
        self._since = time.monotonic()
        try:
            yield True
        finally:
            self._since = 0.0
            self._lock.release()

    def busy(self, now: float) -> float:
        """Seconds since the work on it began; 0 if nobody works on it."""
        since = self._since
        return max(0.0, now - since) if since else 0.0

    def hung(self, now: float) -> float:
        """The same, but 0 unless the thread has used next to no CPU for so long. One thread asks, every
        second or so."""
        busy = self.busy(now)
        if busy < PATIENCE:
            return 0.0
        used = _cpu(self._thread)
        if self._seen[0] != self._since:
            self._seen = self._since, used
        return busy if busy > SILENT and used - self._seen[1] < 0.02 * busy else 0.0


def _cpu(thread: int) -> float:
    """Seconds of CPU that a thread of this process has used; 0 if it is gone."""
    try:
        with open(f"/proc/self/task/{thread}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Relieved(Exception):
    """Another thread has taken over."""


class Shift:
    """See the module's text. `turn` is called again and again; it answers how long to rest, and does all that
    may hang through `do`."""

    def __init__(self, name: str, turn: Callable[[], float], ending: threading.Event) -> None:
        self._name = name
        self._turn = turn
        self._ending = ending
        self._token: object = None
        self._local = threading.local()
        self._at: Subject | None = None
        self._held: list[Subject] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, or go on with a new thread."""
        with self._lock:
            self._token, self._at = object(), None
            self._thread = threading.Thread(
                target=self._run, args=(self._token,), name=self._name, daemon=True
            )
        self._thread.start()

    def do(self, subject: Subject, work: Callable[[], T]) -> T | None:
        """Run `work` alone on the subject; None if another thread is still at it. Ends a thread that was
        relieved meanwhile, so whatever has to happen afterwards belongs into `work`."""
        with subject.held() as mine:
            if not mine:
                return None
            self._at = subject
            answer = work()
        with self._lock:
            if getattr(self._local, "token", None) is not self._token:
                raise _Relieved
            self._at = None
        return answer

    def relieve(self, now: float) -> None:
        """Called by a thread that never hangs, several times a second: go on without the one that does."""
        with self._lock:
            self._held = [subject for subject in self._held if subject.busy(now)]
            at = self._at
            if at is None or len(self._held) >= MAX_HELD:
                return
            suspect = any(each.storage == at.storage for each in self._held)
            if at.busy(now) < (SUSPECT if suspect else PATIENCE):
                return
            self._held.append(at)
        self.start()

    def strained(self) -> bool:
        """Whether some subject holds a thread."""
        return bool(self._held)

    def join(self, timeout: float) -> bool:
        """Wait for the present thread; what hangs is not waited for. False if it has not ended."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, token: object) -> None:
        self._local.token = token
        while token is self._token and not self._ending.is_set():
            try:
                rest = self._turn()
            except _Relieved:
                return
            except Exception:
                # A defect in one turn must not end the thread.
                if not self._ending.is_set():
                    log.exception("%s: a turn failed", self._name)
                rest = PATIENCE
            if rest > 0:
                self._ending.wait(rest)
