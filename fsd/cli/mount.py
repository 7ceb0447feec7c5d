"""`fsd mount`: a space, or all spaces, as a filesystem; those of this machine, or a user's on another one."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsd.cli import mount_remote
from fsd.cli.common import audit, note, registry_of, settings_of
from fsd.core.errors import BUSY, USAGE, UserError

if TYPE_CHECKING:
    from fsd.core.registry import Registry
    from fsd.mount.shim import Shim, Wanted

_MISSING = (
    "'fsd mount' needs {what}: install the packages fuse3, libfuse3-dev, pkg-config, gcc and python3-dev, "
    "then 'pip install fsd[mount]'."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.options_first = True  # type: ignore[attr-defined]
    parser.add_argument(
        "space", nargs="?", metavar="SPACE", help="its name, alias or id, or https://HOST/; not with --all"
    )
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help="an empty directory")
    parser.add_argument("--all", action="store_true", help="all spaces, each under its name")
    parser.add_argument(
        "--as", dest="user", metavar="USER", help="with the role of this user, shown as theirs"
    )
    parser.add_argument("--read-only", action="store_true", help="nothing can be changed through the mount")
    parser.add_argument(
        "--allow-other",
        action="store_true",
        help="let other users of this machine in; without --as each has the role of the fsd user of that name",
    )
    parser.add_argument(
        "--passthrough",
        choices=("auto", "on", "off"),
        default="auto",
        help="whether the kernel reads and writes the files itself (Linux 6.9, root); auto: after a test",
    )
    parser.add_argument(
        "--background", action="store_true", help="return when it is mounted; the mount goes on by itself"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    mount_remote.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Mount, and serve until it is unmounted or told to end."""
    if args.status:
        return mount_remote.status(args)
    if args.mountpoint is None:
        args.space, args.mountpoint = None, args.space
    if args.all == (args.space is not None) or args.mountpoint is None:
        raise UserError("Give a mountpoint, and either a space or --all.", USAGE)
    _check_parts()
    if not args.mountpoint:
        raise UserError("The mountpoint is empty.", USAGE)
    args.mountpoint = os.path.abspath(args.mountpoint)
    if mount_remote.is_url(args.space):
        return _run_remote(args)
    registry = registry_of(args)
    if args.user is not None:
        registry.accounts.get(args.user)
    if args.space is not None:
        registry.find(args.space)
    _check_mountpoint(args.mountpoint)
    if args.background:
        return _in_background(lambda told: _serve(args, registry, told))
    return _serve(args, registry, -1)


def _run_remote(args: argparse.Namespace) -> int:
    mount_remote.check_options(args)
    _check_mountpoint(args.mountpoint)
    # What is asked for and what is wrong is told before it goes into the background.
    plan = mount_remote.plan(args, lambda: None)
    if args.background:
        return _in_background(lambda told: _serve_remote(args, plan, told))
    return _serve_remote(args, plan, -1)


def _check_parts() -> None:
    """UserError, in one line, when something that only mounts need is missing."""
    for module in ("trio", "pyfuse3"):
        if importlib.util.find_spec(module) is None:
            raise UserError(_MISSING.format(what=f"the Python package {module}"))
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UserError("/dev/fuse is not usable here: load the kernel's module ('modprobe fuse').")


def _check_mountpoint(path: str) -> None:
    """Clear away a dead mount of an earlier daemon; UserError unless the rest is an empty directory."""
    from fsd.mount import mountpoints

    if mountpoints.clear_dead(path):
        note(f"A dead mount at {path} was cleared away.")
    found = mountpoints.at(path)
    if found.state == "ours":
        raise UserError(f"{path} is mounted already.", BUSY)
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise UserError(f"There is no directory {path}.") from None
    except NotADirectoryError:
        raise UserError(f"{path} is not a directory.") from None
    if names:
        raise UserError(f"{path} is not empty: what is in it would be hidden.")


def _in_background(serve: Callable[[int], int]) -> int:
    """Fork; the child goes on as a daemon, the parent returns once it is mounted, or with its error."""
    ready, told = os.pipe()
    if child := os.fork():
        os.close(told)
        with open(ready, "rb") as pipe:
            if pipe.read(1) == b"+":
                return 0
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) or 1
    os.close(ready)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    return serve(told)


def _serve(args: argparse.Namespace, registry: Registry, told: int) -> int:
    from fsd.service import logs, notify, pulse

    settings = settings_of(args)
    beating = pulse.ours()
    logs.setup("mount", settings.log_format, args.log_level)
    # Until the mount takes signals itself: what was begun is ended, unmounted, and nothing of it left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    shim = _shim(settings.state, args.passthrough)
    from fsd.mount.mounted import Mounted, Plan, quiet_pyfuse3

    quiet_pyfuse3()
    _check_apart(args, registry)

    def ready() -> None:
        audit(args, "mount", args.mountpoint, space=args.space or "all")
        _say_ready(args, told)

    plan = Plan(
        mountpoint=args.mountpoint,
        space=args.space,
        user=args.user,
        read_only=args.read_only,
        allow_other=args.allow_other,
        shim=shim,
        ready=ready,
        beat=beating.beat if beating is not None else None,
    )
    try:
        return Mounted(registry, plan).run()
    finally:
        notify.stopping()


def _say_ready(args: argparse.Namespace, told: int) -> None:
    """To systemd, and to whoever waits for the mount to be there."""
    from fsd.service import notify

    notify.ready(f"{args.space or 'all spaces'} at {args.mountpoint}")
    if told >= 0:
        os.write(told, b"+")
        os.close(told)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, sys.stderr.fileno())


def _serve_remote(args: argparse.Namespace, plan: Any, told: int) -> int:
    from fsd.mount.mounted import quiet_pyfuse3
    from fsd.mount.remote.mounted import Mounted
    from fsd.service import logs, notify

    logs.setup("mount", "journal" if os.environ.get("JOURNAL_STREAM") else "text", args.log_level)
    quiet_pyfuse3()
    try:
        return Mounted(dataclasses.replace(plan, ready=lambda: _say_ready(args, told))).run()
    finally:
        notify.stopping()


def _check_apart(args: argparse.Namespace, registry: Registry) -> None:
    """UserError if the mountpoint lies in a space: the mount would be inside itself."""
    from fsd.core.hosts import within

    place = os.fsencode(os.path.realpath(args.mountpoint))
    for record in registry.spaces():
        if within(place, record.path):
            raise UserError(f"{args.mountpoint} lies inside the space '{record.name}': mount it elsewhere.")


def _shim(state: Path, wanted: Wanted) -> Shim | None:
    """What pyfuse3 lacks, loaded before it is."""
    from fsd.core.errors import FsdError
    from fsd.mount import shim

    try:
        return shim.load(state / "shim", wanted)
    except FsdError as error:
        raise UserError(str(error)) from None
