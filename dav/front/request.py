"""One request through WSGI (PEP 3333), and its reply."""

import logging
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from dav.front.body import Body, ChunkedBody, FixedBody
from dav.http import limits
from dav.http.parser import BadRequest, Head, parse_head

if TYPE_CHECKING:
    from dav.front.connection import Connection
    from dav.server import Server

log = logging.getLogger(__name__)

_date: tuple[int, bytes] = (0, b"")
_status_lines: dict[str, bytes] = {}


def _date_line() -> bytes:
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, b"Date: " + formatdate(now, usegmt=True).encode() + b"\r\n")
    return _date[1]


class Request:
    """Parses the head, calls the application, writes the reply.  Used once, by one worker."""

    def __init__(self, server: "Server", conn: "Connection") -> None:
        self.server = server
        self.conn = conn
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.sent_headers = False
        self.no_body = False
        self.chunked_reply = False
        self.keep = True
        self.left: int | None = None
        self.body: Body | None = None
        self.head: Head | None = None

    def respond(self) -> bool:
        """Serve it.  True when the connection can carry another request.  OSError: the peer is gone."""
        conn = self.conn
        conn.pace = None
        try:
            if conn.refusal is not None:
                raise conn.refusal
            assert conn.head is not None
            head = parse_head(conn.head)
        except BadRequest as error:
            conn.unwanted = limits.DRAIN_BYTES
            self.keep = False
            self._simple(error.status, error.sentence)
            return False
        self.head = head
        conn.requests_seen += 1
        self.no_body = head.method == "HEAD"
        self.keep = head.keep_alive
        body: Body
        if head.chunked:
            body = ChunkedBody(conn, head.expect)
        else:
            body = FixedBody(conn, head.length, head.expect)
        self.body = body
        if head.chunked or head.length:
            conn.begin_body()
        self._run(self._environ(head, body))
        return self.keep

    def _environ(self, head: Head, body: Body) -> dict[str, Any]:
        conn = self.conn
        path, _, query = head.target.partition(b"?")
        environ = self.server.base_environ.copy()
        environ.update(head.headers)
        environ["REQUEST_METHOD"] = head.method
        environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        environ["QUERY_STRING"] = query.decode("latin-1")
        environ["REQUEST_URI"] = head.target.decode("latin-1")
        environ["SERVER_PROTOCOL"] = f"HTTP/{head.version[0]}.{head.version[1]}"
        environ["REMOTE_ADDR"] = conn.remote_addr
        environ["REMOTE_PORT"] = str(conn.remote_port)
        environ["wsgi.input"] = body
        environ["wsgi.input_terminated"] = True
        return environ

    def _run(self, environ: dict[str, Any]) -> None:
        result: Iterable[bytes] | None = None
        try:
            result = self.server.wsgi_app(environ, self._start_response)
            self._send_result(result)
        except OSError:
            if self.sent_headers:
                raise
            log.exception("request failed: %s %s", environ["REQUEST_METHOD"], environ["REQUEST_URI"])
            self._fail()
        except Exception:
            log.exception("request failed: %s %s", environ["REQUEST_METHOD"], environ["REQUEST_URI"])
            if self.sent_headers:
                # What was announced can't be kept: only a cut connection tells the client.
                self.keep = False
                return
            self._fail()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _fail(self) -> None:
        self.status, self.headers, self.chunked_reply, self.left = "", [], False, None
        self._simple("500 Internal Server Error", "The server failed; its log says why.")

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if self.sent_headers and exc_info:
            raise exc_info[1].with_traceback(exc_info[2])
        if self.status and not exc_info:
            raise RuntimeError("start_response was called twice")
        self.status, self.headers = status, headers
        return self._write

    def _send_result(self, result: Iterable[bytes]) -> None:
        fd = getattr(result, "fd", None)
        if fd is not None and not self.conn.wire.tls and not self.no_body:
            offset, count = result.offset, result.count  # type: ignore[attr-defined]
            self.conn.send_all((self._head_bytes(count),))
            self.conn.send_file(fd, offset, count)
            return
        if isinstance(result, (list, tuple)):
            data = result[0] if len(result) == 1 else b"".join(result)
            self._write(data, len(data))
        else:
            for chunk in result:
                if chunk:
                    self._write(chunk)
            if not self.sent_headers:
                self._write(b"", 0)
        if self.chunked_reply:
            self.conn.send_all((b"0\r\n\r\n",))
        if self.left:
            raise ConnectionAbortedError("The reply ended before its announced length.")

    def _write(self, data: bytes, total: int | None = None) -> None:
        parts: list[bytes] = []
        if not self.sent_headers:
            parts.append(self._head_bytes(total))
        if self.no_body:
            self.left = None
        elif data:
            if self.left is not None:
                if len(data) > self.left:
                    raise ConnectionAbortedError("The reply is longer than its announced length.")
                self.left -= len(data)
            if self.chunked_reply:
                parts += (b"%x\r\n" % len(data), data, b"\r\n")
            else:
                parts.append(data)
        if parts:
            if self.conn.wire.tls and len(parts) > 1 and len(data) <= 65536:
                parts = [b"".join(parts)]
            self.conn.send_all(parts)

    def _head_bytes(self, total: int | None) -> bytes:
        """Status line and headers; decides how the body is delimited and whether the connection lives."""
        if not self.status:
            raise RuntimeError("the application did not call start_response")
        lines = [f"HTTP/1.1 {self.status}\r\n".encode("latin-1"), _date_line()]
        length: int | None = None
        for name, value in self.headers:
            if "\n" in value or "\r" in value or "\0" in value:
                raise RuntimeError(f"a line ending in the reply header {name}")
            lower = name.lower()
            if lower == "content-length":
                length = int(value)
            elif lower == "connection":
                self.keep = self.keep and value.lower() != "close"
                continue
            elif lower == "date":
                continue
            lines.append(f"{name}: {value}\r\n".encode("latin-1"))
        bodyless = self.status[:3] in ("204", "304")
        if bodyless:
            self.no_body = True
        elif length is None and total is not None:
            length = total
            lines.append(b"Content-Length: %d\r\n" % total)
        self.left = length
        if length is None and not self.no_body:
            if self.head is not None and self.head.version >= (1, 1):
                self.chunked_reply = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
            else:
                self.keep = False
        self.keep = self.keep and self.server.ready
        self._settle_body()
        if not self.keep:
            lines.append(b"Connection: close\r\n")
        elif self.head is not None and self.head.version < (1, 1):
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self.sent_headers = True
        self.conn.begin_body()
        return b"".join(lines)

    def _settle_body(self) -> None:
        """What happens to request bytes the application did not read (never read before the reply)."""
        from dav.front.connection import State

        body, conn = self.body, self.conn
        conn.unwanted = 0
        conn.state = State.WORKER
        if body is None:
            return
        if body.broken:
            self.keep = False
            conn.unwanted = limits.DRAIN_BYTES
        elif isinstance(body, FixedBody):
            if body.remaining and body.expecting:
                # The client may or may not send it now: the framing is lost.
                self.keep = False
                conn.unwanted = limits.DRAIN_BYTES
            elif body.remaining > limits.DRAIN_BYTES:
                self.keep = False
                conn.unwanted = limits.DRAIN_BYTES
            elif body.remaining:
                arrived = min(len(conn.buffer), body.remaining)
                del conn.buffer[:arrived]
                conn.unwanted = body.remaining - arrived
                if conn.unwanted:
                    conn.state = State.DISCARD
                    conn.deadline = time.monotonic() + limits.HEAD_SECONDS
        elif isinstance(body, ChunkedBody) and not body.done:
            self.keep = False
            conn.unwanted = limits.DRAIN_BYTES

    def _simple(self, status: str, sentence: str) -> None:
        """A plain text answer of our own."""
        data = (sentence + "\n").encode()
        self.status = status
        self.headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(data)))]
        self._write(data)
