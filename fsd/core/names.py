"""Names are bytes; this is the one place where they meet text.

A path inside a space is relative, without a leading or trailing slash; the root is `b""`.
"""

from __future__ import annotations

from urllib.parse import quote_from_bytes, unquote_to_bytes

from fsd.core.errors import NameRefused

NAME_MAX = 255
"""Longest name in bytes that Linux filesystems take (limits.h NAME_MAX)."""

INTERNAL = b".fsd"
SNAPSHOTS = b".snap"
"""Of a CephFS: in each directory, never listed; what is below it was, and a directory made in it is a snapshot."""
"""The directory in a space's root in which the service keeps what is its own."""
_URL_SAFE = "/!$'()*,;:@&=~-._"


def check_new_name(name: bytes) -> None:
    """Refuse a name that may not be *created* over HTTP or the command line; existing ones are never refused.

    Raises NameRefused with the reason. Control characters include DEL and the C1 range (as UTF-8).
    """
    if name in (b"", b".", b".."):
        raise NameRefused("A name must not be empty, '.' or '..'.")
    if len(name) > NAME_MAX:
        raise NameRefused(f"The name is {len(name)} bytes long; at most {NAME_MAX} are possible.")
    if b"/" in name or b"\0" in name:
        raise NameRefused("A name must not contain '/' or NUL.")
    if name == INTERNAL:
        raise NameRefused("The name '.fsd' belongs to the service.")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise NameRefused("A new name must be valid UTF-8.") from None
    if not text.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        raise NameRefused("A new name must not contain control characters.")


def to_text(name: bytes) -> str:
    """The name for people and XML: undecodable bytes and characters XML can't carry become U+FFFD."""
    text = name.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(c if _xml_char(c) else "\ufffd" for c in text)


def _xml_char(c: str) -> bool:
    # XML 1.0, production [2] Char; tab, newline and return are legal there.
    code = ord(c)
    return code in (9, 10, 13) or 32 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


def quote_path(path: bytes) -> str:
    """Percent-encode the raw bytes for a URL path (RFC 3986). '+' is encoded: some clients read it as a space."""
    return quote_from_bytes(path, safe=_URL_SAFE)


def unquote_path(text: str) -> bytes:
    """The bytes behind a percent-encoded URL path; the text must be ASCII or is taken as UTF-8, with surrogates for
    what was none."""
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


def split(path: bytes) -> tuple[bytes, bytes]:
    """Parent path and last name; the root has neither and gives `(b"", b"")`."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def join(parent: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory `parent`."""
    return parent + b"/" + name if parent else name
