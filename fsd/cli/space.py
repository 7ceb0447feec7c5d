"""`fsd space`: the directories that are served, who may do what in them, and how large they may grow."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import shlex
from collections.abc import Sequence
from typing import Any

from fsd.cli.common import (
    add_json,
    audit,
    confirm,
    directory,
    human,
    note,
    owner_id,
    print_json,
    print_table,
    printable,
    registry_of,
    say,
)
from fsd.core import ids
from fsd.core.accounts import User
from fsd.core.errors import USAGE, UserError
from fsd.core.grants import Member, MemberKind, Role, parse_role
from fsd.core.registry import Adoption, Ownership, Registry
from fsd.core.space import SpaceRecord
from fsd.service.config import WATCH_SOURCES
from fsd.service.options import parse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make an empty space under the data root")
    create.add_argument("name")
    _making(create)
    create.set_defaults(do=_create)
    adopt = verbs.add_parser("adopt", help="make an existing directory a space, in place: nothing is moved")
    adopt.add_argument("directory", type=directory, metavar="DIR")
    adopt.add_argument("--name", help="default: the directory's name")
    _making(adopt)
    adopt.add_argument("--read-only", action="store_true", help="write nothing into it, ever")
    adopt.add_argument(
        "--as-copy", action="store_true", help="it is a copy of a space: a new one with its own ids"
    )
    adopt.add_argument(
        "--replace", action="store_true", help="it takes the place of the registered space it was"
    )
    adopt.add_argument(
        "--accept-acl", action="store_true", help="accept the members a foreign space brings along"
    )
    adopt.add_argument("--yes", action="store_true", help="don't ask")
    adopt.set_defaults(do=_adopt)
    listing = verbs.add_parser("list", help="all spaces")
    listing.add_argument("--deleted", action="store_true", help="deleted ones too")
    add_json(listing)
    listing.set_defaults(do=_list)
    _changing(verbs)


def _making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alias", help="short name for paths (default: made from the name)")
    parser.add_argument(
        "--manager", action="append", metavar="USER", help="who manages it (default: administrators)"
    )
    parser.add_argument(
        "--label", choices=("now", "lazy", "none"), default="now", help="when ids become attributes"
    )
    _owning(parser)


def _owning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quota", metavar="SIZE", help="such as 10G; none for no limit")
    parser.add_argument("--uid", type=owner_id, help="owner of what the service creates in it")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--gid", type=owner_id, help="group of what the service creates in it")
    group.add_argument(
        "--group",
        metavar="GROUP",
        help="a group of this machine that writes into it directly as well: its group, modes 0660 and 2770; a new"
        " space gets the setgid bit and a default ACL, an existing one is left to 'fsd doctor'",
    )
    parser.add_argument("--file-mode", type=_mode, metavar="MODE", help="mode of new files, such as 0664")
    parser.add_argument(
        "--dir-mode", type=_mode, metavar="MODE", help="mode of new directories, such as 2775"
    )
    add_json(parser)


def _changing(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    change = verbs.add_parser("set", help="change a space")
    change.add_argument("space")
    change.add_argument("--name")
    change.add_argument("--alias", help="a created space's directory is renamed along, after asking")
    change.add_argument("--label", choices=("now", "lazy", "none"))
    change.add_argument("--source", choices=WATCH_SOURCES, metavar="SOURCE", help="how changes are heard")
    change.add_argument(
        "--mount-trash",
        choices=("on", "off"),
        help="whether what is deleted through a mount goes to the trash",
    )
    change.add_argument(
        "--direct-versions",
        choices=("on", "off"),
        help="whether what programs overwrite in place is kept as a version (only where files can be cloned)",
    )
    _owning(change)
    change.add_argument("--yes", action="store_true", help="don't ask")
    change.set_defaults(do=_set)
    members = verbs.add_parser("members", help="show the members, or change them")
    members.add_argument("space")
    members.add_argument(
        "--add", action="append", default=[], metavar="NAME:ROLE", help="viewer, editor or manager"
    )
    members.add_argument("--remove", action="append", default=[], metavar="NAME")
    members.add_argument("--group", action="store_true", help="the names are groups")
    add_json(members)
    members.set_defaults(do=_members)
    for verb, text, do in (
        ("disable", "stop serving a space; nothing on disk changes", _disable),
        ("restore", "serve a disabled or deleted space again", _restore),
    ):
        each = verbs.add_parser(verb, help=text)
        each.add_argument("space")
        each.set_defaults(do=do)
    delete = verbs.add_parser("delete", help="forget a space; its files stay unless --purge says otherwise")
    delete.add_argument("space")
    delete.add_argument("--purge", action="store_true", help="delete all its files for good")
    delete.add_argument("--yes", action="store_true", help="don't ask")
    delete.set_defaults(do=_delete)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise argparse.ArgumentTypeError(f"'{text}' is not an octal mode")
    return mode


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    code: int = args.do(args, registry_of(args))
    return code


def _create(args: argparse.Namespace, registry: Registry) -> int:
    record = registry.create(
        args.name,
        alias=args.alias,
        managers=_managers(args, registry),
        quota=_quota(args.quota),
        label=args.label,
        owner=_ownership(args, Ownership()),
        shared=args.group is not None,
    )
    _report(args, registry, "space create", record)
    return 0


def _adopt(args: argparse.Namespace, registry: Registry) -> int:
    if args.accept_acl:
        _show_foreign(args, registry)
    record = registry.adopt(
        os.fsencode(args.directory),
        args.name,
        alias=args.alias,
        managers=_managers(args, registry),
        quota=_quota(args.quota),
        label=args.label,
        read_only=args.read_only,
        owner=_ownership(args, Ownership()) if _owning_given(args) else None,
        how=Adoption(as_copy=args.as_copy, replace=args.replace, accept_acl=args.accept_acl),
    )
    _report(args, registry, "space adopt", record)
    if record.label == "none" and args.label != "none" and not args.read_only:
        note("The filesystem keeps no user attributes: ids will not survive a move to another filesystem.")
    return 0


def _show_foreign(args: argparse.Namespace, registry: Registry) -> None:
    from fsd.core.roots import read_identity

    identity = read_identity(os.fsencode(args.directory), registry.installation.key)
    members = () if identity is None or identity.acl is None else identity.acl.members
    if identity is None or identity.ours:
        return
    for member in members:
        say(f"{member.kind} '{member.name}': {member.role.value}")
    confirm(f"Accept these {len(members)} members?", yes=args.yes)


def _report(args: argparse.Namespace, registry: Registry, action: str, record: SpaceRecord) -> None:
    audit(args, action, record.id, name=record.name, path=record.path)
    if args.json:
        print_json(_as_json(registry, record))
        return
    say(f"space '{record.name}' ({record.alias})")
    say(f"id    {record.id}")
    say(f"path  {os.fsdecode(record.path)}")


def _managers(args: argparse.Namespace, registry: Registry) -> list[User]:
    if args.manager is not None:
        return [registry.accounts.get(name) for name in args.manager]
    return [user for user in registry.accounts.users() if user.role == "admin" and not user.disabled]


def _ownership(args: argparse.Namespace, old: Ownership) -> Ownership:
    def given(new: int | None, before: int | None) -> int | None:
        return before if new is None else new

    gid, file_mode, dir_mode = old.gid, old.file_mode, old.dir_mode
    if args.group is not None:
        gid, file_mode, dir_mode = _system_group(args.group), 0o660, 0o2770
    return Ownership(
        given(args.uid, old.uid),
        given(args.gid, gid),
        given(args.file_mode, file_mode),
        given(args.dir_mode, dir_mode),
    )


def _system_group(text: str) -> int:
    """The number of a group of this machine; UserError if there is none, or if the service could not give it away."""
    try:
        gid = int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise UserError(f"There is no group '{text}' on this machine.") from None
    if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
        join = f"usermod -aG {shlex.quote(text)} {shlex.quote(_own_name())}"
        raise UserError(
            f"The service's user is not in the group '{text}': {join}, and start the server again."
        )
    return gid


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _owning_given(args: argparse.Namespace) -> bool:
    given = (args.uid, args.gid, args.group, args.file_mode, args.dir_mode)
    return any(value is not None for value in given)


def _quota(text: str | None) -> int | None:
    if text is None or text == "none":
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise UserError(f"The quota {error}, not '{text}'.", USAGE) from None


def _list(args: argparse.Namespace, registry: Registry) -> int:
    rows = [_as_json(registry, record) for record in registry.spaces(deleted=args.deleted)]
    if args.json:
        print_json(rows)
        return 0
    print_table(
        ("NAME", "ALIAS", "TYPE", "USED", "QUOTA", "STATE", "ID", "PATH"),
        (
            (
                *(row["name"], row["alias"], row["type"], human(row["used"]), human(row["quota"])),
                *(row["state"], row["id"], row["path"]),
            )
            for row in rows
        ),
    )
    for row in rows:
        if row["label"] == "none" and row["ids"] is not None:
            say(f"{printable(row['name'])}: no attributes are written. {_WITHOUT_LABELS[row['ids']]}")
    return 0


_WITHOUT_LABELS = {
    "handles": "Ids stand on file handles: what is restored, or moves to another filesystem, gets a new id.",
    "birth times": "Ids stand on inode numbers and birth times: what is restored, or moves to another filesystem, gets"
    " a new id.",
    "inode numbers": "Ids stand on inode numbers, compared with the index: what is restored, or changed and moved while"
    " nobody looked, gets a new id; so may everything when the index is lost together with the mount.",
}


def _as_json(registry: Registry, record: SpaceRecord) -> dict[str, Any]:
    state: str = record.state
    used = None
    if record.state == "active":
        used = _used(registry, record)
        state = "unavailable" if used is None else state
    return {
        "id": record.id,
        "name": record.name,
        "alias": record.alias,
        "type": record.type,
        "path": record.path.decode("utf-8", "replace"),
        "quota": registry.grants.quota(record),
        "used": used,
        "members": [_member(member) for member in _all_members(registry, record)],
        "state": state,
        "label": record.label,
        "ids": _told_by(registry, record) if state == "active" else None,
    }


def _told_by(registry: Registry, record: SpaceRecord) -> str | None:
    """What ids stand on where no attribute says them; None if that can't be told now."""
    try:
        return ids.told_by(registry.open(record.id).root_fd())
    except OSError:
        return None


def _used(registry: Registry, record: SpaceRecord) -> int | None:
    from fsd.core.tree import usage

    try:
        return usage(registry.open(record.id))
    except OSError as error:
        note(f"fsd: '{record.name}': {error.strerror or error}")
        return None


def _all_members(registry: Registry, record: SpaceRecord) -> Sequence[Member]:
    """Who has a role now: the owner of a personal space too, but none that were deleted, or never came along."""
    known = {user.id for user in registry.accounts.users()} | {
        group.id for group in registry.accounts.groups()
    }
    members = [member for member in registry.grants.members(record) if member.id in known]
    owner = registry.accounts.find(record.owner) if record.owner else None
    if owner is None:
        return members
    own = Member("user", owner.id, owner.name, Role.MANAGER)
    return (own, *(member for member in members if member.id != owner.id))


def _member(member: Member) -> dict[str, str]:
    return {"type": member.kind, "name": member.name, "role": member.role.value}


def _set(args: argparse.Namespace, registry: Registry) -> int:
    from fsd.core import shadows, trash

    record = registry.find(args.space)
    # All that can be refused comes first: what fails has changed nothing.
    alias = args.alias if args.alias != record.alias else None
    registry.check_settable(record.id, name=args.name, label=args.label, alias=alias)
    owner = _ownership(args, Ownership(record.uid, record.gid, record.file_mode, record.dir_mode))
    quota = _quota(args.quota)
    if args.direct_versions == "on":
        try:
            shadows.require(registry.open(record.id))
        except shadows.CannotClone as error:
            raise UserError(f"{error.strerror}; what programs overwrite can't be kept there.") from error
    if alias is not None:
        confirm(f"Change the alias, and the directory of a created space, to '{alias}'?", yes=args.yes)
    if args.quota is not None:
        registry.grants.set_quota(record, quota)  # written into the space: it fails where that is away
    if alias is not None:
        record = registry.set_alias(record.id, alias)
    if args.mount_trash is not None:
        registry.installation.set_setting(trash.mount_setting(record.id), args.mount_trash)
    if args.direct_versions is not None:
        registry.installation.set_setting(shadows.setting(record.id), args.direct_versions)
    record = registry.set(record.id, name=args.name, label=args.label, owner=owner, source=args.source)
    _report(args, registry, "space set", record)
    return 0


def _members(args: argparse.Namespace, registry: Registry) -> int:
    record = registry.find(args.space)
    changes = [_parse_member(registry, text, group=args.group) for text in args.add]
    gone = [_subject(registry, record, name, group=args.group) for name in args.remove]
    for kind, ident, name, role in changes:
        registry.grants.grant(record, kind, ident, name, role)
        audit(args, "space grant", record.id, to=f"{kind}:{name}", role=role.value)
    for kind, ident, name in gone:
        registry.grants.revoke(record, kind, ident)
        audit(args, "space revoke", record.id, member=f"{kind}:{name}")
    members = _all_members(registry, record)
    if args.json:
        print_json([_member(member) for member in members])
    else:
        print_table(
            ("TYPE", "NAME", "ROLE"), ((member.kind, member.name, member.role.value) for member in members)
        )
    return 0


def _parse_member(registry: Registry, text: str, *, group: bool) -> tuple[MemberKind, str, str, Role]:
    name, colon, role = text.rpartition(":")
    if not colon:
        raise UserError(f"'{text}' is not NAME:ROLE.", USAGE)
    if group:
        found = next((each for each in registry.accounts.groups() if each.name == name), None)
        if found is None:
            raise UserError(f"There is no group '{name}'.")
        return "group", found.id, found.name, parse_role(role)
    user = registry.accounts.get(name)
    return "user", user.id, user.name, parse_role(role)


def _subject(
    registry: Registry, record: SpaceRecord, name: str, *, group: bool
) -> tuple[MemberKind, str, str]:
    kind: MemberKind = "group" if group else "user"
    # Those in force first: a deleted user of the same name may still stand in the list.
    for member in (*_all_members(registry, record), *registry.grants.members(record)):
        if (member.kind, member.name) == (kind, name):
            return kind, member.id, name
    raise UserError(f"The {kind} '{name}' is not a member of '{record.name}'.")


def _disable(args: argparse.Namespace, registry: Registry) -> int:
    record = registry.find(args.space)
    registry.disable(record.id)
    audit(args, "space disable", record.id)
    say(f"'{record.name}' is not served any more.")
    return 0


def _restore(args: argparse.Namespace, registry: Registry) -> int:
    record = registry.find(args.space, deleted=True)
    registry.restore(record.id)
    audit(args, "space restore", record.id)
    say(f"'{record.name}' is served again.")
    return 0


def _delete(args: argparse.Namespace, registry: Registry) -> int:
    record = registry.find(args.space, deleted=args.purge)
    shown = os.fsdecode(record.path)
    if args.purge:
        confirm(f"Delete all files in {shown} for good?", yes=args.yes)
    registry.delete(record.id, purge=args.purge)
    audit(args, "space delete", record.id, purge=args.purge)
    say(f"'{record.name}' is deleted." + ("" if args.purge else f" Its files stay in {shown}."))
    return 0
