"""Content through a mount: a random exerciser, holes and ranges. With kernel passthrough, without, and on a machine
that has no compiler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.fsx import Exerciser
from tests.support.mounting import Mount, below
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root


def test_which_way_it_is(mount: Mount, request: pytest.FixtureRequest) -> None:
    """The three ways really are three."""
    way = request.node.callspec.params["mount"]
    wait_for(lambda: "mounted at" in mount.log())
    assert ("itself" in mount.log()) == (way == "on"), mount.log()
    assert ("mounting without passthrough" in mount.log()) == (way == "none"), mount.log()


@pytest.mark.parametrize("seed", range(3))
def test_a_random_exerciser(mount: Mount, here: Path, request: pytest.FixtureRequest, seed: int) -> None:
    steps = 5000 if request.config.getoption("--big") else 500
    player = Exerciser(
        here / f"f{seed}", below(mount, here / f"f{seed}"), request.config.getoption("--seed") or seed
    )
    player.run(steps)
    assert bool(player.unsupported) == (request.node.callspec.params["mount"] == "none")


def test_holes_and_ranges(mount: Mount, here: Path, request: pytest.FixtureRequest) -> None:
    with open(here / "sparse", "w+b", buffering=0) as file, open(here / "copy", "w+b", buffering=0) as copy:
        os.pwrite(file.fileno(), b"x" * 4096, 1 << 20)
        assert os.copy_file_range(file.fileno(), copy.fileno(), 4096, 1 << 20, 10) == 4096
        assert (here / "copy").read_bytes() == bytes(10) + b"x" * 4096
        if request.node.callspec.params["mount"] != "none":
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 20
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0
