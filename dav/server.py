"""cheroot's server with our connections: strict, patient with the slow, closed to the silent.

``StockServer`` keeps cheroot's own connections and threads, for comparison and as a way out (``http.loop = stock``).
"""

import errno
import logging
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter

from dav.front.connection import Connection
from dav.front.crew import Crew
from dav.front.loop import Loop
from dav.front.request import Answer, Receiving
from dav.front.streams import Streams
from dav.front.tls import TlsAdapter
from dav.http import limits

log = logging.getLogger(__name__)


class Application(Protocol):
    """What is served: WSGI for cheroot's own loop, ``answer`` for ours."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]: ...

    def answer(self, environ: dict[str, Any]) -> Answer | Receiving:
        """The reply, or an upload that was agreed to."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how to listen.  ``backlog`` bounds what waits in the kernel; ``inherited`` is a socket that listens
    already; ``per_address`` most connections of one address, 0 for any number."""

    host: str
    port: int
    threads: int = 64
    backlog: int = 512
    inherited: socket.socket | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    stop_seconds: float = 30.0
    idle_seconds: float = limits.IDLE_SECONDS
    per_address: int = 0
    trusted: Callable[[str], bool] = bool


class _Hosted(wsgi.Server):  # type: ignore[misc,unused-ignore]
    """What both servers share."""

    keep_alive_conn_limit = None  # type: ignore[assignment]
    wsgi_app: Application
    _listen: Listen

    @property
    def port(self) -> int:
        """The bound port, after ``prepare``."""
        return int(self.bind_addr[1])

    def bind(self, family: int, type: int, proto: int = 0) -> socket.socket:
        """Take the inherited socket, or bind one."""
        inherited = self._listen.inherited
        if inherited is None:
            bound: socket.socket = super().bind(family, type, proto)
            return bound
        self.socket = inherited
        self.bind_addr = self.resolve_real_bind_addr(inherited)  # type: ignore[no-untyped-call]
        return inherited

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, "%s", msg, exc_info=traceback)


class Server(_Hosted):
    """``prepare`` binds, ``serve`` runs until another thread calls ``stop``."""

    ConnectionClass = Connection
    _connections: Any
    loop: Loop

    def __init__(self, listen: Listen, app: Application) -> None:
        super().__init__(
            (listen.host, listen.port),
            app,
            server_name="fsd",
            request_queue_size=listen.backlog,
            timeout=listen.idle_seconds,  # type: ignore[arg-type]
            shutdown_timeout=listen.stop_seconds,  # type: ignore[arg-type]
        )
        self._listen = listen
        self.requests = Crew(self, listen.threads)
        self.streams = Streams(self)
        self.chores: list[Callable[[], None]] = []
        """Short work that is done about twice a second."""
        self.base_environ: dict[str, Any] = {}
        if listen.certificate is not None and listen.private_key is not None:
            self.ssl_adapter = TlsAdapter(listen.certificate, listen.private_key)

    def prepare(self) -> None:
        super().prepare()
        self._connections.close()
        self._connections = self.loop = Loop(self, self.requests.grow)
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
            "fsd.may_block": self.loop.step_down,
            "fsd.streams": True,
        }
        self.requests.grow()
        self.requests.grow()

    def full(self, address: str, held: int) -> bool:
        """Whether an address that holds so many connections already may have no more."""
        most = self._listen.per_address
        return 0 < most <= held and not self._listen.trusted(address)

    def forget(self, conn: Connection) -> None:
        self.loop.forget(conn)


class StockServer(_Hosted):
    """cheroot as it comes, with limits set where it has any."""

    max_request_header_size = limits.HEAD_BYTES

    def __init__(self, listen: Listen, app: Application) -> None:
        super().__init__(
            (listen.host, listen.port),
            app,
            numthreads=min(listen.threads, 16),
            max=listen.threads,
            server_name="fsd",
            request_queue_size=listen.backlog,
            timeout=listen.idle_seconds,  # type: ignore[arg-type]
            shutdown_timeout=listen.stop_seconds,  # type: ignore[arg-type]
        )
        self._listen = listen
        if listen.certificate is not None and listen.private_key is not None:
            self.ssl_adapter = BuiltinSSLAdapter(str(listen.certificate), str(listen.private_key))

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """The socket of a stopping server is shut down before this loop hears of it: accept(2) then fails, rightly."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno == errno.EINVAL and msg == "Error in HTTPServer.serve":
            return
        super().error_log(msg, level, traceback)


def make(listen: Listen, app: Application, loop: str = "fsd") -> Server | StockServer:
    """The server of a setting ``http.loop``."""
    return StockServer(listen, app) if loop == "stock" else Server(listen, app)
