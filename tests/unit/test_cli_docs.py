"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from fsd.cli.main import COMMANDS
from fsd.cli.reference import render

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == render(), "run scripts/gen_cli_docs"


def test_every_command_and_setting_is_on_it() -> None:
    page = render()
    assert all(f"## fsd {name}\n" in page for name in COMMANDS)
    for word in ("`FSD_OPS_LISTEN`", "--read-only", "| 130 |", "`fsd space adopt DIR`"):
        assert word in page
