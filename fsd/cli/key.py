"""`fsd key`: the service key, which signs the grants that travel with each space."""

from __future__ import annotations

import argparse
import sys

from fsd.cli.common import audit, confirm, note, registry_of, say
from fsd.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("export", help="print the key: keep it as secret as a password")
    take = verbs.add_parser("import", help="take a key from standard input, and sign all grants with it")
    take.add_argument("--yes", action="store_true", help="don't ask")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = registry_of(args)
    if args.verb == "export":
        audit(args, "key export", "service key")
        say(registry.installation.key.hex())
        return 0
    try:
        key = bytes.fromhex(sys.stdin.readline().strip())
    except ValueError:
        raise UserError("That is no key: 64 hexadecimal digits were expected on standard input.") from None
    confirm("Replace the service key?", yes=args.yes)
    missed = registry.replace_key(key)
    audit(args, "key import", "service key")
    for line in missed:
        note(f"fsd: not signed anew: {line}")
    say("The service key is replaced.")
    return 1 if missed else 0
