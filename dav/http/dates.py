"""HTTP dates (RFC 9110 section 5.6.7) and the other forms in which clients send times."""

import calendar
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_tz
from functools import lru_cache

NANO = 1_000_000_000


@lru_cache(maxsize=4096)
def http_date(seconds: int) -> str:
    """IMF-fixdate.  Years outside 1 … 9999 are clamped, since a file may carry any time."""
    return formatdate(min(max(seconds, -62135596800), 253402300799), usegmt=True)


@lru_cache(maxsize=1024)
def iso_date(seconds: int) -> str:
    """``2026-11-21T01:54:48Z``, the form of creationdate."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00Z"


def parse_http_date(text: str) -> int | None:
    """Epoch seconds of an HTTP date in any of its three forms; None if it is none."""
    if len(text) > 64:
        return None
    try:
        parsed = parsedate_tz(text)
        if parsed is None:
            return None
        return calendar.timegm((*parsed[:6], 0, 1, 0)) - (parsed[9] or 0)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def parse_mtime(text: str) -> int | None:
    """Nanoseconds from epoch seconds (maybe negative or fractional) or an HTTP or ISO date; None if neither."""
    text = text.strip()
    sign, digits = (-1, text[1:]) if text[:1] == "-" else (1, text)
    whole, dot, fraction = digits.partition(".")
    if whole.isascii() and whole.isdigit() and len(whole) <= 12 and (not dot or fraction.isdigit()):
        nanos = int((fraction + "000000000")[:9]) if dot else 0
        return sign * (int(whole) * NANO + nanos)
    seconds = parse_http_date(text)
    if seconds is not None:
        return seconds * NANO
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * NANO
