"""Passwords: argon2id by a library, with RFC 9106's choice for little memory (64 MiB, three passes, four lanes)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fsd.core.errors import NameRefused

if TYPE_CHECKING:
    from argon2 import PasswordHasher

_LONGEST = 4096
_UNKNOWN = "$argon2id$v=19$m=65536,t=3,p=4$sZBw+dTeK0QKyQeOYNVi0g$MfN6FWxX48DzGiFlJNtcUp1dMno0BAeFjytfQXPjNjg"
"""Hashed against when there is no such user, so that the time tells nothing."""
_HASHING = threading.Semaphore(2)
"""Each hash takes 64 MiB; a burst of logins must not take all of the host's memory."""
_cached: PasswordHasher | None = None


def encode(password: str) -> str:
    """The encoded hash. Raises NameRefused for an empty or absurdly long password."""
    if not password or len(password) > _LONGEST:
        raise NameRefused(f"A password has 1 to {_LONGEST} characters.")
    with _HASHING:
        return _hasher().hash(password.encode("utf-8", "surrogateescape"))


def matches(stored: str, password: str) -> bool:
    """Whether the password is the one behind the encoded hash; an empty one matches nothing, in the same time."""
    from argon2.exceptions import InvalidHashError, VerificationError

    if len(password) > _LONGEST:
        return False
    try:
        with _HASHING:
            right = _hasher().verify(stored or _UNKNOWN, password.encode("utf-8", "surrogateescape"))
    except (VerificationError, InvalidHashError):
        return False
    return right and bool(stored)


def is_dated(stored: str) -> bool:
    """Whether the hash was made with other parameters than those of today."""
    return _hasher().check_needs_rehash(stored)


def _hasher() -> PasswordHasher:
    global _cached
    if _cached is None:
        # Imported here: most commands never hash, and the library costs a tenth of their start.
        from argon2 import PasswordHasher
        from argon2.profiles import RFC_9106_LOW_MEMORY

        _cached = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
    return _cached
