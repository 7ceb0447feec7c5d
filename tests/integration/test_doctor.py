"""`fsd doctor` on trees that others have written: each misfit is found, and its command, run as it stands, mends it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_shared_space import INSTRUMENT, LAB, SERVICE, own
from tests.support.hung import hung_mount
from tests.support.serving import Server

pytestmark = pytest.mark.root


class Site:
    """One adopted tree; commands run as SERVICE, those that doctor prints as root."""

    def __init__(self, base: Path, *adopt: str) -> None:
        self.server = Server(base / "site")
        self.server.state.mkdir()
        self.root = base / "site/data/the lab's tree"
        self.root.mkdir()
        own(base / "site", SERVICE)
        self.server.become(SERVICE, LAB)
        self.server.fsd("init", str(self.server.data))
        self.server.fsd("space", "adopt", str(self.root), "--name", "lab", *adopt)
        for above in (base, base / "site", base / "site/data"):
            os.chmod(above, 0o755)

    def doctor(self) -> dict[str, dict[str, Any]]:
        """What it says of the space, by kind, without what is fine."""
        done = self.server.run("doctor", "--json")
        assert done.stdout, done.stderr
        told = json.loads(done.stdout)
        assert done.returncode == (3 if any(each["level"] == "problem" for each in told) else 0)
        assert all(each["todo"] for each in told if each["level"] != "ok")
        return {
            each["probe"].removeprefix("space 'lab', "): each
            for each in told
            if each["probe"].startswith("space 'lab'") and each["level"] != "ok"
        }

    def mend(self, told: dict[str, dict[str, Any]]) -> None:
        """Run every command as it was printed."""
        for each in told.values():
            subprocess.run(["bash", "-ec", each["todo"]], check=True, cwd="/")


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    """A tree of the group that is as it should be, and is again after each test."""
    with tempfile.TemporaryDirectory(prefix="fsd-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        site = Site(Path(name), "--group", str(LAB))
        site.mend(site.doctor())
        assert site.doctor() == {}
        (site.root / "run 1").mkdir()
        (site.root / "run 1" / "data").write_text("x")
        os.chown(site.root / "run 1", INSTRUMENT, -1)
        os.chown(site.root / "run 1" / "data", INSTRUMENT, -1)
        assert site.doctor() == {}, "what is made in it fits"
        yield site


def set_list(path: Path, *arguments: str) -> None:
    subprocess.run(["setfacl", *arguments, str(path)], check=True)


def closed_directory(root: Path) -> None:
    set_list(root / "run 1", "-b", "-k")
    os.chown(root / "run 1", INSTRUMENT, INSTRUMENT)
    os.chmod(root / "run 1", 0o700)


def closed_file(root: Path) -> None:
    set_list(root / "run 1/data", "-b")
    os.chmod(root / "run 1/data", 0o600)


def other_group(root: Path) -> None:
    os.chown(root / "run 1", -1, INSTRUMENT)


def no_setgid(root: Path) -> None:
    os.chmod(root / "run 1", 0o770)


def closed_to_group(root: Path) -> None:
    set_list(root / "run 1/data", "-b")
    os.chmod(root / "run 1/data", 0o644)


def no_default(root: Path) -> None:
    set_list(root / "run 1", "-k")


def narrow_default(root: Path) -> None:
    set_list(root / "run 1", "-m", "d:g::r-x,d:m::r-x")


def no_way(root: Path) -> None:
    os.chmod(root.parent, 0o700)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("closed directories", closed_directory), ("closed files", closed_file), ("group", other_group),
        ("setgid", no_setgid), ("group access", closed_to_group), ("default ACL", no_default),
        ("narrow default ACL", narrow_default), ("way", no_way),
    ],
)  # fmt: skip
def test_each_misfit(shared: Site, kind: str, damage: Callable[[Path], None]) -> None:
    damage(shared.root)
    found = shared.doctor()
    assert kind in found, found
    assert kind == "way" or "run 1" in found[kind]["found"] and "looked at" in found[kind]["found"]
    shared.mend(found)
    if left := shared.doctor():  # what was closed may hide more
        shared.mend(left)
        assert shared.doctor() == {}
    assert oct(os.stat(shared.root / ".fsd").st_mode & 0o077) == "0o0", "the internals stay closed"


def test_a_tree_that_is_nobodys_group(open_place: Path) -> None:
    """Without a group the service alone has to be let in."""
    site = Site(open_place)
    (site.root / "theirs").mkdir()
    (site.root / "theirs/file").write_text("x")
    for path in ("theirs/file", "theirs"):
        os.chown(site.root / path, INSTRUMENT, INSTRUMENT)
        os.chmod(site.root / path, 0o600 if path.endswith("file") else 0o700)
    found = site.doctor()
    assert "closed directories" in found and "u:4001" in found["closed directories"]["todo"]
    site.mend(found)
    if left := site.doctor():
        site.mend(left)
        assert site.doctor() == {}


def test_many_directories_take_bounded_time(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsd.core.sweep import Sweep
    from fsd.service import permissions
    from tests.support.worlds import make_space

    space = make_space(open_place)
    for n in range(300):
        os.mkdir(os.path.join(space.root, b"d%d" % n))
    sweep = Sweep(space)
    sweep.begin()
    assert sweep.step(60).finished
    os.chmod(space.root, 0o2770)
    monkeypatch.setattr(permissions, "DIRECTORIES", 100)
    told = {each.probe.partition(", ")[2]: each for each in permissions.probe(space)}
    assert "looked at 76 of 301 directories" in told["setgid"].found and "more" in told["setgid"].found
    assert told["setgid"].todo.startswith("find ")
    monkeypatch.setattr(permissions, "SECONDS", 0.0)
    assert any("looked at 0 of 301" in each.found for each in permissions.probe(space))
    space.close()


def test_storage_that_hangs_keeps_nobody(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(started=False)
    server.fsd("init", str(server.data))
    tree = tmp_path / "tree"
    tree.mkdir()
    server.fsd("space", "adopt", str(tree), "--name", "stuck")
    server.fsd("space", "create", "fine")
    with hung_mount(tree):
        for command in ("doctor", "status"):
            done = server.run(command, "--json", "--timeout", "1", timeout=60)
            assert done.returncode == 3 and "hangs" in done.stdout, done
            assert "fine" in done.stdout
