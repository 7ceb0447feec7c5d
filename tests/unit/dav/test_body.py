"""Request bodies: framing is exact, nothing is read ahead of it, and nothing is held whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.front.body import ChunkedBody, FixedBody
from dav.http.failures import Malformed, Truncated


class Feed:
    """A source that hands out its bytes in given pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = [piece for piece in pieces if piece]
        self.buffer = bytearray()
        self.continues = 0

    def fill(self) -> None:
        if not self.pieces:
            raise Truncated("end")
        self.buffer += self.pieces.pop(0)

    def receive_into(self, view: memoryview) -> int:
        if not self.pieces:
            raise Truncated("end")
        got = min(len(view), len(self.pieces[0]))
        view[:got] = self.pieces[0][:got]
        self.pieces[0] = self.pieces[0][got:]
        if not self.pieces[0]:
            del self.pieces[0]
        return got

    def send_continue(self) -> None:
        self.continues += 1


def rest(feed: Feed) -> bytes:
    return bytes(feed.buffer) + b"".join(feed.pieces)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)])]


@given(st.binary(max_size=200), st.lists(st.integers(0, 400)), st.integers(1, 50))
def test_fixed_body_takes_exactly_its_bytes(data, cuts, block):
    feed = Feed(split(data + b"NEXT", cuts))
    body = FixedBody(feed, len(data), False)
    read = b""
    while piece := body.read(block):
        read += piece
    assert read == data and rest(feed) == b"NEXT" and not body.broken


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 900)), st.booleans())
def test_chunked_body_takes_exactly_its_bytes(chunks, cuts, trailers):
    wire = b"".join(b"%x;e=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n"
    wire += (b"T: a\r\nU: b\r\n" if trailers else b"") + b"\r\n"
    feed = Feed(split(wire + b"NEXT", cuts))
    body = ChunkedBody(feed, False)
    assert body.read() == b"".join(chunks)
    assert body.done and body.read() == b"" and rest(feed) == b"NEXT"


def test_truncated_bodies_are_errors_not_ends():
    body = FixedBody(Feed([b"abc"]), 5, False)
    with pytest.raises(Truncated):
        body.read()
    assert body.broken
    body2 = ChunkedBody(Feed([b"5\r\nab"]), False)
    with pytest.raises(Truncated):
        body2.read()
    assert body2.broken


@pytest.mark.parametrize(
    "wire",
    [
        b"-1\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3;" + b"a" * 5000,
        b"3;" + b"a" * 5000 + b"\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n" + b"T: " + b"a" * 20000 + b"\r\n\r\n",
        b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_malformed_chunks(wire):
    body = ChunkedBody(Feed([wire]), False)
    with pytest.raises((Malformed, Truncated)):
        body.read()
    assert body.broken


def test_a_claimed_huge_chunk_costs_no_memory():
    body = ChunkedBody(Feed([b"fffffffff\r\n", b"abc"]), False)
    assert body.readinto(memoryview(bytearray(3))) == 3


def test_continue_is_sent_once_and_only_when_read():
    feed = Feed([b"abcdef"])
    body = FixedBody(feed, 6, True)
    assert feed.continues == 0
    body.read(2)
    body.read(4)
    assert feed.continues == 1
