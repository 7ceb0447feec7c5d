"""How a directory becomes a space: created, adopted in place, or made for a user.

Everything here runs alone (the registry's lock), so two adoptions of one directory can't both be the first. A crash
between the directory's `.fsd` and the registry leaves a directory that the next try continues with the same id.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from fsd.core import posixacl, roots
from fsd.core.accounts import NAME_BYTES, User, check_account_name, fold
from fsd.core.catalogue import Catalogue
from fsd.core.errors import Forbidden, FsdError, NameRefused, StorageUnavailable
from fsd.core.grants import Acl, Member, Role, encode
from fsd.core.hosts import within
from fsd.core.names import check_new_name, to_text
from fsd.core.restoring import restore
from fsd.core.returning import first_note
from fsd.core.space import Space, SpaceRecord, initialise_root

Label = Literal["now", "lazy", "none"]
SpaceType = Literal["personal", "project"]


@dataclass(frozen=True, slots=True)
class Ownership:
    """What the service gives to what it creates in a space; None: as the process and its umask make it."""

    uid: int | None = None
    gid: int | None = None
    file_mode: int | None = None
    dir_mode: int | None = None


@dataclass(frozen=True, slots=True)
class Adoption:
    """How to deal with a directory that was a space before."""

    as_copy: bool = False
    replace: bool = False
    accept_acl: bool = False


@dataclass(frozen=True, slots=True)
class _Claim:
    """The identity that a directory gets: `known` is the registered record it continues, if any."""

    space_id: str
    secret: bytes
    acl: Acl
    known: SpaceRecord | None = None


class Maker(Catalogue):
    """The part of the registry that adds spaces and users."""

    def create(
        self,
        name: str,
        *,
        alias: str | None = None,
        managers: Collection[User] = (),
        quota: int | None = None,
        label: Label = "now",
        owner: Ownership | None = None,
        shared: bool = False,
    ) -> SpaceRecord:
        """A new, empty project space at `<data root>/projects/<alias>`.

        `shared`: the owner's group writes into it directly as well, so its root gets the setgid bit and a default ACL
        for the group and the service; where the filesystem has none, the setgid bit alone.
        Raises NameRefused, FileExistsError. A crash leaves at most an empty directory, which the next try takes.
        """
        check_space_name(name)
        owner = owner or Ownership()
        with self.installation.db.exclusive():
            alias = self._free_alias(name, alias)
            self._check_name_free(name)
            path = self.installation.data_root + b"/projects/" + os.fsencode(alias)
            self._check_data_root()
            claim = self._new_claim(managers, quota)
            self._make_empty(path, owner.dir_mode, claim)
            try:
                if shared:
                    _share(path, owner)
            except PermissionError as error:
                raise Forbidden(_not_allowed(path, None, owner.gid)) from error
            return self._register(
                path, claim, name, alias, "project", label=label, owner=owner, own_root=True
            )

    def adopt(
        self,
        directory: bytes,
        name: str | None,
        *,
        alias: str | None = None,
        managers: Collection[User] = (),
        quota: int | None = None,
        label: Label = "now",
        read_only: bool = False,
        owner: Ownership | None = None,
        how: Adoption | None = None,
    ) -> SpaceRecord:
        """Make an existing directory a project space in place. Returns at once whatever its size; moves nothing.

        One that takes the place of a registered space keeps its name, alias, owner and modes where none are given.
        Raises NameRefused for directories that overlap with another space or the state directory, FileExistsError
        for one that is a registered space already, FsdError for a foreign one whose grants were not accepted.
        """
        how = how or Adoption()
        place = roots.resolve_directory(directory)
        with self.installation.db.exclusive():
            identity = self._identity(place.path, how)
            claim = self._claim(identity, how, managers, quota, read_only=read_only)
            known = claim.known
            others = [record for record in self.spaces() if known is None or record.id != known.id]
            roots.check_apart(place, others, self.state_dir, self.installation.data_root)
            if name is None:
                name = known.name if known else os.fsdecode(os.path.basename(place.path))
            check_space_name(name)
            user = self.accounts.find(known.owner) if known and known.owner else None
            if known is not None and user is not None:
                alias = known.alias
            else:
                alias = self._free_alias(name, alias or (known.alias if known else None), claim.space_id)
                self._check_name_free(name, claim.space_id)
            if known is not None and owner is None:
                owner = Ownership(known.uid, known.gid, known.file_mode, known.dir_mode)
            if how.as_copy and not read_only:
                roots.reidentify(place.path, claim.space_id, claim.secret)
            kind: SpaceType = "personal" if user is not None else "project"
            label = "none" if read_only else label
            return self._register(
                place.path, claim, name, alias, kind, label=label, owner=owner, read_only=read_only, user=user
            )

    def add_user(self, name: str, password: str | None, *, take_over: bool = False, **fields: Any) -> User:
        """Make a user and their personal space `<data root>/users/<name>` (guests have none). See `Accounts.add`.

        A directory of that name that is there already is only taken with `take_over`, else FileExistsError.
        """
        name = check_account_name(name)
        known = self.accounts.find(name)
        if known is not None:
            raise FileExistsError(errno.EEXIST, f"There is a user '{known.name}' already.")
        has_space = fields.get("role", "user") != "guest"
        if has_space and not take_over:
            self._check_untouched(name)
        user = self.accounts.add(name, password, **fields)
        if has_space:
            try:
                self.ensure_personal(user)
            except BaseException:
                self.accounts.remove(name, last_admin=True)
                raise
        return user

    def ensure_personal(self, user: User) -> SpaceRecord:
        """The personal space of a user, made now if it isn't there (after a crash between account and space)."""
        with self.installation.db.exclusive():
            return self._personal(user)

    def _personal(self, user: User) -> SpaceRecord:
        found = self.personal(user)
        if found is not None:
            return found
        path = self.installation.data_root + b"/users/" + os.fsencode(user.name)
        self._check_data_root()
        roots.make_directory(path)
        place = roots.resolve_directory(path)
        identity = roots.read_identity(place.path, self.installation.key)
        known = None if identity is None else self._records().get(identity.space_id)
        if known is not None and (known.owner is not None or known.path != place.path):
            raise FileExistsError(errno.EEXIST, f"{os.fsdecode(path)} is the space of somebody else.")
        others = [record for record in self.spaces() if known is None or record.id != known.id]
        roots.check_apart(place, others, self.state_dir, self.installation.data_root)
        claim = self._new_claim((), None)
        if identity is not None:
            acl = replace(
                claim.acl, space=identity.space_id, number=identity.acl.number if identity.acl else 0
            )
            claim = _Claim(identity.space_id, identity.secret, acl, known)
        return self._register(
            place.path,
            claim,
            user.display_name,
            user.name,
            "personal",
            label="now",
            user=user,
            own_root=identity is None,
        )

    def delete_user(self, name: str) -> User:
        """Delete an account. Its files stay: the personal space becomes disabled."""
        return self.accounts.remove(name)

    def _check_data_root(self) -> None:
        """StorageUnavailable if the data root holds none of the spaces that were made in it: its filesystem is not
        mounted, and what is made now would lie below the mount point, out of sight as soon as it is."""
        data = self.installation.data_root
        inside = [record for record in self.spaces() if within(record.path, data)]
        if inside and not any(os.path.lexists(record.path) for record in inside):
            raise StorageUnavailable(
                f"None of the spaces in the data root {os.fsdecode(data)} is there: mount its storage first. "
                "Nothing was changed."
            )

    def _check_untouched(self, name: str) -> None:
        path = self.installation.data_root + b"/users/" + os.fsencode(name)
        registered = any(record.path == path for record in self.spaces(deleted=True))
        if os.path.lexists(path) and (registered or not roots.is_unused(path)):
            raise FileExistsError(
                errno.EEXIST,
                f"{os.fsdecode(path)} is there already (the files of a deleted user?): "
                "move it away, or give it to the new user with --take-over.",
            )

    def _identity(self, root: bytes, how: Adoption) -> roots.Identity | None:
        try:
            return roots.read_identity(root, self.installation.key)
        except FsdError:
            if not how.as_copy:
                raise
            return None

    def _new_claim(self, managers: Collection[User], quota: int | None) -> _Claim:
        space_id = f"{self.installation.storage_id}${secrets.token_hex(16)}"
        members = tuple(Member("user", user.id, user.name, Role.MANAGER) for user in managers)
        return _Claim(space_id, secrets.token_bytes(32), Acl(space_id, 0, members, quota))

    def _claim(
        self,
        identity: roots.Identity | None,
        how: Adoption,
        managers: Collection[User],
        quota: int | None,
        *,
        read_only: bool,
    ) -> _Claim:
        fresh = self._new_claim(managers, quota)
        if identity is None:
            return fresh
        if read_only:
            raise NameRefused(
                "The directory was a space with its own internals; it cannot be adopted read-only."
            )
        if how.as_copy:
            return fresh
        known = self._records().get(identity.space_id)
        if known is not None and known.state != "deleted" and not how.replace:
            raise FileExistsError(
                errno.EEXIST,
                f"The directory says it is the space '{known.name}', which is registered at {os.fsdecode(known.path)}: "
                "--as-copy makes it a new space, --replace puts it in that one's place.",
            )
        acl = fresh.acl
        if known is not None:
            acl = self.grants.acl(known)
        elif identity.acl is not None and (identity.ours or how.accept_acl):
            acl = self._translate(identity.acl)
            if not identity.ours:
                acl = replace(acl, links=())  # they were addresses of that server, made by its people
        elif identity.acl is None and identity.space_id.startswith(self.installation.storage_id + "$"):
            pass  # of ours, and never finished: a crash came before its grants were written
        elif not how.accept_acl:
            count = len(identity.acl.members) if identity.acl else 0
            raise FsdError(
                f"The directory was a space of another server, with {count} members: --accept-acl takes it with them, "
                "--as-copy makes it a new space."
            )
        acl = replace(acl, space=identity.space_id)
        for member in fresh.acl.members if known is None else ():
            if member.id not in {known_member.id for known_member in acl.members}:
                acl = replace(acl, members=(*acl.members, member))
        return _Claim(identity.space_id, identity.secret, acl, known)

    def _translate(self, acl: Acl) -> Acl:
        """Members of another server become ours of the same name; those we don't have keep their id and wait."""
        groups = {fold(group.name): group for group in self.accounts.groups()}
        members = []
        for member in acl.members:
            ours: Any = (
                self.accounts.find(member.name) if member.kind == "user" else groups.get(fold(member.name))
            )
            members.append(member if ours is None else replace(member, id=ours.id, name=ours.name))
        return replace(acl, members=tuple(members))

    def _register(
        self,
        path: bytes,
        claim: _Claim,
        name: str,
        alias: str,
        kind: SpaceType,
        *,
        label: Label,
        owner: Ownership | None = None,
        read_only: bool = False,
        user: User | None = None,
        own_root: bool = False,
    ) -> SpaceRecord:
        owner = owner or Ownership()
        ident = claim.space_id.partition("$")[2]
        internals = os.fsencode(self.state_dir / f"{ident}.fsd") if read_only else None
        uid, gid = (owner.uid, owner.gid) if own_root else (None, None)
        try:
            binding = initialise_root(path, claim.space_id, claim.secret, uid, gid, internals=internals)
        except PermissionError as error:
            raise Forbidden(_not_allowed(path, uid, gid)) from error
        if claim.known is not None and (claim.known.path, claim.known.root_binding) != (path, binding):
            self._renew(replace(claim.known, path=path, root_binding=binding, read_only=read_only))
        if label != "none" and not roots.takes_xattrs(internals or path + b"/.fsd"):
            label = "none"
        text = encode(replace(claim.acl, number=claim.acl.number + 1), self.installation.key)
        roots.write_acl(internals or path + b"/.fsd", text)
        data_root = self.installation.data_root
        stored = path[len(data_root) + 1 :] if within(path, data_root) else path
        with self.installation.write() as db:
            values = (
                *(
                    claim.space_id,
                    name,
                    alias,
                    kind,
                    stored,
                    user.id if user else None,
                    label,
                    read_only,
                    "active",
                ),
                *(owner.uid, owner.gid, owner.file_mode, owner.dir_mode, binding, int(time.time()), text),
            )
            first_note(db, claim.space_id, path)
            db.execute(f"INSERT OR REPLACE INTO spaces VALUES ({', '.join('?' * len(values))})", values)
        return self.get(claim.space_id)

    def _renew(self, record: SpaceRecord) -> None:
        space = Space(record, self.state_dir)
        try:
            restore(space, self.installation)
        finally:
            space.close()

    def _make_empty(self, path: bytes, mode: int | None, claim: _Claim) -> None:
        for record in self.spaces(deleted=True):
            if record.path == path:
                text = f"{os.fsdecode(path)} holds the space '{record.name}' ({record.state}): restore or purge it."
                raise FileExistsError(errno.EEXIST, text)
        if os.path.lexists(path):
            if not roots.is_unused(path):
                text = f"{os.fsdecode(path)} exists already; 'fsd space adopt' takes it as it is."
                raise FileExistsError(errno.EEXIST, text)
            roots.reidentify(path, claim.space_id, claim.secret)  # what a crash left of an earlier try
        roots.make_directory(path)
        if mode is not None:
            os.chmod(path, mode)

    def _free_alias(self, name: str, alias: str | None, own: str = "") -> str:
        taken = {
            fold(record.alias) for record in self.spaces() if record.type == "project" and record.id != own
        }
        if alias is not None:
            alias = check_account_name(alias, "An alias")
            if fold(alias) in taken:
                raise FileExistsError(errno.EEXIST, f"There is a space with the alias '{alias}' already.")
            return alias
        stem = slug(name)
        candidates = (stem if turn == 1 else f"{stem}-{turn}" for turn in range(1, len(taken) + 2))
        return next(candidate for candidate in candidates if fold(candidate) not in taken)

    def _check_name_free(self, name: str, own: str = "") -> None:
        for record in self.spaces():
            if record.type == "project" and record.id != own and fold(record.name) == fold(name):
                raise FileExistsError(errno.EEXIST, f"There is a space named '{record.name}' already.")


def _not_allowed(path: bytes, uid: int | None, gid: int | None) -> str:
    """What a service without capabilities could not do while it made a space."""
    if uid is None and gid is None:
        return f"The service may not write into {to_text(path)}: let it, or adopt it with --read-only."
    return (
        "The service may not give files to that user or group: it needs CAP_CHOWN, or has to be in the group."
    )


def _share(path: bytes, owner: Ownership) -> None:
    mode = 0o2770 if owner.dir_mode is None else owner.dir_mode | stat.S_ISGID
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchown(fd, -1, -1 if owner.gid is None else owner.gid)
        os.fchmod(fd, mode)
        users = {uid for uid in (os.geteuid(), owner.uid) if uid}
        posixacl.write(fd, posixacl.DEFAULT, posixacl.shared(mode, *users))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    finally:
        os.close(fd)


def check_space_name(name: str) -> None:
    """NameRefused unless the name could be a directory's: spaces are listed by their names in `/dav/home`."""
    try:
        check_new_name(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise NameRefused("The name of the space is not valid text.") from None
    if name != name.strip():
        raise NameRefused("The name of a space must not begin or end with blanks.")


def slug(name: str) -> str:
    """An alias for a name: lower case, letters and digits joined by single dashes."""
    text = re.sub(r"[^\w.]+|_+", "-", unicodedata.normalize("NFC", name).lower()).strip("-.")
    text = text.encode()[: NAME_BYTES - 8].decode(errors="ignore").strip("-.")
    return text if text and text[0].isalnum() and all(c.isalnum() or c in "-." for c in text) else "space"
