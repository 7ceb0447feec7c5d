"""`fsd mount https://…`: the user's spaces on another machine; and how such mounts are doing."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsd.cli.common import human, note, positive, print_json, say
from fsd.core.errors import USAGE, UserError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_LEAST_CACHE = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What only mounts of another machine's spaces have."""
    group = parser.add_argument_group("another machine (fsd mount https://HOST/ MOUNTPOINT)")
    group.add_argument(
        "--user",
        dest="login",
        metavar="NAME",
        default="",
        help="log in with this name and a token or password",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="its first line is the token; readable by you alone (FSD_MOUNT_TOKEN)",
    )
    group.add_argument(
        "--save-token", action="store_true", help="keep the token for further mounts, mode 0600"
    )
    group.add_argument(
        "--cache", metavar="DIR", help="where file contents and what waits for the server are kept"
    )
    group.add_argument(
        "--cache-size",
        metavar="SIZE",
        type=size,
        default=10 << 30,
        help="how much of it may be cached contents (10G)",
    )
    group.add_argument(
        "--write-back",
        metavar="SECONDS",
        type=float,
        default=1.0,
        help="how long after close(2) a file is uploaded (1)",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=positive,
        default=30.0,
        help="after how long without an answer the server counts as away (30)",
    )
    group.add_argument("--ca-file", metavar="FILE", help="the certificates to trust instead of the system's")
    group.add_argument(
        "--status",
        action="store_true",
        help="tell how mounts of other machines are doing: what is on its way, what waits, what failed",
    )
    group.add_argument("--wait", action="store_true", help="with --status: until everything is uploaded")
    group.add_argument("--json", action="store_true", help="with --status: print JSON")


def size(text: str) -> int:
    """argparse type: 500M, 1.5G, bytes without a letter."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or (count := int(float(found[1]) * 1024 ** _POWERS[found[2].upper()])) < _LEAST_CACHE:
        raise argparse.ArgumentTypeError(f"'{text}' is no size from 1M up, such as 500M or 10G")
    return count


def is_url(text: str | None) -> bool:
    """Whether this names another machine rather than a space."""
    return text is not None and text.partition("://")[0].lower() in ("http", "https") and "://" in text


def plan(args: argparse.Namespace, ready: Callable[[], object]) -> Any:
    """What to mount where. UserError for what can't be; asks for the token."""
    from fsd.mount.remote import credentials
    from fsd.mount.remote.mounted import Plan

    url = _checked(args.space)
    place = credentials.place_of(url, args.login)
    return Plan(
        url=url,
        mountpoint=args.mountpoint,
        cache=Path(os.path.abspath(args.cache)) if args.cache else credentials.state_home() / place,
        cache_size=args.cache_size,
        authorization=credentials.find(url, args.login, args.token_file, save=args.save_token),
        user=args.login,
        ca_file=args.ca_file,
        seconds=max(0.1, args.timeout),
        delay=max(0.0, args.write_back),
        read_only=args.read_only,
        ready=ready,
    )


def _checked(url: str) -> str:
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UserError(f"{url} is not the address of a server, such as https://files.example.org/.", USAGE)
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "Everybody on this machine can read a command line: give --user and --token-file.", USAGE
        )
    if parts.scheme.lower() == "http" and not _is_loopback(host):
        raise UserError(f"http:// would send the token in the clear: use https://{parts.netloc}/.", USAGE)
    return f"{parts.scheme.lower()}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_options(args: argparse.Namespace) -> None:
    """UserError for options that only mounts of this machine's spaces have."""
    for given, name in ((args.all, "--all"), (args.user, "--as"), (args.allow_other, "--allow-other")):
        if given:
            raise UserError(f"{name} is for the spaces of this machine.", USAGE)


# -- status


def status(args: argparse.Namespace) -> int:
    """Tell of one mount or of all. 0; 1 if one can't reach its server or has a change that was refused."""
    found = _found(args)
    if args.wait:
        found = _wait(args, found)
    if args.json:
        print_json(found)
    else:
        for told in found:
            _tell(told)
        if not found:
            say("No other machine's spaces are mounted, and nothing waits for one.")
    return int(any(told["server"] == "away" or _failed(told) for told in found))


def _found(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fsd.mount.remote import credentials
    from fsd.mount.remote import status as remote

    if args.cache:
        told = remote.read(Path(os.path.abspath(args.cache)))
        found = [told] if told is not None else []
    else:
        found = remote.read_all(credentials.state_home())
    if args.space is not None and not is_url(args.space):
        wanted = os.path.abspath(args.space)
        found = [told for told in found if told["mountpoint"] == wanted]
        if not found:
            raise UserError(f"No other machine's spaces are mounted at {wanted}.")
    return found


def _failed(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [change for change in told["changes"] if change["error"]]


def _wait(args: argparse.Namespace, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Until nothing waits any more, with a bar on a terminal."""
    import sys

    from tqdm import tqdm

    first = sum(told["waiting"]["files"] for told in found)
    with tqdm(
        total=first, desc="uploading", unit="file", leave=False, disable=not sys.stderr.isatty()
    ) as bar:
        while left := sum(told["waiting"]["files"] for told in found if told["pid"] is not None):
            if any(_failed(told) or told["server"] == "away" for told in found):
                break
            bar.total = max(bar.total, left)
            bar.n = bar.total - left
            bar.refresh()
            time.sleep(0.2)
            found = _found(args)
    return found


def _tell(told: dict[str, Any]) -> None:
    where = f"at {told['mountpoint']}" if told["mountpoint"] else "not mounted"
    who = f" as {told['user']}" if told["user"] else ""
    say(f"{told['url']}{who}, {where}")
    if told["pid"] is not None:
        reached = "can be reached" if told["server"] == "there" else f"can't be reached ({told['why']})"
        say(f"  server    {reached}{'' if told['events'] else ', changes are not heard'}")
        cached = told["cached"]
        say(f"  cached    {human(cached['bytes'])} of {human(cached['limit'])} in {told['cache']}")
    waiting = told["waiting"]
    say(f"  waiting   {waiting['files']} files, {human(waiting['bytes'])}")
    for running in told["running"]:
        share = 100 * running["done"] // max(1, running["size"])
        say(f"  {running['what']:9} {share:3} % of {human(running['size'])}  {running['path']}")
    for change in _failed(told):
        note(f"  failed    {change['path']}: {change['error']} ({change['tries']} times)")
    for name in told["conflicts"]:
        say(f"  conflict  {name}")
