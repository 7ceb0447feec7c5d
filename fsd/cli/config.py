"""`fsd config show`: every setting, its value, and where it came from."""

from __future__ import annotations

import argparse

from fsd.cli.common import add_json, note, print_json, print_table, say, settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    show = verbs.add_parser("show", help="the settings in force; secrets are masked")
    show.add_argument("--origin", action="store_true", help="also where each comes from")
    add_json(show)
    verbs.add_parser("template", help="a configuration file with every default commented out")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.verb == "template":
        from fsd.service.config import template

        say(template())
        return 0
    settings = settings_of(args)
    rows = list(settings.show())
    if args.json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return 0
    if args.origin:
        print_table(("KEY", "VALUE", "ORIGIN"), rows)
    else:
        print_table(("KEY", "VALUE"), (row[:2] for row in rows))
    for name in settings.unknown_environment:
        note(f"fsd: the environment variable {name} means nothing here")
    return 0
