"""The request head parser: what it takes, and everything that could smuggle a request and is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.http import limits
from dav.http.parser import BadRequest, chunk_size, head_end, parse_head


def head(*lines: str, first: str = "GET /a HTTP/1.1", host: bool = True) -> bytes:
    return "\r\n".join([first, *(["Host: h"] if host else []), *lines, "", ""]).encode("latin-1")


def refused(data: bytes) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_head(data)
    return caught.value.status[:3]


def test_plain_request():
    found = parse_head(head("X-Thing:  a b \t", "Accept: a", "Accept: b", first="GET /p%20q?x=1 HTTP/1.1"))
    assert (found.method, found.target, found.version) == ("GET", b"/p%20q?x=1", (1, 1))
    assert found.headers == {"HTTP_HOST": "h", "HTTP_X_THING": "a b", "HTTP_ACCEPT": "a, b"}
    assert (found.length, found.chunked, found.keep_alive, found.expect) == (0, False, True, False)


def test_length_and_expectation():
    found = parse_head(head("Content-Length: 42", "Expect: 100-Continue", first="PUT /a HTTP/1.1"))
    assert (found.length, found.expect) == (42, True)
    assert found.headers["CONTENT_LENGTH"] == "42"


def test_one_leading_empty_line_is_tolerated():
    assert parse_head(b"\r\n" + head()).method == "GET"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 3", "Content-Length: 3"],
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: 3, 3"],
        ["Content-Length: +5"],
        ["Content-Length: -1"],
        ["Content-Length: 1_0"],
        ["Content-Length: 0x3"],
        ["Content-Length: 3.0"],
        ["Content-Length: "],
        ["Content-Length: \u00b2"],
        ["Content-Length: 99999999999999999999"],
        ["Content-Length : 3"],
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Host: other"],
        [" folded: line"],
        ["A: b", "\tfolded"],
        ["No colon here"],
        [": empty name"],
        ["Na me: x"],
        ["X: a\x00b"],
        ["X: a\x0bb"],
        ["X: a\x7fb"],
        ["Authorization: a", "Authorization: b"],
        ["Destination: /a", "Destination: /b"],
        ["If: (<a>)", "If: (<b>)"],
        ["Depth: 0", "Depth: 1"],
    ],
)
def test_ambiguous_headers_are_refused(lines):
    assert refused(head(*lines)) == "400"


def test_host_is_required_once_and_well_formed():
    assert refused(head(host=False)) == "400"
    assert refused(head("Host: a/b", host=False)) == "400"
    assert refused(head("Host: a b", host=False)) == "400"
    assert parse_head(head("Host: [::1]:9200", host=False)).headers["HTTP_HOST"] == "[::1]:9200"
    assert parse_head(head(first="GET / HTTP/1.0", host=False)).keep_alive is False


@pytest.mark.parametrize("raw", [b"X: a\rb", b"X: a\nb", b"X: a\n b"])
def test_bare_line_endings_are_refused(raw):
    assert refused(b"GET / HTTP/1.1\r\nHost: h\r\n" + raw + b"\r\n\r\n") == "400"


def test_other_codings_versions_and_methods():
    assert refused(head("Transfer-Encoding: gzip, chunked")) == "501"
    assert refused(head("Transfer-Encoding: xchunked")) == "501"
    assert refused(head("Transfer-Encoding: chunked", first="PUT / HTTP/1.0")) == "400"
    assert refused(head(first="GET / HTTP/2.0")) == "505"
    assert refused(head(first="GET /  HTTP/1.1")) == "400"
    assert refused(head(first="get / HTTP/1.1")) == "400"
    assert refused(head(first="GET / HTTP/1.1 ")) == "400"
    assert refused(head(first="GET a HTTP/1.1")) == "400"
    assert refused(head(first="DELETE /a#b HTTP/1.1")) == "400"
    assert refused(head(first="CONNECT h:80 HTTP/1.1")) == "405"
    assert refused(head("Expect: magic")) == "417"


def test_absolute_form_sets_the_host():
    found = parse_head(head(first="GET http://real:1/x?y HTTP/1.1"))
    assert (found.target, found.headers["HTTP_HOST"]) == (b"/x?y", "real:1")


def test_headers_with_underscores_are_dropped():
    found = parse_head(head("Content_Length: 5", "X_Forwarded_For: 1.2.3.4", "X-A: 1"))
    assert found.length == 0 and set(found.headers) == {"HTTP_HOST", "HTTP_X_A"}


def test_head_limits():
    assert refused(head(*[f"X-{n}: a" for n in range(limits.HEADER_COUNT)])) == "431"
    with pytest.raises(BadRequest) as caught:
        head_end(b"GET /" + b"a" * limits.HEAD_BYTES)
    assert caught.value.status.startswith("414")
    with pytest.raises(BadRequest) as caught:
        head_end(b"GET / HTTP/1.1\r\nX: " + b"a" * limits.HEAD_BYTES)
    assert caught.value.status.startswith("431")


def test_head_end_finds_the_blank_line_across_pieces():
    data = head("A: b")
    for cut in range(len(data)):
        assert head_end(data[:cut]) == -1
        assert head_end(data, cut) == len(data)
    with pytest.raises(BadRequest):
        head_end(b"GET / HTTP/1.1\n")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_a_clean_refusal(junk):
    try:
        found = parse_head(junk + b"\r\n\r\n")
    except BadRequest as error:
        assert error.status[:3].isdigit() and error.sentence
    else:
        assert found.method.isupper() and found.target.startswith((b"/", b"*"))


_NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda s: "X-" + s)
_VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@given(st.dictionaries(_NAMES, _VALUES, max_size=20))
def test_what_is_sent_is_what_is_seen(pairs):
    found = parse_head(head(*(f"{name}: {value}" for name, value in pairs.items())))
    expected = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in pairs.items()}
    assert {key: value for key, value in found.headers.items() if key != "HTTP_HOST"} == expected


@pytest.mark.parametrize("line", [b"", b"0x3", b"-1", b"+3", b" 3", b"3 ", b"1_0", b"g", b"1" * 16, b";a"])
def test_bad_chunk_sizes(line):
    with pytest.raises(BadRequest):
        chunk_size(line)


def test_chunk_sizes():
    assert chunk_size(b"aF") == 0xAF
    assert chunk_size(b'10;name="x"') == 16
    assert chunk_size(b"10 ; a") == 16
