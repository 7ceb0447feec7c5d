"""`fsd cluster`: the list of users, groups, tokens and spaces, from one host of a cluster to another."""

from __future__ import annotations

import argparse
import sys

from fsd.cli.common import audit, confirm, note, registry_of, say, settings_of
from fsd.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("export", help="print what another host needs: keep it as secret as a password")
    take = verbs.add_parser("join", help="become, or follow, the host whose export is on standard input")
    take.add_argument("--yes", action="store_true", help="also if users or spaces of this host are not in it")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from fsd.core import likeness

    if args.verb == "export":
        registry = registry_of(args)
        audit(args, "cluster export", "registry")
        say(likeness.export(registry.installation))
        return 0
    copy = likeness.Copy(sys.stdin.read())
    settings = settings_of(args)
    if not (settings.state / "service.key").exists() or not (settings.state / "fsd.db").exists():
        copy.found(settings.state)
        audit(args, "cluster join", copy.storage)
        say(f"{settings.state} is a host of this installation now.")
        return 0
    registry = registry_of(args)
    lost = copy.lost(registry.installation)
    for what, names in (("users", lost.users), ("spaces", lost.spaces)):
        if names:
            note(f"fsd: these {what} are not in it: {', '.join(names)}")
    if (lost.users or lost.spaces) and not args.yes:
        if not sys.stdin.isatty():
            raise UserError("Nothing was changed: --yes gives up what is not in it (no file is deleted).")
        confirm("Give them up (no file is deleted)?", yes=False)
    copy.replace(registry.installation)
    audit(args, "cluster join", copy.storage)
    say("Users, groups, tokens and spaces are those of the other host now.")
    return 0
