"""Byte ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.http import limits
from dav.http.ranges import parse


@pytest.mark.parametrize(
    ("header", "size", "found"),
    [
        ("bytes=0-4", 10, [(0, 5)]),
        ("bytes=5-", 10, [(5, 5)]),
        ("bytes=-3", 10, [(7, 3)]),
        ("bytes=-30", 10, [(0, 10)]),
        ("bytes=8-99", 10, [(8, 2)]),
        ("bytes=10-", 10, []),
        ("bytes=-0", 10, []),
        ("bytes=0-", 0, []),
        ("bytes=0-0, 9-9", 10, [(0, 1), (9, 1)]),
        ("bytes=9-9,0-0", 10, [(9, 1), (0, 1)]),
        ("bytes=0-5,3-8", 10, [(0, 9)]),
        ("bytes=0-4,5-9", 10, [(0, 10)]),
        ("bytes=0-1,20-30", 10, [(0, 2)]),
        ("BYTES = 0-1", 10, [(0, 2)]),
        ("items=0-1", 10, None),
        ("bytes=5-2", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=", 10, None),
        ("bytes=--1", 10, None),
        ("bytes 0-1", 10, None),
        ("bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(limits.RANGES + 1)), 1000, None),
    ],
)
def test_examples(header, size, found):
    assert parse(header, size) == found


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=10), st.integers(1, 50)
)
def test_ranges_cover_what_was_asked_once(pairs, size):
    asked = [(min(a, b), max(a, b)) for a, b in pairs]
    found = parse("bytes=" + ",".join(f"{a}-{b}" for a, b in asked), size)
    wanted = {n for a, b in asked for n in range(a, b + 1) if n < size}
    covered = [n for offset, count in found or [] for n in range(offset, offset + count)]
    assert len(covered) == len(set(covered)) and set(covered) == wanted


@given(st.text(max_size=60), st.integers(0, 100))
def test_any_header_is_safe(text, size):
    for offset, count in parse(text, size) or []:
        assert 0 <= offset < offset + count <= size
