"""Connections that no worker serves, in one epoll loop: they cost a buffer, never a thread.

Heads are received here, so that a silent or dribbling client holds nothing, and TLS handshakes run here
without blocking, so that nobody can stop the accepting of others.
"""

import errno
import logging
import os
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from cheroot.connections import ConnectionManager

from dav.front.connection import Connection, State
from dav.front.wire import READ
from dav.http import limits

if TYPE_CHECKING:
    from dav.server import Server

log = logging.getLogger(__name__)

_ONCE = select.EPOLLONESHOT | select.EPOLLRDHUP
_PLAIN_TO_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 31\r\nConnection: close\r\n\r\n"
    b"This port only speaks https.\r\n\n"
)
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 20\r\nConnection: close\r\n\r\nThe server is busy.\n"
)
_ACCEPTS = 64
_TICK = 0.5


class Manager(ConnectionManager):  # type: ignore[misc,unused-ignore]
    """Replaces cheroot's manager: same calls, resumable heads and deadlines for everything."""

    def __init__(self, server: "Server") -> None:
        # Not calling the base, whose selector this replaces.
        self.server: Server = server
        self._epoll = select.epoll()
        self._listener = server.socket
        self._listener.setblocking(False)
        self._connections: dict[int, Connection] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._idle = threading.Event()
        self._idle.set()
        self._paused = False
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)

    # -- called by workers -----------------------------------------------------------------------

    def put(self, conn: Connection) -> None:
        """A worker gives the connection back; state and deadline are already set."""
        # Decrypted bytes may wait inside the TLS object where epoll can't see them: then wake at once.
        pending = conn.wire.tls and conn.socket.pending()
        try:
            # From here on the connection is the loop's.
            self._epoll.modify(conn.fd, (select.EPOLLOUT if pending else conn.wire.wants) | _ONCE)
        except (OSError, ValueError):  # the loop has ended
            conn.close()

    def forget(self, conn: Connection) -> None:
        self._connections.pop(conn.fd, None)

    @property
    def can_add_keepalive_connection(self) -> bool:
        return not self._stopping

    # -- the loop --------------------------------------------------------------------------------

    def run(self, expiration_interval: float) -> None:
        """Serve until ``stop``."""
        self._idle.clear()
        try:
            self._run(expiration_interval)
        finally:
            self._idle.set()

    def _run(self, expiration_interval: float) -> None:
        listener = self._listener.fileno()
        checked = time.monotonic()
        while not self._stopping:
            for fd, _ in self._epoll.poll(_TICK):
                if fd == listener:
                    self._accept()
                elif fd == self._wake_read:
                    with suppress(BlockingIOError):
                        os.read(fd, 64)
                else:
                    conn = self._connections.get(fd)
                    if conn is not None and conn.state is not State.WORKER:
                        self._progress(conn)
            now = time.monotonic()
            if now - checked >= _TICK:
                checked = now
                self._expire_all(now)
                if self._paused:
                    self._paused = False
                    self._epoll.modify(listener, select.EPOLLIN)

    def stop(self) -> None:
        """End the loop and return when it has ended."""
        self._stopping = True
        with suppress(OSError):
            os.write(self._wake_write, b"x")
        self._idle.wait(5)

    def close(self) -> None:
        """Close every connection that no worker owns."""
        for conn in list(self._connections.values()):
            if conn.state is not State.WORKER:
                conn.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("cannot accept connections for now: %s", error)
                    self._close_idle()
                    # Level-triggered: without a pause this would spin until a descriptor is free.
                    self._paused = True
                    self._epoll.modify(self._listener.fileno(), 0)
                return
            try:
                self._adopt(sock, address)
            except OSError:
                sock.close()

    def _close_idle(self) -> None:
        """Make room: close the tenth of the waiting connections that has been silent longest."""
        idle = [c for c in self._connections.values() if c.state is State.HEAD and not c.buffer]
        idle.sort(key=lambda conn: conn.deadline)
        for conn in idle[: len(idle) // 10 + 1]:
            conn.close()

    def _adopt(self, sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setblocking(False)
        adapter = self.server.ssl_adapter
        if adapter is not None:
            sock = adapter.wrap_socket(sock)
        conn = Connection(self.server, sock)
        if address:
            conn.remote_addr, conn.remote_port = address[0], address[1]
        self._connections[conn.fd] = conn
        self._epoll.register(conn.fd, READ | _ONCE)

    def _progress(self, conn: Connection) -> None:
        """The connection has something: get as far as possible without waiting."""
        try:
            if conn.state is State.HANDSHAKE:
                if conn.wire.handshake():
                    conn.state = State.HEAD
                    conn.deadline = time.monotonic() + limits.HEAD_SECONDS
                    conn.ssl_env = self.server.ssl_adapter.get_environ()
                else:
                    self._epoll.modify(conn.fd, conn.wire.wants | _ONCE)
                    return
            self._receive(conn)
        except ssl.SSLError as error:
            if getattr(error, "reason", "") == "HTTP_REQUEST":
                with suppress(OSError):
                    # Below the TLS object, which refuses to send before its handshake.
                    socket.socket.send(conn.socket, _PLAIN_TO_TLS)
            log.debug("TLS handshake failed: %s", error)
            conn.close()
        except OSError:
            conn.close()

    def _receive(self, conn: Connection) -> None:
        if conn.state is State.HEAD and conn.buffer and conn.take_head():
            self._dispatch(conn)
            return
        while True:
            data = conn.wire.recv(limits.HEAD_BYTES)
            if data is None:
                self._epoll.modify(conn.fd, conn.wire.wants | _ONCE)
                return
            if not data:
                conn.close()
                return
            if conn.state is not State.HEAD:
                data = self._discard(conn, data)
                if conn.closed:
                    return
                if not data:
                    continue
            if not conn.buffer:
                conn.deadline = time.monotonic() + limits.HEAD_SECONDS
            conn.buffer += data
            if conn.take_head():
                self._dispatch(conn)
                return

    def _discard(self, conn: Connection, data: bytes) -> bytes:
        """Throw away unwanted bytes; returns those of the next head, if any."""
        took = min(len(data), conn.unwanted)
        conn.unwanted -= took
        if conn.unwanted == 0:
            if conn.state is State.LINGER:
                conn.close()
                return b""
            conn.state = State.HEAD
            conn.deadline = time.monotonic() + self.server.timeout
        return data[took:]

    def _dispatch(self, conn: Connection) -> None:
        conn.state = State.WORKER
        self.server.process_conn(conn)

    def refuse_busy(self, conn: Connection) -> None:
        """No worker and no place in the queue: say so without waiting, and close soon."""
        with suppress(OSError):
            conn.wire.send((_BUSY,))
            conn.socket.shutdown(socket.SHUT_WR)
        conn.head = None
        conn.unwanted = limits.DRAIN_BYTES
        conn.state = State.LINGER
        conn.deadline = time.monotonic() + limits.LINGER_SECONDS
        with suppress(OSError):
            self._epoll.modify(conn.fd, conn.wire.wants | _ONCE)

    def _expire_all(self, now: float) -> None:
        for conn in list(self._connections.values()):
            if conn.deadline < now and conn.state is not State.WORKER:
                if conn.state is State.HEAD and conn.buffer:
                    with suppress(OSError):
                        conn.wire.send((b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n",))
                conn.close()
