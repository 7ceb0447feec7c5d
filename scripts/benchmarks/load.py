"""A load generator: raw sockets in processes of their own, the same for every server."""

from __future__ import annotations

import base64
import multiprocessing
import socket
import time
from collections.abc import Callable


class Connection:
    """One kept-alive HTTP/1.1 connection that does as little as possible."""

    def __init__(self, port: int, user: str = "", password: str = "") -> None:
        self.port = port
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.auth = f"Authorization: Basic {token}\r\n" if user else ""
        self._socket: socket.socket | None = None

    def ask(self, method: str, target: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
        """Status and body of one request; opens the connection where it must."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{self.auth}{headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body)
        return self._answer(self._socket)

    def _answer(self, sock: socket.socket) -> tuple[int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                raise ConnectionError("closed while answering")
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        status = int(head[9:12])
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            while not body.endswith(b"0\r\n\r\n"):
                body += sock.recv(65536)
        elif b"content-length:" in lowered:
            length = int(lowered.split(b"content-length:")[1].split(b"\r\n")[0])
            while len(body) < length:
                body += sock.recv(1 << 20)
        elif status not in (204, 304):
            while more := sock.recv(1 << 20):
                body += more
        framed = any(word in lowered for word in (b"content-length:", b"transfer-encoding: chunked"))
        if b"connection: close" in lowered or not (framed or status in (204, 304)):
            sock.close()
            self._socket = None
        return status, body


Job = Callable[[Connection, int], None]


def _work(
    port: int, user: str, password: str, job: Job, worker: int, seconds: float, ready: object, out: object
) -> None:
    connection = Connection(port, user, password)
    job(connection, worker << 32)
    ready.wait()  # type: ignore[attr-defined]
    deadline = time.perf_counter() + seconds
    done = 0
    times: list[float] = []
    while (now := time.perf_counter()) < deadline:
        job(connection, (worker << 32) + done + 1)
        times.append(time.perf_counter() - now)
        done += 1
    out.put(times)  # type: ignore[attr-defined]


def rate(
    port: int, job: Job, *, connections: int, seconds: float, user: str = "", password: str = ""
) -> tuple[float, list[float]]:
    """Requests a second over all connections, and each one's duration in seconds."""
    context = multiprocessing.get_context("fork")
    ready, out = context.Barrier(connections), context.Queue()
    processes = [
        context.Process(target=_work, args=(port, user, password, job, number, seconds, ready, out))
        for number in range(connections)
    ]
    for process in processes:
        process.start()
    times = [value for _ in processes for value in out.get(timeout=seconds + 120)]
    for process in processes:
        process.join()
    return len(times) / seconds, times
