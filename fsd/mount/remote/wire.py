"""HTTP/1.1 to one server over kept connections (RFC 9112), on trio's streams, read by llhttp (httptools).

As little as a mount of many small files needs: one request at a time on a connection, bodies of a known length. It
costs a quarter of what the general clients for trio take for a request; decisions/0029 has the figures.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator

import httptools
import trio

CONNECTIONS = 10
_KEPT = 20.0
"""Seconds an unused connection is kept."""
_BLOCK = 1 << 18
_JOINED = 1 << 16
"""Bodies up to this size go out together with the head."""
_HEAD_LIMIT = 1 << 18
Body = bytes | AsyncIterator[bytes]


class Broken(Exception):
    """The server can't be reached, does not answer in time, or says what is no HTTP. `kept`: on a connection that was
    used before, without a single byte of an answer."""

    def __init__(self, why: str, *, kept: bool = False) -> None:
        super().__init__(why)
        self.kept = kept


class Response:
    """An answer. `chunks` reads its body; `Pool.done` has to follow."""

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.connection = connection
        self.complete = self.has_head = False
        self.pieces: list[bytes] = []
        self.size = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, as it comes in."""
        while True:
            pieces, self.pieces = self.pieces, []
            for piece in pieces:
                yield piece
            if self.complete and not self.pieces:
                return
            if not self.pieces:
                await self.connection.receive()

    # -- what llhttp calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.size += len(name) + len(value)
        if self.size > _HEAD_LIMIT:
            raise ValueError("endless headers")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.connection.parser.get_status_code()
        self.has_head = self.status >= 200
        if self.has_head and self.connection.no_body:
            self.complete = True
        if not self.has_head:
            self.headers = {}

    def on_body(self, data: bytes) -> None:
        if not self.connection.no_body:
            self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.complete = self.has_head


class _Connection:
    """One connection. After an error or a response that was not read to its end it is of no more use."""

    def __init__(self, stream: trio.abc.Stream, socket: trio.socket.SocketType) -> None:
        self._stream, self._socket = stream, socket
        self.parser: httptools.HttpResponseParser
        self.response: Response
        self.no_body = False
        self.used = 0
        self.seconds = 0.0
        self.idle_since = 0.0

    async def ask(self, method: str, head: bytes, body: Body, seconds: float) -> Response:
        """Send a request, and read the head of its answer."""
        self.seconds, self.no_body = seconds, method == "HEAD"
        response = self.response = Response(self)
        self.parser = httptools.HttpResponseParser(response)
        try:
            with trio.move_on_after(seconds) as scope:
                if isinstance(body, bytes):
                    await self._send(head, body)
                else:
                    await self._stream.send_all(head)
            if scope.cancelled_caught:
                raise Broken(f"it takes nothing for {seconds:g} seconds")
            if not isinstance(body, bytes):
                await self._send_pieces(body, seconds)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            await self._refusal(error)
        while not response.has_head:
            await self.receive(kept=self.used > 0)
        self.used += 1
        return response

    async def _refusal(self, error: Exception) -> None:
        """The server takes no more of a body: it may have said why, and has nothing more to say on this connection."""
        try:
            while not self.response.has_head:
                await self.receive()
        except Broken:
            raise Broken(_reason(error), kept=self.used > 0) from None
        self.response.headers["connection"] = "close"

    async def _send(self, head: bytes, body: bytes) -> None:
        if len(body) <= _JOINED:
            await self._stream.send_all(head + body)
        else:
            await self._stream.send_all(head)
            await self._stream.send_all(body)

    async def _send_pieces(self, body: AsyncIterator[bytes], seconds: float) -> None:
        async for piece in body:
            with trio.move_on_after(seconds) as scope:
                await self._stream.send_all(piece)
            if scope.cancelled_caught:
                raise Broken(f"it takes nothing for {seconds:g} seconds")

    async def receive(self, *, kept: bool = False) -> None:
        """Read what comes next."""
        data = None
        try:
            with trio.move_on_after(self.seconds):
                data = await self._stream.receive_some(_BLOCK)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise Broken(_reason(error), kept=kept) from None
        if data is None:
            raise Broken(f"it says nothing for {self.seconds:g} seconds")
        response = self.response
        if not data:
            if response.has_head and "content-length" not in response.headers and not _chunked(response):
                response.complete = True  # such a body ends with the connection
                self.used = -1
                return
            raise Broken("it ended the connection", kept=kept and not response.size)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Broken(f"it says what is no HTTP ({error})") from None

    def ended(self) -> bool:
        """Whether the server ended it while nobody asked."""
        return self._socket.is_readable()

    def reusable(self) -> bool:
        """Whether another request can be sent on it."""
        response = self.response
        closing = response.headers.get("connection", "").lower() == "close" or self.used < 0
        return response.complete and not response.pieces and not closing

    async def close(self) -> None:
        """Close it; a server that does not take part in that is not waited for."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)


class Pool:
    """Connections to one server."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, seconds: float) -> None:
        self._host, self._port, self._context, self._seconds = host, port, context, seconds
        self._free: list[_Connection] = []
        self._slots = trio.Semaphore(CONNECTIONS)

    async def ask(self, method: str, head: bytes, body: Body, seconds: float) -> Response:
        """One request and the head of its answer; `done` has to follow. Broken."""
        await self._slots.acquire()
        connection = None
        try:
            connection = await self._connection()
            return await connection.ask(method, head, body, seconds)
        except BaseException:
            self._slots.release()
            if connection is not None:
                await connection.close()
            raise

    async def _connection(self) -> _Connection:
        oldest = time.monotonic() - _KEPT
        while self._free:
            connection = self._free.pop()
            if connection.idle_since > oldest and not connection.ended():
                return connection
            await connection.close()
        try:
            with trio.move_on_after(self._seconds):
                return await self._open()
        except (OSError, trio.BrokenResourceError) as error:
            raise Broken(_reason(error)) from None
        raise Broken(f"no connection within {self._seconds:g} seconds")

    async def _open(self) -> _Connection:
        stream = await trio.open_tcp_stream(self._host, self._port)
        if self._context is None:
            return _Connection(stream, stream.socket)
        secured = trio.SSLStream(stream, self._context, server_hostname=self._host, https_compatible=True)
        try:
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return _Connection(secured, stream.socket)

    async def done(self, response: Response) -> None:
        """The answer was read, or will not be."""
        connection = response.connection
        try:
            if connection.reusable():
                connection.idle_since = time.monotonic()
                self._free.append(connection)
            else:
                await connection.close()
        finally:
            self._slots.release()

    async def close(self) -> None:
        """Close what is not in use."""
        while self._free:
            await self._free.pop().close()


def _chunked(response: Response) -> bool:
    return "chunked" in response.headers.get("transfer-encoding", "").lower()


def _reason(error: BaseException) -> str:
    """A sentence out of an error and what caused it."""
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
