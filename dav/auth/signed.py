"""Signed URLs, as ownCloud's and OpenCloud's web clients make them for downloads: a key from the server, and a URL that
carries who, since when, how long, and PBKDF2 of itself with that key.

The key follows from the service's key and the user's epoch: nothing is stored, and a new password ends all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlencode

from dav.auth.basic import network
from dav.auth.throttle import Throttle
from dav.http.errors import HttpError
from dav.http.target import request_path
from dav.view import View
from fsd.core.accounts import User
from fsd.service import logs

ITERATIONS = 10_000
LONGEST_S = 7 * 86_400
_MARK = "OC-Signature="
_SKEW_S = 300.0


class SignedUrls:
    """Says who signed a URL.  Thread-safe."""

    def __init__(self, service_key: Callable[[], bytes], throttle: Throttle) -> None:
        self._service_key = service_key
        self._throttle = throttle

    def key(self, user: User) -> str:
        """What the user's client signs with."""
        text = f"signed urls\0{user.id}\0{user.epoch}".encode()
        return hmac.new(self._service_key(), text, hashlib.sha256).hexdigest()

    def sign(self, user: User, url: str, span_s: int) -> str:
        """A URL by which a GET of `url` (without a query) needs no other credentials for `span_s` seconds. It gives
        what the user may see at that time, and ends with a new password."""
        query = {
            "OC-Credential": user.name,
            "OC-Date": datetime.fromtimestamp(int(time.time()), UTC).isoformat().replace("+00:00", "Z"),
            "OC-Expires": str(span_s),
            "OC-Verb": "GET",
        }
        asked = f"{url}?{urlencode(query)}"
        return f"{asked}&OC-Algo=PBKDF2%2F{ITERATIONS}-SHA512&OC-Signature={signature(asked, self.key(user).encode())}"

    def claimed(self, environ: dict[str, Any]) -> bool:
        """Whether a request relies on its signature."""
        return _MARK in environ.get("QUERY_STRING", "") and "HTTP_AUTHORIZATION" not in environ

    def user(self, environ: dict[str, Any], view: View) -> User:
        """Who signed it. 401 for anything that does not hold, 429 after too many of those."""
        address = str(environ.get("REMOTE_ADDR", ""))
        slowed = f"address {network(address)}"
        seconds = self._throttle.wait(slowed)
        if seconds:
            raise HttpError(
                429, "Too many failed logins; try again later.", headers=(("Retry-After", str(seconds)),)
            )
        query = {key: values[-1] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
        user = view.user(query.get("OC-Credential", ""))
        method = "GET" if environ["REQUEST_METHOD"] == "HEAD" else environ["REQUEST_METHOD"]
        holds = query.get("OC-Verb", "").upper() == method == "GET" and _is_current(query)
        if not holds or user is None or user.disabled or not self._fits(environ, query, user):
            self._throttle.failed(slowed)
            logs.audit(query.get("OC-Credential", ""), "signed url", request_path(environ["REQUEST_URI"]),
                       outcome="refused", address=address)  # fmt: skip
            raise HttpError(401, "This address was not signed by its user, or not for now.")
        return user

    def _fits(self, environ: dict[str, Any], query: dict[str, str], user: User) -> bool:
        key = self.key(user).encode()
        given = query.get("OC-Signature", "").lower().encode("utf-8", "replace")
        return any(hmac.compare_digest(signature(url, key).encode(), given) for url in _spellings(environ))


def signature(url: str, key: bytes) -> str:
    """What belongs to a URL that was not signed yet."""
    return hashlib.pbkdf2_hmac("sha512", url.encode("utf-8", "surrogateescape"), key, ITERATIONS, 32).hex()


def _is_current(query: dict[str, str]) -> bool:
    try:
        since = datetime.fromisoformat(query.get("OC-Date", "")).timestamp()
        span = int(query.get("OC-Expires", ""))
    except (ValueError, OverflowError):
        return False
    return 0 < span <= LONGEST_S and since - _SKEW_S <= time.time() < since + span


def _spellings(environ: dict[str, Any]) -> list[str]:
    """The URLs that may have been signed: a proxy may have changed the scheme, and encoded a `$`."""
    path = request_path(environ["REQUEST_URI"])
    kept = [
        part
        for part in environ["QUERY_STRING"].split("&")
        if not part.startswith(("OC-Algo=", "OC-Signature="))
    ]
    host = environ.get("fsd.forwarded_host") or environ.get("HTTP_HOST") or environ["SERVER_NAME"]
    base = environ.get("fsd.public_url", "").rstrip("/") or f"{environ['wsgi.url_scheme']}://{host}"
    url = f"{base}{path}?{'&'.join(kept)}"
    return list(dict.fromkeys((url, url.replace("%24", "$", 1), url.replace("$", "%24", 1))))
