"""Entry point of the `fsd` command."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    print("fsd: no command given", file=sys.stderr)
    return 2
