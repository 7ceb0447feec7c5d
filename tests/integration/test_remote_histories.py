"""Random histories: the same operations in a remote mount and in a plain directory, while the server and the mount are
killed. In the end the mount, the server's tree and the plain directory are the same."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.remote import RemoteMount
from tests.support.seeds import seed_of
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for

pytestmark = pytest.mark.root
STEPS = 400
Both = Callable[[Callable[[Path], object]], None]


class History:
    """Operations chosen at random, done twice. What fails has to fail in both with the same errno."""

    def __init__(self, seed: int, *tops: Path) -> None:
        self.random = random.Random(seed)
        self.tops = tops

    def step(self) -> None:
        choices = [
            self.write, self.write, self.write, self.patch, self.append, self.truncate, self.save, self.rename,
            self.rename, self.unlink, self.mkdir, self.rmdir, self.read, self.listing,
        ]  # fmt: skip
        self.random.choice(choices)()

    def path(self) -> str:
        """A name in one of few folders, so that operations meet."""
        folder = self.random.choice(["", "a/", "b/", "a/c/", "a/c/d/"])
        return folder + self.random.choice("abcdefgh")

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 100, 5000, 300_000]))

    def both(self, work: Callable[[Path], object]) -> None:
        said = []
        for top in self.tops:
            try:
                said.append(work(top))
            except OSError as error:
                said.append(("errno", error.errno))
        assert said[0] == said[1], f"{work}: {str(said[0])[:200]} and {str(said[1])[:200]}"

    def write(self) -> None:
        path, data = self.path(), self.data()
        self.both(lambda top: (top / path).write_bytes(data))

    def append(self) -> None:
        path, data = self.path(), self.data()

        def work(top: Path) -> None:
            with open(top / path, "ab") as file:
                file.write(data)

        self.both(work)

    def patch(self) -> None:
        path, data, at = self.path(), self.data(), self.random.randrange(10_000)

        def work(top: Path) -> None:
            with open(top / path, "r+b") as file:
                file.seek(at)
                file.write(data)

        self.both(work)

    def truncate(self) -> None:
        path, size = self.path(), self.random.choice([0, 10, 7000])
        self.both(lambda top: os.truncate(top / path, size))

    def save(self) -> None:
        """As editors do it."""
        path, data = self.path(), self.data()

        def work(top: Path) -> None:
            (top / (path + ".new")).write_bytes(data)
            try:
                (top / (path + ".new")).replace(top / path)
            except OSError:
                (top / (path + ".new")).unlink()
                raise

        self.both(work)

    def rename(self) -> None:
        one, two = self.path(), self.path()
        self.both(lambda top: (top / one).rename(top / two) and None)

    def unlink(self) -> None:
        path = self.path()
        self.both(lambda top: (top / path).unlink())

    def mkdir(self) -> None:
        path = self.path()
        self.both(lambda top: (top / path).mkdir())

    def rmdir(self) -> None:
        path = self.path()
        self.both(lambda top: (top / path).rmdir())

    def read(self) -> None:
        path = self.path()
        self.both(lambda top: (top / path).read_bytes())

    def listing(self) -> None:
        path = self.path()
        self.both(lambda top: sorted(os.listdir(top / path)))


def test_a_random_history(server: Server, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seed = seed_of(pytestconfig)
    print(f"seed {seed}, {STEPS} steps")
    server.fsd("space", "create", "team")
    tree, plain = server.data / "projects/team", tmp_path / "plain"
    plain.mkdir()
    mount = RemoteMount(
        server, tmp_path / "mnt", "--write-back", "0.1", "--cache-size", "2M", "--timeout", "10"
    ).start()
    history = History(seed, mount.path / "team", plain)
    try:
        for number in range(STEPS):
            history.step()
            if number == STEPS // 4:
                mount.uploaded()
            if number == STEPS // 3:
                mount.kill()
                mount.start()
            if number == STEPS // 2:
                server.kill()
                server.start()
                wait_for(
                    lambda: mount.told()["server"] == "there" and mount.told()["events"], what="the server"
                )
        mount.uploaded()
        agree(lambda: same(mount.path / "team", plain))
        same(tree, plain)
    finally:
        mount.close()
    assert mount.complaints() == []
    shutil.rmtree(plain)


def same(one: Path, two: Path) -> None:
    done = subprocess.run(["diff", "-r", "-x", ".fsd", one, two], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:2000]
