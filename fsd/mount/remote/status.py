"""How a remote mount is doing, in a file beside its cache: written by its daemon, read by `fsd mount --status`."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from fsd.mount.remote.client import Client
    from fsd.mount.remote.contents import Contents
    from fsd.mount.remote.mounted import Plan
    from fsd.mount.remote.progress import Progress
    from fsd.mount.remote.sync import Sync
    from fsd.mount.remote.uploads import Uploader

FILE = "status.json"
EVERY = 0.25
_MOST = 100
"""Waiting files told by name; those with an error first."""


class Status:
    """Tells of one mount."""

    def __init__(
        self,
        plan: Plan,
        client: Client,
        sync: Sync,
        uploader: Uploader,
        contents: Contents,
        progress: Progress,
    ) -> None:
        self._plan, self._client, self._sync = plan, client, sync
        self._uploader, self._contents, self._progress = uploader, contents, progress
        self._since = time.time()
        self._told: object = None

    async def run(self) -> None:
        """Write it whenever something changed, for ever."""
        while True:
            await trio.sleep(EVERY)
            waiting = self._uploader.waiting
            now = (
                self._progress.changes, len(waiting), self._uploader.bytes, self._client.away, self._sync.live,
                self._contents.bytes, len(self._uploader.conflicts),
            )  # fmt: skip
            if now != self._told:
                self._told = now
                self.write()

    def write(self, *, ended: bool = False) -> None:
        """Write it now; a full disk is no reason to end."""
        data = json.dumps(self._tell(ended)).encode("utf-8", "replace")
        new = self._plan.cache / f"{FILE}.new"
        try:
            new.write_bytes(data)
            new.replace(self._plan.cache / FILE)
        except OSError:
            new.unlink(missing_ok=True)

    def _tell(self, ended: bool) -> dict[str, Any]:
        changes = sorted(self._uploader.waiting.values(), key=lambda change: change.error is None)
        return {
            "url": self._plan.url,
            "user": self._plan.user,
            "mountpoint": None if ended else self._plan.mountpoint,
            "cache": str(self._plan.cache),
            "pid": None if ended else os.getpid(),
            "since": self._since,
            "server": "away" if self._client.away else "there",
            "why": self._client.away,
            "events": self._sync.live,
            "waiting": {"files": len(changes), "bytes": self._uploader.bytes},
            "changes": [
                {
                    "path": change.row().path,
                    "size": change.size,
                    "error": change.error.strerror if change.error is not None else None,
                    "tries": change.tries,
                    "open": bool(change.node.writers),
                }
                for change in changes[:_MOST]
            ],
            "running": self._progress.running(),
            "done": self._progress.done,
            "conflicts": self._uploader.conflicts[-_MOST:],
            "cached": {"bytes": self._contents.bytes, "limit": self._contents.limit},
        }


def read_all(top: Path) -> list[dict[str, Any]]:
    """The mounts whose caches are in a directory, and those that are not mounted but have something to upload."""
    found = []
    for place in sorted(top.iterdir()) if top.is_dir() else []:
        told = read(place)
        if told is not None and (told["pid"] is not None or told["waiting"]["files"]):
            found.append(told)
    return found


def read(place: Path) -> dict[str, Any] | None:
    """How the mount with this cache is doing; None if there never was one."""
    try:
        told: dict[str, Any] = json.loads((place / FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not _alive(place):
        told |= {"pid": None, "mountpoint": None, "running": []}
        told["waiting"]["files"] = _count(place)
    return told


def _alive(place: Path) -> bool:
    try:
        fd = os.open(place / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _count(place: Path) -> int:
    """Changes that a mount which is gone left behind."""
    try:
        db = sqlite3.connect(f"file:{place / 'ledger.db'}?mode=ro", uri=True)
    except sqlite3.Error:
        return 0
    try:
        return int(db.execute("SELECT count(*) FROM pending").fetchone()[0])
    except sqlite3.Error:
        return 0
    finally:
        db.close()
