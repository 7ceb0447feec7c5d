"""Server-sent events: who hears what, from whom; and what a listener costs."""

from __future__ import annotations

import json
import resource
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from dav import events
from dav.front import streams
from fsd.core import tree
from fsd.core.grants import Role
from tests.support.waiting import wait_for
from tests.unit.dav.served import Served, serving

FILES = "/dav/files/alice"
ANYBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""TLS with whoever answers."""
ANYBODY.check_hostname, ANYBODY.verify_mode = False, ssl.CERT_NONE


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("events"), http_listeners=0) as made:
        yield made


class Listener:
    """A client that reads events as they come."""

    def __init__(
        self, served: Served, *lines: str, user: str = "alice", path: str = "/events", tls: bool = False
    ) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", served.port), timeout=20)
        if tls:
            self.socket = ANYBODY.wrap_socket(self.socket)
        self.socket.sendall(served.head("GET", path, "Accept: text/event-stream", *lines, user=user))
        self.buffer = b""
        self.head = self._until(b"\r\n\r\n")
        if b" 200 " in self.head:
            self._until(b": hello\n\n")

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError(self.buffer)
            self.buffer += more
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    def next(self) -> dict:
        """The next event, with its id; pings are passed over."""
        while True:
            text = self._until(b"\n\n").decode()
            fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(":"))
            if fields:
                return {**json.loads(fields["data"]), "at": fields["id"]}

    def about(self, name: str) -> dict:
        """The next event about an entry of this name."""
        while (event := self.next()).get("name") != name:
            pass
        return event

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listening(served: Served, count: int) -> None:
    """Wait until the hub follows so many listeners."""
    hub = served.server.wsgi_app.events
    wait_for(lambda: len(hub._listeners) >= count and not hub._fresh, what=f"{count} listeners")


def test_a_put_and_a_direct_write_are_heard(served: Served):
    with Listener(served) as listener:
        assert b"text/event-stream" in listener.head and b"no-store" in listener.head
        _listening(served, 1)
        served.ask("PUT", f"{FILES}/put", body=b"x")
        event = listener.about("put")
        assert event["kind"] == "created" and event["space"] == served.personal().id and not event["folder"]
        answer = served.ask("HEAD", f"{FILES}/put")
        assert event["id"] == answer.headers["oc-fileid"]
        (served.root() / "direct").write_bytes(b"y")
        tree.listing(served.space(served.personal()), b"")  # as the watcher would
        assert listener.about("direct")["kind"] == "created"


def test_only_what_one_may_see(served: Served):
    with Listener(served, user="bob") as bob, Listener(served, user="eve") as eve:
        _listening(served, 2)
        served.ask("PUT", f"{FILES}/private", body=b"x")
        served.ask("PUT", f"/dav/spaces/{served.shared.id}/shared", body=b"x")
        assert bob.next()["name"] == "shared"
        served.ask("PUT", "/dav/files/eve/mine", body=b"x", user="eve")
        assert eve.next()["name"] == "mine"


def test_a_grant_and_its_end_count_at_once(served: Served):
    eve = served.registry.accounts.get("eve")
    with Listener(served, user="eve") as listener:
        _listening(served, 1)
        served.registry.grants.grant(served.shared, "user", eve.id, eve.name, Role.VIEWER)
        wait_for(lambda: _sees(served, "eve", 2), what="the grant")
        served.ask("PUT", f"/dav/spaces/{served.shared.id}/granted", body=b"x")
        assert listener.about("granted")
        served.registry.grants.revoke(served.shared, "user", eve.id)
        wait_for(lambda: _sees(served, "eve", 1), what="its end")
        served.ask("PUT", f"/dav/spaces/{served.shared.id}/hidden", body=b"x")
        served.ask("PUT", "/dav/files/eve/after", body=b"x", user="eve")
        assert listener.next()["name"] == "after"


def _sees(served: Served, user: str, count: int) -> bool:
    return any(
        each.user.name == user and len(each.spaces) == count
        for each in served.server.wsgi_app.events._listeners
    )


def test_one_space_alone(served: Served):
    with Listener(served, path=f"/events?space={served.shared.id}") as listener:
        _listening(served, 1)
        served.ask("PUT", f"{FILES}/elsewhere", body=b"x")
        served.ask("PUT", f"/dav/spaces/{served.shared.id}/here", body=b"x")
        assert listener.next()["name"] == "here"


def test_who_comes_back_hears_what_was_missed(served: Served):
    with Listener(served) as listener:
        _listening(served, 1)
        served.ask("PUT", f"{FILES}/one", body=b"x")
        last = listener.about("one")["at"]
    served.ask("PUT", f"{FILES}/two", body=b"x")
    with Listener(served, f"Last-Event-ID: {last}") as again:
        assert again.about("two")["kind"] == "created"


def test_too_much_at_once_is_one_event(served: Served, monkeypatch):
    monkeypatch.setattr(events, "_MOST", 100)  # fewer than one transaction takes in
    with Listener(served) as listener:
        _listening(served, 1)
        (served.root() / "many").mkdir()
        for number in range(600):
            (served.root() / "many" / f"f{number}").touch()
        tree.listing(served.space(served.personal()), b"")
        tree.listing(served.space(served.personal()), b"many")
        while listener.next()["kind"] != "many":
            pass


def test_strangers_and_other_methods(served: Served):
    assert served.ask("GET", "/events", user=None).status == 401
    assert served.ask("POST", "/events", body=b"x").status == 405


def test_a_disabled_user_is_disconnected(tmp_path):
    with serving(tmp_path) as served, Listener(served) as listener:
        _listening(served, 1)
        served.registry.accounts.disable("alice")
        with pytest.raises(EOFError):
            listener.next()


def test_a_user_has_so_many(tmp_path):
    with serving(tmp_path, http_listeners=2) as served:
        with Listener(served), Listener(served):
            _listening(served, 2)
            assert served.ask("GET", "/events").status == 429
            with Listener(served, user="bob") as other:
                assert b" 200 " in other.head
        wait_for(lambda: _has_room(served), what="room again")


def _has_room(served: Served) -> bool:
    with Listener(served) as listener:
        return b" 200 " in listener.head


def test_who_does_not_read_is_dropped_and_holds_up_nobody(served: Served, monkeypatch):
    monkeypatch.setattr(streams, "_MOST_WAITING", 2000)
    with Listener(served) as deaf, Listener(served) as good:
        _listening(served, 2)
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hub = served.server.wsgi_app.events
        for number in range(2000):
            for each in list(hub._listeners):
                each.stream.send(b": filling the buffers of whoever does not read, piece by piece\n\n" * 40)
            if len(served.server.streams) < 2:
                break
            _drain(good)
        assert len(served.server.streams) == 1
        served.ask("PUT", f"{FILES}/still", body=b"x")
        assert good.about("still")


def _drain(listener: Listener) -> None:
    listener.socket.setblocking(False)
    try:
        while listener.socket.recv(1 << 20):
            pass
    except BlockingIOError:
        pass
    finally:
        listener.socket.settimeout(20)


def test_a_silent_stream_is_pinged(served: Served, monkeypatch):
    monkeypatch.setattr(streams, "PING_SECONDS", 0.1)
    with Listener(served) as listener:
        assert listener._until(b": ping\n\n") is not None


@pytest.fixture
def tls(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    with serving(tmp_path / "served", tls_cert=cert, tls_key=key, http_listeners=0) as made:
        yield made


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_listeners_cost_a_socket_each(request, tmp_path, secure):
    """No thread and no waiting for anybody; 5,000 of them with --big."""
    count = 5000 if request.config.getoption("--big") else 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * count + 500:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count + 500), hard))
    served = request.getfixturevalue("tls" if secure else "many")
    before = Path("/proc/self/task")
    threads = len(list(before.iterdir()))
    listeners = [Listener(served, tls=secure) for _ in range(count)]
    try:
        _listening(served, count)
        assert len(list(before.iterdir())) <= threads + 2
        (served.root() / "news").write_bytes(b"x")
        tree.listing(served.space(served.personal()), b"")
        assert all(listener.about("news") for listener in listeners)
    finally:
        for listener in listeners:
            listener.close()
    wait_for(lambda: len(served.server.streams) == 0, what="all streams ended")


@pytest.fixture
def many(tmp_path):
    with serving(tmp_path, http_listeners=0) as made:
        yield made


def test_the_events_of_ownclouds_web_client(served: Served):
    path = "/ocs/v2.php/apps/notifications/api/v1/notifications/sse"
    with Listener(served, path=path) as listener:
        _listening(served, 1)

        def told() -> tuple[str, dict]:
            fields = dict(line.split(": ", 1) for line in listener._until(b"\n\n").decode().splitlines())
            return fields["event"], json.loads(fields["data"])

        destination = f"Destination: {FILES}/oc/g"
        served.ask("MKCOL", f"{FILES}/oc")
        served.ask("PUT", f"{FILES}/f", body=b"1")
        etag = served.ask("PUT", f"{FILES}/f", body=b"2").headers["etag"]
        served.ask("MOVE", f"{FILES}/f", destination)
        served.ask("MOVE", f"{FILES}/oc/g", f"Destination: {FILES}/oc/h")
        served.ask("DELETE", f"{FILES}/oc/h")
        found = [told() for _ in range(6)]
        assert [name for name, _ in found] == [
            "folder-created", "file-touched", "postprocessing-finished", "item-moved", "item-renamed", "item-trashed",
        ]  # fmt: skip
        folder, _, changed, moved, *_ = (data for _, data in found)
        assert changed["etag"] == etag and changed["spaceid"] == served.personal().id
        assert moved["itemid"] == changed["itemid"] and moved["parentitemid"] == folder["itemid"]
