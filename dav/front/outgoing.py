"""A reply on its way: as much as the client takes, whenever it takes it.  Nobody waits here."""

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dav.front.wire import WRITE
from dav.http import limits

if TYPE_CHECKING:
    from dav.front.connection import Connection

log = logging.getLogger(__name__)

_TOGETHER = 64 * 1024
"""Smaller bodies leave in one call with their head."""
_SENDFILE = 1 << 24


class Shortened(ConnectionAbortedError):
    """A file that lost bytes since its length was put into the head, of which nothing was sent yet."""


class Outgoing:
    """Head and body of one reply.  Owns the body: ``close`` closes it, sent or not (PEP 3333).

    ``length`` is what the head announced, None for a chunked body or one that ends with the connection.
    """

    __slots__ = ("_body", "_chunked", "_conn", "_count", "_fd", "_left", "_offset", "_pieces", "_views")

    def __init__(
        self, conn: "Connection", head: bytes, body: Any, *, length: int | None, chunked: bool, empty: bool
    ) -> None:
        self._conn = conn
        self._body = body
        self._left = length
        self._chunked = chunked
        self._views: list[bytes | memoryview] = [head]
        self._pieces: Iterator[bytes] | None = None
        self._fd: int | None = None
        self._offset = self._count = 0
        if empty:
            self._left = None
        elif isinstance(body, (list, tuple)):
            self._add(body[0] if len(body) == 1 else b"".join(body))
        elif getattr(body, "fd", None) is not None:
            self._file(body)
        else:
            self._pieces = iter(body)

    def _file(self, body: Any) -> None:
        if body.count <= _TOGETHER:
            self._add(_exactly(body.fd, body.offset, body.count))
        elif self._conn.wire.tls:
            self._pieces = iter(body)
        else:
            self._fd, self._offset, self._count = body.fd, body.offset, body.count
            self._left = None

    def _add(self, data: bytes) -> None:
        if not data:
            return
        if self._left is not None:
            if len(data) > self._left:
                raise ConnectionAbortedError("The reply is longer than its announced length.")
            self._left -= len(data)
        if self._chunked:
            self._views += (b"%x\r\n" % len(data), data, b"\r\n")
        elif self._views and len(data) <= _TOGETHER:
            self._views = [b"".join((*self._views, data))]
        else:
            self._views.append(data)

    def flush(self) -> bool:
        """True when all of it is sent, False when the client takes no more now.

        OSError if the client is gone, or the body is not what its head promised: the connection must be cut.
        """
        while True:
            if self._views:
                if not self._send():
                    return False
            elif self._count:
                if not self._send_file():
                    return False
            elif not self._next():
                return True

    def _send(self) -> bool:
        views = self._views
        sent = self._conn.wire.send(views)
        if sent is None:
            return False
        self._conn.moved(sent)
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = memoryview(views[0])[sent:]
        return True

    def _send_file(self) -> bool:
        assert self._fd is not None
        wire = self._conn.wire
        try:
            sent = os.sendfile(wire.fd, self._fd, self._offset, min(self._count, _SENDFILE))
        except BlockingIOError:
            wire.wants = WRITE
            return False
        if not sent:
            raise ConnectionAbortedError("The file became shorter while it was being sent.")
        self._conn.moved(sent)
        self._offset += sent
        self._count -= sent
        return True

    def _next(self) -> bool:
        """Put the next piece of the body among what is sent; False when there is none."""
        if self._pieces is not None:
            for piece in self._pieces:
                if piece:
                    self._add(piece)
                    return True
            self._pieces = None
        if self._left:
            raise ConnectionAbortedError("The reply ended before its announced length.")
        if self._chunked:
            self._chunked = False
            self._views.append(b"0\r\n\r\n")
            return True
        return False

    @property
    def large(self) -> bool:
        """Whether sending it may take a while."""
        return self._count > limits.BLOCK or self._pieces is not None

    def close(self) -> None:
        """Let go of the body; safe to call twice."""
        body, self._body = self._body, None
        close_body(body)


def close_body(body: Any) -> None:
    """Close a body of a reply if it has something to close (PEP 3333)."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _exactly(fd: int, offset: int, count: int) -> bytes:
    data = os.pread(fd, count, offset) if count else b""
    if len(data) != count:
        raise Shortened("The file became shorter while it was being sent.")
    return data
