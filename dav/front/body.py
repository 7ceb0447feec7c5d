"""Request bodies as WSGI input: streamed, bounded, never whole in memory."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

from dav.http import limits
from dav.http.failures import Malformed
from dav.http.parser import BadRequest, chunk_size


class Source(Protocol):
    """What a body reads from: the connection's buffer, then its socket."""

    buffer: bytearray

    def fill(self) -> None:
        """Receive more into ``buffer``; Truncated at the end of the stream, TooSlow by pace, WouldBlock if it has
        nothing and does not wait."""

    def receive_into(self, view: memoryview) -> int:
        """Receive at least one byte straight into ``view``; errors as ``fill``."""

    def send_continue(self) -> None:
        """Send the interim answer 100."""


class Body(ABC):
    """Common to both kinds.  ``broken`` is set once the framing is lost: the connection must close.

    After WouldBlock a read goes on where it stopped.
    """

    def __init__(self, source: Source, expect: bool) -> None:
        self._source = source
        self.expecting = expect
        self.broken = False

    @abstractmethod
    def _take(self, view: memoryview) -> int:
        """At least one byte of the body into ``view``, or 0 at its end."""

    def readinto(self, view: memoryview) -> int:
        """At least one byte into ``view``, or 0 at the end of the body.  Raises BodyError, TooSlow."""
        if self.expecting:
            # Only now: whoever answers early (401, 412, 423 …) never asks for the body.
            self.expecting = False
            self._source.send_continue()
        try:
            return self._take(view)
        except OSError:
            self.broken = True
            raise

    def read(self, size: int | None = -1) -> bytes:
        """``size`` bytes (fewer only at the end); all that is left if negative or None."""
        parts: list[bytes] = []
        left = -1 if size is None else size
        while left:
            buffer = bytearray(min(left, limits.BLOCK) if left > 0 else limits.BLOCK)
            got = self.readinto(memoryview(buffer))
            if not got:
                break
            parts.append(bytes(buffer[:got]))
            if left > 0:
                left -= got
        return b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """One line, byte by byte: WSGI demands it, nothing here uses it."""
        line = bytearray()
        limit = limits.BLOCK if size is None or size < 0 else size
        while len(line) < limit and line[-1:] != b"\n":
            byte = self.read(1)
            if not byte:
                break
            line += byte
        return bytes(line)

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line


class FixedBody(Body):
    """A body of known length."""

    def __init__(self, source: Source, length: int, expect: bool) -> None:
        super().__init__(source, expect)
        self.remaining = length

    def readinto(self, view: memoryview) -> int:
        if not self.remaining:
            return 0
        return super().readinto(view)

    def _take(self, view: memoryview) -> int:
        if len(view) > self.remaining:
            view = view[: self.remaining]
        buffer = self._source.buffer
        if buffer:
            got = min(len(buffer), len(view))
            view[:got] = buffer[:got]
            del buffer[:got]
        else:
            got = self._source.receive_into(view)
        self.remaining -= got
        return got


class _Next(enum.Enum):
    """What a chunked body goes on with."""

    SIZE = enum.auto()
    DATA = enum.auto()
    CRLF = enum.auto()
    TRAILERS = enum.auto()
    NOTHING = enum.auto()


class ChunkedBody(Body):
    """A chunked body (RFC 9112 section 7.1); trailers are parsed and dropped."""

    def __init__(self, source: Source, expect: bool) -> None:
        super().__init__(source, expect)
        self._left = 0
        self._trailers = 0
        self._next = _Next.SIZE

    @property
    def done(self) -> bool:
        return self._next is _Next.NOTHING

    def readinto(self, view: memoryview) -> int:
        if self.done:
            return 0
        return super().readinto(view)

    def _line(self, limit: int) -> bytes:
        buffer = self._source.buffer
        while True:
            end = buffer.find(b"\n")
            if 0 <= end <= limit + 1:
                if end < 1 or buffer[end - 1] != 13 or b"\r" in buffer[: end - 1] or b"\0" in buffer[:end]:
                    raise Malformed("A line of the chunked body does not end with CR LF.")
                line = bytes(buffer[: end - 1])
                del buffer[: end + 1]
                return line
            if len(buffer) > limit + 1:
                raise Malformed("A line of the chunked body is too long.")
            self._source.fill()

    def _to_data(self) -> bool:
        """Read up to the next byte of data; False at the end of the body."""
        while self._next is not _Next.DATA:
            match self._next:
                case _Next.SIZE:
                    self._size()
                case _Next.CRLF:
                    if self._line(0):
                        raise Malformed("A chunk is longer than announced.")
                    self._next = _Next.SIZE
                case _Next.TRAILERS:
                    self._trailer()
                case _Next.NOTHING:
                    return False
        return True

    def _size(self) -> None:
        try:
            self._left = chunk_size(self._line(limits.CHUNK_LINE_BYTES))
        except BadRequest as error:
            raise Malformed(error.sentence) from None
        self._next = _Next.DATA if self._left else _Next.TRAILERS

    def _trailer(self) -> None:
        line = self._line(limits.TRAILER_BYTES)
        if not line:
            self._next = _Next.NOTHING
            return
        self._trailers += len(line)
        if self._trailers > limits.TRAILER_BYTES or b":" not in line:
            raise Malformed("The trailers are malformed or too long.")

    def _take(self, view: memoryview) -> int:
        if not self._to_data():
            return 0
        if len(view) > self._left:
            view = view[: self._left]
        buffer = self._source.buffer
        if buffer:
            got = min(len(buffer), len(view))
            view[:got] = buffer[:got]
            del buffer[:got]
        else:
            got = self._source.receive_into(view)
        self._left -= got
        if not self._left:
            self._next = _Next.CRLF
        return got
