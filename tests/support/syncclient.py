"""The real desktop clients' command-line programs, from Debian's packages, on a local folder beside a server."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from tests.support.serving import ADMIN, ADMIN_PASSWORD, Server

CLIENTS = ("owncloudcmd", "nextcloudcmd")
_PARTIAL = re.compile(r"^\..*\.~[0-9a-f]+$")
_OWN = (".sync", "._sync", ".owncloudsync", ".nextcloudsync")


class SyncClient:
    """One client program with its own folder and its own memory of earlier runs. The server has one worker."""

    def __init__(
        self, program: str, server: Server, base: Path, folder: str = "local", *, space: str | None = None
    ) -> None:
        """`space`: the id of the space to sync (owncloudcmd only); None is the user's own."""
        self.program, self.server, self._base = program, server, base
        self._where = ["--davpath", f"/dav/spaces/{space}/"] if space is not None else []
        self.local = base / folder
        self.local.mkdir(parents=True)
        self._excludes, self._log = base / "excludes", base / f"{folder}.log"
        self._excludes.write_text("*.nosync\n")

    def sync(self) -> list[tuple[str, str]]:
        """One run; what it asked the server to do, as (method, path) of the audit trail: listings are not in it."""
        before = len(self._trail())
        code, said = self.run()
        assert code == 0, said
        return self._trail()[before:]

    def attempt(self) -> tuple[int, list[tuple[str, str]], str]:
        """One run: its exit code, what it asked the server to do, and what it said if it failed."""
        before = len(self._trail())
        code, said = self.run()
        return code, self._trail()[before:], said if code else ""

    def run(self, timeout: float = 120) -> tuple[int, str]:
        """One run, whatever comes of it: its exit code and what it said last."""
        running = self.start()
        try:
            code = running.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.program} does not end: {self._said()}") from None
        finally:
            running.kill()
            running.wait()
        return code, self._said()

    def forget_errors(self) -> None:
        """As a person who asks for another try: a client lets alone for a while, longer each time, what has failed."""
        for path in self.local.glob(".*sync*.db"):
            with closing(sqlite3.connect(path)) as db, db:
                db.execute("DELETE FROM blacklist")

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def start(self) -> subprocess.Popen[bytes]:
        """Begin a run, which the caller ends."""
        command = [self.program, "--non-interactive", "--exclude", str(self._excludes), "-h"]
        command += [*self._where, "--user", ADMIN, "--password", ADMIN_PASSWORD, str(self.local)]
        environment = {
            **os.environ,
            "HOME": str(self._base),
            "XDG_RUNTIME_DIR": str(self._base),
            "QT_QPA_PLATFORM": "offscreen",
        }
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                [*command, f"http://127.0.0.1:{self.server.port}"], env=environment, stdout=log, stderr=log
            )

    def _trail(self) -> list[tuple[str, str]]:
        path = self.server.state / "audit.log"
        if not path.exists():
            return []
        # What was read may wait for a while in the server; a line about a change takes it along.
        self.server.dav("/dav/files/admin").request("DELETE", b"never there")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(line["event"], line["target"].lstrip("/")) for line in lines if line["outcome"] == "ok"]

    def tree(self) -> dict[str, tuple[bytes | None, int]]:
        """The local folder: content (None for a folder) and mtime in seconds (0 for a folder) by path."""
        return tree(self.local)


def tree(root: Path) -> dict[str, tuple[bytes | None, int]]:
    """Content and mtime in seconds of everything below a directory, without what clients and fsd keep there."""
    found: dict[str, tuple[bytes | None, int]] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        # A client that was killed leaves what it was downloading.
        if relative.parts[0] == ".fsd" or relative.name.startswith(_OWN) or _PARTIAL.search(relative.name):
            continue
        if path.is_dir():
            found[str(relative)] = (None, 0)
        else:
            found[str(relative)] = (path.read_bytes(), int(path.stat().st_mtime))
    return found


__all__ = ["ADMIN", "CLIENTS", "SyncClient", "tree"]
