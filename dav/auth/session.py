"""A cookie in place of the browser's own dialog, for people who look at the pages (RFC 6265).

It says who logged in and is signed with a key that follows from the service's; nothing is stored, and each worker and
host of the installation can tell. It counts for GET and HEAD alone, which change nothing, so no page of somebody else
can do anything with it. It ends after half a day, and like all credentials with a new password or a locked account.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any

from itsdangerous import BadSignature, URLSafeTimedSerializer

from dav.view import View
from fsd.core.accounts import User

LONGEST_S = 12 * 3600
_LONGEST_COOKIE = 4096


class Sessions:
    """Makes and reads the cookie.  Thread-safe."""

    def __init__(self, service_key: Callable[[], bytes]) -> None:
        self._service_key = service_key

    def begin(self, environ: dict[str, Any], user: User) -> tuple[str, str]:
        """The header that logs a browser in as `user`."""
        value = self._serializer().dumps([user.name, user.id, user.epoch])
        return _header(environ, f"{value}; Max-Age={LONGEST_S}")

    @staticmethod
    def end(environ: dict[str, Any]) -> tuple[str, str]:
        """The header by which a browser forgets it."""
        return _header(environ, "; Max-Age=0")

    @staticmethod
    def claimed(environ: dict[str, Any]) -> bool:
        """Whether a request brings such a cookie, and nothing that counts more."""
        reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        return reads and "HTTP_AUTHORIZATION" not in environ and _value(environ) is not None

    def user(self, environ: dict[str, Any], view: View) -> User | None:
        """Whose it is; None if it is not, or not any more."""
        try:
            name, ident, epoch = self._serializer().loads(_value(environ) or "", max_age=LONGEST_S)
        except (BadSignature, ValueError, TypeError):
            return None
        user = view.user(name)
        current = user is not None and not user.disabled and (user.id, user.epoch) == (ident, epoch)
        return user if current else None

    def _serializer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            self._service_key(), salt=b"session of the pages", signer_kwargs={"digest_method": hashlib.sha256}
        )


def _name(environ: dict[str, Any]) -> str:
    # With this prefix browsers take it from this host alone, and over TLS (RFC 6265bis section 4.1.3).
    return "__Host-fsd-session" if environ.get("wsgi.url_scheme") == "https" else "fsd-session"


def _header(environ: dict[str, Any], value: str) -> tuple[str, str]:
    secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
    return "Set-Cookie", f"{_name(environ)}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"


def _value(environ: dict[str, Any]) -> str | None:
    header: str = environ.get("HTTP_COOKIE", "")
    if not header or len(header) > _LONGEST_COOKIE:
        return None
    try:
        found = SimpleCookie(header).get(_name(environ))
    except CookieError:
        return None
    return found.value if found is not None else None
