"""Power cuts, below the filesystem: what had reached the disk when the operation was stopped, and nothing else.

The world stands on an ext4 in a file. Copying that file while it is mounted gives what a disk would hold if power
went now: what was only in memory is missing, the journal has not been replayed. The copy is mounted in its place.
An operation that has answered must be there; one that was stopped must be old or new, whole, once replayed. By
default at every fourth call, with `--big` at each.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cases import ONE, Case
from tests.faults.disks import may_mount
from tests.faults.world import World
from tests.support import killpoints

pytestmark = [
    pytest.mark.skipif(not may_mount(), reason="needs the right to mount"),
    pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child"),
]

ANSWERED = [case for case in ONE if case.visible]
STOPPED = [
    case for case in ONE if case.name in ("put new", "put over", "move over file", "delete dir", "copy dir")
]


class Disk:
    """An image that is mounted at one place, and can be swapped for a copy of it."""

    def __init__(self, base: Path) -> None:
        self.at = base / "disk"
        self.at.mkdir()
        self.template, self.work, self.cut = (base / name for name in ("template", "work", "cut"))

    def mount(self, image: Path) -> None:
        subprocess.run(["mount", "-o", "loop", str(image), str(self.at)], check=True)

    def umount(self) -> None:
        if subprocess.run(["mountpoint", "-q", str(self.at)]).returncode == 0:
            subprocess.run(["umount", str(self.at)], check=True)

    def copy(self, src: Path, dst: Path) -> None:
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(src), str(dst)], check=True)

    def power_cut(self, world: World) -> None:
        """Go on with what is on the disk at this moment."""
        self.copy(self.work, self.cut)
        world.close()
        self.umount()
        self.mount(self.cut)


@pytest.fixture
def disk() -> Iterator[Disk]:
    # The images are in memory, where copying one costs next to nothing.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-power-") as base:
        made = Disk(Path(base))
        with open(made.template, "wb") as file:
            file.truncate(24 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(made.template)], check=True)
        try:
            yield made
        finally:
            subprocess.run(["umount", "-l", str(made.at)], capture_output=True)


@pytest.fixture
def world(disk: Disk, case: Case) -> Iterator[World]:
    """A world on the template; each run starts from a copy, with the same inodes and ids."""
    disk.mount(disk.template)
    made = World(disk.at, before=case.before)
    made.fresh()
    disk.umount()
    yield made
    made.close()


def start(disk: Disk, world: World) -> None:
    world.close()
    disk.umount()
    disk.copy(disk.template, disk.work)
    disk.mount(disk.work)


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: case.name.replace(" ", "-"))
def test_what_was_answered_is_on_the_disk(case: Case, disk: Disk, world: World) -> None:
    start(disk, world)
    case.operate(world.spaces)
    disk.power_cut(world)
    assert world.check(case.allowed) == 1
    world.preserved(*case.preserved)


@pytest.mark.parametrize("case", STOPPED, ids=lambda case: case.name.replace(" ", "-"))
def test_power_goes_before_each_call(
    case: Case, disk: Disk, world: World, request: pytest.FixtureRequest
) -> None:
    step = 1 if request.config.getoption("--big") else 4
    stops = killpoints.kill_at_each(
        world.opened,
        case.operate,
        fresh=lambda: start(disk, world),
        step=step,
        calls=killpoints.REACHING,
    )
    for stop in stops:
        disk.power_cut(world)
        try:
            world.check(case.allowed)
            world.preserved(*case.preserved)
        except AssertionError as error:
            raise AssertionError(
                f"{case.name}, power lost before call {stop.index} ({stop.call}): {error}"
            ) from error
    assert shutil.disk_usage(disk.at).free > 0
