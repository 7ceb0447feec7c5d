"""What an upload's headers ask of the file it becomes, whichever way its bytes come. Pure."""

from __future__ import annotations

from typing import Any

from dav.http import digests
from dav.http.conditions import etags
from dav.http.dates import parse_mtime
from dav.http.errors import HttpError

Environ = dict[str, Any]


def mtime(environ: Environ, text: str | None = None) -> int | None:
    """Nanoseconds since the epoch, of X-OC-Mtime or of `text` in its place; None where neither is. HttpError 400."""
    said = environ.get("HTTP_X_OC_MTIME") if text is None else text
    if said is None:
        return None
    found = parse_mtime(said)
    if found is None:
        raise HttpError(400, f"{'X-OC-Mtime' if text is None else 'The mtime'} is not a time.")
    return found


def checksum(environ: Environ, text: str = "") -> tuple[str, str] | None:
    """(algorithm, lower-case hex) of OC-Checksum or of `text` in its place; None for none that is understood.
    HttpError 400."""
    try:
        return digests.parse(text or environ.get("HTTP_OC_CHECKSUM", ""))
    except ValueError as error:
        raise HttpError(400, str(error)) from None


def if_match(environ: Environ) -> tuple[str, ...] | None:
    """The strong etags of If-Match (RFC 9110 section 13.1.1), or `("*",)`; None without it."""
    match = environ.get("HTTP_IF_MATCH")
    if match is None:
        return None
    return ("*",) if match.strip() == "*" else tuple(tag for weak, tag in etags(match) if not weak)


def must_not_exist(environ: Environ) -> bool:
    """Whether nothing may be there: `If-None-Match: *`."""
    none_match: str = environ.get("HTTP_IF_NONE_MATCH", "")
    return none_match.strip() == "*"
