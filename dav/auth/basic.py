"""HTTP Basic (RFC 7617) with a password or an app token, and app tokens as bearers (RFC 6750)."""

import base64
import binascii
import ipaddress
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dav.auth.cache import CredentialCache
from dav.auth.throttle import Throttle
from dav.http.errors import RETRY_SECONDS, HttpError
from dav.view import View
from fsd.core.accounts import Accounts, User, fold
from fsd.core.tokens import Tokens
from fsd.service import logs

_HASHING = 2
_WAITING = 16
_WAIT_SECONDS = 5.0
_SHARED_SECONDS = 20.0
"""Who waits for a hash that is under way for the same credentials costs nothing, and is answered by it."""
MAX_HEADER = 8192


class BasicAuth:
    """Says who asks, or refuses with 401, 429 or 503.  Thread-safe."""

    def __init__(self, accounts: Accounts, cache: CredentialCache, throttle: Throttle, realm: str) -> None:
        self._accounts = accounts
        self._tokens = Tokens(accounts)
        self._cache = cache
        self._throttle = self.throttle = throttle
        realm = "".join(c for c in realm if c.isascii() and c.isprintable() and c not in '"\\')
        self._challenge = (("WWW-Authenticate", f'Basic realm="{realm}", charset="UTF-8"'),)
        self._hashing = threading.Semaphore(_HASHING)
        self._flights: dict[str, tuple[threading.Lock, int]] = {}
        self._guard = threading.Lock()
        self._waiting = threading.Semaphore(_WAITING)

    def __call__(self, environ: dict[str, Any], view: View) -> User:
        """The user of the request's credentials."""
        header: str = environ.get("HTTP_AUTHORIZATION", "")
        if not header:
            raise self._unauthorized("Log in, please.")
        if len(header) > MAX_HEADER:
            raise HttpError(400, "The Authorization header is too long.")
        user = self._known(header, view)
        if user is not None:
            return user
        scheme, _, value = header.partition(" ")
        address = str(environ.get("REMOTE_ADDR", ""))
        if scheme.lower() == "bearer":
            return self._bearer(header, value.strip(), address)
        name, password = self._credentials(scheme, value)
        user = self._by_token(header, password, name)
        if user is not None:
            return user
        may_block = environ.get("fsd.may_block")
        if may_block is not None:
            may_block()  # a password's hash takes a tenth of a second
        with self._alone(header):
            # Others with the same credentials may just have had them verified.
            user = self._known(header, view)
            if user is not None:
                return user
            return self._verify(header, name, password, address)

    def _known(self, header: str, view: View) -> User | None:
        """The user of credentials verified before; 401 for those that were wrong; None if nothing is known."""
        cached = self._cache.get(header)
        if cached is None:
            return None
        user = view.user(cached.name)
        if user is None or user.disabled:
            user = None
        if cached.epoch != (user.epoch if user is not None else None):
            return None
        if cached.user_id is None:
            raise self._unauthorized("The user name or password is wrong.")
        return user if user is not None and user.id == cached.user_id else None

    @contextmanager
    def _alone(self, header: str) -> Iterator[None]:
        """One at a time for the same credentials: a client's first burst must not hash once a connection."""
        with self._guard:
            lock, users = self._flights.get(header, (threading.Lock(), 0))
            self._flights[header] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=_SHARED_SECONDS):
                raise self._busy()
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._flights.pop(header)
                if users > 1:
                    self._flights[header] = (lock, users - 1)

    def _unauthorized(self, sentence: str) -> HttpError:
        return HttpError(401, sentence, headers=self._challenge)

    def _by_token(self, header: str, text: str, name: str | None) -> User | None:
        """The user of an app token; costs one look into the registry's database, and no slow hash."""
        found = self._tokens.verify(text, name)
        if found is None:
            return None
        user, token = found
        left = None if token.expires is None else token.expires - time.time()
        self._cache.put(header, user.name, user.id, user.epoch, left)
        return user

    def _bearer(self, header: str, text: str, address: str) -> User:
        """The user of a bearer token. What can't be guessed is not slowed by account, only by address."""
        key = f"address {network(address)}"
        self._refuse_if_slowed((key,))
        user = self._by_token(header, text, None)
        if user is None:
            self._throttle.failed(key)
            logs.audit("", "login", "", outcome="refused", address=address)
            raise self._unauthorized("The token is not valid (any more).")
        return user

    def _credentials(self, scheme: str, value: str) -> tuple[str, str]:
        if scheme.lower() != "basic":
            raise self._unauthorized("Only Basic and Bearer authentication are understood.")
        name, password = credentials(value) or ("", "")
        if not name or "\0" in name + password or len(name) > 256:
            raise self._unauthorized("The credentials are malformed.")
        return name, password

    def _verify(self, header: str, name: str, password: str, address: str) -> User:
        keys = (f"account {fold(name)}", f"address {network(address)}")
        if not self._waiting.acquire(blocking=False):
            raise self._busy()
        try:
            self._refuse_if_slowed(keys)
            if not self._hashing.acquire(timeout=_WAIT_SECONDS):
                raise self._busy()
            try:
                # Again: a burst of guesses must not pass while the first of them are hashed.
                self._refuse_if_slowed(keys)
                epoch = self._accounts.epoch(name)
                user = self._accounts.verify(name, password)
                if user is None:
                    self._throttle.failed(*keys)
            finally:
                self._hashing.release()
        finally:
            self._waiting.release()
        if user is None:
            self._cache.put(header, name, None, epoch)
            logs.audit(name, "login", "", outcome="refused", address=address)
            raise self._unauthorized("The user name or password is wrong.")
        self._throttle.succeeded(keys[0])
        # The epoch from before the hashing: a password changed meanwhile makes this entry void.
        self._cache.put(header, name, user.id, epoch)
        return user

    def _refuse_if_slowed(self, keys: tuple[str, ...]) -> None:
        seconds = self._throttle.wait(*keys)
        if seconds:
            raise HttpError(
                429, "Too many failed logins; try again later.", headers=(("Retry-After", str(seconds)),)
            )

    @staticmethod
    def _busy() -> HttpError:
        retry = (("Retry-After", str(RETRY_SECONDS)),)
        return HttpError(503, "Too many people are logging in just now.", headers=retry)


def credentials(value: str) -> tuple[str, str] | None:
    """(user name, password) of what stands behind `Basic` (RFC 7617 section 2); None for what is none."""
    try:
        raw = base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # older browsers
    name, colon, password = text.partition(":")
    return (name, password) if colon else None


def network(address: str) -> str:
    """An IPv6 client owns a whole /64, so that is what counts as its address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
