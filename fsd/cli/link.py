"""`fsd link`: public links, for people without an account."""

from __future__ import annotations

import argparse
import os
import time

from fsd.cli.common import (
    add_json,
    audit,
    positive,
    print_json,
    print_table,
    read_password,
    registry_of,
    say,
    settings_of,
)
from fsd.core import links
from fsd.core.accounts import User
from fsd.core.errors import FsdError
from fsd.core.grants import Role
from fsd.core.links import Link, LinkRole
from fsd.core.names import to_text
from fsd.core.registry import Registry
from fsd.core.space import SpaceRecord

_DAY = 86400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make a link and show its address, this once")
    create.add_argument("target", metavar="SPACE[/PATH]", help="the folder or file that it shows")
    create.add_argument(
        "--role",
        default="viewer",
        choices=[role.value for role in LinkRole],
        help="look (viewer), also change (editor), or only bring new files (uploader); viewer by default",
    )
    asking = create.add_mutually_exclusive_group()
    asking.add_argument(
        "--password", action="store_true", help="protect it by a password, which is asked for"
    )
    asking.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    create.add_argument("--expires", type=positive, metavar="DAYS", help="it ends after so many days")
    create.add_argument("--name", default="", metavar="TEXT", help="what it is for")
    create.add_argument(
        "--as", dest="creator", metavar="USER",
        help="whose link it is: it can do no more than this user, and sleeps while they are disabled; by default the "
        "owner of the space, or its first manager",
    )  # fmt: skip
    add_json(create)
    create.set_defaults(do=_create)
    listing = verbs.add_parser("list", help="the links of a space, or of all")
    listing.add_argument("space", nargs="?")
    add_json(listing)
    listing.set_defaults(do=_list)
    revoke = verbs.add_parser("revoke", help="end a link; it is refused from the next request on")
    revoke.add_argument("link", help="its id, as 'fsd link list' shows it")
    revoke.set_defaults(do=_revoke)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = registry_of(args)
    code: int = args.do(args, registry)
    return code


def _create(args: argparse.Namespace, registry: Registry) -> int:
    settings = settings_of(args)
    name, _, path = args.target.partition("/")
    record = registry.find(name)
    creator = registry.accounts.get(args.creator) if args.creator else _owner(registry, record)
    password = ""
    if args.password or args.password_stdin:
        password = read_password(args, "the link", settings.auth_password_min)
    expires = None if args.expires is None else int(time.time() + args.expires * _DAY)
    space = registry.open(record.id)
    try:
        link, token = links.create(
            registry.grants, space, os.fsencode(path.strip("/")), creator, links.parse_role(args.role),
            name=args.name, password=password, expires=expires,
        )  # fmt: skip
    finally:
        space.close()
    audit(args, "link create", record.id, link=link.id, path=path, role=link.role.value, user=creator.name)
    address = f"{settings.http_public_url.rstrip('/')}/s/{token}"
    if args.json:
        print_json({**_as_json(registry, record, link), "token": token, "address": address})
        return 0
    say(f"link '{link.id}' to {args.target}, {link.role.value}; its address is shown this once:")
    print(address)
    return 0


def _owner(registry: Registry, record: SpaceRecord) -> User:
    """Who makes the links of a space if nobody is named."""
    if record.owner:
        return registry.accounts.get(record.owner)
    for member in registry.grants.members(record):
        user = registry.accounts.by_id(member.id)
        if member.role is Role.MANAGER and user is not None and not user.disabled:
            return user
    raise FileNotFoundError(f"'{record.name}' has no manager; --as says whose link it is.")


def _list(args: argparse.Namespace, registry: Registry) -> int:
    records = registry.spaces() if args.space is None else [registry.find(args.space)]
    found = [(record, link) for record in records for link in registry.grants.acl(record).links]
    rows = [_as_json(registry, record, link) for record, link in found]
    if args.json:
        print_json(rows)
        return 0
    print_table(
        ("ID", "SPACE", "PATH", "ROLE", "BY", "PASSWORD", "CREATED", "EXPIRES", "NAME"),
        (
            (
                link.id,
                record.alias,
                str(row["path"] if row["path"] is not None else "(gone, or not known now)"),
                link.role.value,
                str(row["user"]),
                "yes" if link.password else "no",
                _day(link.created),
                _day(link.expires),
                link.name,
            )
            for (record, link), row in zip(found, rows, strict=True)
        ),
    )
    return 0


def _revoke(args: argparse.Namespace, registry: Registry) -> int:
    for record in registry.spaces():
        if any(link.id == args.link for link in registry.grants.acl(record).links):
            links.revoke(registry.grants, record, args.link)
            audit(args, "link revoke", record.id, link=args.link)
            say(f"The link '{args.link}' to something in '{record.name}' is revoked.")
            return 0
    raise FileNotFoundError(f"There is no link '{args.link}'.")


def _as_json(registry: Registry, record: SpaceRecord, link: Link) -> dict[str, object]:
    creator = registry.accounts.by_id(link.creator)
    return {
        "id": link.id,
        "space": record.id,
        "path": _path(registry, record, link),
        "role": link.role.value,
        "user": creator.name if creator is not None else link.creator,
        "name": link.name,
        "password": bool(link.password),
        "created": link.created,
        "expires": link.expires,
    }


def _path(registry: Registry, record: SpaceRecord, link: Link) -> str | None:
    try:
        space = registry.open(record.id)
    except (FsdError, OSError):
        return None
    try:
        return to_text(links.path_of(space, link))
    except (FsdError, OSError):
        return None
    finally:
        space.close()


def _day(moment: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else "never"
