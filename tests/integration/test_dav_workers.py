"""Several worker processes behind one port: what one of them knows, all know."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.davclient import Dav
from tests.support.serving import ADMIN, ADMIN_PASSWORD, Server
from tests.support.waiting import wait_for
from tests.unit.dav.served import tokens

LOCK = (
    b'<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/>'
    b"</d:locktype></d:lockinfo>"
)
FILES = f"/dav/files/{ADMIN}"


def _served_by(port: int, local: int) -> int:
    """The process at the server's end of a connection from local port `local`."""
    wanted = f"{_hex('127.0.0.1')}:{port:04X} {_hex('127.0.0.1')}:{local:04X}"
    with open("/proc/net/tcp") as table:
        inode = next(line.split()[9] for line in table if wanted in line)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]":
                    return int(pid)
        except OSError:
            continue
    return 0


def _hex(address: str) -> str:
    return socket.inet_aton(address)[::-1].hex().upper()


def each_worker(server: Server, password: str = ADMIN_PASSWORD) -> list[Dav]:
    """A client of each worker: new connections until every worker has one."""
    found: dict[int, Dav] = {}
    wanted = server.workers
    while len(found) < wanted:
        client = server.dav(FILES, password=password)
        client.request("OPTIONS", b"")
        assert client._connection is not None and client._connection.sock is not None
        pid = _served_by(server.port, client._connection.sock.getsockname()[1])
        if pid in found or not pid:
            client.close()
        else:
            found[pid] = client
    return list(found.values())


@pytest.fixture
def pair(server: Server) -> list[Dav]:
    return each_worker(server)


def status(client: Dav, method: str, path: bytes, body: bytes | None = None, **headers: str) -> int:
    return client.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}).status


def test_a_write_in_one_is_seen_in_the_other(pair: list[Dav]):
    one, two = pair
    for round_number in range(20):
        made = one.put(b"f", b"%d" % round_number)
        assert two.get(b"f") == b"%d" % round_number
        assert two.stat(b"f").etag == made.etag
        before = one.stat(b"").etag
        two.put(b"g%d" % round_number, b"x")
        assert one.stat(b"").etag != before


def test_locks_of_one_hold_in_the_other_and_survive_a_kill(server: Server, pair: list[Dav]):
    server.allow_log("ended unexpectedly")
    one, two = pair
    one.put(b"f", b"1")
    token = tokens(one.request("LOCK", b"f", LOCK))
    assert status(two, "PUT", b"f", b"2") == 423
    assert two.request("LOCK", b"f", LOCK).status == 423
    for pid in server.child("web"):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(server.child("web")) == server.workers, what="new workers")
    fresh = server.dav(FILES)
    wait_for(lambda: _answers(fresh), what="an answer")
    assert status(fresh, "PUT", b"f", b"2") == 423
    assert status(fresh, "PUT", b"f", b"2", If=f"(<{token}>)") == 204


def _answers(client: Dav) -> bool:
    try:
        return client.request("OPTIONS", b"").status == 200
    except (OSError, http.client.HTTPException):
        client.close()
        return False


def test_two_locks_at_once_are_granted_once(pair: list[Dav]):
    one, two = pair
    one.put(b"f", b"1")
    for _ in range(10):
        answers = [client.request("LOCK", b"f", LOCK) for client in (one, two)]
        assert sorted(answer.status for answer in answers) == [200, 423]
        granted = next(answer for answer in answers if answer.status == 200)
        assert status(two, "UNLOCK", b"f", Lock_Token=f"<{tokens(granted)}>") == 204


def test_failed_logins_count_together_and_a_new_password_everywhere(server: Server, pair: list[Dav]):
    server.fsd("user", "passwd", ADMIN, "--password-stdin", stdin="fresh-password\n")
    for client in pair:
        assert status(client, "OPTIONS", b"") == 401
    guesses = [status(server.dav(FILES, password=f"guess{n}"), "OPTIONS", b"") for n in range(12)]
    assert 429 in guesses and guesses[0] == 401
    assert guesses.count(401) <= 6, "the workers count together"


def test_a_killed_worker_leaves_the_old_content(server: Server, pair: list[Dav]):
    server.allow_log("ended unexpectedly")
    one, _ = pair
    one.put(b"f", b"old")
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        head = f"PUT {FILES}/f HTTP/1.1\r\nHost: h\r\nAuthorization: {one._auth['Authorization']}\r\n"
        raw.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + b"n" * 400_000)
        for pid in server.child("web"):
            os.kill(pid, signal.SIGKILL)
    fresh = server.dav(FILES)
    wait_for(lambda: _answers(fresh), what="an answer")
    assert fresh.get(b"f") == b"old"
    root = server.data / "users" / ADMIN
    assert sorted(os.listdir(root)) == [".fsd", "f"]
    wait_for(lambda: os.listdir(root / ".fsd" / "staging") == [], what="an empty staging directory")


def test_a_worker_that_hangs_is_replaced(make_server):
    """It is stopped, or computes for ever: it still gets connections, and nobody answers them."""
    server = make_server(started=False)
    server.settings["FSD_HTTP_PATIENCE"] = "4"
    server.allow_log("web-1 has given no sign of life|web-1 ended unexpectedly with signal SIGKILL")
    server.start()
    hung, other = server.child("web-1"), server.child("web-0")
    beats = server.state / "run" / "pulse-web-1"
    wait_for(beats.is_fifo, what="its signs of life")
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2.5, what="its first sign")
    os.kill(hung[0], signal.SIGSTOP)
    tasks = Path(f"/proc/{hung[0]}/task")
    # One thread takes the signal, and stops the others: until it has been on a processor these go on.
    wait_for(
        lambda: all(" T " in (t / "stat").read_text() for t in tasks.iterdir()), what="it to stand still"
    )
    waiting = [server.dav(FILES) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda client: client.request("OPTIONS", b"").status, waiting))
    assert answers == [200] * 8, "what waited for it is answered by its successor"
    assert hung != server.child("web-1") and other == server.child("web-0")


def test_a_stop_lets_an_upload_finish(server: Server, pair: list[Dav]):
    one, _ = pair
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        head = f"PUT {FILES}/late HTTP/1.1\r\nHost: h\r\nAuthorization: {one._auth['Authorization']}\r\n"
        raw.sendall(f"{head}Content-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 100")
        raw.sendall(b"ab")
        assert server.process is not None
        server.process.terminate()
        wait_for(lambda: _refuses(server.port), what="a closed port")
        raw.sendall(b"cd")
        assert raw.recv(1000).startswith(b"HTTP/1.1 201")
    assert server.process.wait(30) == 0
    server.process = None
    assert (server.data / "users" / ADMIN / "late").read_bytes() == b"abcd"


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


def test_many_clients_at_once(server: Server):
    """Random changes of a few names by many clients: no 5xx, and a tree without findings."""
    found: dict[tuple[str, int], int] = {}
    guard = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        client = server.dav(FILES)
        for _ in range(20):
            method = rng.choice(["PUT", "PUT", "GET", "PROPFIND", "DELETE", "MOVE", "COPY", "MKCOL"])
            headers = {"Depth": "1"} if method == "PROPFIND" else {}
            if method in ("MOVE", "COPY"):
                headers["Destination"] = client.url(b"f%d" % rng.randrange(12))
            body = rng.randbytes(rng.randrange(20_000)) if method == "PUT" else None
            answer = client.request(method, b"f%d" % rng.randrange(12), body, headers)
            with guard:
                found[method, answer.status] = found.get((method, answer.status), 0) + 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found.values()) == 800
    assert not [key for key in found if key[1] >= 500], found
    assert any(key == ("PUT", 201) for key in found)
    assert server.run("check").returncode == 0


def test_a_reload_fails_no_request(server: Server):
    """Clients that keep their connections and clients that open new ones, through two reloads."""
    assert server.process is not None
    over, failures, served = threading.Event(), [], [0] * 6
    client = server.dav(FILES)
    client.put(b"f", b"x")
    headers = dict(client._auth)

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        while not over.is_set():
            try:
                connection.request("GET", f"{FILES}/f", headers=headers)
                answer = connection.getresponse()
                text = answer.read()
                if (answer.status, text) != (200, b"x"):
                    failures.append((answer.status, text[:300]))
            except Exception as error:  # noqa: BLE001 - each is a failed request
                failures.append(error)
                connection.close()
            served[number] += 1
            if number % 2:
                connection.close()
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(served))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            before = set(server.child("web"))
            os.kill(server.process.pid, signal.SIGHUP)
            wait_for(
                lambda before=before: not before & set(server.child("web")), timeout=40, what="new workers"
            )
            count = sum(served)
            wait_for(lambda count=count: sum(served) > count + 100, what="requests to the new workers")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:5]


def test_a_quota_is_exact_under_parallel_uploads(make_server):
    server = make_server()
    record = server.space("admin")
    server.fsd("space", "set", record["alias"], "--quota", "500000")
    clients = [server.space_dav(record) for _ in range(100)]
    with ThreadPoolExecutor(100) as pool:
        asked = pool.map(
            lambda each: each[1].request("PUT", b"f%d" % each[0], b"x" * 10_000), enumerate(clients)
        )
        answers = list(asked)
    found = Counter(answer.status for answer in answers)
    assert found == {201: 50, 507: 50}
    (root,) = clients[0].propfind(b"", depth=0)
    assert root.size == 500_000
    full = clients[0].request("PUT", b"f", b"1")
    assert full.status == 507 and b"room for 0 more bytes" in full.body
    stored = next(b"f%d" % index for index, answer in enumerate(answers) if answer.status == 201)
    assert clients[0].request("PUT", stored, b"y" * 10_000).status == 204, "what adds nothing is not blocked"
