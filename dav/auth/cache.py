"""Verified credentials, so that a request does not hash a password.

Keys are keyed hashes of the whole Authorization header with a key that lives only in this process: memory never
holds a password.  An entry counts only while the account's epoch is the one it was made with.
"""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

_NEGATIVE_SECONDS = 10.0


class Cached(NamedTuple):
    """``user_id`` None: these credentials were wrong a moment ago."""

    name: str
    user_id: str | None
    epoch: int | None
    expires: float


class CredentialCache:
    """Bounded, thread-safe, least recently used first out."""

    def __init__(self, seconds: float, entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = secrets.token_bytes(32)
        self._seconds = seconds
        self._limit = entries
        self._clock = clock
        self._entries: OrderedDict[bytes, Cached] = OrderedDict()
        self._guard = threading.Lock()

    def _digest(self, header: str) -> bytes:
        return hashlib.blake2b(
            header.encode("utf-8", "surrogateescape"), key=self._key, digest_size=32
        ).digest()

    def get(self, header: str) -> Cached | None:
        """What is known of these credentials, if it has not expired."""
        digest = self._digest(header)
        with self._guard:
            found = self._entries.get(digest)
            if found is None:
                return None
            if found.expires <= self._clock():
                del self._entries[digest]
                return None
            self._entries.move_to_end(digest)
            return found

    def put(
        self, header: str, name: str, user_id: str | None, epoch: int | None, at_most: float | None = None
    ) -> None:
        """Remember verified credentials, or (``user_id`` None) briefly that they are wrong; ``at_most`` seconds."""
        seconds = self._seconds if user_id is not None else min(_NEGATIVE_SECONDS, self._seconds)
        seconds = seconds if at_most is None else min(seconds, at_most)
        if seconds <= 0:
            return
        entry = Cached(name, user_id, epoch, self._clock() + seconds)
        with self._guard:
            self._entries[self._digest(header)] = entry
            self._entries.move_to_end(self._digest(header))
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
