"""docs/peers.md names a test for each answer; each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(test_\w+)`")


def test_each_test_that_is_named_exists() -> None:
    found = NAMED.findall((TOP / "docs/peers.md").read_text())
    assert len(found) > 30
    missing = [f"{path}::{name}" for path, name in found if f"def {name}(" not in (TOP / path).read_text()]
    assert not missing


def test_each_row_names_one() -> None:
    rows = [line for line in (TOP / "docs/peers.md").read_text().splitlines() if line.startswith("| ")]
    bare = [row for row in rows if not NAMED.search(row) and not row.startswith(("| what was", "| done on"))]
    assert not bare
