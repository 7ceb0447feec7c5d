"""What a crowd costs: idle connections, slow clients and listeners beside the work."""

from __future__ import annotations

import base64
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts.benchmarks import dav, fsd_server
from scripts.benchmarks.dav import BODY, Target
from scripts.benchmarks.dav_load import Request
from scripts.benchmarks.table import Row

IDLE, SLOW, LISTENERS = 1000, 100, 5000


def dav_crowd(base: Path) -> list[Row]:
    """GET at 8 connections alone, and beside 1,000 idle and 100 slow connections; 5,000 listeners."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    with dav.fsd(base / "fsd", "fsd", ("--config", str(_config(base)))) as target:
        get = Request("GET", "/f4k")
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(3):
            rates[False].append(dav.measure(base, target, get, 8).cpu_us)
            with _crowd(target):
                rates[True].append(dav.measure(base, target, get, 8).cpu_us)
        alone, beside = min(rates[False]), min(rates[True])
        text = f"{alone:.0f} µs alone, {beside:.0f} µs beside them ({beside / alone - 1:+.0%})"
        figure = f"CPU of a GET beside {IDLE:,} idle and {SLOW} slow connections"
        rows.append(Row(figure, "< 10 % more", text, beside < alone * 1.1))
        rows.append(_listeners(target))
    return rows


def _config(base: Path) -> Path:
    path = base / "fsd.toml"
    path.write_text("[http]\nlisteners = 0\n")
    return path


def _head(target: Target, line: str, *headers: str) -> bytes:
    token = base64.b64encode(f"{target.auth[0]}:{target.auth[1]}".encode()).decode()
    lines = [line, "Host: localhost", f"Authorization: Basic {token}", *headers, "", ""]
    return "\r\n".join(lines).encode()


@contextmanager
def _crowd(target: Target) -> Iterator[None]:
    """Kept-alive connections that are silent; uploads and downloads that move a few bytes a second."""
    sockets, over = [], threading.Event()
    for _ in range(IDLE):
        sock = socket.create_connection(("127.0.0.1", target.port))
        sock.sendall(_head(target, f"GET {target.prefix}/f4k HTTP/1.1"))
        left = 1
        while left > 0:
            left = 0 if len(sock.recv(65536)) > len(BODY) else 1
        sockets.append(sock)
    slow = []
    for number in range(SLOW):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect(("127.0.0.1", target.port))
        if number % 2:
            length = "Content-Length: 1000000"
            sock.sendall(_head(target, f"PUT {target.prefix}/put/slow{number} HTTP/1.1", length))
        else:
            sock.sendall(_head(target, f"GET {target.prefix}/large HTTP/1.1"))
        slow.append((number % 2, sock))

    def dribble() -> None:
        while not over.wait(1.0):
            for sends, sock in slow:
                with suppress(OSError):
                    sock.sendall(b"x" * 2000) if sends else sock.recv(4000)

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for sock in (*sockets, *(each for _, each in slow)):
            sock.close()


def _listeners(target: Target) -> Row:
    assert target.fsd is not None
    worker = target.fsd.child("web")
    before, threads = fsd_server.pss(target.fsd, worker), _threads(worker)
    found = []
    for _ in range(LISTENERS):
        sock = socket.create_connection(("127.0.0.1", target.port))
        sock.sendall(_head(target, "GET /events HTTP/1.1"))
        found.append(sock)
    for sock in found:
        data = b""
        while b": hello" not in data:
            data += sock.recv(4096)
    time.sleep(1.0)
    held = fsd_server.pss(target.fsd, worker) - before
    started = time.perf_counter()
    (target.root / "put" / "news").write_bytes(b"x")
    times = []
    for sock in found:
        data = b""
        while b'"news"' not in data:
            data += sock.recv(4096)
        times.append(time.perf_counter() - started)
    more = _threads(worker) - threads
    for sock in found:
        sock.close()
    text = (
        f"{held / LISTENERS * 1024:.1f} KiB each, {more} threads more; a direct write reached the first after "
        f"{times[0] * 1000:.0f} ms, the last after {times[-1] * 1000:.0f} ms"
    )
    return Row(f"{LISTENERS:,} listeners in one process", "a socket each", text, more <= 2)


def _threads(pids: list[int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids)
