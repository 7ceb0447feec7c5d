"""One request: its environ (PEP 3333), the application's answer, and the head of the reply."""

import logging
import ssl
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from dav.front.body import Body, ChunkedBody, FixedBody
from dav.front.outgoing import Outgoing, Shortened, close_body
from dav.front.streams import Stream
from dav.http import limits
from dav.http.errors import status_line
from dav.http.failures import WouldBlock
from dav.http.headers import header_lines
from dav.http.parser import BadRequest, Head
from fsd.core import steps
from fsd.core.arrivals import Outcome
from fsd.core.steps import Need

if TYPE_CHECKING:
    from dav.front.connection import Connection
    from dav.server import Server

log = logging.getLogger(__name__)


class Answer(Protocol):
    """A reply as the application makes it.  The body may have ``close``, and ``fd``, ``offset`` and ``count``."""

    status: int
    headers: list[tuple[str, str]]

    @property
    def body(self) -> Iterable[bytes]: ...


class Receiving(Protocol):
    """An upload that the application has agreed to; the front brings the bytes as they come."""

    def feed(self, view: memoryview) -> None:
        """The next bytes.  An exception ends the upload: pass it to ``fail``."""

    def begin_finish(self) -> Answer | Need:
        """All bytes were fed.  With what it needs (`steps.serve`) it is to `go_on`."""

    def go_on(self, outcome: Outcome) -> Answer | Need:
        """The same, with what came of it."""

    def fail(self, error: Exception) -> Answer:
        """It can't go on: what the client is told."""

    def abort(self) -> None:
        """The client is gone."""


_date: tuple[int, bytes] = (0, b"")
_status_lines: dict[int, bytes] = {}


def _start(status: int) -> bytes:
    """Status line and Date."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, b"Date: " + formatdate(now, usegmt=True).encode() + b"\r\n")
    line = _status_lines.get(status)
    if line is None:
        line = _status_lines[status] = f"HTTP/1.1 {status_line(status)}\r\n".encode()
    return line + _date[1]


class Plain:
    """A text answer of the front's own."""

    def __init__(self, status: int, sentence: str, *more: tuple[str, str]) -> None:
        data = (sentence + "\n").encode()
        self.status = status
        kind, length = ("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(data)))
        self.headers = [kind, length, *more]
        self.body = [data]


class Request:
    """A parsed head on its way through the application.  Used by one thread at a time."""

    __slots__ = ("begin_stream", "body", "conn", "head", "keep", "need", "outgoing", "receiving", "server")

    def __init__(self, server: "Server", conn: "Connection", head: Head | None) -> None:
        self.server = server
        self.conn = conn
        self.head = head
        self.keep = head is not None and head.keep_alive
        self.body: Body | None = None
        self.receiving: Receiving | None = None
        self.need: Need | None = None
        """What an upload waits for, together with others."""
        self.outgoing: Outgoing | None = None
        self.begin_stream: Callable[[Stream], None] | None = None
        """What gets the connection when the reply is sent, for a reply that never ends."""

    def refuse(self, error: BadRequest) -> None:
        """Answer what could not be parsed; the connection ends."""
        self.conn.unwanted = limits.LINGER_BYTES
        self.reply(Plain(int(error.status[:3]), error.sentence))

    def begin(self) -> None:
        """Ask the application: afterwards either ``outgoing`` or ``receiving`` is there."""
        head, conn = self.head, self.conn
        assert head is not None
        if head.chunked:
            self.body = ChunkedBody(conn, head.expect)
        else:
            self.body = FixedBody(conn, head.length, head.expect)
        environ = self._environ(head, self.body)
        try:
            found: Any = self.server.wsgi_app.answer(environ)
            if hasattr(found, "feed"):
                self.receiving = found
            else:
                self.reply(found)
        except Exception as error:
            self._failed(error)

    def receive(self, view: memoryview) -> None:
        """Take what has arrived of the upload, and answer it when that was all, or let it wait for others
        (``need``).  WouldBlock: there will be more."""
        body, receiving = self.body, self.receiving
        assert body is not None and receiving is not None
        try:
            while got := body.readinto(view):
                receiving.feed(view[:got])
            found = receiving.begin_finish()
            if isinstance(found, Need) and self.server.loop.gathers():
                self.need = found
                return
            while isinstance(found, Need):
                found = receiving.go_on(steps.serve([found])[0])
        except (WouldBlock, ConnectionError, ssl.SSLError):
            raise  # there will be more, or there is nobody to answer
        except Exception as error:
            self.end_upload(error)
        else:
            self.receiving = None
            self.reply(found)

    def served(self, outcome: Outcome) -> None:
        """Go on with what came of ``need``: there is another one then, or the answer."""
        receiving, self.need = self.receiving, None
        assert receiving is not None
        try:
            found = receiving.go_on(outcome)
        except Exception as error:
            self.end_upload(error)
            return
        if isinstance(found, Need):
            self.need = found
        else:
            self.receiving = None
            self.reply(found)

    def end_upload(self, error: Exception) -> None:
        """Answer an upload that ends with this error."""
        assert self.receiving is not None
        try:
            answer = self.receiving.fail(error)
            self.receiving = None
            self.reply(answer)
        except Exception as failure:
            self._failed(failure)

    def _failed(self, error: Exception) -> None:
        """Log what went wrong; 500 if nothing was sent yet, else the connection must be cut."""
        if isinstance(error, Shortened):
            self.reply(
                Plain(503, "The file changed while it was being read; ask again.", ("Retry-After", "1"))
            )
            return
        head = self.head
        what = f"{head.method} {head.target.decode('latin-1')}" if head is not None else "?"
        log.error("request failed: %s", what, exc_info=error)
        if self.receiving is not None:
            self.receiving.abort()
            self.receiving = None
        if self.outgoing is not None:
            self.outgoing.close()
        self.reply(Plain(500, "The server failed; its log says why."))

    def close(self) -> None:
        """Let go of everything; an upload that is under way leaves nothing."""
        if self.receiving is not None:
            self.receiving.abort()
            self.receiving = None
        if self.outgoing is not None:
            self.outgoing.close()

    def _environ(self, head: Head, body: Body) -> dict[str, Any]:
        conn = self.conn
        target = head.target
        path, _, query = target.partition(b"?")
        return {
            **self.server.base_environ,
            **head.headers,
            "REQUEST_METHOD": head.method,
            "PATH_INFO": (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "REQUEST_URI": target.decode("latin-1"),
            "SERVER_PROTOCOL": "HTTP/1.1" if head.version == (1, 1) else "HTTP/1.0",
            "REMOTE_ADDR": conn.remote_addr,
            "REMOTE_PORT": conn.remote_port,
            "wsgi.input": body,
            "wsgi.input_terminated": True,
        }

    def reply(self, answer: Answer) -> None:
        """Decide how the body is delimited and whether the connection lives, and put it all under way."""
        head = self.head
        body = answer.body
        status = answer.status
        self.begin_stream = getattr(answer, "begin", None)
        lines, length, close = header_lines(answer.headers)
        bodyless = status in (204, 304)
        if self.begin_stream is not None:
            bodyless = False
        elif length is None and not bodyless and isinstance(body, (list, tuple)):
            length = sum(map(len, body))
            lines += f"Content-Length: {length}\r\n"
        empty = bodyless or (head is not None and head.method == "HEAD")
        chunked = False
        if length is None and not empty and self.begin_stream is None:
            if head is not None and head.version >= (1, 1):
                chunked = True
                lines += "Transfer-Encoding: chunked\r\n"
            else:
                self.keep = False
        self.keep = self.keep and not close and self.server.ready
        self._settle_body()
        if not self.keep:
            lines += "Connection: close\r\n"
        elif head is not None and head.version < (1, 1):
            lines += "Connection: keep-alive\r\n"
        data = b"%b%b\r\n" % (_start(status), lines.encode("latin-1"))
        try:
            self.outgoing = Outgoing(
                self.conn, data, body, length=None if empty else length, chunked=chunked, empty=empty
            )
        except BaseException:
            close_body(body)
            raise

    def _settle_body(self) -> None:
        """What happens to request bytes the application did not read (never read before the reply)."""
        body, conn = self.body, self.conn
        if body is None:
            return
        conn.unwanted = 0
        conn.discarding = False
        if isinstance(body, FixedBody):
            left = body.remaining
            if not left and not body.broken:
                return
            if body.broken or body.expecting or left > limits.DRAIN_BYTES:
                # A client that expected may or may not send it now: the framing is lost.
                self.keep = False
                conn.unwanted = limits.LINGER_BYTES
                return
            arrived = min(len(conn.buffer), left)
            del conn.buffer[:arrived]
            conn.unwanted = left - arrived
            conn.discarding = conn.unwanted > 0
        elif body.broken or (isinstance(body, ChunkedBody) and not body.done):
            self.keep = False
            conn.unwanted = limits.LINGER_BYTES
