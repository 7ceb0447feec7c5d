"""Somebody with a shell displaces the internal directory: it stays hidden, and nothing is written until it is back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.serving import Server
from tests.support.waiting import wait_for


@pytest.mark.parametrize("place", ["elsewhere", "d/deeper", "d/e/deepest"])
def test_displaced_internals_stay_hidden(server: Server, place: str) -> None:
    server.allow_log(r"internal|\.fsd|unavailable")
    record = server.space("admin")
    root, dav = Path(record["path"]), server.space_dav(record)
    for path in (b"d", b"d/e"):
        dav.mkcol(path)
    dav.put(b"d/f", b"1")
    os.rename(root / ".fsd", root / place)
    below = place.encode()
    for path in (below, below + b"/space.json", below + b"/trash", below + b"/trash/files"):
        for method in ("GET", "PROPFIND", "DELETE", "HEAD"):
            assert dav.request(method, path, None, {"Depth": "1"}).status in (403, 404, 503), (method, path)
        answer = dav.request("COPY", path, None, {"Destination": dav.url(b"stolen")})
        assert answer.status in (403, 404, 503), (path, answer)
    assert dav.get(b"d/f") == b"1"
    names = {resource.path for resource in dav.propfind(below.rpartition(b"/")[0])}
    assert below not in names
    for method, path in (("PUT", b"new"), ("MKCOL", b"newdir"), ("DELETE", b"d/f"), ("DELETE", b"d")):
        assert dav.request(method, path, b"x" if method == "PUT" else None).status in (403, 503), (
            method,
            path,
        )
    assert (root / "d/f").exists() and not (root / "new").exists()
    os.rename(root / place, root / ".fsd")
    wait_for(lambda: dav.request("PUT", b"new", b"x").status == 201, what="writing again")
