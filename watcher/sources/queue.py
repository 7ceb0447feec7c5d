"""One kernel queue of events (inotify or fanotify) and the thread that empties it.

The kernel's queue of 16,384 events is full after 80 ms of a busy writer, so the thread does nothing but read
into a deque; what the events mean is worked out elsewhere. The deque is bounded too: past its cap, reading
goes on but the bytes are dropped and `lost` is set, which means the same as the kernel's own overflow.
"""

from __future__ import annotations

import array
import fcntl
import logging
import os
import select
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

LIMITS = Path("/proc/sys/fs")
WANTED_QUEUE = 262_144
"""Events; at most some 20 MiB of kernel memory while nobody reads."""
READ_SIZE = 1 << 18
MAX_BYTES = 64 << 20
REST, REST_BUSY = 0.001, 0.005
"""Seconds between two reads, and after one of BUSY bytes: equal neighbours merge meanwhile, and less is woken
up."""
BUSY = 1 << 12
REST_PATIENT, PATIENCE = 0.01, 0.03
"""Seconds between two reads, and until the bell is rung, where nothing was read that is urgent."""


def raise_queue_limit(kind: str, wanted: int = WANTED_QUEUE) -> int:
    """Raise max_queued_events of `inotify` or `fanotify` where that is allowed; the value then in force, 0 if
    it cannot be told. Instances read it when they are made."""
    file = LIMITS / kind / "max_queued_events"
    try:
        current = int(file.read_text())
        if current < wanted:
            file.write_text(str(wanted))
            log.info("%s max_queued_events raised from %d to %d", kind, current, wanted)
            current = wanted
    except OSError:
        return 0
    return current


class Queue:
    """Events of one descriptor as raw chunks, in order. `take`, `idle` and `close` belong to one thread."""

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        bell: threading.Event | None = None,
        max_bytes: int = MAX_BYTES,
        urgent: Callable[[bytes], bool] = lambda chunk: True,
    ) -> None:
        """`fd` stays the caller's, to be closed after `close`. `bell` is set when there is something to
        take; a moment later if it is not `urgent`, which the reading thread asks of each chunk."""
        self.fd = fd
        self.lost = False
        """Set when chunks were dropped; the owner clears it."""
        self.gate = threading.Event()
        """Cleared by tests to hold the reader back."""
        self.gate.set()
        self.bell = bell if bell is not None else threading.Event()
        self._max_bytes = max_bytes
        self._urgent = urgent
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._lock = threading.Lock()
        self._stop_r, self._stop_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"{name}-reader", daemon=True)
        self._thread.start()

    def take(self) -> bytes | None:
        """The next chunk, or None."""
        try:
            chunk = self._chunks.popleft()
        except IndexError:
            return None
        with self._lock:
            self._held -= len(chunk)
        return chunk

    def held(self) -> int:
        """Bytes read and not yet taken."""
        return self._held

    def idle(self) -> bool:
        """True if every event up to this moment has been taken."""
        waiting = array.array("i", [0])
        with self._lock:
            if self._chunks:
                return False
            fcntl.ioctl(self.fd, termios.FIONREAD, waiting)
            return waiting[0] == 0

    def wait(self, timeout: float) -> None:
        """Sleep until a chunk is there, `wake` is called or the time is over."""
        if self._chunks:
            return
        self.bell.wait(timeout)
        self.bell.clear()

    def wake(self) -> None:
        """End a `wait`, from any thread."""
        self.bell.set()

    def close(self) -> None:
        """Stop the thread."""
        self.gate.set()
        os.write(self._stop_w, b"x")
        self._thread.join()
        os.close(self._stop_r)
        os.close(self._stop_w)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        poller.register(self._stop_r, select.POLLIN)
        due: float | None = None
        while True:
            left = None if due is None else max(0.0, due - time.monotonic()) * 1000
            ready = poller.poll(left)
            if any(number == self._stop_r for number, _ in ready):
                return
            if due is not None and time.monotonic() >= due:
                due = None
                self.bell.set()
            if not ready:
                continue
            self.gate.wait()
            chunk = self._read()
            if chunk and not self._urgent(chunk):
                due = time.monotonic() + PATIENCE if due is None else due
                time.sleep(REST_PATIENT)
                continue
            if chunk:
                due = None
                self.bell.set()
            time.sleep(REST_BUSY if len(chunk) >= BUSY else REST)

    def _read(self) -> bytes:
        """What was there."""
        with self._lock:
            try:
                chunk = os.read(self.fd, READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return b""
            if self._held + len(chunk) > self._max_bytes:
                self.lost = True
            else:
                self._held += len(chunk)
                self._chunks.append(chunk)
        return chunk
