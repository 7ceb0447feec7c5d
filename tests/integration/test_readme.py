"""The README's tour, typed as it stands, only on free ports and in a copy of the checkout's directory."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.serving import free_port

ROOT = Path(__file__).parents[2]


def test_the_tour_works_as_it_stands(tmp_path: Path) -> None:
    found = re.search(r"```sh tour\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    port = free_port()
    script = "set -em\ntrap 'kill %1 2>/dev/null || true' EXIT\n" + found[1].replace(":9200", f":{port}")
    for name in ("scripts", "docs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    environ = {
        key: value for key, value in os.environ.items() if not key.startswith("FSD_") or key == "FSD_VENV"
    }
    environ |= {
        "FSD_LISTEN": f"127.0.0.1:{port}",
        "FSD_OPS_LISTEN": "off",
        "FSD_STATE": str(tmp_path / "state"),
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100
    )
    log = (tmp_path / "server.log").read_text()
    assert done.returncode == 0, done.stderr + done.stdout + log
    out = done.stdout
    assert "user 'ann' (user)" in out
    assert "/dav/files/ann/notes/" in out and re.search(r"<oc:size>[1-9]", out) and "<d:getetag>" in out
    assert "space 'Handbook' (handbook)" in out and "read:  200" in out and "write: 403" in out
    assert re.search(r"KEY +PATH\n.* readme\.md", out)
    assert re.search(r"Handbook +handbook +project .* active", out)
    assert "up to date: yes" in out and "nothing found" in out
    assert "Traceback" not in log + done.stderr
