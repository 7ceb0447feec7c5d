"""litmus, whole, on every alias of a space, and below names with `$` and `!`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.serving import ADMIN, ADMIN_PASSWORD, Server

SUITES = {"basic", "copymove", "props", "locks", "http"}
SUMMARY = re.compile(r"<- summary for `(\w+)': of (\d+) tests run: (\d+) passed, (\d+) failed")

ALIASES = {
    "spaces": "/dav/spaces/{id}",
    "spaces-encoded": "/dav/spaces/{quoted}",
    "files": "/dav/files/{user}",
    "home": "/dav/home/{name}",
    "remote-spaces": "/remote.php/dav/spaces/{id}",
    "remote-files": "/remote.php/dav/files/{user}",
    "remote-webdav": "/remote.php/webdav",
    "webdav": "/webdav",
    "odd-directory": "/dav/spaces/{id}/we!rd$dir",
    "odd-directory-encoded": "/dav/spaces/{quoted}/we%21rd%24dir",
    "umlaut": "/dav/files/{user}/%C3%BC%20b",
}


def personal(server: Server) -> dict[str, str]:
    """The administrator's own space."""
    return next(record for record in server.json("space", "list") if record["type"] == "personal")


@pytest.fixture(scope="module")
def served(shared_server: Server) -> Server:
    dav = shared_server.space_dav(personal(shared_server))
    dav.mkcol(b"we!rd$dir")
    dav.mkcol("ü b".encode())
    return shared_server


@pytest.mark.parametrize("alias", ALIASES)
def test_litmus(served: Server, alias: str, tmp_path: Path) -> None:
    _run(served, alias, tmp_path)


def test_litmus_on_cheroots_own_loop(make_server: Callable[..., Server], tmp_path: Path) -> None:
    _run(make_server(options=("--http", "stock")), "files", tmp_path)


def test_litmus_with_one_worker(make_server: Callable[..., Server], tmp_path: Path) -> None:
    _run(make_server(workers=1), "files", tmp_path)


def _run(served: Server, alias: str, tmp_path: Path) -> None:
    record = personal(served)
    space = record["id"]
    path = ALIASES[alias].format(
        id=space, quoted=space.replace("$", "%24"), user=ADMIN, name=_href_name(served, record["name"])
    )
    if served.dav().raw("OPTIONS", path + "/").status == 404 and alias.startswith(
        ("webdav", "remote-webdav")
    ):
        path = f"{path}/{_href_name(served, record['name'])}"
    program = shutil.which("litmus")
    assert program, "litmus is not installed (scripts/test does it where that is allowed)"
    done = subprocess.run(
        [program, "-k", f"http://127.0.0.1:{served.port}{path}/", ADMIN, ADMIN_PASSWORD],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=110,
    )
    found = {
        name: (int(run), int(passed), int(failed))
        for name, run, passed, failed in SUMMARY.findall(done.stdout)
    }
    failures = [
        line for line in done.stdout.splitlines() if "FAIL" in line or "SKIP" in line.upper().split(":")[0]
    ]
    assert found.keys() == SUITES, f"suites run: {sorted(found)}\n{done.stdout[-3000:]}{done.stderr}"
    assert not any(failed for _, _, failed in found.values()), "\n".join(failures)
    assert all(run == passed for run, passed, _ in found.values()), "\n".join(failures)
    assert done.returncode == 0


def _href_name(server: Server, name: str) -> str:
    """The name under which /dav/home lists the space."""
    from urllib.parse import quote

    return quote(name)
