"""Damaged requests: whatever arrives, the server answers or closes, logs no error, and goes on."""

from __future__ import annotations

import random
import socket

import pytest

from tests.unit.dav.served import Served, serving

FILES = "/dav/files/alice"
REQUESTS = 400


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("fuzz")) as made:
        made.dav().put(b"f", b"content")
        yield made


def samples(served: Served) -> list[bytes]:
    body = b'<d:propfind xmlns:d="DAV:"><d:prop><d:getetag/><x xmlns="u:"/></d:prop></d:propfind>'
    patch = b'<d:propertyupdate xmlns:d="DAV:"><d:set><d:prop><x>1</x></d:prop></d:set></d:propertyupdate>'
    lock = (
        b'<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:shared/></d:lockscope><d:locktype><d:write/></d:locktype>'
        b"<d:owner>me</d:owner></d:lockinfo>"
    )
    return [
        served.head("GET", f"{FILES}/f", "Range: bytes=0-1,3-4", 'If-None-Match: "a", W/"b"'),
        served.head("PUT", f"{FILES}/p", "Content-Length: 5", "X-OC-Mtime: 12", "OC-Checksum: MD5:00")
        + b"hello",
        served.head("PUT", f"{FILES}/c", "Transfer-Encoding: chunked")
        + b"5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n",
        served.head("PROPFIND", f"{FILES}/", "Depth: 1", f"Content-Length: {len(body)}") + body,
        served.head("PROPPATCH", f"{FILES}/f", f"Content-Length: {len(patch)}") + patch,
        served.head("LOCK", f"{FILES}/l", "Timeout: Second-5", f"Content-Length: {len(lock)}") + lock,
        served.head("UNLOCK", f"{FILES}/l", "Lock-Token: <urn:uuid:1>"),
        served.head("COPY", f"{FILES}/f", f"Destination: http://localhost{FILES}/g%3Fx", "Overwrite: F"),
        served.head(
            "MOVE", f"{FILES}/g%3Fx", f"Destination: {FILES}/h", 'If: (<urn:uuid:1> ["x"]) (Not <a>)'
        ),
        served.head("MKCOL", f"{FILES}/d"),
        served.head("DELETE", f"{FILES}/d"),
        served.head("OPTIONS", f"/dav/spaces/{served.personal().id}!{'0' * 32}/x"),
    ]


def damaged(rng: random.Random, request: bytes) -> bytes:
    data = bytearray(request)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randint(1, 20)]
            case 2:
                data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
            case 3:
                data[place:place] = rng.choice(
                    [b"\r\n", b"\n", b"%2F", b"%", b"..", b"\x00", b"-1", b"<", b"&", b'"']
                )
            case 4:
                del data[place:]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_damaged_requests(served: Served, seed: int):
    rng = random.Random(seed)
    whole = samples(served)
    for _ in range(REQUESTS):
        with served.wire(timeout=10) as wire:
            try:
                wire.send(damaged(rng, rng.choice(whole)))
                wire.socket.shutdown(socket.SHUT_WR)
                answer = wire.answer()
            except ConnectionError:
                continue
            # 500 and 503 would be the server's own fault.
            assert answer is None or answer.status < 500 or answer.status in (501, 502, 505), answer
    assert served.dav().get(b"f") is not None
    assert served.ask("GET", "/").status == 200


@pytest.mark.parametrize("seed", [4])
def test_junk_bytes(served: Served, seed: int):
    rng = random.Random(seed)
    for _ in range(REQUESTS // 2):
        with served.wire(timeout=10) as wire:
            try:
                wire.send(rng.randbytes(rng.randint(1, 3000)))
                wire.socket.shutdown(socket.SHUT_WR)
                answer = wire.answer()
            except ConnectionError:
                continue
            assert answer is None or answer.status < 500 or answer.status == 505
    assert served.ask("GET", "/").status == 200
