"""The If header of RFC 4918."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.http.ifheader import Condition, IfSyntax, evaluate, parse

LOCK = "urn:uuid:1"


def holds(text: str, etag: str | None = "e", tokens: frozenset[str] = frozenset({LOCK})) -> bool:
    return evaluate(parse(text), lambda url: (etag, tokens) if url in (None, "/a") else None)


def test_parse():
    found = parse('<http://h/a> (<urn:uuid:1> ["e"]) (Not <DAV:no-lock>) <http://h/b> ([W/"x"])')
    assert found.lists == [
        ("http://h/a", [Condition(False, state="urn:uuid:1"), Condition(False, etag="e")]),
        ("http://h/a", [Condition(True, state="DAV:no-lock")]),
        ("http://h/b", [Condition(False, etag='W/"x"')]),
    ]
    assert found.tokens == {"urn:uuid:1"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "()",
        "(Not)",
        "(<a>",
        "<a>",
        "<a> <b> (<c>)",
        "(<a>) <b> (<c>)",
        "junk",
        "(<a>) x",
        "(Not Not <a>)",
        "([" + " " * 60_000 + "x",
        "(" + " " * 60_000,
        "([" + "a" * 60_000 + '"',
        "(" + "<" * 60_000,
        "(Not" + " " * 60_000 + "Not",
        '(["' + "a" * 60_000,
        "([W/" + " " * 60_000,
    ],
)
def test_malformed(text):
    with pytest.raises(IfSyntax):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"(<{LOCK}>)", True),
        ("(<urn:uuid:2>)", False),
        ("(Not <urn:uuid:2>)", True),
        (f'(<{LOCK}> ["e"])', True),
        (f'(<{LOCK}> ["f"])', False),
        (f'(<{LOCK}> ["f"]) (["e"])', True),
        ("(<DAV:no-lock>)", False),
        ("(Not <DAV:no-lock>)", True),
        (f'(<{LOCK}> [W/"e"])', False),
        (f"</a> (<{LOCK}>)", True),
        (f"</b> (<{LOCK}>)", False),
        ("</b> (Not <x>)", True),
        ("([e])", True),
    ],
)
def test_evaluate(text, expected):
    assert holds(text) is expected


def test_an_etag_never_matches_what_is_not_there():
    assert not holds('(["e"])', etag=None)
    assert holds('(Not ["e"])', etag=None)


@given(st.text(alphabet='()<>[]"Not aW/:,', max_size=60))
def test_any_text_is_parsed_or_refused(text):
    try:
        assert parse(text).lists
    except IfSyntax:
        pass
