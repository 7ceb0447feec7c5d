"""The HTTP front over real sockets: each thing that stock cheroot gets wrong (dav-performance.md, 4 and 5)."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import ssl
import struct
import subprocess
import threading
import time
import weakref
from pathlib import Path

import pytest

from dav import main
from dav.front import loop as loop_module
from dav.front.connection import Connection, State
from dav.http import limits
from fsd.core import arrivals, content
from tests.support.waiting import wait_for
from tests.unit.dav.served import Served, basic, serving

FILES = "/dav/files/alice"


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("front")) as made:
        yield made


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 3", "Content-Length: 4"], 400),
        (["Content-Length: 3", "Transfer-Encoding: chunked"], 400),
        (["Content-Length : 3"], 400),
        (["Content-Length: +3"], 400),
        (["Content-Length: 1_0"], 400),
        (["Host: again"], 400),
        (["X: a\rb"], 400),
        (["X: a\x00b"], 400),
        ([" folded"], 400),
        (["X-Big: " + "a" * limits.HEAD_BYTES], 431),
        ([f"X-{n}: 1" for n in range(101)], 431),
        (["Transfer-Encoding: gzip"], 501),
    ],
)
def test_malformed_heads_are_refused_and_the_connection_closed(shared: Served, lines, status):
    smuggled = shared.head("DELETE", f"{FILES}/victim")
    with shared.wire() as wire:
        answer = wire.send(shared.head("PUT", f"{FILES}/x", *lines) + smuggled).answer()
        assert answer is not None and answer.status == status
        assert answer.headers["connection"] == "close"
        assert wire.closed(), "what follows a malformed head must never be parsed as a request"


def test_missing_host_is_refused(shared: Served):
    with shared.wire() as wire:
        assert wire.send(b"GET / HTTP/1.1\r\n\r\n").answer().status == 400


def test_trailers_are_not_a_request(shared: Served):
    head = shared.head("PUT", f"{FILES}/trailers", "Transfer-Encoding: chunked")
    trailer = b"0\r\nX-Sum: 1\r\nDELETE: /dav/files/alice/trailers HTTP/1.1\r\n\r\n"
    with shared.wire() as wire:
        assert wire.send(head + b"3\r\nabc\r\n" + trailer).answer().status in (201, 204)
        assert wire.send(shared.head("GET", f"{FILES}/trailers")).answer().body == b"abc"


@pytest.mark.parametrize(
    "chunks", [b"0x3\r\nabc\r\n0\r\n\r\n", b"-1\r\nabc", b"3\r\nabcX\r\n0\r\n\r\n", b"3\nabc"]
)
def test_malformed_chunks_change_nothing(shared: Served, chunks):
    with shared.wire() as wire:
        head = shared.head("PUT", f"{FILES}/chunky", "Transfer-Encoding: chunked")
        assert wire.send(head + chunks).answer().status == 400
        assert wire.closed()
    assert shared.ask("GET", f"{FILES}/chunky").status == 404


def test_underscored_headers_are_dropped(shared: Served):
    answer = shared.ask("PUT", f"{FILES}/under", "Content_Length: 2", "Content-Length: 4", body=b"four")
    assert answer.status == 201
    assert shared.ask("GET", f"{FILES}/under").body == b"four"


def test_pipelined_requests_are_answered_in_order(shared: Served):
    put = shared.head("PUT", f"{FILES}/pipe", "Content-Length: 2") + b"ab"
    get = shared.head("GET", f"{FILES}/pipe")
    with shared.wire() as wire:
        wire.send(put + get + get)
        assert wire.answer().status in (201, 204)
        assert [wire.answer().body, wire.answer().body] == [b"ab", b"ab"]


def test_continue_only_after_credentials_and_preconditions(shared: Served):
    expecting = ["Expect: 100-continue", "Content-Length: 3"]
    with shared.wire() as wire:
        assert wire.send(shared.head("PUT", f"{FILES}/e", *expecting, user=None)).answer().status == 401
        assert wire.closed()
    for path, more, status in (
        (f"{FILES}/missing/e", [], 409),
        (f"{FILES}/e", ['If-Match: "x"'], 412),
    ):
        with shared.wire() as wire:
            assert wire.send(shared.head("PUT", path, *expecting, *more)).answer().status == status
    with shared.wire() as wire:
        assert wire.send(shared.head("PUT", f"{FILES}/e", *expecting)).answer().status == 100
        assert wire.send(b"abc").answer().status == 201


def test_a_small_unwanted_body_keeps_the_connection(shared: Served):
    with shared.wire() as wire:
        head = shared.head("PUT", f"{FILES}/nowhere/x", f"Content-Length: {limits.DRAIN_BYTES}")
        assert wire.send(head).answer().status == 409
        wire.send(b"x" * limits.DRAIN_BYTES + shared.head("GET", f"{FILES}/"))
        assert wire.answer().status == 200


@pytest.mark.parametrize("early", [0, 1, 50, 100])
def test_an_unwanted_body_is_not_taken_for_a_request(shared: Served, early):
    """However much of it arrived together with the head."""
    body = b"DELETE /dav/files/alice/ HTTP/1.1\r\nHost: h\r\n\r\n".ljust(100, b" ")
    with shared.wire() as wire:
        wire.send(shared.head("PUT", f"{FILES}/nowhere/x", "Content-Length: 100") + body[:early])
        assert wire.answer().status == 409
        wire.send(body[early:] + shared.head("GET", f"{FILES}/"))
        assert wire.answer().status == 200


def test_a_large_unwanted_body_costs_no_memory(served: Served):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with served.wire() as wire:
        wire.send(served.head("PUT", f"{FILES}/huge", f"Content-Length: {300 << 20}", user=None))
        block = b"x" * (1 << 20)
        try:
            for _ in range(300):
                wire.send(block)
        except (BrokenPipeError, ConnectionResetError):
            pass
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 32 << 10, "an unauthenticated body must not be held in memory"


def test_a_chunked_body_is_streamed(served: Served):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 64 << 20
    with served.wire() as wire:
        wire.send(served.head("PUT", f"{FILES}/big", "Transfer-Encoding: chunked") + b"%x\r\n" % size)
        for _ in range(size >> 20):
            wire.send(b"y" * (1 << 20))
        assert wire.send(b"\r\n0\r\n\r\n").answer().status == 201
    assert (served.root() / "big").stat().st_size == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_silent_connections_hold_no_worker(served: Served):
    silent = [served.wire() for _ in range(100)]
    for wire in silent[::2]:
        wire.send(b"GET / HT")
    began = time.monotonic()
    assert served.ask("GET", "/").status == 200
    assert time.monotonic() - began < 5


def test_slow_heads_and_silence_end_at_their_deadline(served: Served, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    with served.wire() as silent, served.wire() as dribbling:
        dribbling.send(b"GET / HTTP/1.1\r\nX: ")
        assert dribbling.answer().status == 408
        assert silent.closed()


def test_slow_bodies_are_cut_off(served: Served, monkeypatch):
    monkeypatch.setattr(limits, "GRACE_SECONDS", 0.3)
    with served.wire() as wire:
        wire.send(served.head("PUT", f"{FILES}/slow", "Content-Length: 1000000") + b"a")
        assert wire.answer().status == 408
        assert wire.closed()
    assert not (served.root() / "slow").exists()


def test_a_client_that_does_not_read_is_cut_off(served: Served, monkeypatch):
    (served.root() / "large").write_bytes(b"x" * (64 << 20))
    monkeypatch.setattr(limits, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "RATE_BYTES", 1 << 40)
    loop = served.server.loop
    with served.wire() as wire:
        wire.send(served.head("GET", f"{FILES}/large"))
        wait_for(lambda: loop._connections, what="the connection")
        wait_for(lambda: not loop._connections, what="its end")
    assert served.ask("GET", "/").status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_slow_uploads_hold_no_thread(served: Served, framing):
    states = served.server.loop._connections.values()
    for number in range(100):
        start = b"a" if "Length" in framing else b"186a0\r\na"
        served.wire().send(served.head("PUT", f"{FILES}/s{number}", framing) + start)
    wait_for(lambda: sum(c.state is State.RECEIVE for c in states) == 100, what="all of them agreed to")
    wait_for(lambda: served.server.requests.idle == served.server.requests.size, what="every thread free")
    assert served.ask("GET", "/").status == 200


def test_slow_readers_hold_no_thread(served: Served):
    (served.root() / "large").write_bytes(b"x" * (32 << 20))
    states = served.server.loop._connections.values()
    for _ in range(50):
        wire = served.wire()
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.send(served.head("GET", f"{FILES}/large"))
    wait_for(lambda: sum(c.state is State.SEND for c in states) == 50, what="all of them begun")
    wait_for(lambda: served.server.requests.idle == served.server.requests.size, what="every thread free")
    assert served.ask("GET", "/").status == 200


@pytest.mark.parametrize("sent", [0, 1, 70_000, 299_999])
def test_an_aborted_body_leaves_nothing(shared: Served, sent):
    with shared.wire() as wire:
        wire.send(shared.head("PUT", f"{FILES}/aborted", "Content-Length: 300000") + b"a" * sent)
    wait_for(lambda: not shared.server.loop._connections, what="the end of the connection")
    assert shared.ask("GET", f"{FILES}/aborted").status == 404
    assert os.listdir(shared.root() / ".fsd/staging") == []


def test_an_aborted_body_reset_in_the_middle(shared: Served):
    wire = shared.wire()
    wire.send(shared.head("PUT", f"{FILES}/reset", "Transfer-Encoding: chunked") + b"fffff\r\nab")
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
    wait_for(lambda: not shared.server.loop._connections, what="the end of the connection")
    assert shared.ask("GET", f"{FILES}/reset").status == 404


def test_one_address_has_so_many_connections(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "_near", lambda proxies: lambda address: False)
    with serving(tmp_path, http_per_address=3) as served:
        held = [served.wire() for _ in range(3)]
        for wire in held:
            assert wire.send(served.head("OPTIONS", "/")).answer().status == 200
        with served.wire() as one_more:
            assert one_more.answer().status == 503 and one_more.closed()
        held[0].close()
        wait_for(lambda: len(served.server.loop._connections) < 3, what="room again")
        assert served.ask("OPTIONS", "/").status == 200


def test_hundreds_of_pipelined_requests_let_others_in_between(shared: Served):
    with shared.wire() as greedy:
        greedy.send(shared.head("OPTIONS", "/") * 300)
        assert shared.ask("OPTIONS", "/").status == 200
        assert [greedy.answer().status for _ in range(300)] == [200] * 300


def test_dribbled_uploads_leave_others_room(served: Served):
    slow = [served.wire() for _ in range(12)]
    for number, wire in enumerate(slow):
        wire.send(served.head("PUT", f"{FILES}/d{number}", "Content-Length: 100000") + b"a")
    assert served.ask("GET", "/").status == 200


def test_what_crawls_in_is_taken_where_it_is_heard_and_what_runs_is_not(served: Served, monkeypatch):
    loop = served.server.loop
    stepped: list[int] = []
    step_down = loop.step_down
    monkeypatch.setattr(loop, "step_down", lambda: (stepped.append(1), step_down()))
    content = os.urandom(400_000)
    with served.wire() as wire:
        wire.send(served.head("PUT", f"{FILES}/slow", f"Content-Length: {len(content)}") + content[:10])
        wait_for(
            lambda: any(c.claims and c._crawls for c in loop._connections.values()), what="a slow upload"
        )
        (conn,) = loop._connections.values()
        before = len(stepped)
        for at in range(10, 1010, 100):
            wire.send(content[at : at + 100])
            left = len(content) - at - 100
            wait_for(lambda left=left: conn.request.body.remaining == left, what="a hundred bytes more")
        assert len(stepped) == before
        wire.send(content[1010:])
        answer = wire.answer()
        assert answer is not None and answer.status == 201
        assert len(stepped) > before
    assert (served.root() / "slow").read_bytes() == content


def test_when_every_thread_is_busy_clients_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "_OVERLOADED", 0.1)
    with serving(tmp_path, http_threads=2) as served:
        hung, answer = threading.Event(), served.server.wsgi_app.answer

        def hanging(environ):
            environ["fsd.may_block"]()
            hung.wait(20)
            return answer(environ)

        monkeypatch.setattr(served.server.wsgi_app, "answer", hanging)
        stuck = [served.wire().send(served.head("GET", "/")) for _ in range(2)]
        wait_for(lambda: served.server.requests.idle == 0, what="every thread busy")
        told = served.ask("GET", "/")
        assert told.status == 503 and told.headers["retry-after"]
        hung.set()
        assert [wire.answer().status for wire in stuck] == [200, 200]


def test_a_leader_that_is_stuck_is_replaced(served: Served, monkeypatch):
    """A system call on storage that hangs gives no notice."""
    hung, answer = threading.Event(), served.server.wsgi_app.answer

    def hanging(environ):
        if environ["PATH_INFO"] == "/hang":
            hung.wait(20)
        return answer(environ)

    monkeypatch.setattr(served.server.wsgi_app, "answer", hanging)
    stuck = [served.wire().send(served.head("GET", "/hang")) for _ in range(3)]
    assert served.ask("GET", "/").status == 200
    hung.set()
    assert [wire.answer().status for wire in stuck] == [404, 404, 404]


def test_requests_take_turns_and_do_not_wait_for_the_disk_of_another(served: Served, monkeypatch):
    assert served.ask("GET", "/").status == 200, "the password's hash is behind us"
    inside, most, disk = 0, 0, threading.Event()
    take_in = arrivals.take_in

    def counting(*args, **more):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(100):
            os.stat("/")  # gives the interpreter's lock away, and with it the chance to be interrupted
        inside -= 1
        return take_in(*args, **more)

    monkeypatch.setattr(arrivals, "take_in", counting)
    monkeypatch.setattr(content.os, "fsync", lambda fd: disk.wait(20))
    writers = [served.wire() for _ in range(4)]
    for number, wire in enumerate(writers):
        wire.send(served.head("PUT", f"{FILES}/w{number}", "Content-Length: 1") + b"x")
    wires = [served.wire() for _ in range(4)]
    for wire in wires:
        wire.send(served.head("GET", "/") * 5)
    for wire in wires:
        assert [wire.answer().status for _ in range(5)] == [200] * 5
    disk.set()
    assert [wire.answer().status for wire in writers] == [201] * 4
    assert most == 1


def test_stop_finishes_what_is_under_way(tmp_path):
    with serving(tmp_path) as served:
        wire = served.wire()
        wire.send(served.head("PUT", f"{FILES}/late", "Content-Length: 4") + b"ab")
        under_way = served.server.loop._connections.values()
        wait_for(lambda: any(c.state is State.RECEIVE for c in under_way), what="the upload")
        stopper = threading.Thread(target=served.server.stop)
        stopper.start()
        wait_for(lambda: not served.server.ready, what="the stop")
        wire.send(b"cd")
        answer = wire.answer()
        assert answer.status == 201 and answer.headers["connection"] == "close"
        stopper.join(10)
        assert not stopper.is_alive()
        assert (served.root() / "late").read_bytes() == b"abcd"


class _NoDescriptors:
    """A listener whose accept fails a few times as in a process without free descriptors."""

    def __init__(self, real: socket.socket) -> None:
        self.real, self.failures = real, 0

    def fileno(self) -> int:
        return self.real.fileno()

    def close(self) -> None:
        self.real.close()

    def accept(self):
        if self.failures < 2:
            self.failures += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self.real.accept()


def test_running_out_of_descriptors_is_a_pause(served: Served, allow_log):
    allow_log("cannot accept connections")
    listener = _NoDescriptors(served.server.loop._listener)
    served.server.loop._listener = listener
    assert served.ask("GET", "/").status == 200
    assert listener.failures == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("tls")
    cert, key = base / "cert.pem", base / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tls(tmp_path, certificate):
    with serving(tmp_path, tls_cert=certificate[0], tls_key=certificate[1]) as made:
        yield made


def _tls_client(served: Served) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", served.port), timeout=20))


def test_a_client_that_never_shakes_hands_blocks_nobody(tls: Served):
    silent = [tls.wire() for _ in range(20)]
    silent[0].send(b"\x16\x03\x01")
    began = time.monotonic()
    with _tls_client(tls) as client:
        client.sendall(tls.head("GET", "/"))
        assert client.recv(12) == b"HTTP/1.1 200"
    assert time.monotonic() - began < 5


def test_tls_carries_large_bodies_both_ways(tls: Served):
    data = os.urandom(3 << 20)
    with _tls_client(tls) as client:
        client.sendall(tls.head("PUT", f"{FILES}/big", f"Content-Length: {len(data)}") + data)
        assert client.recv(65536).startswith(b"HTTP/1.1 201")
        client.sendall(tls.head("GET", f"{FILES}/big", "Connection: close"))
        got = b""
        while piece := client.recv(1 << 20):
            got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    assert body == data and b"Strict-Transport-Security" in head


def test_an_unfinished_handshake_ends(tls: Served, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKE_SECONDS", 0.3)
    with tls.wire() as wire:
        assert wire.closed()


def test_plain_http_on_the_tls_port_is_told_so(tls: Served):
    with tls.wire() as wire:
        answer = wire.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").answer()
        assert answer is not None and answer.status == 400


def test_keep_alive_is_unlimited(shared: Served):
    wires = [shared.wire() for _ in range(30)]
    for wire in wires:
        assert wire.send(shared.head("OPTIONS", "/")).answer().status == 200
    for wire in wires:
        assert wire.send(shared.head("OPTIONS", "/")).answer().status == 200


def test_connections_leave_no_cyclic_garbage(served: Served, monkeypatch):
    seen: weakref.WeakSet[Connection] = weakref.WeakSet()
    real = Connection.__init__

    def tracked(self, *args, **kwargs):
        real(self, *args, **kwargs)
        seen.add(self)

    monkeypatch.setattr(Connection, "__init__", tracked)
    gc.collect()
    gc.disable()
    try:
        for method in ("GET", "PROPFIND", "OPTIONS", "PUT") * 10:
            served.ask(method, f"{FILES}/x" if method == "PUT" else "/", "Content-Length: 0", "Depth: 1")
        # Each thread may still hold the connection it served last.
        wait_for(
            lambda: len(seen) <= len(served.server.requests._threads) + 2,
            what="connections freed by reference counts alone",
        )
    finally:
        gc.enable()


def test_http_1_0_closes(shared: Served):
    with shared.wire() as wire:
        request = f"GET / HTTP/1.0\r\nAuthorization: {basic('alice')}\r\n\r\n".encode()
        assert wire.send(request).answer().status == 200
        assert wire.closed()
