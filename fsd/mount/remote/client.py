"""HTTP to one server: a pool of connections, credentials, deadlines; every failure an OSError.

One request that gets no answer in time makes the server *away*: further ones fail at once instead of each waiting
for its own deadline, until one that is `probing` got an answer. A refusal (Refused) is an answer.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import trio

from fsd.mount.remote.errors import Offline, refused
from fsd.mount.remote.wire import Body, Broken, Pool, Response

_log = logging.getLogger(__name__)

_BUSY_PAUSES = (0.2, 0.5, 1.0)
"""Seconds before a 503 is asked again: the server does not know yet."""
_REPEATABLE = ("GET", "HEAD", "PROPFIND", "OPTIONS", "PUT")
"""PUT names what it replaces, so a second one changes nothing, and says so."""
Headers = Iterable[tuple[str, str]]


class Answer(NamedTuple):
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def etag(self) -> str:
        """The ETag without its quotes; empty if there is none."""
        return self.headers.get("etag", "").strip('"')


class Stream(NamedTuple):
    """An answer whose body is still on its way."""

    status: int
    headers: dict[str, str]
    chunks: AsyncIterator[bytes]


class Client:
    """All requests to one server. Belongs to one trio loop; `close` gives the connections back."""

    def __init__(
        self, origin: str, authorization: str, *, seconds: float, ca_file: str | None = None
    ) -> None:
        self.away: str | None = None
        """Why the server can't be reached; None while it can."""
        self.on_change: Callable[[], object] = lambda: None
        self._seconds = seconds
        parts = urlsplit(origin)
        context = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        port = parts.port or (443 if context is not None else 80)
        self._pool = Pool(parts.hostname or "", port, context, seconds)
        fixed = (("Host", parts.netloc), ("Authorization", authorization), ("User-Agent", "fsd-mount"))
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def ask(
        self, method: str, path: str, headers: Headers = (), body: Body = b"", *, also: tuple[int, ...] = ()
    ) -> Answer:
        """One request and its whole answer. Statuses from 300 on are Refused unless in `also`; Offline."""
        for pause in (*_BUSY_PAUSES, None):
            async with self.stream(method, path, headers, body) as got:
                parts = [chunk async for chunk in got.chunks]
            answer = Answer(got.status, got.headers, b"".join(parts))
            if answer.status != 503 or pause is None or not isinstance(body, bytes):
                break
            await trio.sleep(pause)
        if answer.status >= 300 and answer.status not in also:
            raise refused(answer.status, answer.body)
        return answer

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, headers: Headers = (), body: Body = b"", *,
        probing: bool = False, quiet_seconds: float | None = None,
    ) -> AsyncIterator[Stream]:  # fmt: skip
        """One request; its body is read inside the block. `quiet_seconds`: how long the body may say nothing."""
        if self.away is not None and not probing:
            raise Offline(self.away)
        try:
            response = await self._send(method, self._head(method, path, headers, body), body)
        except Broken as error:
            raise self._lost(error) from None
        self._found()
        try:
            if quiet_seconds is not None:
                response.connection.seconds = quiet_seconds
            yield Stream(response.status, response.headers, self._chunks(response))
        finally:
            with trio.CancelScope(shield=True):
                await self._pool.done(response)

    def _head(self, method: str, path: str, headers: Headers, body: Body) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        if (
            isinstance(body, bytes)
            and "Content-Length: " not in lines
            and (body or method in ("PUT", "POST"))
        ):
            lines += f"Content-Length: {len(body)}\r\n"
        return f"{method} {path} HTTP/1.1\r\n{self._fixed}{lines}\r\n".encode("latin-1")

    async def _send(self, method: str, head: bytes, body: Body) -> Response:
        for last in (False, True):
            try:
                return await self._pool.ask(method, head, body, self._seconds)
            except Broken as error:
                # A kept connection may have been closed by the server at the moment of its use.
                if last or not error.kept or method not in _REPEATABLE:
                    raise
        raise AssertionError("unreachable")

    async def _chunks(self, response: Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.chunks():
                yield chunk
        except Broken as error:
            raise self._lost(error) from None

    def _lost(self, error: Broken) -> Offline:
        why = str(error)
        if self.away is None:
            _log.info("the server can't be reached: %s", why)
            self.away = why
            self.on_change()
        return Offline(why)

    def _found(self) -> None:
        if self.away is not None:
            _log.info("the server is back")
            self.away = None
            self.on_change()
