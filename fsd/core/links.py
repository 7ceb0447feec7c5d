"""Public links: an address by which somebody without an account reaches one file or folder of a space.

They stand in the space's grants (`acl.json`, signed, numbered), bound to the id of what they show, so they follow it
when it moves. The address holds 192 random bits, of which only the SHA-256 is kept. A link gives no more than its own
role, and no more than whoever made it may do there at the time: it sleeps while that person or the space is disabled.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import time
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import passwords, tree
from fsd.core.errors import Forbidden, NameRefused

if TYPE_CHECKING:
    from fsd.core.accounts import User
    from fsd.core.grants import Grants
    from fsd.core.space import Space, SpaceRecord

_ID_BYTES, _TOKEN_BYTES = 8, 24
_NAME_LENGTH = 100


class LinkRole(Enum):
    """What a link gives: look and download; also change; or only bring new files, without seeing any."""

    VIEWER = "viewer"
    EDITOR = "editor"
    UPLOADER = "uploader"

    @property
    def can_read(self) -> bool:
        return self is not LinkRole.UPLOADER

    @property
    def can_write(self) -> bool:
        """Whether it takes somebody who may change the tree to make such a link."""
        return self is not LinkRole.VIEWER


class Link(NamedTuple):
    """A link as the grants keep it. `node`: the id of what it shows, "" for the whole space; `creator`: a user's id;
    `password`: encoded hash, "" for none; times in seconds since the epoch, `expires` None for never."""

    id: str
    digest: str
    node: str
    role: LinkRole
    creator: str
    name: str
    password: str
    created: int
    expires: int | None

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= time.time()


def parse_role(text: str) -> LinkRole:
    """The role of that name; NameRefused for others."""
    try:
        return LinkRole(text.lower())
    except ValueError:
        raise NameRefused(
            f"The role of a link is one of viewer, editor and uploader, not '{text}'."
        ) from None


def digest_of(token: str) -> str:
    """What is kept of an address."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def create(
    grants: Grants, space: Space, path: bytes, creator: User, role: LinkRole, *, name: str = "", password: str = "",
    expires: int | None = None,
) -> tuple[Link, str]:  # fmt: skip
    """A new link and the secret part of its address, which is not kept. Durable when this returns.

    FileNotFoundError, Forbidden where the creator may not do what the link would, NameRefused.
    """
    if not (name.isprintable() and len(name) <= _NAME_LENGTH):
        raise NameRefused(f"The name of a link has at most {_NAME_LENGTH} printable characters.")
    if expires is not None and expires <= time.time():
        raise NameRefused("A link can't expire in the past.")
    own = grants.role_of(space, creator)
    if own is None or (role.can_write and (not own.can_write or space.record.read_only)):
        raise Forbidden(f"'{creator.name}' may not give that away: a link can do no more than who made it.")
    entry = tree.lookup(space, path)
    if entry.kind not in "fd" or (role is LinkRole.UPLOADER and entry.kind != "d"):
        raise NameRefused("A link shows a file or a folder; files are uploaded into a folder.")
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    link = Link(
        secrets.token_hex(_ID_BYTES), digest_of(token), entry.id if path else "", role, creator.id, name,
        passwords.encode(password) if password else "", int(time.time()), expires,
    )  # fmt: skip
    grants.change(space, lambda acl: replace(acl, links=(*acl.links, link)))
    return link, token


def revoke(grants: Grants, space: Space | SpaceRecord, ident: str) -> None:
    """End a link; it is refused from the next request on. FileNotFoundError if the space has none of this id."""
    if all(link.id != ident for link in grants.acl(space).links):
        raise FileNotFoundError(errno.ENOENT, f"There is no link '{ident}'.")
    grants.change(
        space, lambda acl: replace(acl, links=tuple(link for link in acl.links if link.id != ident))
    )


def path_of(space: Space, link: Link) -> bytes:
    """Where what it shows is now. FileNotFoundError if it is gone, NotYetKnown."""
    return tree.path_of(space, link.node) if link.node else b""


def as_json(link: Link) -> dict[str, object]:
    """How the grants keep it."""
    return {**link._asdict(), "role": link.role.value}


def from_json(item: dict[str, object]) -> Link:
    """A link that the grants kept. KeyError, TypeError, ValueError if it is damaged."""
    expires, created = item["expires"], item["created"]
    if not isinstance(created, int) or not isinstance(expires, int | None):
        raise TypeError("the times of a link are numbers")
    texts = {key: str(item[key]) for key in ("id", "digest", "node", "creator", "name", "password")}
    return Link(**texts, role=LinkRole(item["role"]), created=created, expires=expires)
