"""`fsd trash`: what was deleted over fsd's doors, and the way back."""

from __future__ import annotations

import argparse
import time

from fsd.cli.common import add_json, audit, confirm, days, human, print_json, print_table, registry_of, say
from fsd.core.names import to_text
from fsd.core.space import Space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="what is in a space's trash, newest first")
    listing.add_argument("space")
    add_json(listing)
    listing.set_defaults(do=_list)
    restore = verbs.add_parser("restore", help="put something back where it was")
    restore.add_argument("space")
    restore.add_argument("key", help="as 'fsd trash list' shows it")
    restore.add_argument("--to", metavar="PATH", help="another path in the space")
    restore.add_argument("--rename", action="store_true", help="under another name if the old one is taken")
    restore.set_defaults(do=_restore)
    empty = verbs.add_parser("empty", help="delete for good what is in a space's trash")
    empty.add_argument("space")
    empty.add_argument("--older-than", type=days, metavar="DAYS", help="only what was deleted before")
    empty.add_argument("--yes", action="store_true", help="don't ask")
    empty.set_defaults(do=_empty)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = registry_of(args)
    space = registry.open(registry.find(args.space).id)
    try:
        code: int = args.do(args, space)
    finally:
        space.close()
    return code


def _list(args: argparse.Namespace, space: Space) -> int:
    from fsd.core import trash

    found = trash.items(space)
    if args.json:
        print_json(
            [
                {
                    "key": item.key,
                    "path": to_text(item.path),
                    "deleted": item.deleted,
                    "kind": item.kind,
                    "size": item.size,
                    "id": item.node_id,
                }
                for item in found
            ]
        )
        return 0
    print_table(
        ("DELETED", "SIZE", "KEY", "PATH"),
        (
            (
                time.strftime("%Y-%m-%d %H:%M", time.localtime(item.deleted)),
                human(item.size),
                item.key,
                to_text(item.path) + ("/" if item.kind == "d" else ""),
            )
            for item in found
        ),
    )
    return 0


def _restore(args: argparse.Namespace, space: Space) -> int:
    from fsd.core import trash

    target = None if args.to is None else args.to.strip("/").encode("utf-8", "surrogateescape")
    path = trash.restore(space, args.key, target, taken="rename" if args.rename else "refuse")
    audit(args, "trash restore", space.record.id, path=path)
    say(f"restored: {to_text(path)}")
    return 0


def _empty(args: argparse.Namespace, space: Space) -> int:
    from fsd.core import trash

    confirm(f"Delete what is in the trash of '{space.record.name}' for good?", yes=args.yes)
    before = None if args.older_than is None else time.time() - args.older_than * 86400
    count = trash.empty(space, before)
    audit(args, "trash empty", space.record.id, entries=count)
    say(f"{count} deleted for good")
    return 0
