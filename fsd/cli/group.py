"""`fsd group`: users who get roles in spaces together."""

from __future__ import annotations

import argparse

from fsd.cli.common import add_json, audit, print_json, print_table, registry_of, say
from fsd.core.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, text, do in (
        ("add", "make a group", _add),
        ("delete", "delete a group; its roles end", _delete),
    ):
        each = verbs.add_parser(verb, help=text)
        each.add_argument("name")
        each.set_defaults(do=do)
    listing = verbs.add_parser("list", help="all groups with their members")
    add_json(listing)
    listing.set_defaults(do=_list)
    for verb, text, do in (
        ("join", "put users into a group", _join),
        ("leave", "take users out of a group", _leave),
    ):
        each = verbs.add_parser(verb, help=text)
        each.add_argument("name")
        each.add_argument("user", nargs="+")
        each.set_defaults(do=do)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    code: int = args.do(args, registry_of(args))
    return code


def _add(args: argparse.Namespace, registry: Registry) -> int:
    registry.accounts.add_group(args.name)
    audit(args, "group add", args.name)
    say(f"group '{args.name}'")
    return 0


def _delete(args: argparse.Namespace, registry: Registry) -> int:
    registry.accounts.remove_group(args.name)
    audit(args, "group delete", args.name)
    say(f"The group '{args.name}' is deleted.")
    return 0


def _list(args: argparse.Namespace, registry: Registry) -> int:
    groups = registry.accounts.groups()
    if args.json:
        print_json([{"name": group.name, "members": list(group.members)} for group in groups])
    else:
        print_table(("NAME", "MEMBERS"), ((group.name, ", ".join(group.members)) for group in groups))
    return 0


def _join(args: argparse.Namespace, registry: Registry) -> int:
    registry.accounts.join(args.name, *args.user)
    for user in args.user:
        audit(args, "group join", args.name, user=user)
        say(f"'{user}' is in '{args.name}'.")
    return 0


def _leave(args: argparse.Namespace, registry: Registry) -> int:
    registry.accounts.leave(args.name, *args.user)
    for user in args.user:
        audit(args, "group leave", args.name, user=user)
        say(f"'{user}' is not in '{args.name}'.")
    return 0
