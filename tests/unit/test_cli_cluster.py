"""`fsd cluster`: the registry of one host on another."""

from __future__ import annotations

import os
from pathlib import Path

from fsd.core.registry import Registry
from tests.unit.test_cli import Run, fsd, ready, registry

__all__ = ["fsd", "ready", "registry"]


def test_cluster_export_and_join(ready: Run, registry: Registry, tmp_path: Path) -> None:
    """A new host, one that follows, and one that would lose what it has."""
    other = ("--data", os.fsdecode(registry.installation.data_root), "--state", str(tmp_path / "other"))
    code, text, _ = ready("cluster", "export")
    assert code == 0 and ready("cluster", "join", *other, stdin=text)[0] == 0
    assert (tmp_path / "other/service.key").read_text() == (registry.state_dir / "service.key").read_text()
    (tmp_path / "other/service.key").unlink()  # as a crash between the two files leaves it
    assert ready("cluster", "join", *other, stdin=text)[0] == 0
    assert ready("user", "add", "bob", "--password-stdin", stdin="secret")[0] == 0
    code, text, _ = ready("cluster", "export")
    assert ready("cluster", "join", *other, stdin=text)[0] == 0
    assert "bob" in ready("user", "list", *other)[1]
    assert ready("user", "add", "eve", *other, "--password-stdin", stdin="secret")[0] == 0
    code, _, err = ready("cluster", "join", *other, stdin=text)
    assert code == 1 and "users are not in it: eve" in err and "eve" in ready("user", "list", *other)[1]
    assert ready("cluster", "join", *other, "--yes", stdin=text)[0] == 0
    assert "eve" not in ready("user", "list", *other)[1]
    assert ready("cluster", "join", *other, stdin="nonsense")[0] == 1
