"""`fsd status`: is everything up to date? Reads what the processes wrote; works without a server too.

Exit codes: 0 up to date, 3 not (yet), or something needs attention.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from fsd.cli.common import add_json, human, positive, print_json, print_table, registry_of, say, settings_of
from fsd.core import dirty
from fsd.core.errors import FINDINGS
from fsd.core.registry import Registry
from fsd.core.space import SpaceRecord
from fsd.service import alarms, guarded, status

_EVERY = 1.0
ANSWER_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_json(parser)
    parser.add_argument("--watch", action="store_true", help="again every second, until ctrl-C")
    parser.add_argument(
        "--timeout",
        type=positive,
        default=ANSWER_S,
        metavar="SECONDS",
        help="how long a storage may take to answer",
    )


def run(args: argparse.Namespace) -> int:
    """Print it once, or again and again."""
    registry = registry_of(args)
    run_dir = settings_of(args).state / "run"
    while True:
        found = status.read(run_dir)
        told = report(registry, found, args.timeout)
        if args.json:
            print_json(told)
        else:
            if args.watch:
                print("\033[2J\033[H", end="")
            show(told)
            sys.stdout.flush()
        if not args.watch:
            return 0 if told["up_to_date"] and not told["problems"] else FINDINGS
        time.sleep(_EVERY)


def report(registry: Registry, found: status.Status, timeout: float = ANSWER_S) -> dict[str, Any]:
    """Everything `--json` prints."""
    records = [record for record in registry.spaces() if record.state == "active"]
    spaces = [_space(registry, record, found, timeout) for record in records]
    troubles = [text for space in spaces for text in space.pop("alarms", {}).values()]
    unknown = [space["name"] for space in spaces if space["state"] == "unknown"]
    return {
        "server": {
            "running": found.server_runs,
            "pid": found.supervisor.get("pid") if found.server_runs else None,
            "listen": found.supervisor.get("listen", []) if found.server_runs else [],
            "processes": found.supervisor.get("children", {}) if found.server_runs else {},
        },
        "watcher": {"running": found.watcher_runs, "age": found.age, "pid": found.watcher.get("pid")},
        "up_to_date": found.up_to_date() and not unknown,
        "problems": found.problems() + troubles,
        "mounts": [_mount(place, child) for place, child in found.mounts.items()],
        "spaces": spaces,
    }


def _mount(place: str, child: dict[str, Any]) -> dict[str, Any]:
    """One mount that the server keeps up: its process, and what is at the mountpoint."""
    from fsd.mount import mountpoints

    state = {"ours": "mounted", "none": "not mounted"}.get(kind := mountpoints.at(place).state, kind)
    return {"mountpoint": place, "state": state, **child}


def _space(registry: Registry, record: SpaceRecord, found: status.Status, timeout: float) -> dict[str, Any]:
    """One space: from the watcher if it runs, else what its index says.

    Without a server its alarms are looked for, too, by a process of their own, because its storage may hang.
    """
    told = found.spaces.get(record.hex)
    if told is not None and found.watcher_runs:
        return {"alias": record.alias, **told}
    answer: dict[str, Any] = {"id": record.id, "name": record.name, "alias": record.alias, "state": "unknown"}
    try:
        return answer | guarded.within(timeout, lambda: _asked(registry, record, alone=not found.jobs))
    except guarded.Hung as error:
        text = f"Space {record.name}: its storage hangs: {error}."
        return {**answer, "why": text, "alarms": {"storage": text}}


def _asked(registry: Registry, record: SpaceRecord, *, alone: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    try:
        if alone:
            answer["alarms"] = alarms.of(registry, record)
        space = registry.open(record.id)
        counts = dirty.counts(space)
        with space.index.read() as db:
            (at,) = db.execute("SELECT swept_at FROM head").fetchone()
    except OSError as error:
        return {**answer, "why": str(error)}
    oldest = max(0.0, time.time() - counts.oldest) if counts.oldest is not None else 0.0
    return {**answer, "dirty": counts.hinted, "oldest_dirty": round(oldest, 1), "verified_at": at or None}


def show(told: dict[str, Any]) -> None:
    """For people."""
    server = told["server"]
    if server["running"]:
        say(f"server: runs (process {server['pid']}) at {', '.join(server['listen']) or 'no address'}")
        for name, child in server["processes"].items():
            if child["restarts"]:
                say(f"  {name} was restarted {child['restarts']} times, last after {child['last_exit']}")
    else:
        say("server: does not run")
    say(f"up to date: {'yes' if told['up_to_date'] else 'no'}")
    for mount in told["mounts"]:
        say(f"{mount['mountpoint']}: {mount['state']} (process {mount['pid'] or 'none'})")
    head = (
        "SPACE",
        "STATE",
        "SOURCE",
        "LAG",
        "DIRTY",
        "OLDEST",
        "OVERFLOWS",
        "UNWATCHED",
        "VERIFIED",
        "SIZE",
    )
    print_table(head, [_row(space) for space in told["spaces"]])
    for space in told["spaces"]:
        for line in remarks(space):
            say(f"  {space['alias']}: {line}")
    for problem in told["problems"]:
        say(f"! {problem}")


def remarks(space: dict[str, Any]) -> list[str]:
    """What is worth knowing of a space's sources, and no problem."""
    found = []
    if held := space.get("lease"):
        who = "this host" if held["held"] else held["host"] or "no host yet"
        found.append(f"lease {held['token']} is with {who}, renewed {held['age']:.1f} s ago")
        if held["trouble"]:
            found.append(f"its lease: {held['trouble']}")
    if fallback := space.get("fallback"):
        found.append(f"heard by {space['source']}, because of {fallback}")
    for part in space.get("parts", ()):
        if part["path"]:
            found.append(f"{part['path']} ({part['filesystem']}) is heard by {part['source']}")
    if poll := space.get("poll"):
        found.append(
            f"polled: what is made, removed or renamed shows within {poll['directories']:.0f} s,"
            f" edits in place within {poll['files']:.0f} s"
        )
    if stream := space.get("stream"):
        found.append(log_line(stream))
    for kind, count in {**space.get("errors", {}), **space.get("watch_errors", {})}.items():
        found.append(f"{kind}: {count} times since the start, last: {space.get('last_error') or '-'}")
    return found


def log_line(stream: dict[str, Any]) -> str:
    """How far a log is read."""
    places = ", ".join(
        f"{name} {place['lag']} behind" for name, place in stream.get("partitions", {}).items()
    )
    last = stream.get("last_message")
    text = f"reads {places or ', '.join(stream.get('topics', ()))}"
    text += f", newest message {_ago(time.time() - last)} old" if last else ", no message yet"
    text += f", {stream.get('rebalances', 0)} assignments"
    gaps = {reason: count for reason, count in stream.get("gaps", {}).items() if reason != "first"}
    return text + (
        f", gaps: {', '.join(f'{reason} {count}' for reason, count in gaps.items())}" if gaps else ""
    )


def _row(space: dict[str, Any]) -> tuple[str, ...]:
    state = space["state"]
    if sweep := space.get("sweep"):
        state = f"sweeping {100 * sweep['done'] // max(1, sweep['total'])} %"
        if sweep["phase"] == "directories":
            state += f" (looking {100 * sweep['looked'] // max(1, sweep['total'])} %)"
    verified = space.get("verified_at")
    size = space.get("bytes")
    return (
        space["alias"],
        state,
        str(space.get("source", "-")),
        f"{space.get('lag', 0):.2f} s",
        str(space.get("dirty", "-")),
        f"{space.get('oldest_dirty', 0):.1f} s",
        str(space.get("overflows", "-")),
        str(space.get("unwatched") if space.get("unwatched") is not None else "-"),
        f"{_ago(time.time() - verified)} ago" if verified else "never",
        human(size) if size is not None else "-",
    )


def _ago(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
