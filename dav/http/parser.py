"""Request heads (RFC 9112), pure: bytes in, ``Head`` or ``BadRequest`` out.

llhttp (through httptools) reads the header lines; the request line and what the headers mean together is ours.
Everything on which two parsers could disagree (and so could smuggle a request past a proxy) is refused:
bare CR or LF, NUL, folded lines, space before a colon, repeated singletons, a length beside a
transfer coding.  Header names with an underscore are dropped, since WSGI would merge them with the
dashed ones.
"""

import re
from dataclasses import dataclass

import httptools

from dav.http import limits

_FORBIDDEN = re.compile(rb"[\x00-\x1f\x7f]")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(/[^#]*|\Z)", re.IGNORECASE)
_DIGITS = re.compile(r"[0-9]{1,18}\Z")
_MAX_NAMES = 2000

_COMMON = {
    name.encode(): name
    for name in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE")
}
_LISTS = frozenset(
    {
        *("ACCEPT", "ACCEPT_CHARSET", "ACCEPT_ENCODING", "ACCEPT_LANGUAGE", "CACHE_CONTROL", "CONNECTION"),
        *("IF_MATCH", "IF_NONE_MATCH", "PRAGMA", "PREFER", "TE", "TRAILER", "UPGRADE", "VIA", "WARNING"),
        *("FORWARDED", "X_FORWARDED_FOR", "X_FORWARDED_PROTO", "X_FORWARDED_HOST", "KEEP_ALIVE"),
    }
)


class BadRequest(Exception):
    """The request cannot be understood: answer ``status`` with one sentence and close."""

    def __init__(self, sentence: str, status: str = "400 Bad Request") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status


@dataclass(slots=True)
class Head:
    """A request's head.  ``target`` is the path and query as sent; ``headers`` has WSGI ``HTTP_…`` keys."""

    method: str
    target: bytes
    version: tuple[int, int]
    headers: dict[str, str]
    length: int
    chunked: bool
    keep_alive: bool
    expect: bool
    block: bytes = b""
    """The header lines as sent: the same bytes mean the same again, which a connection makes use of."""


class _Lines:
    """What llhttp finds."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.append((name, value))


_keys: dict[bytes, str] = {}


def _environ_key(name: bytes) -> str:
    """The WSGI key of a header name; "" for one that is dropped; BadRequest for an illegal one."""
    key = _keys.get(name)
    if key is None:
        if not _TOKEN.match(name):
            raise BadRequest("A header name contains a character that is not allowed.")
        if b"_" in name:
            key = ""
        else:
            key = "HTTP_" + name.decode("ascii").upper().replace("-", "_")
        if len(_keys) < _MAX_NAMES:
            _keys[name] = key
    return key


def head_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """Index just past the blank line, or -1 while more is needed.

    ``start`` is how much was searched before.  BadRequest as soon as it can't become a head: a bare
    line feed, or more than ``limits.HEAD_BYTES``.
    """
    found = buffer.find(b"\r\n\r\n", max(0, start - 3))
    if 0 <= found <= limits.HEAD_BYTES:
        return found + 4
    limit = found if found >= 0 else len(buffer)
    if _BARE_LF.search(buffer, max(0, start - 1), limit):
        raise BadRequest("Lines must end with CR LF.")
    if limit > limits.HEAD_BYTES:
        if b"\r\n" not in buffer[: limits.HEAD_BYTES]:
            raise BadRequest("The request line is too long.", "414 URI Too Long")
        raise BadRequest("The headers are too long.", "431 Request Header Fields Too Large")
    return -1


def _request_line(line: bytes) -> tuple[str, bytes, tuple[int, int], str | None]:
    """Method, target, version and the authority of an absolute-form target."""
    parts = line.split(b" ")
    if len(parts) == 3 and parts[0] in _COMMON and parts[2] == b"HTTP/1.1":
        target = parts[1]
        if target[:1] == b"/" and b"#" not in target:
            return _COMMON[parts[0]], target, (1, 1), None
    if len(parts) != 3:
        raise BadRequest("The request line must be a method, a target and a version, with single spaces.")
    method, target, protocol = parts
    if protocol == b"HTTP/1.1":
        version = (1, 1)
    elif protocol == b"HTTP/1.0":
        version = (1, 0)
    elif re.fullmatch(rb"HTTP/[0-9]\.[0-9]", protocol):
        raise BadRequest("Only HTTP/1.0 and HTTP/1.1 are spoken here.", "505 HTTP Version Not Supported")
    else:
        raise BadRequest("The protocol version is malformed.")
    if not _TOKEN.match(method) or not method.isupper():
        raise BadRequest("The method is malformed.")
    if method in (b"CONNECT", b"TRACE"):
        raise BadRequest("This method is not available.", "405 Method Not Allowed")
    if b"#" in target or b"\t" in target:
        raise BadRequest("The target must not contain a fragment or white space.")
    authority = None
    if target[:1] != b"/":
        absolute = _ABSOLUTE.match(target)
        if absolute:
            authority = absolute[1].decode("latin-1")
            target = absolute[2] or b"/"
        elif not (target == b"*" and method == b"OPTIONS"):
            raise BadRequest("The target must start with a slash.")
    return method.decode("ascii"), target, version, authority


def _lines(block: bytes) -> list[tuple[bytes, bytes]]:
    """The header lines of a head, blank line included."""
    lines = _Lines()
    try:
        # With a request line of our own: the client's was looked at already, and llhttp's idea of methods and
        # targets is narrower than ours.
        httptools.HttpRequestParser(lines).feed_data(b"PUT / HTTP/1.1\r\n" + block)
    except httptools.HttpParserUpgrade:
        pass  # told only when all headers were read; nothing here upgrades
    except httptools.HttpParserError as error:
        sentence = str(error)
        once = block.lower().count(b"transfer-encoding:") == 1
        if once and "Transfer-Encoding" in sentence and "Content-Length" not in sentence:
            raise BadRequest(
                "Only the transfer coding chunked is understood.", "501 Not Implemented"
            ) from None
        raise BadRequest(f"The headers are malformed: {sentence}.") from None
    return lines.found


def _headers(block: bytes) -> dict[str, str]:
    lines = _lines(block)
    if len(lines) > limits.HEADER_COUNT:
        raise BadRequest("There are too many headers.", "431 Request Header Fields Too Large")
    headers: dict[str, str] = {}
    for name, raw in lines:
        key = _keys.get(name)
        if key is None:
            key = _environ_key(name)
        if not key:
            continue
        value = raw.strip(b" \t").decode("latin-1")
        if key in headers:
            value = _together(key, headers[key], value)
        headers[key] = value
    return headers


def _together(key: str, first: str, second: str) -> str:
    """The value of a header that is given twice."""
    if key[5:] in _LISTS:
        return f"{first}, {second}"
    if key == "HTTP_COOKIE":
        return f"{first}; {second}"
    if key[5:7] == "X_":
        return second  # unknown extensions: the last one counts, as stock servers do
    raise BadRequest(f"The header {key[5:].replace('_', '-').title()} is given twice.")


def _framing(headers: dict[str, str], version: tuple[int, int]) -> tuple[int, bool]:
    """(length, chunked) of the body; RFC 9112 section 6.3, without its leniencies."""
    coding = headers.get("HTTP_TRANSFER_ENCODING")
    length = headers.pop("HTTP_CONTENT_LENGTH", None)
    if coding is not None:
        if length is not None:
            raise BadRequest("Content-Length and Transfer-Encoding exclude each other.")
        if version < (1, 1):
            raise BadRequest("HTTP/1.0 has no Transfer-Encoding.")
        if coding.lower() != "chunked":
            raise BadRequest("Only the transfer coding chunked is understood.", "501 Not Implemented")
        return 0, True
    if length is None:
        return 0, False
    if not _DIGITS.match(length):
        raise BadRequest("Content-Length must be a plain number.")
    headers["CONTENT_LENGTH"] = length
    return int(length), False


def _host(headers: dict[str, str], version: tuple[int, int], authority: str | None) -> None:
    host = headers.get("HTTP_HOST")
    if host is None:
        if version >= (1, 1):
            raise BadRequest("The Host header is missing.")
    elif host and not _HOST.match(host):
        raise BadRequest("The Host header is malformed.")
    if authority is not None:
        if not _HOST.match(authority):
            raise BadRequest("The host in the target is malformed.")
        headers["HTTP_HOST"] = authority


def parse_head(data: bytes, before: Head | None = None) -> Head:
    """Parse a whole head, blank line included.  BadRequest says what is wrong; nothing is guessed.

    ``before`` is the last head on the connection: most clients send the same header lines again.
    """
    if data[:2] == b"\r\n":
        data = data[2:]  # one empty line before a request is tolerated (RFC 9112 section 2.2)
    line, _, block = data.partition(b"\r\n")
    if _FORBIDDEN.search(line):
        raise BadRequest("The request line contains a control character or a bare line ending.")
    method, target, version, authority = _request_line(line)
    if before is not None and authority is None and before.block == block and before.version == version:
        return Head(
            method,
            target,
            version,
            before.headers,
            before.length,
            before.chunked,
            before.keep_alive,
            before.expect,
            block,
        )
    headers = _headers(block)
    length, chunked = _framing(headers, version)
    _host(headers, version, authority)
    if "HTTP_CONTENT_TYPE" in headers:
        headers["CONTENT_TYPE"] = headers.pop("HTTP_CONTENT_TYPE")
    expect = headers.get("HTTP_EXPECT")
    if expect is not None and expect.lower() != "100-continue":
        raise BadRequest("This expectation cannot be met.", "417 Expectation Failed")
    connection = headers.get("HTTP_CONNECTION", "").lower()
    options = {option.strip() for option in connection.split(",")} if connection else set()
    return Head(
        method=method,
        target=target,
        version=version,
        headers=headers,
        length=length,
        chunked=chunked,
        keep_alive="close" not in options if version >= (1, 1) else "keep-alive" in options,
        expect=expect is not None and version >= (1, 1) and (chunked or length > 0),
        block=block if authority is None else b"",
    )


def chunk_size(line: bytes) -> int:
    """Size from a chunk-size line without its CR LF; extensions are ignored.  BadRequest if malformed."""
    digits, extension, _ = line.partition(b";")
    if extension:
        digits = digits.rstrip(b" \t")
    if not digits or len(digits) > limits.CHUNK_DIGITS or not re.fullmatch(rb"[0-9A-Fa-f]+", digits):
        raise BadRequest("A chunk size must be a plain hexadecimal number.")
    return int(digits, 16)
