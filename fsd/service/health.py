"""The operations address: /healthz, /readyz, /metrics, for probes and scrapers, not for the public.

/healthz is 200 as long as the supervisor lives, and says `degraded` with the reasons; a restart would not mend those.
/readyz is 200 when requests are answered and the watcher works, else 503. A mount that is not up is a problem, and
nothing that HTTP would wait for.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fsd.service import status
from fsd.service.options import Address

log = logging.getLogger(__name__)

MAX_CLIENTS = 16
Metrics = Callable[[], tuple[str, bytes]]
"""Answers (content type, text)."""


def health(found: status.Status) -> tuple[int, dict[str, Any]]:
    """The answer to /healthz."""
    problems = found.problems() if _has(found, "watcher") else []
    text = "down" if not found.server_runs else "degraded" if problems else "ok"
    return (200 if found.server_runs else 503), {"status": text, "problems": problems}


def readiness(found: status.Status) -> tuple[int, dict[str, Any]]:
    """The answer to /readyz."""
    missing = [
        name
        for name, child in found.supervisor.get("children", {}).items()
        if not status.process_runs(child["pid"]) and not name.startswith(status.MOUNT)
    ]
    if not found.supervisor.get("ready"):
        missing.append("listening")
    if _has(found, "watcher") and not found.watcher_runs and "watcher" not in missing:
        missing.append("watcher")
    ready = found.server_runs and not missing
    spaces = {space["id"]: space.get("state") for space in found.spaces.values()}
    return (200 if ready else 503), {"ready": ready, "missing": missing, "spaces": spaces}


def _has(found: status.Status, child: str) -> bool:
    return child in found.supervisor.get("children", {})


def render_metrics(run_dir: Path) -> Metrics:
    """The answer to /metrics; loads prometheus_client, which only this process needs."""
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

    from fsd.service.metrics import Exporter

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Exporter(run_dir))
    for own in (ProcessCollector, PlatformCollector, GCCollector):
        own(registry=registry)
    return lambda: (CONTENT_TYPE_LATEST, generate_latest(registry))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: Address, run_dir: Path, metrics: Metrics) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.run_dir = run_dir
        self.metrics = metrics
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each client, up to a bound: the rest are turned away."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback."""
        log.debug("operations client %s failed", client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.0"
    server_version = "fsd"
    sys_version = ""
    timeout = 5.0

    def do_GET(self) -> None:
        """The three paths."""
        match self.path.partition("?")[0]:
            case "/healthz":
                self._json(*health(status.read(self.server.run_dir)))
            case "/readyz":
                self._json(*readiness(status.read(self.server.run_dir)))
            case "/metrics":
                self._answer(200, *self.server.metrics())
            case _:
                self._answer(404, "text/plain", b"There are /healthz, /readyz and /metrics.\n")

    do_HEAD = do_GET

    def _json(self, code: int, content: dict[str, Any]) -> None:
        self._answer(code, "application/json", json.dumps(content).encode() + b"\n")

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: not logged."""


def start(address: Address, run_dir: Path, metrics: Metrics) -> ThreadingHTTPServer:
    """Serve in a thread; OSError if the address is taken. `shutdown()` and `server_close()` end it."""
    server = _Server(address, run_dir, metrics)
    threading.Thread(target=server.serve_forever, args=(0.2,), name="operations", daemon=True).start()
    return server
