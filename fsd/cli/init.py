"""`fsd init`: set up a data root. `serve` does the same on its first start."""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from fsd.cli.common import audit, directory, note, say, settings_of
from fsd.core.errors import USAGE, UserError
from fsd.service.config import CONFIG_NAME, Settings, template

if TYPE_CHECKING:
    from fsd.core.registry import Registry

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without characters that are read wrongly off a screen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("directory", metavar="DATA", nargs="?", type=directory, help="the data root")


def run(args: argparse.Namespace) -> int:
    """Idempotent: a second run changes nothing and says so."""
    args.data = data_argument(args)
    settings = settings_of(args)
    password = ensure_initialised(settings)
    say(f"data root:     {settings.data}")
    say(f"state:         {settings.state}")
    say(f"configuration: {settings.config or settings.state / CONFIG_NAME}")
    if password is not None:
        audit(args, "init", str(settings.data))
        announce(settings, password)
    else:
        say("It was set up before; nothing was changed.")
    return 0


def data_argument(args: argparse.Namespace) -> str | None:
    """The data root of `fsd init DATA` and `fsd serve DATA`; UserError when `--data` names another one."""
    if args.directory is None:
        found: str | None = args.data
        return found
    named: str = os.path.abspath(args.directory)
    if args.data is not None and os.path.abspath(args.data) != named:
        raise UserError(f"Two data roots were named: {args.data} and {args.directory}.", USAGE)
    return named


def announce(settings: Settings, password: str) -> None:
    """Tell the first administrator's password, once. One that was given is not shown."""
    if settings.admin_password:
        say(f"administrator: {settings.admin_name}, with the password that was given")
    else:
        say(f"administrator: {settings.admin_name}, password: {password}")
        note("The password is shown only this once; 'fsd user passwd' changes it.")


def ensure_initialised(settings: Settings) -> str | None:
    """Make state directory, keys, configuration and the first administrator where they are missing.

    Returns the administrator's password if they were made now, else None. Idempotent; a crash in between is finished
    by the next call. UserError for directories that won't do.
    """
    from fsd.core.registry import Registry

    _check_places(settings)
    from fsd.core.installation import Installation

    Installation.initialise(settings.state, settings.data)
    _write_config(settings)
    registry = Registry(settings.state)
    registry.recover()
    with registry.installation.db.exclusive():  # two first starts at once make one administrator
        password = _make_admin(registry, settings)
    registry.installation.close()
    return password


def _make_admin(registry: Registry, settings: Settings) -> str | None:
    if any(user.role == "admin" for user in registry.accounts.users()):
        return None
    made = "-".join("".join(secrets.choice(_ALPHABET) for _ in range(5)) for _ in range(4))
    password = settings.admin_password or made
    user = registry.add_user(settings.admin_name, password, role="admin", display_name="Administrator")
    record = registry.personal(user)
    if record is not None and settings.spaces_quota is not None:
        registry.grants.set_quota(record, settings.spaces_quota)
    return password


def _check_places(settings: Settings) -> None:
    from fsd.core import hosts

    data, state = (os.fsencode(path.resolve()) for path in (settings.data, settings.state))
    for taken in (data + b"/users", data + b"/projects"):
        if hosts.within(state, taken):
            raise UserError(f"The state directory {settings.state} must not lie where the spaces are.")
    if hosts.within(data, state):
        raise UserError(
            f"The data root {settings.data} must not lie in the state directory {settings.state}."
        )
    standing = next(path for path in (settings.state, *settings.state.parents) if path.is_dir())
    fstype = hosts.place(os.fsencode(standing)).fstype
    if fstype in hosts.NETWORK:
        raise UserError(
            f"{settings.state} is on a network filesystem ({fstype}); name a local directory with --state."
        )
    if settings.data.exists() and not settings.data.is_dir():
        raise UserError(f"{settings.data} is not a directory.")


def _write_config(settings: Settings) -> None:
    path: Path = settings.state / CONFIG_NAME
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(template())
    except FileExistsError:
        pass
