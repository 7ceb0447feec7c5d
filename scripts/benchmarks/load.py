"""A load generator: raw sockets in processes of their own, the same for every server."""

from __future__ import annotations

import base64
import multiprocessing
import socket
import threading
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
        """Status and body of one request; a connection that the server closed meanwhile is opened again once."""
        if self._socket is not None:
            try:
                return self._ask(method, target, body, headers)
            except ConnectionError:
                self._socket.close()
                self._socket = None
        return self._ask(method, target, body, headers)

    def _ask(self, method: str, target: str, body: bytes, headers: str) -> tuple[int, bytes]:
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
    times: list[float] | BaseException = []
    try:
        connection = Connection(port, user, password)
        job(connection, worker << 32)
        ready.wait(60)  # type: ignore[attr-defined]
        times = _repeat(connection, job, worker, time.perf_counter() + seconds)
    except BaseException as error:
        ready.abort()  # type: ignore[attr-defined]
        times = error
    out.put(times)  # type: ignore[attr-defined]


def _repeat(connection: Connection, job: Job, worker: int, deadline: float) -> list[float]:
    times: list[float] = []
    while (now := time.perf_counter()) < deadline:
        job(connection, (worker << 32) + len(times) + 1)
        times.append(time.perf_counter() - now)
    return times


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
    answers = [out.get(timeout=seconds + 60) for _ in processes]
    if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
        raise next(
            (error for error in failed if not isinstance(error, threading.BrokenBarrierError)), failed[0]
        )
    times = [value for answer in answers for value in answer]
    for process in processes:
        process.join()
    return len(times) / seconds, times
