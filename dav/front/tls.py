"""TLS for the front: a context, and sockets whose handshake the manager drives without blocking."""

import socket
import ssl
from pathlib import Path
from typing import Any

from cheroot.ssl import Adapter


class TlsAdapter(Adapter):  # type: ignore[misc,unused-ignore]
    """cheroot's adapter interface; ``wrap`` is never used, since it handshakes while accepting."""

    context: ssl.SSLContext

    def __init__(self, certificate: str | Path, private_key: str | Path) -> None:
        super().__init__(str(certificate), str(private_key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(certificate), str(private_key))
        context.set_alpn_protocols(["http/1.1"])
        self.context = context

    def bind(self, sock: socket.socket) -> socket.socket:
        return sock

    def wrap_socket(self, sock: socket.socket) -> ssl.SSLSocket:
        """A TLS socket that has not shaken hands yet; non-blocking like ``sock``."""
        return self.context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        return self.wrap_socket(sock), self.get_environ()

    def get_environ(self) -> dict[str, str]:
        return {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: socket.socket, mode: str = "r", bufsize: int = -1) -> Any:
        return sock.makefile(mode, bufsize)  # type: ignore[call-overload]
