"""A real `fsd mount http://…` in a process of its own, with a cache of its own, of a Server that runs or not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.mounting import Mount
from tests.support.serving import ADMIN, ADMIN_PASSWORD, Server
from tests.support.waiting import wait_for


class RemoteMount(Mount):
    """One mount of a user's spaces and its daemon. `cache` outlives it."""

    def __init__(
        self, server: Server, place: Path, *arguments: str, user: str = ADMIN, password: str = ADMIN_PASSWORD,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.cache = cache or place.with_name(place.name + ".cache")
        url = f"http://127.0.0.1:{server.port}/"
        super().__init__(server, place, "--user", user, "--cache", str(self.cache), *arguments, url)
        home = {
            "XDG_STATE_HOME": str(place.parent / "state"),
            "XDG_CONFIG_HOME": str(place.parent / "config"),
        }
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("FSD_")
        } | home | {"FSD_MOUNT_TOKEN": password}  # fmt: skip

    def _answers(self) -> bool:
        return (self.cache / "status.json").exists() and self.told()["pid"] == self.pid

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`fsd ARGUMENTS` as the same person."""
        return subprocess.run(
            [self.python, "-m", "fsd.cli.main", *arguments],
            capture_output=True, text=True, env=self.environment, timeout=60, **self.identity,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        """`fsd mount --status --json`."""
        done = self.command("mount", "--status", "--cache", str(self.cache), "--json")
        assert done.returncode in (0, 1), done.stderr
        (told,) = json.loads(done.stdout)
        return dict(told)

    def told(self) -> dict[str, Any]:
        """What the daemon wrote last of itself; cheaper to ask often."""
        return dict(json.loads((self.cache / "status.json").read_bytes()))

    def uploaded(self) -> None:
        """Wait until nothing waits for the server."""
        wait_for(lambda: not self._waiting(), timeout=60, what="all changes uploaded")

    def _waiting(self) -> bool:
        told = self.told()
        return bool(told["waiting"]["files"]) or any((self.cache / "pending").iterdir())


@contextmanager
def remotely(server: Server, place: Path, *arguments: str, **more: Any) -> Iterator[RemoteMount]:
    """A mount that serves; its log must not complain."""
    mount = RemoteMount(server, place, *arguments, **more)
    try:
        mount.start()
        yield mount
    finally:
        mount.close()
    assert not (found := mount.complaints()), "the mount's log complains:\n" + "\n".join(found[:20])
