"""What `scripts/fsd` sees in a command line before there is a Python that could."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

LIB = Path(__file__).parents[2] / "scripts/lib.sh"


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        (["mount", "lab", "here"], "mount"),
        (["--data", "./data", "mount", "lab", "here"], "mount"),
        (["--data=./data", "--state", "--x", "--config", "f", "mount"], "mount"),
        (["serve", "mount"], ""),
        (["--data", "mount", "status"], ""),
        (["user", "add", "mount"], ""),
        (["umount", "here"], ""),
        (["--version"], ""),
        ([], ""),
    ],
)
def test_only_a_mount_needs_more_than_the_base(arguments: list[str], extras: str) -> None:
    script = 'set -u; source "$0"; extras_of "$@"'
    done = subprocess.run(["bash", "-c", script, str(LIB), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, extras, "")
