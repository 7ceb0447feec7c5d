"""Users and groups. Names are path segments (a personal space is `users/<name>`), ids are what grants refer to.

Deleting a user never deletes bytes: the personal space is disabled and its directory stays. A new user of the same
name has another id, so nothing granted to the old one comes back.
"""

from __future__ import annotations

import errno
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from fsd.core import passwords
from fsd.core.errors import NameRefused
from fsd.core.installation import Installation, next_epoch
from fsd.core.names import check_new_name

UserRole = Literal["admin", "user", "guest"]
NAME_BYTES = 64
"""Names also stand in URLs, audit lines and, with suffixes, in file names; 64 bytes are plenty for that."""
_USER_MARKS = "._-@+"


@dataclass(frozen=True, slots=True)
class User:
    """What is known of a user when a request is answered; `epoch` changes when cached credentials must be forgotten."""

    id: str
    name: str
    display_name: str
    email: str
    role: UserRole
    groups: frozenset[str]
    group_ids: frozenset[str]
    disabled: bool
    epoch: int
    created: int


@dataclass(frozen=True, slots=True)
class Group:
    """A group and the names of its members."""

    id: str
    name: str
    members: tuple[str, ...]


def fold(name: str) -> str:
    """The form in which two names count as the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())


def check_account_name(name: str, what: str = "A user name") -> str:
    """The normalised name, or NameRefused: letters, digits and `._-@+`, no leading mark, at most 64 bytes."""
    name = unicodedata.normalize("NFC", name)
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise NameRefused(f"{what} must be valid text.") from None
    check_new_name(encoded)
    if len(encoded) > NAME_BYTES:
        raise NameRefused(f"{what} has at most {NAME_BYTES} bytes.")
    if not name[0].isalnum() or not all(c.isalnum() or c in _USER_MARKS for c in name):
        raise NameRefused(
            f"{what} has letters, digits and {_USER_MARKS!r}, and begins with a letter or digit."
        )
    return name


class Accounts:
    """Users and groups of an installation. Thread-safe; answers from memory until some process changes something."""

    def __init__(self, state_dir: Path, installation: Installation | None = None) -> None:
        self.installation = installation or Installation(state_dir)
        self._cache: tuple[int, dict[str, User]] = (-1, {})

    # ---- reading

    def users(self) -> list[User]:
        """All users, by name."""
        return sorted(self._by_fold().values(), key=lambda user: user.name)

    def find(self, name: str) -> User | None:
        """The user of that name (case does not matter), or None."""
        return self._by_fold().get(fold(name))

    def get(self, name: str) -> User:
        """The user of that name; FileNotFoundError when there is none."""
        user = self.find(name)
        if user is None:
            raise FileNotFoundError(errno.ENOENT, f"There is no user '{name}'.")
        return user

    def by_id(self, user_id: str) -> User | None:
        """The user with that id, or None."""
        return next((user for user in self._by_fold().values() if user.id == user_id), None)

    def epoch(self, name: str) -> int | None:
        """A number that changes with the password and whenever the user must log in anew; None: may not log in."""
        user = self.find(name)
        return None if user is None or user.disabled else user.epoch

    def _by_fold(self) -> dict[str, User]:
        generation = self.installation.generation()
        if self._cache[0] != generation:
            self._cache = (generation, self._load())
        return self._cache[1]

    def _load(self) -> dict[str, User]:
        with self.installation.db.read() as db:
            groups: dict[str, list[tuple[str, str]]] = {}
            for user_id, group_id, name in db.execute(
                "SELECT m.user_id, g.id, g.name FROM membership m JOIN groups g ON g.id = m.group_id"
            ):
                groups.setdefault(user_id, []).append((group_id, name))
            rows = db.execute(
                "SELECT id, name, folded, display_name, email, role, disabled, epoch, created FROM users"
            ).fetchall()
        return {
            row[2]: User(
                id=row[0],
                name=row[1],
                display_name=row[3],
                email=row[4],
                role=cast(UserRole, row[5]),
                groups=frozenset(name for _, name in groups.get(row[0], ())),
                group_ids=frozenset(ident for ident, _ in groups.get(row[0], ())),
                disabled=bool(row[6]),
                epoch=row[7],
                created=row[8],
            )
            for row in rows
        }

    def groups(self) -> list[Group]:
        """All groups with their members, by name."""
        with self.installation.db.read() as db:
            rows = db.execute(
                "SELECT g.id, g.name, u.name FROM groups g LEFT JOIN membership m ON m.group_id = g.id "
                "LEFT JOIN users u ON u.id = m.user_id ORDER BY g.name, u.name"
            ).fetchall()
        found: dict[str, tuple[str, list[str]]] = {}
        for ident, name, member in rows:
            found.setdefault(ident, (name, []))[1].extend([member] if member is not None else [])
        return [Group(ident, name, tuple(members)) for ident, (name, members) in found.items()]

    # ---- passwords

    def verify(self, name: str, password: str) -> User | None:
        """The user, if the password is right and the account enabled. Takes as long for names that don't exist.

        Hashes each time (tens of milliseconds): callers cache what was verified, keyed with `epoch`.
        """
        user = self.find(name)
        stored = self._password(user.id) if user is not None else ""
        if not passwords.matches(stored, password) or user is None or not stored or user.disabled:
            return None
        self._rehash(user, stored, password)
        return user

    def _password(self, user_id: str) -> str:
        with self.installation.db.read() as db:
            row = db.execute("SELECT password FROM users WHERE id = ?", (user_id,)).fetchone()
        return "" if row is None else str(row[0])

    def _rehash(self, user: User, stored: str, password: str) -> None:
        if not passwords.is_dated(stored):
            return
        encoded = passwords.encode(password)
        try:
            with self.installation.write() as db:
                db.execute(
                    "UPDATE users SET password = ? WHERE id = ? AND password = ?", (encoded, user.id, stored)
                )
        except OSError:
            return  # the old hash stays good; a full state disk must not keep anyone out

    # ---- changing

    def add(
        self,
        name: str,
        password: str | None,
        *,
        display_name: str = "",
        email: str = "",
        role: str = "user",
        groups: Collection[str] = (),
    ) -> User:
        """Make a user. Without a password nobody can log in as them. Raises NameRefused, FileExistsError.

        Groups that don't exist are made, all in one transaction. The personal space is the registry's work
        (`Registry.add_user`).
        """
        name = check_account_name(name)
        check_role(role)
        check_text(display_name, "A display name")
        check_text(email, "An e-mail address")
        encoded = "" if password is None else passwords.encode(password)
        with self.installation.write() as db:
            if db.execute("SELECT 1 FROM users WHERE folded = ?", (fold(name),)).fetchone():
                raise FileExistsError(errno.EEXIST, f"There is a user '{name}' already.")
            ident = secrets.token_hex(16)
            db.execute(
                "INSERT INTO users (id, name, folded, display_name, email, role, password, epoch, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    ident,
                    name,
                    fold(name),
                    display_name or name,
                    email,
                    role,
                    encoded,
                    next_epoch(db),
                    int(time.time()),
                ),
            )
            for group in groups:
                _join(db, _find_group(db, group) or _make_group(db, group), ident)
        return self.get(name)

    def set_password(self, name: str, password: str) -> None:
        """Change the password; sessions and cached logins of the user end."""
        encoded = passwords.encode(password)
        self._update(name, {"password": encoded}, new_epoch=True)

    def disable(self, name: str) -> None:
        """The user can't log in until enabled; running sessions end. The last enabled admin can't be disabled."""
        self._update(name, {"disabled": 1}, new_epoch=True)

    def enable(self, name: str) -> None:
        """The user can log in again."""
        self._update(name, {"disabled": 0}, new_epoch=True)

    def set(
        self, name: str, *, display_name: str | None = None, email: str | None = None, role: str | None = None
    ) -> User:
        """Change what is given, all of it or nothing; returns the user as it is then."""
        if role is not None:
            check_role(role)
        check_text(display_name or "", "A display name")
        check_text(email or "", "An e-mail address")
        given = {"display_name": display_name, "email": email, "role": role}
        self._update(name, {k: v for k, v in given.items() if v is not None}, new_epoch=role is not None)
        return self.get(name)

    def _update(self, name: str, values: Mapping[str, str | int], *, new_epoch: bool) -> None:
        user = self.get(name)
        with self.installation.write() as db:
            for column, value in values.items():
                db.execute(f"UPDATE users SET {column} = ? WHERE id = ?", (value, user.id))
            if new_epoch:
                db.execute("UPDATE users SET epoch = ? WHERE id = ?", (next_epoch(db), user.id))
            _keep_an_admin(db, user)

    def remove(self, name: str, *, last_admin: bool = False) -> User:
        """Forget the account; its files stay, its personal space becomes disabled in the same transaction.

        The last enabled admin only goes with `last_admin` (to undo a failed set-up).
        """
        user = self.get(name)
        with self.installation.write() as db:
            db.execute(
                "UPDATE spaces SET state = 'disabled' WHERE owner_id = ? AND state = 'active'", (user.id,)
            )
            db.execute("DELETE FROM membership WHERE user_id = ?", (user.id,))
            db.execute("DELETE FROM tokens WHERE user_id = ?", (user.id,))
            db.execute("DELETE FROM users WHERE id = ?", (user.id,))
            if not last_admin:
                _keep_an_admin(db, user)
        return user

    # ---- groups

    def add_group(self, name: str) -> None:
        """Make an empty group. Raises NameRefused, FileExistsError."""
        with self.installation.write() as db:
            if _find_group(db, check_account_name(name, "A group name")) is not None:
                raise FileExistsError(errno.EEXIST, f"There is a group '{name}' already.")
            _make_group(db, name)

    def remove_group(self, name: str) -> None:
        """Delete a group; what was granted to it ends."""
        with self.installation.write() as db:
            ident = _group_id(db, name)
            db.execute("DELETE FROM membership WHERE group_id = ?", (ident,))
            db.execute("DELETE FROM groups WHERE id = ?", (ident,))

    def join(self, group: str, *users: str) -> None:
        """Put users into a group, all or none; nothing happens for who is in it. FileNotFoundError."""
        members = [self.get(user).id for user in users]
        with self.installation.write() as db:
            ident = _group_id(db, group)
            for member in members:
                _join(db, ident, member)

    def leave(self, group: str, *users: str) -> None:
        """Take users out of a group, all or none; nothing happens for who isn't in it. FileNotFoundError."""
        members = [self.get(user).id for user in users]
        with self.installation.write() as db:
            ident = _group_id(db, group)
            for member in members:
                db.execute("DELETE FROM membership WHERE group_id = ? AND user_id = ?", (ident, member))


def check_text(text: str, what: str) -> str:
    """The text about a person as it is, or NameRefused: one line of at most 200 characters, without controls."""
    if len(text) > 200 or not all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text):
        raise NameRefused(f"{what} is one line of at most 200 printable characters.")
    return text


def check_role(role: str) -> None:
    """NameRefused unless it is a role of users."""
    if role not in get_args(UserRole):
        raise NameRefused(f"A user's role is one of {', '.join(get_args(UserRole))}, not '{role}'.")


def _find_group(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT id FROM groups WHERE folded = ?", (fold(name),)).fetchone()
    return None if row is None else str(row[0])


def _make_group(db: sqlite3.Connection, name: str) -> str:
    name, ident = check_account_name(name, "A group name"), secrets.token_hex(16)
    db.execute("INSERT INTO groups VALUES (?, ?, ?)", (ident, name, fold(name)))
    return ident


def _group_id(db: sqlite3.Connection, name: str) -> str:
    ident = _find_group(db, name)
    if ident is None:
        raise FileNotFoundError(errno.ENOENT, f"There is no group '{name}'.")
    return ident


def _join(db: sqlite3.Connection, group_id: str, user_id: str) -> None:
    db.execute("INSERT OR IGNORE INTO membership VALUES (?, ?)", (group_id, user_id))


def _keep_an_admin(db: sqlite3.Connection, user: User) -> None:
    if user.role != "admin" or user.disabled:
        return
    if db.execute("SELECT 1 FROM users WHERE role = 'admin' AND disabled = 0").fetchone() is None:
        raise NameRefused(f"'{user.name}' is the last administrator.")
