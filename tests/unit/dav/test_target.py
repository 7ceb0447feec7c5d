"""URL paths and Destination headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.http.errors import HttpError
from dav.http.target import destination_path, segments
from fsd.core.names import quote_path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/", []),
        ("/a/b%20c/", [b"a", b"b c"]),
        ("//a///b", [b"a", b"b"]),
        ("/%3F%3B%23%25", [b"?;#%"]),
        ("/a;b", [b"a;b"]),
        ("/a%24b!c$d", [b"a$b!c$d"]),
        ("/%ff\xe4", [b"\xff\xe4"]),
        ("/a+b", [b"a+b"]),
        ("/%252e", [b"%2e"]),
    ],
)
def test_segments(path, names):
    assert segments(path) == names


@pytest.mark.parametrize("path", ["/a%2Fb", "/a%2fb", "/../x", "/%2e%2e/x", "/.", "/a%00", "/a%", "/a%zz"])
def test_refused_paths(path):
    with pytest.raises(HttpError) as caught:
        segments(path)
    assert caught.value.status == 400


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: b"/" not in b and b"\0" not in b)))
def test_quoted_names_come_back(names):
    names = [name for name in names if name not in (b".", b"..")]
    assert segments("/" + "/".join(quote_path(name) for name in names)) == names


@pytest.mark.parametrize(
    ("header", "path"),
    [
        ("/a/q%3Fmark.txt", "/a/q%3Fmark.txt"),
        ("http://Host:80/a%3Bb", "/a%3Bb"),
        ("http://HOST/a;b", "/a;b"),
        ("https://host:443/x#frag", "/x"),
        ("http://host", "/"),
        ("http://host/a?query", "/a"),
    ],
)
def test_destinations(header, path):
    assert destination_path(header, ["host"]) == path


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("http://elsewhere/a", 502),
        ("http://user@elsewhere:8080/a", 502),
        ("http://[::1]:80/a", 502),
        ("http://[::1/a", 400),
        ("http://host:port/a", 400),
        ("http:///a", 400),
        ("http://ho st/a", 400),
        ("http://host:81/a", 502),
        ("http://host.evil/a", 502),
        ("ftp://host/a", 400),
        ("a/b", 400),
        ("//host/a", 400),
        ("http:/a", 400),
    ],
)
def test_refused_destinations(header, status):
    with pytest.raises(HttpError) as caught:
        destination_path(header, ["host", ""])
    assert caught.value.status == status
