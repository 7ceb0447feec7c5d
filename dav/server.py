"""cheroot's server with our connections: strict, patient with the slow, closed to the silent."""

import logging
import queue
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cheroot import wsgi

from dav.front.connection import Connection
from dav.front.manager import Manager
from dav.front.pool import Pool
from dav.front.tls import TlsAdapter
from dav.http import limits

log = logging.getLogger(__name__)

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how to listen.  ``backlog`` and ``queued`` bound what waits in the kernel and for a worker."""

    host: str
    port: int
    threads: int = 8
    max_threads: int = 64
    backlog: int = 512
    queued: int = 512
    reuse_port: bool = False
    certificate: Path | None = None
    private_key: Path | None = None
    stop_seconds: float = 30.0
    idle_seconds: float = limits.IDLE_SECONDS


class Server(wsgi.Server):  # type: ignore[misc,unused-ignore]
    """``prepare`` binds, ``serve`` runs until another thread calls ``stop``."""

    ConnectionClass = Connection
    keep_alive_conn_limit = None  # type: ignore[assignment]
    _connections: Any

    def __init__(self, listen: Listen, app: WsgiApp) -> None:
        super().__init__(
            (listen.host, listen.port),
            app,
            server_name="fsd",
            request_queue_size=listen.backlog,
            reuse_port=listen.reuse_port,
            timeout=listen.idle_seconds,  # type: ignore[arg-type]
            shutdown_timeout=listen.stop_seconds,  # type: ignore[arg-type]
        )
        self.requests = Pool(self, listen.threads, listen.max_threads, listen.queued)
        self.base_environ: dict[str, Any] = {}
        self._manager: Manager | None = None
        if listen.certificate is not None and listen.private_key is not None:
            self.ssl_adapter = TlsAdapter(listen.certificate, listen.private_key)

    @property
    def port(self) -> int:
        """The bound port, after ``prepare``."""
        return int(self.bind_addr[1])

    def prepare(self) -> None:
        super().prepare()
        self._connections.close()
        self._connections = self._manager = Manager(self)
        self.base_environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": str(self.bind_addr[0]),
            "SERVER_PORT": str(self.port),
            "SERVER_SOFTWARE": "fsd",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if self.ssl_adapter is not None else "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }

    def process_conn(self, conn: Connection) -> None:
        """Hand a connection with a whole head to a worker; 503 when the queue is full."""
        try:
            self.requests.put(conn)
        except queue.Full:
            if self._manager is not None:
                self._manager.refuse_busy(conn)

    def forget(self, conn: Connection) -> None:
        if self._manager is not None:
            self._manager.forget(conn)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, "%s", msg, exc_info=traceback)
