"""`fsd token`."""

from __future__ import annotations

import json

from fsd.core.registry import Registry
from tests.unit.test_cli import Run, fsd, ready, registry

__all__ = ["fsd", "ready", "registry"]


def test_token_life(ready: Run, registry: Registry) -> None:
    code, out, _ = ready("token", "create", "admin", "--name", "laptop")
    text = out.splitlines()[-1]
    assert code == 0 and text.startswith("fsd_")
    code, out, _ = ready("token", "create", "admin", "--name", "phone", "--expires", "30", "--json")
    made = json.loads(out)
    assert made["token"].startswith("fsd_") and made["expires"] > made["created"]
    assert ready("token", "create", "admin", "--name", "phone")[0] == 1
    _, out, _ = ready("token", "list", "--json")
    assert [(each["user"], each["name"]) for each in json.loads(out)] == [
        ("admin", "laptop"),
        ("admin", "phone"),
    ]
    assert text not in out and made["token"] not in out
    assert "laptop" in ready("token", "list", "admin")[1]
    assert ready("token", "revoke", "admin", made["id"])[0] == 0
    assert ready("token", "revoke", "admin", "phone")[0] == 1
    assert ready("token", "list", "nobody")[0] == 1


def test_a_token_needs_no_name(ready: Run, registry: Registry) -> None:
    made = [json.loads(ready("token", "create", "admin", "--json")[1]) for _ in range(2)]
    assert made[0]["name"] != made[1]["name"]
    assert ready("token", "revoke", "admin", made[0]["name"])[0] == 0
