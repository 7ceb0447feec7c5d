"""One inotify instance and the thread that empties it.

The kernel's queue of 16,384 events is full after 80 ms of a busy writer, so the thread does nothing but read into a
deque; what the events mean is worked out elsewhere. The deque is bounded too: past its cap, reading goes on but the
bytes are dropped and `lost` is set, which means the same as the kernel's own overflow.
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
from pathlib import Path

from inotify_simple import INotify

log = logging.getLogger(__name__)

LIMIT_FILE = Path("/proc/sys/fs/inotify/max_queued_events")
WANTED_QUEUE = 262_144
"""Events; at most some 20 MiB of kernel memory while nobody reads."""
READ_SIZE = 1 << 18
MAX_BYTES = 64 << 20
REST = 0.001
"""Seconds between two reads under load: equal neighbours merge meanwhile, and the thread wakes less."""


def raise_queue_limit(wanted: int = WANTED_QUEUE) -> int:
    """Raise max_queued_events where that is allowed; the value then in force. Instances read it when they are made."""
    try:
        current = int(LIMIT_FILE.read_text())
        if current < wanted:
            LIMIT_FILE.write_text(str(wanted))
            log.info("inotify max_queued_events raised from %d to %d", current, wanted)
            current = wanted
    except OSError:
        return 0
    return current


class Queue:
    """Events of one inotify instance as raw chunks, in order. `take`, `idle` and `close` belong to one thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        raise_queue_limit()
        self.inotify = INotify(nonblocking=True)
        self.lost = False
        """Set when chunks were dropped; the owner clears it."""
        self.gate = threading.Event()
        """Cleared by tests to hold the reader back."""
        self.gate.set()
        self._max_bytes = max_bytes
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._stop_r, self._stop_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="inotify-reader", daemon=True)
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
            fcntl.ioctl(self.inotify.fileno(), termios.FIONREAD, waiting)
            return waiting[0] == 0

    def wait(self, timeout: float) -> None:
        """Sleep until a chunk is there, `wake` is called or the time is over."""
        if self._chunks:
            return
        self._event.wait(timeout)
        self._event.clear()

    def wake(self) -> None:
        """End a `wait`, from any thread."""
        self._event.set()

    def close(self) -> None:
        """Stop the thread and give the instance, with all its watches, back."""
        self.gate.set()
        os.write(self._stop_w, b"x")
        self._thread.join()
        self.inotify.close()
        os.close(self._stop_r)
        os.close(self._stop_w)

    def _run(self) -> None:
        poller = select.poll()
        fd = self.inotify.fileno()
        poller.register(fd, select.POLLIN)
        poller.register(self._stop_r, select.POLLIN)
        while True:
            ready = poller.poll()
            if any(number == self._stop_r for number, _ in ready):
                return
            self.gate.wait()
            self._read(fd)
            time.sleep(REST)

    def _read(self, fd: int) -> None:
        with self._lock:
            try:
                chunk = os.read(fd, READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            if self._held + len(chunk) > self._max_bytes:
                self.lost = True
            else:
                self._held += len(chunk)
                self._chunks.append(chunk)
        self._event.set()
