"""The tests that may be skipped, each with the reason. Under `scripts/test` any other skip fails the run."""

from __future__ import annotations

ALLOWED: dict[str, str] = {}
