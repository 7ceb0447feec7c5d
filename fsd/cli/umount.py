"""`fsd umount`: end a mount, a dead or hung one too."""

from __future__ import annotations

import argparse
import errno

from fsd.cli.common import note
from fsd.core.errors import BUSY, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "--force",
        action="store_true",
        help="also while it is in use, or its daemon hangs: whoever is in it gets errors",
    )


def run(args: argparse.Namespace) -> int:
    """Unmount."""
    from fsd.mount import mountpoints

    path = args.mountpoint
    if mountpoints.clear_dead(path):
        note(f"A dead mount at {path} was cleared away.")
        return 0
    found = mountpoints.at(path)
    if found.state == "none":
        raise UserError(f"Nothing is mounted at {path}.")
    if found.state == "other":
        raise UserError(f"What is mounted at {path} is not fsd's.")
    if args.force:
        mountpoints.unmount(path, lazily=True, forcibly=True)
        return 0
    try:
        mountpoints.unmount(path)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise UserError(
                f"{path} is in use ('fuser -vm {path}' tells by whom); or give --force.", BUSY
            ) from None
        raise
    return 0
