"""Repeated login failures, counted for all workers in one small shared file.

Nothing sleeps: who fails too often is told when to come back (429) and is not hashed meanwhile.  The file is a
fixed table of counters addressed by a keyed hash; two names that share a counter slow each other down, nothing
worse.  It may be deleted at any time.
"""

import fcntl
import hashlib
import logging
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<8s16s8x")
_SLOT = struct.Struct("<dII")
_MAGIC = b"fsdlog01"
_SLOTS = 16384
_SIZE = _HEADER.size + _SLOTS * _SLOT.size
_FORGIVE_SECONDS = 60.0
"""One failure is forgiven each minute."""
_LONGEST = 60.0


class Throttle:
    """Failures by key (an account's folded name, an address); ``threshold`` of them are free."""

    def __init__(self, path: Path, threshold: int, clock: Callable[[], float] = time.time) -> None:
        self._threshold = threshold
        self._clock = clock
        self._guard = threading.Lock()
        try:
            self._open(path)
        except OSError as error:
            # A full or broken state disk must not keep anybody from reading.
            log.warning("login failures are counted in each process alone: %s", error)
            self._fd, self._key = -1, secrets.token_bytes(16)
            self._table = mmap.mmap(-1, _SIZE)

    def _open(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            head = os.pread(self._fd, _HEADER.size, 0)
            if len(head) < _HEADER.size or head[:8] != _MAGIC or os.fstat(self._fd).st_size != _SIZE:
                os.ftruncate(self._fd, 0)
                os.posix_fallocate(self._fd, 0, _SIZE)  # a full disk must be noticed here, not by SIGBUS
                os.pwrite(self._fd, _HEADER.pack(_MAGIC, secrets.token_bytes(16)), 0)
            self._key = os.pread(self._fd, 16, 8)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._table = mmap.mmap(self._fd, _SIZE)

    def _place(self, key: str) -> tuple[int, int]:
        digest = hashlib.blake2b(
            key.encode("utf-8", "surrogateescape"), key=self._key, digest_size=8
        ).digest()
        slot, tag = struct.unpack("<II", digest)
        return _HEADER.size + slot % _SLOTS * _SLOT.size, tag

    def _read(self, key: str, now: float) -> tuple[int, int, int, float]:
        """(offset, tag, failures that still count, time of the last)."""
        offset, tag = self._place(key)
        last, count, seen = _SLOT.unpack_from(self._table, offset)
        if seen != tag or last > now + 1:
            return offset, tag, 0, 0.0
        return offset, tag, max(0, count - int((now - last) / _FORGIVE_SECONDS)), last

    def wait(self, *keys: str) -> int:
        """Whole seconds until another try is allowed for all of the keys; 0: now."""
        now = self._clock()
        longest = 0.0
        for key in keys:
            _, _, failures, last = self._read(key, now)
            if failures >= self._threshold:
                delay = min(_LONGEST, 2.0 ** min(failures - self._threshold, 10))
                longest = max(longest, last + delay - now)
        return int(longest + 0.999)

    def failed(self, *keys: str) -> None:
        """Count one failure for each key."""
        now = self._clock()
        with self._exclusive():
            for key in keys:
                offset, tag, failures, _ = self._read(key, now)
                _SLOT.pack_into(self._table, offset, now, min(failures + 1, 1 << 20), tag)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._guard:
            if self._fd < 0:
                yield
                return
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def succeeded(self, key: str) -> None:
        """Forget the failures of a key."""
        offset, tag = self._place(key)
        if _SLOT.unpack_from(self._table, offset)[2] == tag:
            _SLOT.pack_into(self._table, offset, 0.0, 0, 0)

    def close(self) -> None:
        self._table.close()
        if self._fd >= 0:
            os.close(self._fd)
