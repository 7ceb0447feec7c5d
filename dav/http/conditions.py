"""Conditional requests (RFC 9110 section 13) on one resource, pure."""

import re
from collections.abc import Mapping

from dav.http.dates import parse_http_date

_ETAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|\Z)')


def etags(header: str) -> list[tuple[bool, str]]:
    """``[(weak, opaque), …]``.  Unquoted single values are taken too: some clients forget the quotes."""
    found: list[tuple[bool, str]] = []
    position = 0
    while position < len(header):
        match = _ETAG.match(header, position)
        if match is None:
            bare = header.strip()
            return [(False, bare)] if re.fullmatch(r"[0-9A-Za-z.:_-]+", bare) else found
        found.append((match[1] is not None, match[2]))
        position = match.end()
    return found


def strong_match(header: str, etag: str | None) -> bool:
    """If-Match: does the resource exist (``*``) or carry one of the strong etags?  ``etag`` None: not there."""
    if etag is None:
        return False
    if header.strip() == "*":
        return True
    return any(not weak and opaque == etag for weak, opaque in etags(header))


def weak_match(header: str, etag: str | None) -> bool:
    """If-None-Match compares weakly."""
    if etag is None:
        return False
    if header.strip() == "*":
        return True
    return any(opaque == etag for _, opaque in etags(header))


def evaluate(headers: Mapping[str, str], etag: str | None, mtime: int | None, *, reading: bool) -> int | None:
    """304 or 412 when the preconditions end the request, else None, in the order of section 13.2.2.

    ``headers`` are WSGI keys; ``mtime`` in whole seconds; ``reading`` is for GET and HEAD.
    """
    match = headers.get("HTTP_IF_MATCH")
    if match is not None:
        if not strong_match(match, etag):
            return 412
    else:
        since = headers.get("HTTP_IF_UNMODIFIED_SINCE")
        limit = parse_http_date(since) if since is not None else None
        if limit is not None and (mtime is None or mtime > limit):
            return 412
    none_match = headers.get("HTTP_IF_NONE_MATCH")
    if none_match is not None:
        if weak_match(none_match, etag):
            return 304 if reading else 412
    elif reading:
        since = headers.get("HTTP_IF_MODIFIED_SINCE")
        limit = parse_http_date(since) if since is not None else None
        if limit is not None and mtime is not None and mtime <= limit:
            return 304
    return None


def range_applies(if_range: str | None, etag: str, mtime: int) -> bool:
    """If-Range: whether the client's part belongs to what is here now; strong comparison only."""
    if if_range is None:
        return True
    if '"' in if_range:
        return strong_match(if_range, etag)
    date = parse_http_date(if_range)
    return date == mtime if date is not None else if_range.strip() == etag
