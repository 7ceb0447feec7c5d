"""Who did what, who read what, who listed what: a line for each, in the file where an administrator looks."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsd.service import logs
from tests.unit.dav.served import Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    logs.audit_to_file(tmp_path, buffered=True, listings=True)
    with serving(tmp_path / "served") as made:
        yield made
    for file in (logs._trail, logs._listings):
        assert file is not None
        logging.getLogger("fsd.audit").removeHandler(file)
        file.close()


def lines(path: Path) -> list[dict[str, Any]]:
    logs.flush_audit()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_request_has_its_line(served: Served, tmp_path: Path) -> None:
    files = "/dav/files/alice"
    report = (
        b'<oc:filter-files xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop><d:getetag/></d:prop>'
        b"<oc:filter-rules><oc:favorite>1</oc:favorite></oc:filter-rules></oc:filter-files>"
    )
    served.ask("PUT", f"{files}/f", body=b"x")
    served.ask("GET", f"{files}/f")
    served.ask("HEAD", f"{files}/f")
    served.ask("PROPFIND", f"{files}/", "Depth: 1")
    served.ask("PROPFIND", f"{files}/nobody", "Depth: 0")
    served.ask("PROPFIND", "/dav/spaces/", "Depth: 1")
    served.ask("REPORT", f"{files}/", "Depth: 0", body=report)
    served.ask("OPTIONS", f"{files}/")
    space = served.personal().id
    listed = [(each["event"], each["target"], each.get("depth"), each["outcome"], each.get("space"))
              for each in lines(tmp_path / "access.log")]  # fmt: skip
    assert listed == [
        ("HEAD", "/f", None, "ok", space),
        ("PROPFIND", "/", "1", "ok", space),
        ("PROPFIND", "/nobody", "0", "refused", space),
        ("PROPFIND", "/dav/spaces/", "1", "ok", None),
        ("REPORT", "/", "0", "ok", space),
    ]
    assert {each["actor"] for each in lines(tmp_path / "access.log")} == {"alice"}
    done = [(each["event"], each["target"], each["outcome"]) for each in lines(tmp_path / "audit.log")]
    assert done == [("PUT", "/f", "ok"), ("GET", "/f", "ok")]
