"""What the processes tell about themselves: JSON files in `run/`, replaced atomically, and how alive they are.

A file's writer may be killed at any time: a reader sees the old or the new content, and `alive` compares the writer's
process and the file's age, so that an old file is never taken for the present.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsd.core.hosts import mounts

log = logging.getLogger(__name__)

FRESH = 5.0
"""Seconds: the watcher writes each second; older than this it hangs or is gone."""
TURNS_LATE = 15.0
"""Seconds: it goes on without a storage that hangs, so something else holds it up."""
POLLED_LONG = 6 * 3600.0
"""Seconds: files are asked less often than that only if the budget is too small for the tree."""
DOWN_LONG = 10.0
"""Seconds: a broker may restart meanwhile."""
MOUNT = "mount "
"""The process that serves a mount is called so, with its mountpoint."""
WAITS_LONG = 60.0
"""Seconds: a change that waits longer is a problem worth a sentence."""


def replace_json(path: Path, content: Any) -> None:
    """Write a status file atomically. A full disk is logged, not raised: work must not stop for a status."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(content))
        aside.replace(path)
    except OSError as error:
        log.warning("%s was not written: %s", path, error)


def read_json(path: Path) -> dict[str, Any]:
    """A status file's content; empty if there is none or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def process_runs(pid: int) -> bool:
    """True if there is a process of that number which is not a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


@dataclass(frozen=True, slots=True)
class Status:
    """The state of one data root. `watcher` and `supervisor` are the files' contents, empty if there are none."""

    supervisor: dict[str, Any]
    watcher: dict[str, Any]
    server_runs: bool
    watcher_runs: bool
    """It runs and has written within the last seconds."""
    age: float | None
    """Seconds since the watcher wrote."""
    jobs: dict[str, Any] = field(default_factory=dict)
    """The jobs process's file: alarms of spaces, and what it is at work on; empty unless it runs."""

    @property
    def alarms(self) -> dict[str, dict[str, str]]:
        """Per space (hex) a sentence for each kind of alarm."""
        found = self.jobs.get("alarms")
        return found if isinstance(found, dict) else {}

    @property
    def mounts(self) -> dict[str, dict[str, Any]]:
        """By mountpoint, the processes of the mounts that the server keeps up; empty unless it runs."""
        children = self.supervisor.get("children", {}) if self.server_runs else {}
        return {name.removeprefix(MOUNT): child for name, child in children.items() if name.startswith(MOUNT)}

    @property
    def spaces(self) -> dict[str, dict[str, Any]]:
        """Per space (hex) what the watcher says."""
        spaces = self.watcher.get("spaces")
        return spaces if isinstance(spaces, dict) else {}

    def problems(self) -> list[str]:
        """What keeps the data root from being up to date, or will: one sentence each."""
        found: list[str] = []
        if not self.watcher_runs:
            found.append(
                "The watcher does not answer: direct changes are not followed."
                if self.watcher
                else "No watcher runs on this data: direct changes are not followed."
            )
        elif (self.watcher.get("turned") or 0.0) > TURNS_LATE:
            found.append(f"The watcher has not come round for {self.watcher['turned']:.0f} s.")
        for space in self.spaces.values():
            found += space_problems(space)
        found += [
            f"What is to be mounted at {place} is not: its process ended with {child['last_exit']}."
            for place, child in self.mounts.items()
            if child["last_exit"] and not (process_runs(child["pid"]) and _is_mounted(place))
        ]
        for key, alarms in self.alarms.items():
            told = self.spaces.get(key, {}) if self.watcher_runs else {}
            heard = {"storage": told.get("state") == "unavailable", "displaced": bool(told.get("displaced"))}
            found += [text for kind, text in alarms.items() if not heard.get(kind)]
        work = self.jobs.get("at_work")
        if work and time.time() - work[2] > WAITS_LONG:
            found.append(
                f"Space {work[1]}: job {work[0]} got no answer for {time.time() - work[2]:.0f} s; its storage hangs?"
            )
        return list(dict.fromkeys(found))  # the watcher and the jobs may see the same

    def up_to_date(self) -> bool:
        """Everything heard is handled, and everything was verified since the watcher began to listen."""
        return self.watcher_runs and all(
            space.get("state") in ("watching", "polling")
            and not space.get("dirty")
            and not (space.get("stream") or {}).get("lag")
            for space in self.spaces.values()
        )


def _is_mounted(place: str) -> bool:
    """Whether anything is mounted there, as the kernel lists it: nothing that may hang is asked."""
    above, name = os.path.split(place)
    point = os.fsencode(os.path.join(os.path.realpath(above), name))
    return any(each.point == point for each in mounts())


def space_problems(space: dict[str, Any]) -> list[str]:
    """The sentences about one space."""
    name = space.get("name", "?")
    found = []
    if space.get("state") == "unavailable":
        found.append(f"Space {name} is unavailable: {space.get('why')}")
    if space.get("unwatched"):
        errors = space.get("watch_errors") or {}
        advice = "; raise fs.inotify.max_user_watches" if "ENOSPC" in errors else ""
        found.append(
            f"Space {name}: {space['unwatched']} directories have no watch and are polled "
            f"({_counts(errors)}){advice}."
        )
    if space.get("displaced"):
        found.append(f"Space {name} is read-only: its directory .fsd is not where it belongs.")
    found += [
        f"Space {name}: what was mounted at {place} is not mounted now."
        for place in space.get("inner_away", ())
    ]
    reads = (space.get("poll") or {}).get("files", 0.0)
    if reads > POLLED_LONG:
        found.append(
            f"Space {name} is polled, and a changed file may be noticed after {reads / 3600:.1f} hours;"
            " raise watch.stats."
        )
    if stream := space.get("stream"):
        found += [f"Space {name}: {text}" for text in stream_problems(stream)]
    away = space.get("dirty") and str(space.get("last_error")).startswith("ENODEV")
    if away or (space.get("oldest_dirty") or 0) > WAITS_LONG:
        found.append(
            f"Space {name}: a change waits since {space.get('oldest_dirty', 0):.0f} s: {space.get('last_error')}"
        )
    return found


def stream_problems(stream: dict[str, Any]) -> list[str]:
    """The sentences about the log that a space is heard by."""
    found = []
    down = stream.get("down_for") or 0.0
    if down > DOWN_LONG:
        found.append(f"its log can't be read since {down:.0f} s: {stream.get('error')}.")
    elif stream.get("error"):
        found.append(f"its log can't be read: {stream['error']}.")
    if stream.get("connected") and stream.get("others"):
        found.append(f"another member of the group reads {', '.join(stream['others'])}.")
    rejected = stream.get("rejected") or {}
    if rejected.get("foreign"):
        found.append(
            f"{rejected['foreign']} messages name paths that the mapping does not know, last:"
            f" {stream.get('foreign')}; see 'fsd doctor'."
        )
    if rejected.get("malformed") or rejected.get("unfamiliar"):
        found.append(
            f"{rejected.get('malformed', 0)} messages could not be read, {rejected.get('unfamiliar', 0)} said"
            f" something unknown; they are in {stream.get('rejected_file')}."
        )
    return found


def _counts(errors: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in errors.items()) if isinstance(errors, dict) else ""


def read(run_dir: Path) -> Status:
    """Read all status files and look whether their writers live."""
    supervisor = read_json(run_dir / "supervisor.json")
    watcher = read_json(run_dir / "watcher.json")
    jobs = read_json(run_dir / "jobs.json")
    fresh = jobs.get("running") and time.time() - float(jobs.get("written", 0)) <= FRESH
    age = max(0.0, time.time() - float(watcher.get("written", 0))) if watcher else None
    return Status(
        supervisor,
        watcher,
        bool(supervisor.get("running")) and process_runs(int(supervisor.get("pid", 0))),
        bool(watcher.get("running"))
        and age is not None
        and age <= FRESH
        and process_runs(int(watcher.get("pid", 0))),
        age,
        jobs if fresh and process_runs(int(jobs.get("pid", 0))) else {},
    )
