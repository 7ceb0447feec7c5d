"""One client connection, on cheroot's ConnectionClass extension point.

Ownership: a thread that has taken the one ``claim`` owns it; while nobody has, it waits in the loop's epoll for what
``wire.wants`` says, until ``deadline``.  Nothing here waits for a client, except a body that an application reads by
itself.
"""

import enum
import logging
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cheroot.server import HTTPConnection

from dav.front.request import Request
from dav.front.streams import Stream
from dav.front.wire import READ, WRITE, Pace, Wire
from dav.http import limits
from dav.http.failures import TooSlow, Truncated, WouldBlock
from dav.http.parser import BadRequest, Head, head_end, parse_head

if TYPE_CHECKING:
    from dav.server import Server
    from fsd.core.arrivals import Outcome
    from fsd.core.steps import Need

log = logging.getLogger(__name__)

_BURST = 32
"""Pipelined requests that are answered before others get their turn."""
_DISCARDED_AT_ONCE = 8
"""Blocks of an unwanted body that are read before others have their turn."""
_MOMENT = 0.01
"""A thread that is no longer the leader waits so long for more of a transfer before it gives the connection back."""
_LITTLE = 16 << 10
"""Bytes. An upload that brought less when it was last served crawls: the next time as little is taken in by the thread
that heard of it, which costs less than to step down for it. (A slow reader is not heard of before much of it fits.)"""
_PLAIN_TO_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 31\r\nConnection: close\r\n\r\n"
    b"This port only speaks https.\r\n\n"
)
_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"
_LOST = (TooSlow, Truncated, ConnectionError, TimeoutError, ssl.SSLError)


class State(enum.Enum):
    """What a connection waits for."""

    HANDSHAKE = enum.auto()
    HEAD = enum.auto()
    """A head, and a small body that is no upload: the application is asked when both are whole."""
    RECEIVE = enum.auto()
    """More of an upload."""
    GATHER = enum.auto()
    """An upload waits for others, to go to the disk or the index with them; the loop has the connection."""
    SEND = enum.auto()
    """Room for more of a reply."""
    DISCARD = enum.auto()
    """The rest of a small body that nobody read; then the next head."""
    LINGER = enum.auto()
    """The reply was final; bytes are thrown away for a moment, then it closes."""
    STREAM = enum.auto()
    """Handed to a stream (server-sent events), which writes when it has something."""


class _Reading:
    """cheroot asks ``rfile.closed``."""

    closed = False


class _Block(threading.local):
    """One block for received bytes a thread, made when it first receives an upload."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(limits.BLOCK))


_block = _Block()


class Connection(HTTPConnection):  # type: ignore[misc,unused-ignore]
    """Buffer, socket and state of one client."""

    def __init__(self, server: "Server", sock: socket.socket, makefile: object = None) -> None:
        # Not calling the base: its buffered files and per-connection caches are what this replaces.
        self.server = server
        self.socket = sock
        self.wire = Wire(sock)
        self.fd = self.wire.fd
        self.buffer = bytearray()
        self.claims: list[None] = []
        self.state = State.HANDSHAKE if self.wire.tls else State.HEAD
        self.deadline = time.monotonic() + (
            limits.HANDSHAKE_SECONDS if self.wire.tls else limits.HEAD_SECONDS
        )
        self.used = time.monotonic()
        self.unwanted = 0
        self.discarding = False
        self.pace: Pace | None = None
        self.request: Request | None = None
        self.stream: Stream | None = None
        self.remote_addr = ""
        self.remote_port = ""
        self.rfile = _Reading()
        self._crawls = False
        self._moved = 0
        self._searched = 0
        self._head: Head | None = None
        self._last: Head | None = None
        self._patient = True

    # -- one turn --------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Get as far as possible without waiting.  False: it must be closed; True: ``wire.wants`` says for what."""
        try:
            for _ in range(_BURST):
                going = self._turn()
                if going is not None:
                    return going
            self.wire.wants = WRITE  # others first; writable it is at once
            return True
        except ssl.SSLError as error:
            if self.state is State.HANDSHAKE and getattr(error, "reason", "") == "HTTP_REQUEST":
                with suppress(OSError):
                    # Below the TLS object, which refuses to send before its handshake.
                    socket.socket.send(self.socket, _PLAIN_TO_TLS)
            log.debug("TLS failed: %s", error)
        except _LOST as error:
            log.debug("connection lost: %s", error)
        except OSError as error:
            log.warning("a reply was cut off: %s", error)
        return False

    def _turn(self) -> bool | None:
        """One step; None: at once the next."""
        state = self.state
        if state is State.HEAD:
            return self._receive_head()
        if state is State.SEND:
            return self._send()
        if state is State.RECEIVE:
            return self._receive_body()
        if state is State.HANDSHAKE:
            return self._shake_hands()
        if state is State.STREAM:
            assert self.stream is not None
            return self.stream.turn()
        return self._discard()

    def _shake_hands(self) -> bool | None:
        if not self.wire.handshake():
            return True
        self.state = State.HEAD
        self.deadline = time.monotonic() + limits.HEAD_SECONDS
        return None

    def _receive_head(self) -> bool | None:
        buffer = self.buffer
        while True:
            if buffer and self._whole():
                self._dispatch()
                return None
            data = self.wire.recv(limits.HEAD_BYTES)
            if data is None:
                return True
            if not data:
                return False
            if not buffer:
                self.deadline = time.monotonic() + limits.HEAD_SECONDS
            buffer += data

    def _whole(self) -> bool:
        """Whether there is a request to be served: a refused one, or a head with as much body as is awaited."""
        buffer = self.buffer
        if self._head is None:
            try:
                end = head_end(buffer, self._searched)
                if end < 0:
                    self._searched = len(buffer)
                    return False
                self._head = parse_head(bytes(buffer[:end]), self._last)
            except BadRequest as error:
                self.request = Request(self.server, self, None)
                self.request.refuse(error)
                return True
            del buffer[:end]
            self._searched = 0
        head = self._head
        if head.method == "PUT" or head.expect or head.length > limits.DRAIN_BYTES:
            return True  # refused, or agreed to, before the body is here
        return head.length <= len(buffer)

    def _dispatch(self) -> None:
        self.pace = None
        self._crawls = False
        request = self.request
        if request is None:
            request = self.request = Request(self.server, self, self._head)
            self._last, self._head = self._head, None
            request.begin()
        self.state = State.SEND if request.outgoing is not None else State.RECEIVE

    def _receive_body(self) -> bool | None:
        request = self.request
        assert request is not None
        small = request.head is not None and not request.head.chunked and request.head.length <= limits.BLOCK
        aside = not small and not self._crawls
        if aside:
            self.server.loop.step_down()
        if self.pace is None:
            self.pace = Pace()
        self._patient = False
        self._moved = 0
        try:
            while True:
                try:
                    request.receive(_block.view)
                except WouldBlock:
                    # From a fast client the next bytes are here sooner than a trip through the loop takes.
                    if aside and self.wire.wait(_MOMENT):
                        continue
                    self._crawls = self._moved < _LITTLE
                    self.deadline = self.pace.deadline()
                    return True
                if request.need is not None:
                    self.state = State.GATHER
                    return True
                self.state = State.SEND
                return None
        finally:
            self._patient = True

    @property
    def need(self) -> "Need":
        """What the upload waits for, in ``State.GATHER``."""
        assert self.request is not None and self.request.need is not None
        return self.request.need

    def served(self, outcome: "Outcome") -> None:
        """What the upload waited for has come: it may need more, else ``advance`` goes on."""
        assert self.request is not None
        self.request.served(outcome)
        if self.request.need is None:
            self.state = State.SEND

    def _send(self) -> bool | None:
        request = self.request
        assert request is not None and request.outgoing is not None
        outgoing = request.outgoing
        aside = outgoing.large
        if aside:
            self.server.loop.step_down()
        try:
            while not outgoing.flush():
                if self.pace is None:
                    self.pace = Pace()
                if not aside or not self.wire.wait(_MOMENT):
                    self.deadline = self.pace.deadline()
                    return True
        except OSError:
            raise
        except Exception:
            log.exception("a reply was cut off")
            return False
        return self._sent(request)

    def _sent(self, request: Request) -> bool | None:
        self.request = None
        outgoing = request.outgoing
        assert outgoing is not None
        outgoing.close()
        if request.begin_stream is not None:
            self.state = State.STREAM
            self.wire.wants = READ
            self.stream = self.server.streams.begin(self)
            request.begin_stream(self.stream)
            return True
        if not request.keep:
            return self._linger()
        now = time.monotonic()
        self.used = now
        if self.discarding:
            self.state = State.DISCARD
            self.deadline = now + limits.HEAD_SECONDS
            return None
        self.state = State.HEAD
        if self.buffer:
            self.deadline = now + limits.HEAD_SECONDS
            return None
        self.deadline = now + self.server.timeout
        if self.wire.tls and self.socket.pending():
            return None  # decrypted bytes wait where epoll can't see them
        self.wire.wants = READ
        return True

    def _linger(self) -> bool:
        if self.unwanted == 0:
            return False
        # Closing with unread bytes sends a reset, which may overtake the reply (RFC 9112 section 9.6).
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        self.buffer.clear()
        self.state = State.LINGER
        self.wire.wants = READ
        self.deadline = time.monotonic() + limits.LINGER_SECONDS
        return True

    def _discard(self) -> bool | None:
        """Throw away what nobody wanted; behind a small body comes the next head."""
        turns = 0
        while turns < _DISCARDED_AT_ONCE or (self.wire.tls and self.socket.pending()):
            turns += 1
            data = self.wire.recv(limits.HEAD_BYTES)
            if data is None:
                return True
            if not data:
                return False
            took = min(len(data), self.unwanted)
            self.unwanted -= took
            if self.unwanted == 0:
                if self.state is State.LINGER:
                    return False
                self.discarding = False
                self.state = State.HEAD
                self.deadline = time.monotonic() + self.server.timeout
                self.buffer += data[took:]
                return None
        self.wire.wants = READ  # there is more: after the others
        return True

    # -- what bodies read from -------------------------------------------------------------------

    def fill(self) -> None:
        self._end_of_crawl()
        while True:
            data = self.wire.recv(limits.HEAD_BYTES)
            if data:
                self.moved(len(data))
                self.buffer += data
                return
            if data is not None:
                raise Truncated("The connection ended in the middle of the body.")
            self._wait()

    def receive_into(self, view: memoryview) -> int:
        self._end_of_crawl()
        while True:
            got = self.wire.recv_into(view)
            if got:
                self.moved(got)
                return got
            if got is not None:
                raise Truncated("The connection ended in the middle of the body.")
            self._wait()

    def send_continue(self) -> None:
        self._send_all((b"HTTP/1.1 100 Continue\r\n\r\n",))

    def _send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        left = [memoryview(part) for part in parts if len(part)]
        while left:
            sent = self.wire.send(left)
            if sent is None:
                self._pause()
                continue
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def _end_of_crawl(self) -> None:
        """Who sends more than a little is served by another thread from the next event on."""
        if self._crawls and self._moved >= _LITTLE and not self._patient:
            self.wire.wants = READ
            raise WouldBlock

    def _wait(self) -> None:
        if not self._patient:
            raise WouldBlock
        self._pause()

    def _pause(self) -> None:
        self.server.loop.step_down()
        if self.pace is None:
            self.pace = Pace()
        self.pace.wait(self.wire)

    def moved(self, count: int) -> None:
        """Bytes went one way or the other: the client is alive."""
        self._moved += count
        if self.pace is not None:
            self.pace.moved(count)

    # -- its end ---------------------------------------------------------------------------------

    @property
    def resting(self) -> bool:
        """Whether it is between two requests, with nothing of the next."""
        return self.state is State.HEAD and not self.buffer and self._head is None

    def expire(self) -> bool:
        """Its deadline has passed (the caller owns it): True if it has something to say before it closes."""
        if self.state is State.RECEIVE and self.request is not None:
            if self.request.body is not None:
                self.request.body.broken = True
            self.request.end_upload(TooSlow("The other side is too slow."))
            self.state = State.SEND
            return self.advance()
        if self.state is State.HEAD and not self.resting:
            with suppress(OSError):
                self.wire.send((_TIMEOUT,))
        return False

    def busy(self, reply: bytes) -> None:
        """Say so without waiting, and close soon."""
        with suppress(OSError):
            self.wire.send((reply,))
        self.unwanted = limits.DRAIN_BYTES
        self._linger()

    @property
    def closed(self) -> bool:
        return bool(self.rfile.closed)

    def close(self) -> None:
        """Close the socket and let go of the request under way; safe to call twice."""
        if self.rfile.closed:
            return
        self.rfile.closed = True
        self.server.forget(self)
        stream, self.stream = self.stream, None
        if stream is not None:
            self.server.streams.ended(stream)
        request, self.request = self.request, None
        if request is not None:
            request.close()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
