"""A server of ours in this process, over a temporary registry, and raw sockets to it."""

from __future__ import annotations

import base64
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dav.main import build_server
from fsd.core.grants import Role
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.core.space import Space, SpaceRecord
from fsd.service import config
from fsd.service.options import Address
from tests.support.davclient import Answer, Dav

PASSWORDS = {"alice": "alice-secret", "bob": "bob-secret", "eve": "eve-secret"}


def basic(user: str, password: str | None = None) -> str:
    """The value of an Authorization header."""
    text = f"{user}:{PASSWORDS[user] if password is None else password}"
    return "Basic " + base64.b64encode(text.encode()).decode()


class Wire:
    """A raw connection: what is sent is exactly what is given."""

    def __init__(self, port: int, timeout: float = 20) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._buffer = b""

    def send(self, data: bytes) -> Wire:
        self.socket.sendall(data)
        return self

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self._buffer += data
        return bool(data)

    def answer(self, *, bodyless: bool = False) -> Answer | None:
        """The next answer on the connection, without a body if ``bodyless``; None when it was closed before one."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines[1:]}
        length = 0 if bodyless else int(headers.get("content-length", "0"))
        while len(self._buffer) < length and self._more():
            pass
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(lines[0].split()[1]), headers, body)

    def closed(self) -> bool:
        """Whether the server closes without sending anything more."""
        while self._more():
            pass
        return self._buffer == b""

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Served:
    """alice manages the project space `Shared`, bob may look at it, eve knows nothing of it."""

    def __init__(self, base: Path, *, again: bool = False, **overrides: Any) -> None:
        """``again``: a second server of an installation that another one has made."""
        self.data, self.state = base / "data", base / "state"
        if not again:
            Installation.initialise(self.state, self.data)
        self.registry = Registry(self.state)
        if not again:
            self._populate()
        settings = config.load({"data": str(self.data), "state": str(self.state)}, {})
        overrides = {"listen": Address("127.0.0.1", 0), "http_threads": 16, **overrides}
        self._settings = replace(settings, **overrides)
        self._clients: list[Dav] = []
        self._wires: list[Wire] = []

    def _populate(self) -> None:
        for name, password in PASSWORDS.items():
            self.registry.add_user(name, password)
        self.shared = self.registry.create("Shared", managers=[self.registry.accounts.get("alice")])
        bob = self.registry.accounts.get("bob")
        self.registry.grants.grant(self.shared, "user", bob.id, bob.name, Role.VIEWER)

    def start(self) -> Served:
        self.server = build_server(self._settings)
        self.server.prepare()
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        for client in [*self._clients, *self._wires]:
            client.close()
        self.server.stop()
        self._thread.join(10)

    @property
    def port(self) -> int:
        return self.server.port

    def personal(self, user: str = "alice") -> SpaceRecord:
        record = self.registry.personal(self.registry.accounts.get(user))
        assert record is not None
        return record

    def space(self, record: SpaceRecord) -> Space:
        """The server's own open space."""
        return self.server.wsgi_app.registry.open(record.id)

    def root(self, user: str = "alice") -> Path:
        return Path(self.personal(user).path.decode())

    def dav(self, prefix: str = "/dav/files/alice", user: str = "alice", password: str | None = None) -> Dav:
        secret = PASSWORDS.get(user, "") if password is None else password
        client = Dav("127.0.0.1", self.port, user, secret, prefix)
        self._clients.append(client)
        return client

    def wire(self, timeout: float = 20) -> Wire:
        made = Wire(self.port, timeout)
        self._wires.append(made)
        return made

    def head(self, method: str, path: str, *lines: str, user: str | None = "alice") -> bytes:
        """The head of a request, with Host and credentials."""
        own = ["Host: localhost"] + ([f"Authorization: {basic(user)}"] if user else [])
        return "\r\n".join([f"{method} {path} HTTP/1.1", *own, *lines, "", ""]).encode("latin-1")

    def ask(
        self, method: str, path: str, *lines: str, body: bytes = b"", user: str | None = "alice"
    ) -> Answer:
        """One request on a connection of its own."""
        extra = [f"Content-Length: {len(body)}"] if body and "Content-Length" not in str(lines) else []
        with self.wire() as wire:
            wire.send(self.head(method, path, *lines, *extra, user=user) + body)
            answer = wire.answer(bodyless=method == "HEAD")
        assert answer is not None
        return answer


@contextmanager
def serving(base: Path, **overrides: Any) -> Iterator[Served]:
    """A started server, stopped at the end."""
    served = Served(base, **overrides).start()
    try:
        yield served
    finally:
        served.stop()


def tokens(answer: Answer) -> str:
    """The token of a LOCK answer."""
    match = re.fullmatch(r"<(.+)>", answer.headers["lock-token"])
    assert match is not None
    return match[1]
