"""A space mounted in each of the ways a mount can work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import WAYS, Mount, mounted
from tests.support.serving import Server


@pytest.fixture(scope="module", params=WAYS)
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One space, mounted as it is."""
    base = tmp_path_factory.mktemp("posix")
    server = Server(base)
    server.fsd("init")
    server.fsd("space", "create", "posix")
    with mounted(server, base / "mnt", "posix", way=request.param) as made:
        yield made


@pytest.fixture
def here(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the test's own, through the mount."""
    place = mount.path / request.node.originalname
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place
