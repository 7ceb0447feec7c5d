"""The board of counters, and what /metrics says."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.service import health, metrics
from fsd.service.options import Address
from tests.unit.test_status import space, supervise, write


@pytest.fixture
def board() -> Iterator[metrics.Board]:
    metrics.prepare(2)
    assert metrics.board is not None
    yield metrics.board
    metrics.board = None


def test_without_a_board_nothing_happens():
    assert metrics.board is None
    metrics.use(1)
    metrics.observe_request("GET", 200, 0.1)


def test_counts_of_all_processes_add_up(board: metrics.Board, tmp_path: Path):
    children = []
    for row in range(2):
        pid = os.fork()
        if pid == 0:
            metrics.use(row)
            for _ in range(100):
                metrics.observe_request("PROPFIND", 207, 0.003)
            metrics.observe_request("BREW", 418, 99.0)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    text = scrape(tmp_path)
    assert 'fsd_http_requests_total{class="2xx",method="PROPFIND"} 200.0' in text
    assert 'fsd_http_requests_total{class="4xx",method="other"} 2.0' in text
    assert 'fsd_http_requests_seconds_bucket{le="0.005"} 200.0' in text
    assert 'fsd_http_requests_seconds_bucket{le="+Inf"} 202.0' in text
    assert "fsd_http_requests_seconds_count 202.0" in text


def test_odd_codes_do_no_harm(board: metrics.Board):
    for code in (0, 99, 600, 999):
        board.request("GET", code, -1.0)
    assert sum(board.totals()[: len(metrics.METHODS) * len(metrics.CLASSES)]) == 4


def scrape(run: Path) -> str:
    return health.render_metrics(run)()[1].decode()


def test_the_watchers_numbers(tmp_path: Path):
    supervise(tmp_path, watcher=os.getpid())
    told = space(
        bytes=42, lag=0.5, overflows=2, watched=7, unwatched=1, passes={"names": 3}, errors={"EIO": 1}
    )
    write(tmp_path, a=told, b=space(id="c$d", state="unavailable", sweep={"done": 1, "total": 5}))
    text = scrape(tmp_path)
    for line in (
        'fsd_space_bytes{space="a$b"} 42.0',
        'fsd_watch_overflows_total{space="a$b"} 2.0',
        'fsd_reconciled_total{kind="names",space="a$b"} 3.0',
        'fsd_reconcile_errors_total{error="EIO",space="a$b"} 1.0',
        'fsd_space_available{space="c$d"} 0.0',
        'fsd_scan_left_directories{space="c$d"} 4.0',
        'fsd_up{process="watcher"} 1.0',
        "fsd_watch_up 1.0",
    ):
        assert line in text, text


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_the_operations_address(tmp_path: Path):
    write(tmp_path, a=space())
    supervise(tmp_path, watcher=os.getpid())
    server = health.start(Address("127.0.0.1", 0), tmp_path, health.render_metrics(tmp_path))
    port = server.server_address[1]
    try:
        assert get(port, "/healthz") == (200, b'{"status": "ok", "problems": []}\n')
        assert get(port, "/readyz?x=1")[0] == 200
        assert b"fsd_watch_up" in get(port, "/metrics")[1]
        assert get(port, "/metrics", "HEAD") == (200, b"")
        assert get(port, "/other")[0] == 404
        assert get(port, "/healthz", "POST")[0] == 501
        with pytest.raises(OSError, match="in use"):
            health.start(Address("127.0.0.1", port), tmp_path, health.render_metrics(tmp_path))
    finally:
        server.shutdown()
        server.server_close()
