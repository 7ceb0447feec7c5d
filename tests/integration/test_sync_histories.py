"""Two desktop clients, rclone, and a program that writes straight into the tree, all at one tree, at random; clients
and server are killed in mid-transfer. In the end all trees are the same, nothing is left to transfer, nothing was lost.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from itertools import count
from pathlib import Path

import pytest

from tests.support.replicas import Ledger, Replica, every_file
from tests.support.seeds import seed_of
from tests.support.serving import ADMIN, ADMIN_PASSWORD, Server
from tests.support.syncclient import CLIENTS, SyncClient, tree
from tests.support.waiting import wait_for

ROUNDS = 4
EDITS = 30
"""Operations in each tree and round."""
_MOST_RUNS = 8
Found = dict[str, tuple[bytes | None, int]]


class World:
    """The server, its tree on disk, the clients' trees, and rclone's source and mirror."""

    def __init__(self, base: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = Server(base, workers=2).start()
        self.tree = self.server.data / "users" / ADMIN
        # Where no file at all stays as it was, Nextcloud's client asks a person, and waits for the answer.
        (self.tree / "stays").write_bytes(b"as it is")
        self.ledger, when = Ledger(), count(1_400_000_000)
        self.clients = [SyncClient(program, self.server, base / program) for program in CLIENTS]
        self.mirror, self.source = base / "mirror", base / "source"
        roots = [self.tree, *(client.local for client in self.clients), self.source]
        self.source.mkdir()
        self.replicas = [
            Replica(root, base / f"graves{number}", self.ledger, self.random.randrange(1 << 30), when)
            for number, root in enumerate(roots)
        ]
        self.kills = {"client": 0, "server": 0}

    @property
    def operations(self) -> int:
        return sum(replica.operations for replica in self.replicas)

    def rclone(self, *command: str | Path) -> str:
        secret = subprocess.run(
            ["rclone", "obscure", ADMIN_PASSWORD], capture_output=True, text=True, check=True
        )
        url = f"http://127.0.0.1:{self.server.port}/remote.php/webdav"
        done = subprocess.run(
            [
                *("rclone", "--config", os.devnull, "--webdav-vendor", "owncloud", "--webdav-url", url, "-v"),
                *("--webdav-user", ADMIN, "--webdav-pass", secret.stdout.strip(), "--retries", "8"),
                *(str(part) for part in command),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    def round(self) -> None:
        """Edits everywhere; then each client runs, while the program goes on writing."""
        for replica in self.replicas:
            replica.edit(EDITS)
        for client in self.random.sample(self.clients, len(self.clients)):
            ending = threading.Event()
            disk = self.replicas[0]
            writer = threading.Thread(target=self._write_on, args=(disk, ending))
            writer.start()
            try:
                self._run(client, self.random.choice(("whole", "whole", "client", "server")))
            finally:
                ending.set()
                writer.join()
            self.ledger.note_kept(every_file(self.tree / ".fsd/versions", self.tree / ".fsd/trash"))
        if self.random.random() < 0.5:
            self.rclone("copy", self.source, ":webdav:from rclone", "--create-empty-src-dirs")

    def _write_on(self, replica: Replica, ending: threading.Event) -> None:
        for _ in range(EDITS):
            replica.edit(1)
            if ending.wait(0.05):
                return

    def _run(self, client: SyncClient, ends: str) -> None:
        if ends == "whole":
            client.run()
            return
        running = client.start()
        transfers = self._transfers() + self.random.randrange(1, 20)
        wait_for(
            lambda: running.poll() is not None or self._transfers() >= transfers,
            what="a client at work",
            timeout=180,
        )
        self.kills[ends] += 1
        if ends == "server":
            self.server.kill()
            self.server.start()
        running.kill()
        running.wait()

    def _transfers(self) -> int:
        """Lines of the audit so far: what was asked for and done."""
        try:
            return (self.server.state / "audit.log").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def settle(self) -> None:
        """Run the clients until neither has anything to do."""
        self.rclone("sync", self.source, ":webdav:from rclone", "--create-empty-src-dirs")
        done: list[tuple[int, list[tuple[str, str]], str]] = []
        for _ in range(_MOST_RUNS):
            for client in self.clients:
                client.forget_errors()
            done = [client.attempt() for client in self.clients]
            if not any(trail for _, trail, _ in done):
                break
        else:
            raise AssertionError(f"the clients do not come to rest: {done}")
        for client, (code, _, said) in zip(self.clients, done, strict=True):
            # To ownCloud's client a conflict copy that nobody has looked after is a failure.
            assert code == 0 or any("conflict" in path for path in tree(client.local)), said
        self.rclone("sync", ":webdav:", self.mirror, "--create-empty-src-dirs")

    def judge(self) -> None:
        """All trees are the same, mtimes included; rclone has nothing to do; nothing is lost; the index is right."""
        there = tree(self.tree)
        for client in self.clients:
            assert _differences(_without_conflicts(client.local, there), there) == {}, client.program
        assert _differences(tree(self.mirror), there) == {}, "rclone"
        below = {
            path.partition("/")[2]: found for path, found in there.items() if path.startswith("from rclone/")
        }
        assert _differences(tree(self.source), below) == {}
        said = self.rclone("sync", ":webdav:", self.mirror, "--create-empty-src-dirs")
        assert "Copied" not in said and "Deleted" not in said, said
        # What a client replaced or deleted without having seen it is in the trash or among the versions.
        places = (self.tree, *(client.local for client in self.clients), self.source)
        lost = self.ledger.lost(every_file(*places))
        assert not lost, f"{len(lost)} contents, among them {sorted(lost.items())[:5]}"
        checked = self.server.run("check")
        assert checked.returncode == 0, checked.stdout

    def close(self) -> None:
        self.server.close()


def _without_conflicts(root: Path, there: Found) -> Found:
    """A client's tree without conflict copies, which stay where they were made, as do the folders that hold them."""
    found = tree(root)
    copies = [path for path in found if "conflict" in path]
    return {
        path: value
        for path, value in found.items()
        if path not in copies
        and not (path not in there and value[0] is None and any(c.startswith(path + "/") for c in copies))
    }


def _differences(one: Found, two: Found) -> object:
    return {
        path: (_short(one.get(path)), _short(two.get(path)))
        for path in sorted(one.keys() | two.keys())
        if one.get(path) != two.get(path)
    }


def _short(found: tuple[bytes | None, int] | None) -> object:
    return found if found is None or found[0] is None else (found[0][:60], len(found[0]), found[1])


@pytest.mark.timeout(7200)
def test_a_random_history(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    for program in (*CLIENTS, "rclone"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed; scripts/test installs it")
    seed = seed_of(pytestconfig)
    until = time.monotonic() + (pytestconfig.getoption("--seconds") or 0)
    world = World(tmp_path, seed)
    print(f"seed {seed}")
    try:
        rounds = 0
        while rounds < ROUNDS or time.monotonic() < until:
            world.round()
            rounds += 1
            if rounds % 10 == 0 or rounds == ROUNDS // 2:
                world.settle()
                world.judge()
                world.random.choice(world.replicas).remove_folder()
                print(f"{world.operations} operations, killed {world.kills}", flush=True)
        world.settle()
        world.judge()
        print(f"{world.operations} operations in {rounds} rounds, killed {world.kills}")
    finally:
        world.close()
    assert not world.server.complaints()
