"""Connections that only listen: a socket each, no thread.  The front thread writes to them when there is something.

What is said comes from the application's ``Source``; the front only carries it.  A listener that does not read is
dropped when its buffer is full, and never holds up another.
"""

import logging
import ssl
from collections import deque
from typing import TYPE_CHECKING, Protocol

from dav.front.wire import READ, WRITE

if TYPE_CHECKING:
    from dav.front.connection import Connection
    from dav.server import Server

log = logging.getLogger(__name__)

NEVER = 3600.0
PING_SECONDS = 20.0
_PING = b": ping\n\n"
_MOST_WAITING = 256 * 1024
_LOST = (OSError, ssl.SSLError, ValueError)


class Stream:
    """One listener.  ``send`` and ``end`` are the front thread's."""

    __slots__ = ("_conn", "_server", "_size", "_waiting", "ended", "pinged")

    def __init__(self, server: "Server", conn: "Connection") -> None:
        self._server = server
        self._conn = conn
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self.pinged = 0.0
        self.ended = False

    def send(self, data: bytes) -> None:
        """Say something, now or as soon as the client takes it."""
        self._waiting.append(data)
        self._size += len(data)
        self.push()
        if self._size > _MOST_WAITING:
            self.end()

    @property
    def lags(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def push(self) -> None:
        """Send what waits, unless another thread looks after the connection just now."""
        conn, loop = self._conn, self._server.loop
        if self.ended or not loop.claim(conn):
            return
        if self.flush():
            loop.release(conn)
        else:
            conn.close()

    def flush(self) -> bool:
        """The caller owns the connection: send what goes; False if it is lost."""
        wire, waiting = self._conn.wire, self._waiting
        try:
            while waiting:
                sent = wire.send([waiting[0]])
                if sent is None:
                    wire.wants |= READ
                    return True
                self._size -= sent
                if sent < len(waiting[0]):
                    waiting[0] = waiting[0][sent:]
                else:
                    waiting.popleft()
        except _LOST as error:
            log.debug("a listener is gone: %s", error)
            return False
        wire.wants = READ
        return True

    def turn(self) -> bool:
        """The connection has an event (the caller owns it): a listener that says something, or nothing more, ends."""
        wire = self._conn.wire
        said = wire.recv(4096)
        if said is not None:
            return False
        if wire.wants == WRITE:  # TLS wants to write before it can read
            return True
        return self.flush()

    def end(self) -> None:
        """Close it, as soon as nobody else looks after it."""
        if not self.ended and self._server.loop.claim(self._conn):
            self._conn.close()


class Source(Protocol):
    """What an application has to say to its listeners; called by the front thread alone."""

    def tick(self, now: float) -> float:
        """Say what there is; seconds until it wants to be called again."""


class Streams:
    """All listeners of a process."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._open: set[Stream] = set()
        self.source: Source | None = None

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, conn: "Connection") -> Stream:
        """A listener, whose head is sent."""
        stream = Stream(self._server, conn)
        self._open.add(stream)
        self._server.loop.nudge()
        return stream

    def ended(self, stream: Stream) -> None:
        """Its connection is closed."""
        stream.ended = True
        self._open.discard(stream)

    def tick(self, now: float) -> float:
        """Seconds until it wants to be called again."""
        if self.source is None or not self._open:
            return NEVER
        pause = self.source.tick(now)
        for stream in list(self._open):
            if stream.lags:
                stream.push()
            elif now - stream.pinged > PING_SECONDS:
                if stream.pinged:
                    stream.send(_PING)
                stream.pinged = now
        return pause
