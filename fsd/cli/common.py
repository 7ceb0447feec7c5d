"""What the commands share: the settings behind the global options, output, questions, progress."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import pwd
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fsd.core.errors import USAGE, UserError

if TYPE_CHECKING:
    from fsd.core.registry import Registry
    from fsd.service.config import Settings

T = TypeVar("T")


def add_globals(parser: argparse.ArgumentParser, *, default: Any = argparse.SUPPRESS) -> None:
    """The options every command has; they may stand before and after its name."""
    group = parser.add_argument_group("where")
    group.add_argument("--data", metavar="DIR", default=default, help="the data root (FSD_DATA)")
    group.add_argument("--state", metavar="DIR", default=default, help="the state directory (FSD_STATE)")
    group.add_argument(
        "--config", metavar="FILE", default=default, help="the configuration file (FSD_CONFIG)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, for commands whose output a script would read."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def settings_of(args: argparse.Namespace, **more: Any) -> Settings:
    """The settings for this call; `more` are flags of the command by key (`ops.listen` as `**{"ops.listen": …}`)."""
    from fsd.service import config

    flags = {"data": args.data, "state": args.state, "config": args.config} | more
    settings = config.load(flags)
    if settings.cluster_shared or "fsd.core.lease" in sys.modules:  # a reload may have turned it off
        _use_lease(settings)
    return settings


def _use_lease(settings: Settings) -> None:
    """Say which host this is among those that share the spaces; UserError where the settings make no sense."""
    import socket

    from fsd.core import lease

    if not settings.cluster_shared:
        lease.use(settings.state, None)
        return
    name = (settings.cluster_name or socket.gethostname())[:64]
    address = settings.cluster_address.rstrip("/")
    if address and not re.fullmatch(r"https?://[^/\s]{1,255}", address):
        raise UserError("'cluster.address' is a URL such as http://10.0.0.2:9200.", USAGE)
    if not 1 <= settings.cluster_lease <= 300:
        raise UserError("'cluster.lease' is a time from 1s to 5m.", USAGE)
    lease.use(settings.state, lease.Host(name, address, float(settings.cluster_lease)))


def registry_of(args: argparse.Namespace) -> Registry:
    """The registry of an installation that exists; UserError when it was never set up."""
    from fsd.core.registry import Registry

    settings = settings_of(args)
    if not _is_set_up(settings.state):
        raise UserError(f"{settings.data} is not set up: run 'fsd init' or 'fsd serve' first.")
    become_service(settings.state)
    return Registry(settings.state)


def _is_set_up(state: Path) -> bool:
    try:
        return (state / "fsd.db").exists()
    except PermissionError:
        return True  # somebody else's, which `become_service` says better


def become_service(state: Path) -> None:
    """Act as the user the state directory belongs to, so that the server can use what a command makes.

    Root becomes that user; anybody else has to be it. UserError otherwise.
    """
    owner = state.stat()
    if owner.st_uid == os.geteuid():
        return
    try:
        name = pwd.getpwuid(owner.st_uid).pw_name
    except KeyError:
        name = str(owner.st_uid)
    if os.geteuid() != 0:
        raise UserError(
            f"The state directory {state} belongs to '{name}': run the command as '{name}' or root."
        )
    _reachable_for(owner.st_uid, name)
    os.setgroups(os.getgrouplist(name, owner.st_gid) if not name.isdigit() else [])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    note(f"Acting as '{name}', to whom {state} belongs.")


def _reachable_for(uid: int, name: str) -> None:
    """UserError unless that user can read this program: one in root's home is closed to others."""
    os.seteuid(uid)
    try:
        os.stat(os.__file__)
        os.stat(__file__)
    except PermissionError:
        raise UserError(
            f"'{name}' owns the state directory and cannot read this program: run it as '{name}'."
        ) from None
    finally:
        os.seteuid(0)


def print_json(value: Any) -> None:
    """One JSON document. Undecodable bytes in names become U+FFFD."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print(text.encode("utf-8", "replace").decode())


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns for people; control characters in names are escaped."""
    lines = [tuple(head), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """Text that can't move the cursor of a terminal."""
    return "".join(
        c if c.isprintable() else json.dumps(c)[1:-1] for c in text.encode("utf-8", "replace").decode()
    )


def say(text: str) -> None:
    """A line for people, whatever the terminal's encoding can show."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "replace").decode(encoding))


def note(text: str) -> None:
    """A remark beside the output, on stderr."""
    print(text, file=sys.stderr, flush=True)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal; UserError when the answer isn't yes. A script is never asked: its command line says it."""
    if yes or not sys.stdin.isatty():
        return
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was changed.")


def read_password(args: argparse.Namespace, name: str, minimum: int) -> str:
    """A new password: from stdin's first line with `--password-stdin`, else asked for twice on a terminal."""
    if args.password_stdin:
        password = sys.stdin.buffer.readline().decode("utf-8", "surrogateescape").rstrip("\r\n")
    elif sys.stdin.isatty():
        password = getpass.getpass(f"Password for {name}: ")
        if getpass.getpass("Again: ") != password:
            raise UserError("The two passwords differ; nothing was changed.")
    else:
        raise UserError("No password: pipe it in with --password-stdin.", USAGE)
    check_password(password, minimum)
    return password


def check_password(password: str, minimum: int) -> None:
    """UserError unless the policy is met."""
    if len(password) < max(minimum, 1):
        wanted = "must not be empty" if minimum <= 1 else f"has at least {minimum} characters here"
        raise UserError(f"A password {wanted}; nothing was changed.")


def actor() -> str:
    """Who is at the command line, for the audit trail: the system's user, behind sudo too."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    behind = os.environ.get("SUDO_USER")
    return f"cli:{behind}>{name}" if behind and behind != name else f"cli:{name}"


def audit(args: argparse.Namespace, action: str, target: str, **more: Any) -> None:
    """One audit line: appended to `audit.log` in the state directory, where the server's go as well."""
    from fsd.service import logs

    logs.audit_to_file(settings_of(args).state)
    logs.audit(actor(), action, target, **more)


def progress(items: Iterable[T], total: int | None, what: str, unit: str) -> Iterator[T]:
    """Pass items on with a bar on a terminal and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=what, unit=unit, leave=False)


def positive(text: str) -> float:
    """argparse type: a number above 0 that a clock can go by (no `inf`, no `nan`)."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return found


def days(text: str) -> float:
    """argparse type: a number of days, 0 included."""
    return 0.0 if text.strip() == "0" else positive(text)


def owner_id(text: str) -> int:
    """argparse type: a user's or group's number; the last one of 32 bits means "leave it" in chown(2)."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < (1 << 32) - 1):
        raise argparse.ArgumentTypeError(f"'{text}' is not the number of a user or group")
    return int(text)


def directory(text: str) -> Path:
    """argparse type: a path made absolute. Nothing is no path: a script's empty variable must not mean "here"."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(os.path.abspath(os.path.expanduser(text)))


def human(size: int | None) -> str:
    """A size for people, powers of 1024."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"
