"""`fsd user`: the people who may log in."""

from __future__ import annotations

import argparse
from typing import get_args

from fsd.cli.common import (
    add_json,
    audit,
    confirm,
    print_json,
    print_table,
    read_password,
    registry_of,
    say,
    settings_of,
)
from fsd.core.accounts import User, UserRole
from fsd.core.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    add = verbs.add_parser("add", help="make a user and their personal space")
    add.add_argument("name")
    _password(add)
    _details(add)
    add.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="GROUP",
        help="a group to join, made if there is none of that name (repeatable)",
    )
    add.add_argument(
        "--take-over", action="store_true", help="give them the files that lie in users/NAME already"
    )
    add_json(add)
    add.set_defaults(do=_add)
    listing = verbs.add_parser("list", help="all users")
    add_json(listing)
    listing.set_defaults(do=_list)
    passwd = verbs.add_parser("passwd", help="change a password; the user's sessions end")
    passwd.add_argument("name")
    _password(passwd)
    passwd.set_defaults(do=_passwd)
    change = verbs.add_parser("set", help="change display name, e-mail or role")
    change.add_argument("name")
    _details(change)
    change.set_defaults(do=_set)
    for verb, text in (("disable", "lock a user out"), ("enable", "let a user in again")):
        each = verbs.add_parser(verb, help=text)
        each.add_argument("name")
        each.set_defaults(do=_disable if verb == "disable" else _enable)
    delete = verbs.add_parser("delete", help="delete an account; its files stay, its space becomes disabled")
    delete.add_argument("name")
    delete.add_argument("--yes", action="store_true", help="don't ask")
    delete.set_defaults(do=_delete)


def _password(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")


def _details(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--display-name", metavar="TEXT")
    parser.add_argument("--email", metavar="ADDRESS")
    parser.add_argument("--role", choices=get_args(UserRole))


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = registry_of(args)
    code: int = args.do(args, registry)
    return code


def _add(args: argparse.Namespace, registry: Registry) -> int:
    settings = settings_of(args)
    password = read_password(args, args.name, settings.auth_password_min)
    before = {group.name for group in registry.accounts.groups()}
    user = registry.add_user(
        args.name,
        password,
        take_over=args.take_over,
        display_name=args.display_name or "",
        email=args.email or "",
        role=args.role or "user",
        groups=args.group,
    )
    record = registry.personal(user)
    if record is not None and settings.spaces_quota is not None:
        registry.grants.set_quota(record, settings.spaces_quota)
    audit(args, "user add", user.name, role=user.role)
    if args.json:
        print_json(_as_json(user))
        return 0
    say(f"user '{user.name}' ({user.role})")
    for group in sorted(user.groups):
        say(f"group '{group}'{'' if group in before else ' (new)'}")
    if record is not None:
        say(f"space {record.id} at {record.path.decode(errors='replace')}")
    return 0


def _list(args: argparse.Namespace, registry: Registry) -> int:
    users = registry.accounts.users()
    if args.json:
        print_json([_as_json(user) for user in users])
        return 0
    print_table(
        ("NAME", "DISPLAY NAME", "ROLE", "GROUPS", "STATE"),
        (
            (user.name, user.display_name, user.role, ", ".join(sorted(user.groups)), _state(user))
            for user in users
        ),
    )
    return 0


def _as_json(user: User) -> dict[str, object]:
    return {
        "name": user.name,
        "display_name": user.display_name,
        "email": user.email,
        "role": user.role,
        "groups": sorted(user.groups),
        "state": _state(user),
        "created": user.created,
    }


def _state(user: User) -> str:
    return "disabled" if user.disabled else "active"


def _passwd(args: argparse.Namespace, registry: Registry) -> int:
    user = registry.accounts.get(args.name)
    registry.accounts.set_password(
        user.name, read_password(args, user.name, settings_of(args).auth_password_min)
    )
    audit(args, "user passwd", user.name)
    say(f"The password of '{user.name}' is changed.")
    return 0


def _set(args: argparse.Namespace, registry: Registry) -> int:
    user = registry.accounts.set(args.name, display_name=args.display_name, email=args.email, role=args.role)
    if user.role != "guest":
        registry.ensure_personal(user)
    audit(args, "user set", user.name, role=user.role)
    say(f"user '{user.name}': {user.display_name}, {user.email or 'no e-mail'}, {user.role}")
    return 0


def _disable(args: argparse.Namespace, registry: Registry) -> int:
    registry.accounts.disable(args.name)
    audit(args, "user disable", args.name)
    say(f"'{args.name}' can't log in any more.")
    return 0


def _enable(args: argparse.Namespace, registry: Registry) -> int:
    registry.accounts.enable(args.name)
    audit(args, "user enable", args.name)
    say(f"'{args.name}' can log in again.")
    return 0


def _delete(args: argparse.Namespace, registry: Registry) -> int:
    user = registry.accounts.get(args.name)
    confirm(f"Delete the account '{user.name}'? Its files stay.", yes=args.yes)
    record = registry.personal(user)
    registry.delete_user(user.name)
    audit(args, "user delete", user.name)
    say(f"The account '{user.name}' is deleted.")
    if record is not None:
        say(f"Its files stay in {record.path.decode(errors='replace')}; the space is disabled.")
    return 0
