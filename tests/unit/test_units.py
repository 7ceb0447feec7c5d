"""The units of systemd: the same in deploy/ and in the documentation, with commands that fsd takes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fsd.cli.main import build

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy/systemd").iterdir())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    assert f"```ini\n{text}```" in (ROOT / "docs/operations.md").read_text()
    assert re.search(r"^Type=notify$", text, re.MULTILINE), "the service says when it serves"
    (command,) = re.findall(r"^ExecStart=(\S+/fsd) (.*)$", text, re.MULTILINE)
    words = shlex.split(command[1].replace("%i", "team").replace("%h", "/home/ann"))
    assert build(words[0]).parse_args(words).command == words[0]
    if analyze := shutil.which("systemd-analyze"):
        copy = tmp_path / unit.name
        copy.write_text(text.replace(command[0], "/bin/true"))
        done = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True)
        assert done.returncode == 0 and str(copy) not in done.stderr, done.stderr
