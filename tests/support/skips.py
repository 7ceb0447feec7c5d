"""The tests that may be skipped, each with the reason. Under `scripts/test` any other skip fails the run."""

from __future__ import annotations

ALLOWED: dict[str, str] = {
    "tests/integration/test_e2e_storage.py": "mounts filesystems, which only root may",
}
