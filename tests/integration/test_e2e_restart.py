"""Stopping and starting again, the way an administrator does."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.serving import Server


def test_restart_at_once_on_the_same_ports(make_server: Callable[..., Server]) -> None:
    """Connections that the old server closed linger in TIME_WAIT; they must not forbid the new one its ports."""
    server = make_server()
    for _ in range(3):
        assert server.ops("/healthz")[0] == 200
        assert server.dav("/dav/files/admin").propfind(b"", 0)
        assert server.stop() == 0
        server.start()
    assert server.dav("/dav/files/admin").propfind(b"", 0)
