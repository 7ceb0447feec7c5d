"""Whose rights a mount shows, and how.

Three ways. *As it is* (a mount of the service for itself): owners, modes and ACLs of the disk, checked by the kernel.
*As a user* (`--as`): everything belongs to that user, with the mode bits the role gives. *Shared* (`--allow-other`):
everything belongs to the service, and each member's role stands in an ACL that exists only in the mount; the kernel
checks it, and each change is checked again with the caller's own role. Owners and modes on disk are then the space's.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsd.core.errors import Forbidden
from fsd.core.grants import Role

if TYPE_CHECKING:
    from pyfuse3 import RequestContext

    from fsd.core.accounts import User
    from fsd.core.registry import Registry
    from fsd.core.space import SpaceRecord

_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 1, 2, 4, 16, 32
_ACL_VERSION = 2
_UNDEFINED = 0xFFFFFFFF
_ENTRY = struct.Struct("<HHI")


@dataclass(frozen=True, slots=True)
class Shown:
    """Owner, group and mode bits that replace those of the disk."""

    uid: int
    gid: int
    directory: int
    file: int
    executable: int

    def mode(self, mode: int) -> int:
        """The mode to show for what has `mode` on disk."""
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFDIR:
            return kind | self.directory
        if kind == stat.S_IFLNK:
            return kind | 0o777
        return kind | (self.executable if mode & 0o111 else self.file)


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights in one space at one moment: by the caller's uid (`roles`), or those of the user whose mount it is
    (`roles` None, and `everybody`, None for a stranger).

    `shown` None: as it is on disk. `acl`: for directories and executables, for other files; None if there is none.
    """

    shown: Shown | None = None
    roles: dict[int, Role] | None = None
    everybody: Role | None = None
    acl: tuple[bytes, bytes] | None = None

    def role(self, ctx: RequestContext | None) -> Role | None:
        """The caller's role; in a shared mount root manages."""
        if self.roles is None or ctx is None:
            return self.everybody
        if ctx.uid == 0:
            return Role.MANAGER
        return self.roles.get(ctx.uid)

    def check_read(self, ctx: RequestContext) -> None:
        """Forbidden unless the caller may look."""
        if self.shown is not None and self.role(ctx) is None:
            raise Forbidden("The caller is no member of the space.")

    def check_write(self, ctx: RequestContext) -> None:
        """Forbidden unless the caller may change the tree."""
        if self.shown is not None:
            role = self.role(ctx)
            if role is None or not role.can_write:
                raise Forbidden("The caller's role does not allow changes.")


AS_IT_IS = Rights()


def as_user(role: Role | None, uid: int, gid: int) -> Rights:
    """What one user may do, everything shown as theirs; a stranger (None) sees nothing."""
    if role is None:
        return Rights(Shown(uid, gid, 0, 0, 0))
    if role.can_write:
        return Rights(Shown(uid, gid, 0o700, 0o600, 0o700), everybody=role)
    return Rights(Shown(uid, gid, 0o500, 0o400, 0o500), everybody=role)


def shared(roles: dict[int, Role]) -> Rights:
    """What each of several users may do, by uid."""
    shown = Shown(os.geteuid(), os.getegid(), 0o770, 0o660, 0o770)
    return Rights(shown, roles, None, (_acl(roles, 7), _acl(roles, 6)))


def _acl(roles: dict[int, Role], most: int) -> bytes:
    """`system.posix_acl_access` (acl(5)) that gives each user what the role allows, and others nothing."""
    entries = [(_USER_OBJ, most, _UNDEFINED)]
    entries += [(_USER, most if role.can_write else most & 5, uid) for uid, role in sorted(roles.items())]
    entries += [(_GROUP_OBJ, 0, _UNDEFINED), (_MASK, most, _UNDEFINED), (_OTHER, 0, _UNDEFINED)]
    return struct.pack("<I", _ACL_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


class Askers:
    """Answers whose rights hold, from the registry as it is now."""

    def __init__(self, registry: Registry, user: str | None, *, others: bool) -> None:
        """`user`: the mount is that user's; else, with `others`, everybody acts for themselves."""
        self._registry = registry
        self._name, self._others = user, others

    def rights(self, record: SpaceRecord) -> Rights:
        """The rights in a space."""
        if self._name is not None:
            user = self._registry.accounts.find(self._name)
            uid, gid = system_ids(self._name)
            role = None if user is None else self._registry.grants.role_of(record, user)
            return as_user(role, uid, gid)
        if not self._others:
            return AS_IT_IS
        roles = {}
        for uid, user in _system_users(self._registry.accounts.users()):
            role = self._registry.grants.role_of(record, user)
            if role is not None:
                roles[uid] = role
        return shared(roles)


def free_way(path: bytes) -> bool:
    """Whether everybody may pass through all directories above `path` on disk; not asked of what is mounted later."""
    above = os.path.dirname(os.path.realpath(path))
    while True:
        try:
            if not os.stat(above).st_mode & stat.S_IXOTH:
                return False
        except OSError:
            return False
        if above == b"/":
            return True
        above = os.path.dirname(above)


def system_ids(name: str) -> tuple[int, int]:
    """uid and gid of the system's user of that name; the caller's own where there is none."""
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return os.geteuid(), os.getegid()
    return found.pw_uid, found.pw_gid


def _system_users(users: Iterable[User]) -> Iterable[tuple[int, User]]:
    for user in users:
        try:
            yield pwd.getpwnam(user.name).pw_uid, user
        except (KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOENT:
                raise
