"""The carriers that the suite runs through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.carriers import Carrier, CoreCarrier, DavCarrier
from tests.support.serving import Server
from tests.support.worlds import make_space, sweep


@pytest.fixture(params=["core", "dav"])
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
    dav = server.space_dav(record)
    yield DavCarrier(dav, str(record["path"]).encode())
    dav.close()
