"""One client connection, on cheroot's ConnectionClass extension point.

Ownership: the manager's thread owns it while it waits for a handshake, a request head or unwanted bytes;
a worker owns it from a complete head to the end of the reply.  Nobody else touches it.
"""

import enum
import logging
import os
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cheroot.server import HTTPConnection

from dav.front.request import Request
from dav.front.wire import WRITE, Pace, Wire
from dav.http import limits
from dav.http.failures import TooSlow, Truncated
from dav.http.parser import BadRequest, head_end

if TYPE_CHECKING:
    from dav.server import Server

log = logging.getLogger(__name__)


_STICKY_SECONDS = 0.002


class State(enum.Enum):
    """What a connection waits for."""

    HANDSHAKE = enum.auto()
    HEAD = enum.auto()
    DISCARD = enum.auto()
    """The rest of a small body that nobody read; then the next head."""
    LINGER = enum.auto()
    """The reply was final; bytes are thrown away for a moment, then it closes."""
    WORKER = enum.auto()


class _Reading:
    """cheroot's pool asks ``rfile.closed`` before it cuts a connection off at shutdown."""

    closed = False


class Connection(HTTPConnection):  # type: ignore[misc,unused-ignore]
    """Buffer, socket and state of one client."""

    RequestHandlerClass = Request

    def __init__(self, server: "Server", sock: socket.socket, makefile: object = None) -> None:
        # Not calling the base: its buffered files and per-connection caches are what this replaces.
        self.server = server
        self.socket = sock
        self.wire = Wire(sock)
        self.fd = sock.fileno()
        self.buffer = bytearray()
        self.state = State.HANDSHAKE if self.wire.tls else State.HEAD
        self.deadline = time.monotonic() + (
            limits.HANDSHAKE_SECONDS if self.wire.tls else limits.HEAD_SECONDS
        )
        self.searched = 0
        self.unwanted = 0
        self.head: bytes | None = None
        self.refusal: BadRequest | None = None
        self.pace: Pace | None = None
        self.remote_addr = ""
        self.remote_port = 0
        self.ssl_env: dict[str, str] = {}
        self.requests_seen = 0
        self.rfile = _Reading()

    # -- the manager's side ----------------------------------------------------------------------

    def take_head(self) -> bool:
        """True when the buffer holds a whole head (now in ``head``) or can't become one (``refusal``)."""
        try:
            end = head_end(self.buffer, self.searched)
        except BadRequest as error:
            self.refusal = error
            return True
        if end < 0:
            self.searched = len(self.buffer)
            return False
        self.head = bytes(self.buffer[:end])
        del self.buffer[:end]
        self.searched = 0
        return True

    # -- the worker's side -----------------------------------------------------------------------

    def communicate(self) -> bool:
        """Serve the request whose head is here, and those already buffered behind it.

        True when the connection goes back to the manager; False when it must be closed.
        """
        while True:
            request = Request(self.server, self)
            try:
                keep = request.respond()
            except (TooSlow, Truncated, ConnectionError, TimeoutError, ssl.SSLError) as error:
                log.debug("connection lost: %s", error)
                return False
            except OSError as error:
                log.warning("a reply was cut off: %s", error)
                return False
            self.head = None
            if not keep:
                return self._linger()
            if self.state is State.DISCARD:
                return True
            if not self._another():
                self.state = State.HEAD
                self.deadline = time.monotonic() + (
                    limits.HEAD_SECONDS if self.buffer else self.server.timeout
                )
                return True

    def _another(self) -> bool:
        """Whether the next request is here, or comes at once, as it does from a client that works through a list.

        Waiting a moment for it spares two hand-overs between threads, as long as enough workers are free.
        """
        if self.buffer and self.take_head():
            return True
        if self.buffer or not self.server.requests.relaxed or not self.wire.wait(_STICKY_SECONDS):
            return False
        data = self.wire.recv(limits.HEAD_BYTES)
        if not data:
            return False  # the manager sees the end of the stream, too
        self.buffer += data
        return self.take_head()

    def _linger(self) -> bool:
        if self.unwanted == 0:
            return False
        # Closing with unread bytes sends a reset, which may overtake the reply (RFC 9112 section 9.6).
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        self.state = State.LINGER
        self.deadline = time.monotonic() + limits.LINGER_SECONDS
        return True

    def begin_body(self) -> None:
        """A body or reply starts: its pace is measured from here."""
        self.pace = Pace()

    def fill(self) -> None:
        while True:
            data = self.wire.recv(limits.HEAD_BYTES)
            if data:
                self._moved(len(data))
                self.buffer += data
                return
            if data is not None:
                raise Truncated("The connection ended in the middle of the body.")
            self._wait()

    def receive_into(self, view: memoryview) -> int:
        while True:
            got = self.wire.recv_into(view)
            if got:
                self._moved(got)
                return got
            if got is not None:
                raise Truncated("The connection ended in the middle of the body.")
            self._wait()

    def send_continue(self) -> None:
        self.send_all((b"HTTP/1.1 100 Continue\r\n\r\n",))

    def send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send everything; TooSlow if the peer does not take it fast enough; OSError if it is gone."""
        left = [memoryview(part) for part in parts if len(part)]
        while left:
            sent = self.wire.send(left)
            if sent is None:
                self._wait()
                continue
            self._moved(sent)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send bytes of a file by sendfile(2); OSError when the file ends early."""
        while count:
            try:
                sent = os.sendfile(self.fd, fd, offset, min(count, 1 << 24))
            except BlockingIOError:
                self.wire.wants = WRITE
                self._wait()
                continue
            if not sent:
                raise ConnectionAbortedError("The file became shorter while it was being sent.")
            self._moved(sent)
            offset += sent
            count -= sent

    def _wait(self) -> None:
        if self.pace is None:
            self.pace = Pace()
        self.pace.wait(self.wire)

    def _moved(self, count: int) -> None:
        if self.pace is not None:
            self.pace.moved(count)

    @property
    def closed(self) -> bool:
        return bool(self.rfile.closed)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        if self.rfile.closed:
            return
        self.rfile.closed = True
        self.server.forget(self)
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
