"""Fixtures that start a real server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ceph import Ceph, running
from tests.support.serving import Server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A CephFS of this session's own; up in some ten seconds."""
    with running(tmp_path_factory.mktemp("ceph") / "c") as cluster:
        yield cluster


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that other users of the machine can reach; the usual temporary ones are closed to them."""
    with tempfile.TemporaryDirectory(prefix="fsd-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """make_server(**options) -> a started Server; stopped at the end, its log must not complain."""
    made: list[Server] = []

    def make(
        name: str = "", *, started: bool = True, workers: int = 2, options: tuple[str, ...] = ()
    ) -> Server:
        server = Server(tmp_path / (name or f"server{len(made)}"), workers=workers, options=options)
        made.append(server)
        return server.start() if started else server

    yield make
    trouble = []
    for server in made:
        server.close()
        trouble += server.complaints()
    assert not trouble, "the server's log complains:\n" + "\n".join(trouble[:20])


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A running server of this test alone, with two workers."""
    return make_server()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server for the tests of one module; they must not disturb each other's spaces."""
    server = Server(tmp_path_factory.mktemp("shared"))
    server.start()
    yield server
    server.close()
    complaints = server.complaints()
    assert not complaints, "the server's log complains:\n" + "\n".join(complaints[:20])
