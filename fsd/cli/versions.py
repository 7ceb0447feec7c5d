"""`fsd versions`: what a file held before it was replaced over fsd's doors."""

from __future__ import annotations

import argparse
import time

from fsd.cli.common import add_json, audit, human, print_json, print_table, registry_of, say
from fsd.core.space import Space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="the versions of a file, newest first")
    _file(listing)
    add_json(listing)
    listing.set_defaults(do=_list)
    restore = verbs.add_parser(
        "restore", help="make a version the content again; the present one becomes a version"
    )
    _file(restore)
    restore.add_argument("key", help="as 'fsd versions list' shows it")
    restore.set_defaults(do=_restore)
    delete = verbs.add_parser("delete", help="delete a version for good")
    _file(delete)
    delete.add_argument("key", help="as 'fsd versions list' shows it")
    delete.set_defaults(do=_delete)


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("space")
    parser.add_argument("path", help="the file's path in the space")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from fsd.cli.common import settings_of
    from fsd.core import tree, versions

    registry = registry_of(args)
    versions.use(registry.state_dir, float(settings_of(args).versions_keep))
    space = registry.open(registry.find(args.space).id)
    path = args.path.strip("/").encode("utf-8", "surrogateescape")
    try:
        code: int = args.do(args, space, path, tree.lookup(space, path).id)
    finally:
        space.close()
    return code


def _list(args: argparse.Namespace, space: Space, path: bytes, node_id: str) -> int:
    from fsd.core import versions

    found = versions.items(space, node_id)
    if args.json:
        print_json(
            [
                {
                    "key": each.key,
                    "size": each.size,
                    "mtime": each.mtime_ns / 1e9,
                    "replaced": each.replaced / 1e9,
                }
                for each in found
            ]
        )
        return 0
    print_table(
        ("REPLACED", "CHANGED", "SIZE", "KEY"),
        ((_moment(each.replaced), _moment(each.mtime_ns), human(each.size), each.key) for each in found),
    )
    return 0


def _restore(args: argparse.Namespace, space: Space, path: bytes, node_id: str) -> int:
    from fsd.core import reverting

    reverting.restore(space, node_id, args.key, path)
    audit(args, "version restore", space.record.id, path=path, version=args.key)
    say("The version is the file's content again; what it held is a version now.")
    return 0


def _delete(args: argparse.Namespace, space: Space, path: bytes, node_id: str) -> int:
    from fsd.core import versions

    versions.remove(space, node_id, args.key)
    audit(args, "version delete", space.record.id, path=path, version=args.key)
    say("The version is deleted.")
    return 0


def _moment(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns / 1e9))
