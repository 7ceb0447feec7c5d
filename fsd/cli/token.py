"""`fsd token`: app tokens, a password of its own for each program."""

from __future__ import annotations

import argparse
import secrets
import time

from fsd.cli.common import add_json, audit, positive, print_json, print_table, registry_of, say
from fsd.core.registry import Registry
from fsd.core.tokens import Token, Tokens

_DAY = 86400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make a token and show it, this once")
    create.add_argument("user")
    create.add_argument(
        "--name",
        metavar="TEXT",
        help="what it is for, such as 'laptop'; by default the date and something random",
    )
    create.add_argument("--expires", type=positive, metavar="DAYS", help="it ends after so many days")
    add_json(create)
    create.set_defaults(do=_create)
    listing = verbs.add_parser("list", help="the tokens of a user, or of all")
    listing.add_argument("user", nargs="?")
    add_json(listing)
    listing.set_defaults(do=_list)
    revoke = verbs.add_parser("revoke", help="end a token; it is refused from the next request on")
    revoke.add_argument("user")
    revoke.add_argument("token", help="its name or id")
    revoke.set_defaults(do=_revoke)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = registry_of(args)
    code: int = args.do(args, registry)
    return code


def _create(args: argparse.Namespace, registry: Registry) -> int:
    expires = None if args.expires is None else int(time.time() + args.expires * _DAY)
    name = args.name
    if name is None:
        name = f"{time.strftime('%Y-%m-%d %H:%M')} {secrets.token_hex(3)}"
    token, text = Tokens(registry.accounts).create(args.user, name, expires)
    audit(args, "token create", args.user, token=token.id, name=token.name)
    if args.json:
        print_json({**_as_json(args.user, token), "token": text})
        return 0
    say(f"token '{token.name}' of '{args.user}'; it is shown this once:")
    print(text)
    return 0


def _list(args: argparse.Namespace, registry: Registry) -> int:
    accounts = registry.accounts
    users = accounts.users() if args.user is None else [accounts.get(args.user)]
    found = [(user.name, token) for user in users for token in Tokens(accounts).of(user)]
    if args.json:
        print_json([_as_json(name, token) for name, token in found])
        return 0
    print_table(
        ("USER", "NAME", "ID", "CREATED", "EXPIRES", "LAST USED"),
        (
            (name, token.name, token.id, _day(token.created), _day(token.expires), _day(token.used))
            for name, token in found
        ),
    )
    return 0


def _revoke(args: argparse.Namespace, registry: Registry) -> int:
    token = Tokens(registry.accounts).revoke(args.user, args.token)
    audit(args, "token revoke", args.user, token=token.id, name=token.name)
    say(f"The token '{token.name}' of '{args.user}' is revoked.")
    return 0


def _as_json(user: str, token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "user": user,
        "name": token.name,
        "created": token.created,
        "expires": token.expires,
        "used": token.used or None,
    }


def _day(moment: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else "never"
