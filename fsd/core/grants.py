"""Who may do what in a space: members with roles, and the quota, kept in the space's `.fsd/acl.json`.

The file travels with the tree, is bound to the space's id, numbered, and signed with the service's key; the copy in
the registry is what is in force. A file on disk that is missing, foreign or older is an alarm (`Grants.verify`) and
changes nothing; a newer one that we signed ourselves is a change whose registry commit a crash cut off, and is taken.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from fsd.core import links, ownfiles
from fsd.core.accounts import User
from fsd.core.errors import FsdError, NameRefused, StorageUnavailable
from fsd.core.installation import Installation, write_file
from fsd.core.links import Link
from fsd.core.space import Space, SpaceRecord

_log = logging.getLogger(__name__)
ACL_NAME = "acl.json"
_ACL_LIMIT = 16 << 20
MemberKind = Literal["user", "group"]


class Role(Enum):
    """What a member may do: look; also change; also decide who is a member."""

    VIEWER = "viewer"
    EDITOR = "editor"
    MANAGER = "manager"

    @property
    def rank(self) -> int:
        """Higher ranks may do all that lower ones may."""
        return _RANKS[self]

    @property
    def can_write(self) -> bool:
        """Whether the role may change the tree."""
        return self is not Role.VIEWER


_RANKS = {Role.VIEWER: 1, Role.EDITOR: 2, Role.MANAGER: 3}


def parse_role(text: str) -> Role:
    """The role of that name; NameRefused for others."""
    try:
        return Role(text.lower())
    except ValueError:
        raise NameRefused(f"A role is one of viewer, editor and manager, not '{text}'.") from None


@dataclass(frozen=True, slots=True)
class Member:
    """A user or group in a space. `id` decides; `name` is for people and for other servers."""

    kind: MemberKind
    id: str
    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Acl:
    """The content of acl.json: number `number` of the grants of `space`. `quota` in bytes, None for none."""

    space: str
    number: int = 0
    members: tuple[Member, ...] = ()
    quota: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    links: tuple[Link, ...] = ()

    def role_of(self, user: User) -> Role | None:
        """The best role that the user has, by themself or through a group."""
        best: Role | None = None
        for member in self.members:
            mine = member.id == user.id if member.kind == "user" else member.id in user.group_ids
            if mine and (best is None or member.role.rank > best.rank):
                best = member.role
        return best


def encode(acl: Acl, key: bytes) -> str:
    """acl.json, signed: `mac` is the HMAC-SHA256 over the rest in canonical form."""
    body: dict[str, Any] = {
        **acl.extra,
        "version": 1,
        "space": acl.space,
        "number": acl.number,
        "quota": acl.quota,
        "members": [
            {"type": member.kind, "id": member.id, "name": member.name, "role": member.role.value}
            for member in acl.members
        ],
        **({"links": [links.as_json(link) for link in acl.links]} if acl.links else {}),
    }
    return json.dumps({**body, "mac": _mac(body, key)}, indent=1, sort_keys=True) + "\n"


def decode(text: str | bytes, key: bytes | None) -> Acl:
    """Read acl.json. FsdError when it is damaged, or not signed with `key` (None: the signature is not looked at)."""
    try:
        body = ownfiles.parse(text)
        mac = body.pop("mac")
        acl = _from_body(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FsdError(f"acl.json is damaged ({type(error).__name__}: {error}).") from None
    if key is not None and not (
        isinstance(mac, str) and hmac.compare_digest(mac.encode("utf-8", "replace"), _mac(body, key).encode())
    ):
        raise FsdError("acl.json is not signed by this server.")
    return acl


def _from_body(body: dict[str, Any]) -> Acl:
    members = []
    for item in body["members"]:
        if item["type"] not in ("user", "group"):
            raise ValueError(f"unknown kind of member {item['type']!r}")
        members.append(Member(item["type"], str(item["id"]), str(item["name"]), Role(item["role"])))
    quota = body["quota"]
    if body["version"] != 1 or not isinstance(body["number"], int) or not isinstance(quota, int | None):
        raise ValueError("unknown version or field")
    extra = {
        key: value
        for key, value in body.items()
        if key not in ("version", "space", "number", "quota", "members", "links")
    }
    found = tuple(links.from_json(item) for item in body.get("links", []))
    return Acl(str(body["space"]), body["number"], tuple(members), quota, extra, found)


def _mac(body: dict[str, Any], key: bytes) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, b"fsd acl 1\0" + canonical, hashlib.sha256).hexdigest()


class Grants:
    """The grants of all spaces of an installation. Thread-safe; answers from memory until something changes."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._cache: tuple[int, dict[str, Acl]] = (-1, {})

    def acl(self, space: Space | SpaceRecord) -> Acl:
        """What is in force."""
        generation = self._installation.generation()
        if self._cache[0] != generation:
            self._cache = (generation, {})
        cached, ident = self._cache[1], record_of(space).id
        if ident not in cached:
            with self._installation.db.read() as db:
                cached[ident] = _stored(db, ident)
        return cached[ident]

    def role_of(self, space: Space | SpaceRecord, user: User) -> Role | None:
        """The user's role, or None for a stranger. The owner of a personal space manages it."""
        record = record_of(space)
        if user.disabled or record.state != "active":
            return None
        if record.type == "personal" and record.owner == user.name:
            return Role.MANAGER
        return self.acl(record).role_of(user)

    def members(self, space: Space | SpaceRecord) -> tuple[Member, ...]:
        """The members that were granted a role (the owner of a personal space is not among them)."""
        return self.acl(space).members

    def quota(self, space: Space | SpaceRecord) -> int | None:
        """The space's quota in bytes, None for none."""
        return self.acl(space).quota

    def grant(self, space: Space | SpaceRecord, kind: MemberKind, ident: str, name: str, role: Role) -> None:
        """Give a user or group a role, instead of the one they have."""
        member = Member(kind, ident, name, role)
        self.change(space, lambda acl: replace(acl, members=(*_without(acl.members, kind, ident), member)))

    def revoke(self, space: Space | SpaceRecord, kind: MemberKind, ident: str) -> None:
        """Take the role away; FileNotFoundError if there is none."""

        def drop(acl: Acl) -> Acl:
            rest = _without(acl.members, kind, ident)
            if len(rest) == len(acl.members):
                raise FileNotFoundError(errno.ENOENT, f"The {kind} is not a member of the space.")
            return replace(acl, members=rest)

        self.change(space, drop)

    def set_quota(self, space: Space | SpaceRecord, quota: int | None) -> None:
        """Set the quota in bytes, None for none."""
        if quota is not None and quota < 0:
            raise NameRefused("A quota is not negative.")
        self.change(space, lambda acl: replace(acl, quota=quota))

    def change(self, space: Space | SpaceRecord, edit: Callable[[Acl], Acl]) -> Acl:
        """Replace the grants by `edit(current)`, durably: first the signed file, then the registry.

        Raises StorageUnavailable when the space's storage isn't there. A crash between the two is mended by `verify`.
        """
        record, published = record_of(space), False
        with self._installation.db.exclusive():
            try:
                with self._installation.write() as db:
                    old = _stored(db, record.id)
                    made = edit(old)
                    if made == old:
                        return old
                    made = replace(made, number=old.number + 1)
                    text = encode(made, self._installation.key)
                    published = True
                    self._publish(record, text)
                    db.execute("UPDATE spaces SET acl = ? WHERE id = ?", (text, record.id))
            except StorageUnavailable:
                raise
            except BaseException:
                if published:
                    self._take_back(record)
                raise
        return made

    def _take_back(self, record: SpaceRecord) -> None:
        """After a failed commit: what was reported as failed must not be taken over later as a cut-off change."""
        try:
            with self._installation.db.read() as db:
                (text,) = db.execute("SELECT acl FROM spaces WHERE id = ?", (record.id,)).fetchone()
            if self._read(record) != text.encode():
                self._publish(record, text)
        except (OSError, sqlite3.Error) as error:
            _log.error("the grants of %s could not be taken back: %s", record.id, error)

    def verify(self, space: Space | SpaceRecord) -> str | None:
        """Compare the file in the space with what is in force; a sentence when they disagree (an alarm), or None.

        Takes over a newer file of our own. Raises StorageUnavailable when the space's storage isn't there.
        """
        record = record_of(space)
        with self._installation.db.read() as db:
            stored = _stored(
                db, record.id
            )  # before the file, which is changed first: else a change looks like an alarm
        try:
            raw = self._read(record)
            if raw is None:
                return f"The grants of '{record.name}' are missing in the space; the last good ones stay in force."
            found = decode(raw, self._installation.key)
        except StorageUnavailable:
            raise
        except FsdError as error:
            return f"The grants of '{record.name}' are not to be trusted: {error} The last good ones stay in force."
        if found.space != record.id:
            return f"The grants in '{record.name}' belong to another space; the last good ones stay in force."
        if found.number < stored.number:
            return f"The grants in '{record.name}' are older than the last known ones, which stay in force."
        if found.number > stored.number:
            self._take_over(record, found)
        elif found != stored:
            return f"The grants in '{record.name}' differ from the last known ones, which stay in force."
        return None

    def mend(self, space: Space | SpaceRecord) -> None:
        """Write what is in force, newly signed, into the space again."""
        record = record_of(space)
        with self._installation.write() as db:
            text = encode(_stored(db, record.id), self._installation.key)
            self._publish(record, text)
            db.execute("UPDATE spaces SET acl = ? WHERE id = ?", (text, record.id))

    def _take_over(self, record: SpaceRecord, found: Acl) -> None:
        with self._installation.write() as db:
            if found.number > _stored(db, record.id).number:
                text = encode(found, self._installation.key)
                db.execute("UPDATE spaces SET acl = ? WHERE id = ?", (text, record.id))

    def _publish(self, record: SpaceRecord, text: str) -> None:
        fd = _internals(record, self._installation.state_dir)
        try:
            write_file(fd, ACL_NAME, text.encode())
        finally:
            os.close(fd)

    def _read(self, record: SpaceRecord) -> bytes | None:
        fd = _internals(record, self._installation.state_dir)
        try:
            return read_acl(fd)
        finally:
            os.close(fd)


def read_acl(internals_fd: int) -> bytes | None:
    """The bytes of acl.json in an internal directory, None when there is none. Unusable."""
    try:
        return ownfiles.read(internals_fd, ACL_NAME, _ACL_LIMIT)
    except FileNotFoundError:
        return None


def record_of(space: Space | SpaceRecord) -> SpaceRecord:
    """The record behind either."""
    return space.record if isinstance(space, Space) else space


def _without(members: Iterable[Member], kind: MemberKind, ident: str) -> tuple[Member, ...]:
    return tuple(member for member in members if (member.kind, member.id) != (kind, ident))


def _stored(db: sqlite3.Connection, space_id: str) -> Acl:
    row = db.execute("SELECT acl FROM spaces WHERE id = ?", (space_id,)).fetchone()
    if row is None:
        raise FileNotFoundError(errno.ENOENT, f"There is no space {space_id}.")
    return decode(row[0], None)


def _internals(record: SpaceRecord, state_dir: Path) -> int:
    space = Space(record, state_dir)
    try:
        space.root_fd()  # proves the root, so that nothing is written into an unmounted storage's mount point
        return os.open(space.internal_path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FsdError:
        raise
    except OSError as error:
        text = f"The space's internal directory cannot be opened: {os.strerror(error.errno or errno.EIO)}."
        raise StorageUnavailable(text) from error
    finally:
        space.close()
