"""Load for the WebDAV figures: wrk for many small requests, one raw socket for large bodies; CPU of the servers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}

SCRIPT = """
wrk.method = "{method}"
wrk.headers["Authorization"] = "Basic {token}"
wrk.headers["User-Agent"] = "Mozilla/5.0 (Linux) mirall/5.3.1 (build 14018) (bench)"
wrk.headers["Accept"] = "*/*"
wrk.headers["Accept-Language"] = "en-GB,*"
wrk.headers["X-Request-ID"] = "0fa0e8a6-1f2b-4f6e-9c1f-6e2d1c1b8b60"
{headers}
wrk.body = {body}
local head, counter, stamp = "{target}", 0, "{stamp}"
local thread = 0
function setup(t) thread = thread + 1 t:set("id", thread) end
function request()
  if {numbered} then
    counter = counter + 1
    return wrk.format(nil, head .. stamp .. "-" .. id .. "-" .. counter)
  end
  return wrk.format(nil, head)
end
"""


@dataclass(frozen=True)
class Request:
    """What is asked again and again. `numbered`: each time under a new name."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    numbered: bool = False


@dataclass(frozen=True)
class Rate:
    """Requests a second, latencies in seconds, server CPU in microseconds a request, answers that were no success."""

    per_second: float
    p50: float
    p99: float
    cpu_us: float
    failed: int


def _quoted(data: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in data) + '"'


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert found, text
    return float(found[1]) * _UNITS[found[2]]


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found, queue = [pid], [pid]
    while queue:
        for task in Path(f"/proc/{queue.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                below = [int(child) for child in task.read_text().split()]
                found += below
                queue += below
    return found


def cpu(pids: Sequence[int]) -> float:
    """Seconds of CPU that these processes have used."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def pin(pids: Sequence[int], cores: set[int]) -> None:
    """Keep all threads of these processes on some cores."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task.name), cores)


def wrk(
    base: Path,
    port: int,
    request: Request,
    *,
    connections: int,
    seconds: float,
    auth: tuple[str, str],
    pid: int,
    cores: set[int] | None = None,
) -> Rate:
    """One run of wrk with keep-alive; server CPU is that of the process and all its children."""
    token = base64.b64encode(f"{auth[0]}:{auth[1]}".encode()).decode()
    script = base / f"wrk-{time.monotonic_ns()}.lua"
    headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in request.headers)
    script.write_text(
        SCRIPT.format(
            method=request.method,
            token=token,
            headers=headers,
            body=_quoted(request.body) if request.body else "nil",
            target=request.target,
            stamp=str(time.monotonic_ns()),
            numbered="true" if request.numbered else "false",
        )
    )
    pids = family(pid)
    program = shutil.which("wrk")
    assert program, "wrk is not installed"
    command = [program, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "30s"]
    command += ["-s", str(script), f"http://127.0.0.1:{port}"]
    used = cpu(pids)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if cores:
        pin([process.pid], cores)
    text, _ = process.communicate(timeout=seconds + 90)
    used = cpu(pids) - used
    return _rate(text, used)


def _rate(text: str, used: float) -> Rate:
    done = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert done and rate, text
    latency = dict(re.findall(r"^\s+(50|99)%\s+(\S+)", text, re.MULTILINE))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    count = int(failed[1]) if failed else 0
    if errors:
        count += sum(int(value) for value in errors.groups())
    each = used / max(1, int(done[1])) * 1e6
    return Rate(float(rate[1]), _seconds(latency["50"]), _seconds(latency["99"]), each, count)


def large_put(port: int, target: str, size: int, auth: tuple[str, str], checksum: bool = False) -> float:
    """Seconds until a body of `size` bytes was answered."""
    block = os.urandom(1 << 20)
    head = ""
    if checksum:
        digest = hashlib.sha1()
        for _ in range(size >> 20):
            digest.update(block)
        head = f"OC-Checksum: SHA1:{digest.hexdigest()}\r\n"
    with _connected(port) as sock:
        started = time.perf_counter()
        sock.sendall(_head("PUT", target, auth, f"{head}Content-Length: {size}\r\n"))
        for _ in range(size >> 20):
            sock.sendall(block)
        answer = sock.recv(65536)
        took = time.perf_counter() - started
    assert answer[9:12] in (b"201", b"204"), answer[:200]
    return took


def large_get(port: int, target: str, size: int, auth: tuple[str, str]) -> float:
    """Seconds until the last byte of a file of `size` bytes."""
    view = memoryview(bytearray(1 << 20))
    with _connected(port) as sock:
        started = time.perf_counter()
        sock.sendall(_head("GET", target, auth, ""))
        first = sock.recv(65536)
        assert first[9:12] == b"200", first[:200]
        left = size - (len(first) - first.index(b"\r\n\r\n") - 4)
        while left > 0:
            got = sock.recv_into(view)
            assert got, "the reply was cut off"
            left -= got
        return time.perf_counter() - started


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def _head(method: str, target: str, auth: tuple[str, str], headers: str) -> bytes:
    token = base64.b64encode(f"{auth[0]}:{auth[1]}".encode()).decode()
    text = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {token}\r\n{headers}\r\n"
    return text.encode()


def best(rounds: int, measure: Callable[[], float]) -> float:
    """The least of several measurements of a duration."""
    return min(measure() for _ in range(rounds))
