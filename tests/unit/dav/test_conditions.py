"""Conditional headers, dates and checksums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.http.conditions import etags, evaluate, range_applies
from dav.http.dates import NANO, http_date, parse_http_date, parse_mtime
from dav.http.digests import parse as parse_digest

NOON = 1_795_000_000


@pytest.mark.parametrize(
    ("headers", "etag", "reading", "status"),
    [
        ({"HTTP_IF_MATCH": '"a"'}, "a", False, None),
        ({"HTTP_IF_MATCH": '"b", "a"'}, "a", False, None),
        ({"HTTP_IF_MATCH": '"b"'}, "a", False, 412),
        ({"HTTP_IF_MATCH": 'W/"a"'}, "a", False, 412),
        ({"HTTP_IF_MATCH": "*"}, "a", False, None),
        ({"HTTP_IF_MATCH": "*"}, None, False, 412),
        ({"HTTP_IF_MATCH": '"a"'}, None, False, 412),
        ({"HTTP_IF_NONE_MATCH": "*"}, "a", False, 412),
        ({"HTTP_IF_NONE_MATCH": "*"}, None, False, None),
        ({"HTTP_IF_NONE_MATCH": 'W/"a"'}, "a", True, 304),
        ({"HTTP_IF_NONE_MATCH": '"b"'}, "a", True, None),
        ({"HTTP_IF_MODIFIED_SINCE": http_date(NOON)}, "a", True, 304),
        ({"HTTP_IF_MODIFIED_SINCE": http_date(NOON - 1)}, "a", True, None),
        ({"HTTP_IF_MODIFIED_SINCE": http_date(NOON)}, "a", False, None),
        ({"HTTP_IF_MODIFIED_SINCE": http_date(NOON), "HTTP_IF_NONE_MATCH": '"b"'}, "a", True, None),
        ({"HTTP_IF_UNMODIFIED_SINCE": http_date(NOON - 1)}, "a", False, 412),
        ({"HTTP_IF_UNMODIFIED_SINCE": http_date(NOON)}, "a", False, None),
        ({"HTTP_IF_UNMODIFIED_SINCE": "nonsense"}, "a", False, None),
        ({"HTTP_IF_UNMODIFIED_SINCE": http_date(0), "HTTP_IF_MATCH": '"a"'}, "a", False, None),
    ],
)
def test_evaluate(headers, etag, reading, status):
    assert evaluate(headers, etag, NOON if etag else None, reading=reading) == status


def test_etag_lists():
    assert etags('"a", W/"b" ,"c,d"') == [(False, "a"), (True, "b"), (False, "c,d")]
    assert etags("bare") == [(False, "bare")]
    assert etags('"open') == []


def test_if_range():
    assert range_applies(None, "a", NOON)
    assert range_applies('"a"', "a", NOON)
    assert not range_applies('W/"a"', "a", NOON)
    assert not range_applies('"b"', "a", NOON)
    assert range_applies(http_date(NOON), "a", NOON)
    assert not range_applies(http_date(NOON + 1), "a", NOON)


@given(st.integers(0, 253402300799))
def test_dates_there_and_back(seconds):
    assert parse_http_date(http_date(seconds)) == seconds


@pytest.mark.parametrize("text", ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"])
def test_old_date_forms(text):
    assert parse_http_date(text) == 784111777


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("1795000000", NOON * NANO),
        ("-5", -5 * NANO),
        ("1.25", NANO + NANO // 4),
        (http_date(NOON), NOON * NANO),
        ("2026-11-18T08:26:40Z", None),
        ("nonsense", None),
        ("", None),
        ("1e9", None),
        ("\u0663", None),
        ("9" * 30, None),
    ],
)
def test_mtimes(text, nanos):
    found = parse_mtime(text)
    assert found == nanos if nanos is not None or not text.startswith("20") else found is not None


@given(st.text(max_size=40))
def test_any_time_text_is_safe(text):
    assert parse_mtime(text) is None or isinstance(parse_mtime(text), int)


def test_digests():
    assert parse_digest("SHA1:" + "A" * 40) == ("SHA1", "a" * 40)
    assert parse_digest("adler32:0012abcd") == ("ADLER32", "0012abcd")
    assert parse_digest("SHA3-256:00") is None
    assert parse_digest("nonsense") is None
    with pytest.raises(ValueError):
        parse_digest("MD5:12")
