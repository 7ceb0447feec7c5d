"""Log lines, the audit trail, and systemd's notifications."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.service import logs, notify


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, audit = logging.getLogger(), logging.getLogger("fsd.audit")
    before = root.handlers[:], root.level, audit.handlers[:], audit.level
    yield
    root.handlers[:], audit.handlers[:] = before[0], before[2]
    root.setLevel(before[1])
    audit.setLevel(before[3])


def lines(monkeypatch: pytest.MonkeyPatch, form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.setup("web-1", form, level)
    return stream


def test_text_is_one_line_with_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines(monkeypatch, "text")
    with logs.request("r1"):
        logging.getLogger("x").info(
            "opened %s", "a\nb", extra=logs.fields(path=b"odd\xff\n", size=3, none=None)
        )
    (line,) = stream.getvalue().splitlines()
    assert (
        "web-1[" in line
        and r"opened a\nb" in line
        and "size=3" in line
        and "request=r1" in line
        and "none" not in line
    )


def test_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines(monkeypatch, "json")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("failed", extra=logs.fields(path=b"odd\xff", level="not the level"))
    (line,) = stream.getvalue().splitlines()
    body = json.loads(line)
    assert body["event"] == "failed" and body["level"] == "error" and body["process"] == "web-1"
    assert "ValueError: boom" in body["trace"] and body["path"].startswith("odd")


def test_journal_prefixes_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines(monkeypatch, "journal")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("failed")
    found = stream.getvalue().splitlines()
    assert len(found) > 1 and all(line.startswith("<3>") for line in found)


def test_levels_do_not_hide_the_audit_trail(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines(monkeypatch, "json", "error")
    logging.getLogger("x").warning("hidden")
    logs.audit("ann", "file delete", "/x", space="s", address="::1")
    (line,) = stream.getvalue().splitlines()
    body = json.loads(line)
    assert (body["event"], body["actor"], body["target"], body["outcome"]) == (
        "file delete",
        "ann",
        "/x",
        "ok",
    )


def test_the_audit_file_survives_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(monkeypatch, "text")
    monkeypatch.setattr(logs, "_LOOK_S", 0.0)
    logs.audit_to_file(tmp_path)
    logs.audit_to_file(tmp_path)
    logs.audit("ann", "one", "x")
    (tmp_path / "audit.log").rename(tmp_path / "audit.log.1")
    logs.audit("ann", "two", "x")
    assert [json.loads(line)["event"] for line in (tmp_path / "audit.log.1").read_text().splitlines()] == [
        "one"
    ]
    assert [json.loads(line)["event"] for line in (tmp_path / "audit.log").read_text().splitlines()] == [
        "two"
    ]
    assert (tmp_path / "audit.log.1").stat().st_mode & 0o777 == 0o600


def test_an_audit_line_is_json_whatever_the_names_are(tmp_path: Path) -> None:
    logs.audit_to_file(tmp_path)
    odd = '"\\\n\x00\u2028ü\udcff'
    with logs.request("r1"):
        logs.audit(
            odd, "GET", odd, outcome="ok", status=200, space=odd, raw=b"\xff", none=None, many=[1, odd]
        )
    (text,) = (tmp_path / "audit.log").read_text().splitlines()
    line = json.loads(text)
    assert line.pop("time").endswith("Z") and line.pop("pid") == os.getpid()
    assert line == {
        "level": "info",
        "process": "audit",
        "logger": "fsd.audit",
        "event": "GET",
        "actor": odd,
        "target": odd,
        "outcome": "ok",
        "status": 200,
        "space": odd,
        "raw": "?",
        "none": None,
        "many": [1, odd],
        "request": "r1",
    }


def test_no_audit_file_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines(monkeypatch, "text")
    logs.audit_to_file(tmp_path / "missing")
    logs.audit("ann", "one", "x")
    assert "no audit file" in stream.getvalue() and "one" in stream.getvalue()


def test_the_audit_file_turns_over_and_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(monkeypatch, "text")
    monkeypatch.setattr(logs._AuditFile, "limit", 2000)
    monkeypatch.setattr(logs, "_LOOK_S", 0.0)
    logs.audit_to_file(tmp_path)
    one = logging.getLogger("fsd.audit").handlers[-1]
    other = logs._AuditFile(tmp_path / "audit.log")
    other.setFormatter(one.formatter)
    for turn in range(60):
        record = logging.LogRecord("fsd.audit", logging.INFO, "", 0, f"event {turn}", (), None)
        (one, other)[turn % 2].handle(record)
    other.close()
    found = [
        json.loads(line)["event"]
        for path in tmp_path.glob("audit.log*")
        for line in path.read_text().splitlines()
    ]
    assert len(found) == len(set(found)) == 60
    assert (tmp_path / "audit.log.2").exists()
    assert all(path.stat().st_size < 2500 for path in tmp_path.glob("audit.log*"))


def test_listings_have_a_file_of_their_own(tmp_path: Path) -> None:
    logs.access("ann", "PROPFIND", "/x")  # without a file it is not kept
    logs.audit_to_file(tmp_path, buffered=True, listings=True)
    logs.audit("ann", "GET", "/x", later=True)
    logs.access("ann", "PROPFIND", "/d", depth="1")
    assert (tmp_path / "access.log").read_text() == (tmp_path / "audit.log").read_text() == ""
    logs.flush_audit()
    (listed,) = map(json.loads, (tmp_path / "access.log").read_text().splitlines())
    assert (listed["actor"], listed["event"], listed["target"], listed["depth"]) == (
        "ann",
        "PROPFIND",
        "/d",
        "1",
    )
    (read,) = map(json.loads, (tmp_path / "audit.log").read_text().splitlines())
    assert (read["event"], read["target"]) == ("GET", "/x")
    logs.audit_to_file(tmp_path)
    logs.access("ann", "PROPFIND", "/later")
    logs.flush_audit()
    assert "/later" not in (tmp_path / "access.log").read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines(monkeypatch, "text")
    (tmp_path / "audit.log").symlink_to("/dev/full")
    logs.audit_to_file(tmp_path)
    for _ in range(3):
        logs.audit("ann", "one", "x")
    found = stream.getvalue()
    assert (
        found.count("cannot be written") == 1
        and found.count("fsd.audit: one") == 3
        and "Traceback" not in found
    )


def test_setup_again_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines(monkeypatch, "text")
    logs.setup("web-2", "text")
    logging.getLogger("x").info("once")
    assert len(stream.getvalue().splitlines()) == 1 and "web-2" in stream.getvalue()


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"fsd-test-{os.getpid()}" if abstract else str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name if abstract else name)
        server.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        assert notify.ready("serving") and notify.alive() and notify.reloading() and notify.stopping()
        found = [server.recv(500).decode() for _ in range(4)]
    assert found[0].splitlines() == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=serving"]
    assert (
        found[1] == "WATCHDOG=1"
        and found[2].startswith("RELOADING=1\nMONOTONIC_USEC=")
        and found[3] == "STOPPING=1"
    )


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert notify.ready() is False


def test_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "no")
    assert notify.watchdog_interval() is None
