"""GET and HEAD: bytes and etag from one fstat, ranges, conditions."""

import os
import secrets
from collections.abc import Iterator

from dav.http import limits, ranges
from dav.http.conditions import range_applies
from dav.http.dates import NANO, http_date
from dav.http.errors import HttpError
from dav.http.headers import KeptHeaders
from dav.routes import Place, Virtual
from dav.webdav.call import Call, Headers, Reply, etag_headers
from dav.webdav.properties import DIRECTORY_TYPE, content_type, disposition
from fsd.core import hashing, tree
from fsd.core.tree import Entry

_INLINE = ("image/", "audio/", "video/", "font/")
_INLINE_TYPES = frozenset({"text/plain", "application/pdf"})
_CSP = "default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'unsafe-inline'; sandbox"


class FileBody:
    """A part of an open file as WSGI body.  ``fd``, ``offset`` and ``count`` let the front use sendfile(2).

    Owns the descriptor.  A file that became shorter ends the connection: its length was promised.
    """

    def __init__(self, fd: int, offset: int, count: int) -> None:
        self.fd: int | None = fd
        self.offset = offset
        self.count = count

    def __iter__(self) -> Iterator[bytes]:
        if self.fd is not None:
            yield from read_part(self.fd, self.offset, self.count)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class MultipartBody:
    """Several parts of an open file as multipart/byteranges.  Owns the descriptor."""

    def __init__(self, fd: int, parts: list[tuple[int, int]], size: int, media_type: str) -> None:
        self._fd = fd
        boundary = secrets.token_hex(12)
        self.content_type = f"multipart/byteranges; boundary={boundary}"
        self._parts = [
            (
                f"--{boundary}\r\nContent-Type: {media_type}\r\n"
                f"Content-Range: bytes {offset}-{offset + count - 1}/{size}\r\n\r\n".encode(),
                offset,
                count,
            )
            for offset, count in parts
        ]
        self._end = f"--{boundary}--\r\n".encode()
        self.length = len(self._end) + sum(len(head) + count + 2 for head, _, count in self._parts)

    def __iter__(self) -> Iterator[bytes]:
        for head, offset, count in self._parts:
            yield head
            yield from read_part(self._fd, offset, count)
            yield b"\r\n"
        yield self._end

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_part(fd: int, offset: int, count: int) -> Iterator[bytes]:
    """``count`` bytes in blocks; ConnectionAbortedError if the file ends before."""
    while count:
        data = os.pread(fd, min(count, limits.BLOCK), offset)
        if not data:
            raise ConnectionAbortedError("The file became shorter while it was being sent.")
        offset += len(data)
        count -= len(data)
        yield data


def head(call: Call) -> Reply:
    """The headers GET would send, without opening the file."""
    if isinstance(call.target, Virtual):
        return Reply(200, [("Content-Type", DIRECTORY_TYPE)])
    place = call.target
    entry = tree.lookup(place.space, place.path)
    call.check_conditions(entry, reading=True)
    if entry.kind == "d":
        return Reply(200, [("Content-Type", DIRECTORY_TYPE), *_common(place, entry)])
    if entry.kind != "f":
        raise HttpError(403, "This is neither a file nor a folder.")
    return Reply(200, [("Content-Length", str(entry.size)), *_file_headers(place, entry)])


def get(call: Call) -> Reply:
    """200, 206 or 304; IsADirectoryError for folders."""
    place = call.place
    fd, entry = tree.open_file(place.space, place.path)
    try:
        call.check_conditions(entry, reading=True)
        return send(call, place, fd, entry)
    except BaseException:
        os.close(fd)
        raise


def send(call: Call, place: Place, fd: int, entry: Entry) -> Reply:
    """The bytes of an open file that the entry describes, or the parts that were asked for; takes the descriptor."""
    wanted = call.environ.get("HTTP_RANGE")
    if not wanted:
        return Reply(200, _whole_file(place, entry), FileBody(fd, 0, entry.size))
    headers = _file_headers(place, entry)
    parts: list[tuple[int, int]] | None = None
    if range_applies(call.environ.get("HTTP_IF_RANGE"), entry.etag, entry.mtime_ns // NANO):
        parts = ranges.parse(wanted, entry.size)
    if parts is None:
        length = ("Content-Length", str(entry.size))
        return Reply(200, [length, *headers], FileBody(fd, 0, entry.size))
    if not parts:
        unsatisfied = ("Content-Range", f"bytes */{entry.size}")
        raise HttpError(416, "The file does not have these bytes.", headers=(unsatisfied,))
    if len(parts) == 1:
        offset, count = parts[0]
        own = [
            ("Content-Length", str(count)),
            ("Content-Range", f"bytes {offset}-{offset + count - 1}/{entry.size}"),
        ]
        return Reply(206, own + headers, FileBody(fd, offset, count))
    body = MultipartBody(fd, parts, entry.size, content_type(entry.name))
    headers = [("Content-Type", body.content_type), *(h for h in headers if h[0] != "Content-Type")]
    return Reply(206, [("Content-Length", str(body.length)), *headers], body)


_MOST_KEPT = 4096
_kept: dict[int, tuple[Entry, KeptHeaders]] = {}
"""By the identity of an entry, which the core makes once and gives out until it is no longer true."""


def _whole_file(place: Place, entry: Entry) -> Headers:
    known = _kept.get(id(entry))
    if known is not None and known[0] is entry:
        headers = known[1]
    else:
        headers = KeptHeaders([("Content-Length", str(entry.size)), *_lasting_headers(place, entry)])
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[id(entry)] = entry, headers
    copied = headers.copy()
    copied += _checksum(place, entry)
    return copied


def _common(place: Place, entry: Entry) -> Headers:
    return [
        *etag_headers(entry.etag),
        ("Last-Modified", http_date(entry.mtime_ns // NANO)),
        ("OC-FileId", place.file_id(entry.id)),
    ]


def _checksum(place: Place, entry: Entry) -> Headers:
    known = hashing.known(place.space, entry)
    return [] if known is None else [("OC-Checksum", known.best)]


def _file_headers(place: Place, entry: Entry) -> Headers:
    return [*_lasting_headers(place, entry), *_checksum(place, entry)]


def _lasting_headers(place: Place, entry: Entry) -> Headers:
    """What is the same as long as the entry is."""
    media_type = content_type(entry.name)
    headers = [
        ("Content-Type", media_type),
        *_common(place, entry),
        ("Accept-Ranges", "bytes"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "private, no-cache"),
    ]
    inline = media_type in _INLINE_TYPES or (media_type.startswith(_INLINE) and media_type != "image/svg+xml")
    if not inline:
        headers.append(("Content-Disposition", disposition(entry.name)))
    if media_type != "application/pdf":
        headers.append(("Content-Security-Policy", _CSP))
    return headers
