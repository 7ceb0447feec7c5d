"""The carriers that the suite runs through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core.registry import Registry
from fsd.core.space import Space
from tests.conformance.carriers import Carrier, CoreCarrier, DavCarrier
from tests.conformance.mount_carrier import MountCarrier
from tests.support.mounting import Mount, mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for
from tests.support.worlds import make_space, sweep


@pytest.fixture(scope="module")
def shared_mount(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """All spaces of the module's server, mounted."""
    with mounted(shared_server, tmp_path_factory.mktemp("mount") / "all", "--all") as mount:
        yield mount


@pytest.fixture(params=["core", "dav", "mount"])
def carrier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Carrier]:
    """A carrier on an empty space of the test's own."""
    if request.param == "core":
        space = make_space(tmp_path / "space")
        sweep(space)
        yield CoreCarrier(space)
        space.close()
        return
    server: Server = request.getfixturevalue("shared_server")
    name = f"c{abs(hash(request.node.nodeid)):x}"[:20]
    server.fsd("space", "create", name)
    record = server.space(name)
    if request.param == "mount":
        mount: Mount = request.getfixturevalue("shared_mount")
        wait_for((mount.path / name).is_dir, what="the space in the mount")
        space = Space(Registry(server.state).get(record["id"]), server.state)
        yield MountCarrier(mount.path / name, space)
        space.close()
        return
    dav = server.space_dav(record)
    yield DavCarrier(dav, str(record["path"]).encode())
    dav.close()
