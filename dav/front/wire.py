"""A non-blocking socket, plain or TLS, and the pace that is asked of its peer.

``None`` always means "would block now"; ``wants`` then says for which poll event to wait.
"""

import select
import socket
import ssl
import time
from collections.abc import Sequence

from dav.http import limits
from dav.http.failures import TooSlow

READ = select.POLLIN
WRITE = select.POLLOUT


class Wire:
    """One connected socket in non-blocking mode.  Not thread-safe: one owner at a time."""

    __slots__ = ("_poll", "fd", "socket", "tls", "wants")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.wants = READ
        self._poll: select.poll | None = None

    def handshake(self) -> bool:
        """True when the TLS handshake is done; OSError (ssl.SSLError) when it failed."""
        assert isinstance(self.socket, ssl.SSLSocket)
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self.wants = READ
            return False
        except ssl.SSLWantWriteError:
            self.wants = WRITE
            return False
        return True

    def recv(self, size: int) -> bytes | None:
        """Up to ``size`` bytes, b"" at the end of the stream, None if there is nothing yet."""
        try:
            return self.socket.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.wants = READ
        except ssl.SSLWantWriteError:
            self.wants = WRITE
        except ssl.SSLEOFError:
            return b""
        return None

    def recv_into(self, view: memoryview) -> int | None:
        """Like ``recv``, into ``view``."""
        try:
            return self.socket.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.wants = READ
        except ssl.SSLWantWriteError:
            self.wants = WRITE
        except ssl.SSLEOFError:
            return 0
        return None

    def send(self, parts: Sequence[bytes | memoryview]) -> int | None:
        """Bytes taken by the kernel, or None.  TLS takes the first part only."""
        try:
            if self.tls:
                return self.socket.send(parts[0])
            return self.socket.sendmsg(parts)
        except (BlockingIOError, ssl.SSLWantWriteError):
            self.wants = WRITE
        except ssl.SSLWantReadError:
            self.wants = READ
        return None

    def wait(self, seconds: float) -> bool:
        """Wait until what was wanted last is possible; False when the time is over."""
        if self._poll is None:
            self._poll = select.poll()
        self._poll.register(self.fd, self.wants)
        return bool(self._poll.poll(max(0.0, seconds) * 1000))


class Pace:
    """The minimum average rate of one body or one reply, after a grace period."""

    __slots__ = ("_moved", "_started")

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._moved = 0

    def moved(self, count: int) -> None:
        self._moved += count

    def deadline(self) -> float:
        """Until when the peer has to move something (monotonic clock) to be fast enough on average."""
        allowed = self._started + max(limits.GRACE_SECONDS, self._moved / limits.RATE_BYTES)
        return min(time.monotonic() + limits.STALL_SECONDS, allowed)

    def wait(self, wire: Wire) -> None:
        """Wait for the peer.  TooSlow when its deadline passes."""
        if not wire.wait(self.deadline() - time.monotonic()):
            raise TooSlow("The other side is too slow.")
