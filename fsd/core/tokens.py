"""App tokens: passwords of their own for programs, each revocable alone. They stand for their user, no more, no less.

A token is 256 random bits, so its SHA-256 is all that is kept: it can't be guessed back from it, and to verify one
costs no slow hash. It outlives a change of the user's password, and ends with the account, with `revoke`, or at its
expiry. A revocation reaches all processes with the user's next request.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import time
from typing import NamedTuple

from fsd.core.accounts import Accounts, User, fold
from fsd.core.errors import NameRefused
from fsd.core.installation import next_epoch

PREFIX = "fsd_"
"""What every token begins with, so that nothing else is looked up as one, and leaks can be searched for."""
_NAME_LENGTH = 100
_USED_EVERY_S = 3600


class Token(NamedTuple):
    """What is kept of a token; times in seconds since the epoch, `used` 0 if it never was (told once an hour)."""

    id: str
    user_id: str
    name: str
    created: int
    expires: int | None
    used: int


_COLUMNS = "id, user_id, name, created, expires, used"


class Tokens:
    """The tokens of an installation. Thread-safe."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._installation = accounts.installation

    def create(self, user: str, name: str, expires: int | None = None) -> tuple[Token, str]:
        """A new token of a user and its text, which is not kept: (token, text). Durable when this returns.

        Raises FileNotFoundError without the user, FileExistsError if they have one of that name, NameRefused.
        """
        if not name.strip() or len(name) > _NAME_LENGTH or not name.isprintable():
            raise NameRefused(f"The name of a token has 1 to {_NAME_LENGTH} printable characters.")
        if expires is not None and expires <= time.time():
            raise NameRefused("A token can't expire in the past.")
        owner = self._accounts.get(user)
        text = PREFIX + secrets.token_urlsafe(32)
        token = Token(secrets.token_hex(8), owner.id, name, int(time.time()), expires, 0)
        with self._installation.write() as db:
            if db.execute("SELECT 1 FROM tokens WHERE user_id=? AND name=?", (owner.id, name)).fetchone():
                raise FileExistsError(errno.EEXIST, f"'{owner.name}' has a token '{name}' already.")
            db.execute(
                f"INSERT INTO tokens ({_COLUMNS}, digest) VALUES (?,?,?,?,?,?,?)", (*token, _digest(text))
            )
        return token, text

    def of(self, user: User) -> list[Token]:
        """The tokens of a user, oldest first, expired ones included."""
        query = f"SELECT {_COLUMNS} FROM tokens WHERE user_id=? ORDER BY created, name"
        with self._installation.db.read() as db:
            return [Token(*row) for row in db.execute(query, (user.id,))]

    def revoke(self, user: str, which: str) -> Token:
        """Delete the token with this id or name. FileNotFoundError if the user has none."""
        owner = self._accounts.get(user)
        with self._installation.write() as db:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM tokens WHERE user_id=? AND ? IN (id, name)", (owner.id, which)
            ).fetchone()
            if row is None:
                raise FileNotFoundError(errno.ENOENT, f"'{owner.name}' has no token '{which}'.")
            db.execute("DELETE FROM tokens WHERE id=?", (row[0],))
            # What processes remember of verified credentials counts for one epoch of the user.
            db.execute("UPDATE users SET epoch=? WHERE id=?", (next_epoch(db), owner.id))
        return Token(*row)

    def verify(self, text: str, name: str | None = None) -> tuple[User, Token] | None:
        """Whose token this is; None if it is none, has expired, is another's than `name`'s, or its user is disabled."""
        if not text.startswith(PREFIX):
            return None
        with self._installation.db.read() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM tokens WHERE digest=?", (_digest(text),)).fetchone()
        if row is None:
            return None
        token, now = Token(*row), time.time()
        user = self._accounts.by_id(token.user_id)
        if user is None or user.disabled or (name is not None and fold(name) != fold(user.name)):
            return None
        if token.expires is not None and token.expires <= now:
            return None
        if now - token.used > _USED_EVERY_S:
            self._note_use(token, int(now))
        return user, token

    def _note_use(self, token: Token, now: int) -> None:
        try:
            with self._installation.db.write() as db:
                db.execute("UPDATE tokens SET used=? WHERE id=?", (now, token.id))
        except OSError:
            return  # a full state disk keeps nobody out


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
