"""Reply headers as lines."""

from __future__ import annotations

import pytest

from dav.http.headers import KeptHeaders, header_lines

PLAIN = [("Content-Length", "12"), ("ETag", '"x"')]


def test_lines_length_and_the_wish_to_close():
    assert header_lines([*PLAIN, ("Connection", "close")]) == (
        'Content-Length: 12\r\nETag: "x"\r\n',
        12,
        True,
    )
    assert header_lines([("Connection", "keep-alive")]) == ("", None, False)


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\rb", "a\0b"])
def test_no_value_ends_its_line(value: str):
    with pytest.raises(RuntimeError):
        header_lines([("X", value)])
    with pytest.raises(RuntimeError):
        KeptHeaders([("X", value)])
    copy = KeptHeaders(PLAIN).copy()
    copy.append(("X", value))
    with pytest.raises(RuntimeError):
        header_lines(copy)


def test_kept_headers_give_the_same_lines():
    kept = KeptHeaders(PLAIN)
    for more in ([], [("X-Request-ID", "1")], [("Connection", "close")]):
        copy = kept.copy()
        copy += more
        assert header_lines(copy) == header_lines([*PLAIN, *more])
    assert kept == PLAIN, "what was appended to a copy stays there"
