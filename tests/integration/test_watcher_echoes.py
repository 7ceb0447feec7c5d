"""What the server itself writes is heard too; it must not be looked at as if a stranger had written it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import Server
from tests.support.waiting import wait_for
from watcher.sources import fanotify


@pytest.mark.root
def test_our_own_writes_cost_no_reconcile(server: Server):
    if fanotify.usable() is not None:
        pytest.skip("fanotify needs root")
    server.fsd("space", "create", "p")
    record = server.space("p")
    path, key = Path(record["path"]), record["id"].partition("$")[2]

    def told() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((server.state / "run/watcher.json").read_text())["spaces"].get(
            key, {}
        )
        return found

    def passes() -> int:
        counts = told()["passes"]
        return int(counts.get("names", 0)) + int(counts.get("whole", 0))

    wait_for(lambda: told().get("state") == "watching")
    dav = server.space_dav(record)
    dav.request("MKCOL", b"d")
    seen: list[int] = []

    def at_rest() -> bool:
        seen.append(passes())
        return len(seen) > 3 and len(set(seen[-3:])) == 1

    wait_for(at_rest, every=0.6)
    before, echoes = passes(), told()["passes"]["echoes"]
    for number in range(40):
        assert dav.request("PUT", b"d/f%d" % number, b"x" * number).status == 201
    wait_for(lambda: told()["passes"]["echoes"] > echoes, what="echoes that were looked at and dropped")
    seen.clear()
    wait_for(at_rest, every=0.6)
    assert passes() - before <= 4
    (path / "d/strange").write_bytes(b"x" * 1000)
    expected = sum(range(40)) + 1000
    wait_for(lambda: dav.stat(b"").size == expected, what="a stranger's file in the sum")
