"""From URLs to path segments, pure: split first, unquote once, refuse what could mean two things."""

import re
from urllib.parse import unquote_to_bytes

from dav.http.errors import HttpError

_ENCODED_SLASH = re.compile(r"%2f", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?(?:\?[^#]*)?(?:#.*)?\Z", re.S)
_HOST = re.compile(r"(?:[^@]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:@\s]+)(?::[0-9]{0,5})?")
_PORTS = {"http": "80", "https": "443"}


def segments(path: str) -> list[bytes]:
    """The names in a URL path (latin-1 text as in WSGI), decoded.  400 for ``..``, NUL and encoded slashes.

    Empty segments and a trailing slash are dropped.
    """
    if _ENCODED_SLASH.search(path):
        raise HttpError(400, "A name must not contain an encoded slash.")
    if _BAD_ESCAPE.search(path):
        raise HttpError(400, "The path contains a malformed percent escape.")
    found = [unquote_to_bytes(part.encode("latin-1")) for part in path.split("/") if part]
    for name in found:
        if name in (b".", b"..") or b"\0" in name:
            raise HttpError(400, "The path contains a name that is not allowed.")
    return found


def request_path(uri: str) -> str:
    """The path part of a request target, as spelled."""
    return uri.partition("?")[0]


def same_host(netloc: str, scheme: str, hosts: list[str]) -> bool:
    """Whether ``netloc`` is one of ``hosts``; case and the scheme's default port do not matter."""
    wanted = _canonical_host(netloc, scheme)
    return any(wanted == _canonical_host(host, scheme) for host in hosts if host)


def _canonical_host(netloc: str, scheme: str) -> str:
    host = netloc.lower().rpartition("@")[2]
    return host.removesuffix(f":{_PORTS.get(scheme, '')}")


def destination_path(header: str, hosts: list[str]) -> str:
    """The path of a Destination or tagged If URL, still encoded.  It may be a URL or an absolute path.

    Parsed before anything is unquoted: ``%3F`` and ``%3B`` belong to names.  400 if malformed, 502 for
    another host.
    """
    header = header.strip()
    if header.startswith("/"):
        if header.startswith("//"):
            raise HttpError(400, "The Destination must be a URL or an absolute path.")
        # Clients that send a bare path encode '?' and '#'; unencoded ones start a query or fragment.
        return re.split(r"[?#]", header, maxsplit=1)[0]
    match = _URL.match(header)
    if match is None or match[1].lower() not in _PORTS or not _HOST.fullmatch(match[2]):
        raise HttpError(400, "The Destination must be a URL or an absolute path.")
    if not same_host(match[2], match[1].lower(), hosts):
        raise HttpError(502, "The Destination lies on another server.")
    return match[3] or "/"
