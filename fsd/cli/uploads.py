"""`fsd uploads`: what clients are uploading in several requests."""

from __future__ import annotations

import argparse
import time

from fsd.cli.common import add_json, audit, confirm, human, print_json, print_table, registry_of, say
from fsd.core.names import to_text
from fsd.core.registry import Registry
from fsd.core.space import Space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="what is under way in a space, oldest first")
    listing.add_argument("space")
    add_json(listing)
    listing.set_defaults(do=_list)
    drop = verbs.add_parser("drop", help="end an upload: its bytes and its reservation are gone")
    drop.add_argument("space")
    drop.add_argument("upload", help="its id, as 'fsd uploads list' shows it")
    drop.add_argument("--yes", action="store_true", help="don't ask")
    drop.set_defaults(do=_drop)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = registry_of(args)
    space = registry.open(registry.find(args.space).id)
    try:
        code: int = args.do(args, registry, space)
    finally:
        space.close()
    return code


def _list(args: argparse.Namespace, registry: Registry, space: Space) -> int:
    from fsd.core import partials, uploads

    found = []
    for partial in partials.every(space):
        user = registry.accounts.by_id(partial.user_id)
        try:
            size = uploads.size(space, partial)
        except FileNotFoundError:
            continue  # it ended meanwhile
        found.append((partial, user.name if user is not None else partial.user_id, size))
    if args.json:
        print_json(
            [
                {
                    "id": partial.id,
                    "user": user,
                    "name": partial.name,
                    "path": None if partial.path is None else to_text(partial.path),
                    "received": size,
                    "length": partial.length,
                    "created": partial.created,
                    "expires": partial.expires,
                }
                for partial, user, size in found
            ]
        )
        return 0
    print_table(
        ("ID", "USER", "STARTED", "RECEIVED", "OF", "FOR"),
        (
            (
                partial.id,
                user,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(partial.created)),
                human(size),
                "?" if partial.length is None else human(partial.length),
                partial.name or "" if partial.path is None else to_text(partial.path),
            )
            for partial, user, size in found
        ),
    )
    return 0


def _drop(args: argparse.Namespace, registry: Registry, space: Space) -> int:
    from fsd.core import partials

    found = [partial for partial in partials.every(space) if partial.id == args.upload]
    if not found:
        raise FileNotFoundError(f"There is no upload '{args.upload}' in '{space.record.name}'.")
    confirm(f"End the upload '{args.upload}'? What was received is lost.", yes=args.yes)
    partials.drop(space, found[0])
    audit(args, "uploads drop", space.record.id, upload=args.upload)
    say("The upload is ended.")
    return 0
