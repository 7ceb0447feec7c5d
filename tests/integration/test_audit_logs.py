"""GPFS file audit logs read from files that grow, rotate, are compressed and expire."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.waiting import wait_for
from watcher.hint import Hint, Kind
from watcher.sources import gpfs_audit
from watcher.streams.audit import AuditSource
from watcher.streams.letters import Letters
from watcher.streams.places import parse_mapping


def record(name: str, event: str = "CLOSEWRITE") -> bytes:
    """A line of the log."""
    path = f"/gpfs/fs1/users/{name}"
    return json.dumps({"LWE_JSON": "0.0.5", "path": path, "oldPath": None, "event": event}).encode() + b"\n"


class Reader:
    """A source with one space, and what the space would keep."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.logs = base / "audit_topic"
        self.day = self.logs / "2026/11/21"
        self.day.mkdir(parents=True, exist_ok=True)
        self.stored: dict[str, str] = {}
        self.hints: list[Hint] = []
        self.source: AuditSource | None = None

    def start(self) -> Reader:
        """Begin, or begin again as after a crash: with what was kept."""
        if self.source is not None:
            self.source.close()
        letters = Letters(self.base / "rejected", "gpfs-audit")
        mapping = parse_mapping(["/gpfs/fs1=/srv"])
        self.source = AuditSource(
            "gpfs-audit", gpfs_audit.decode, mapping, letters, self.logs, bell=threading.Event()
        )
        self.source.resume("s", self.stored)
        self.source.add("s", b"/srv/users", (0, 0))
        return self

    def hear(self, *, keep: bool = True) -> list[Hint]:
        """One call of the source."""
        assert self.source is not None
        self.source._next_look = self.source._next_read = 0.0
        found = self.source.collect(1.0)
        positions = self.source.positions("s")
        if keep:
            self.stored = {name: text for name, text in {**self.stored, **positions}.items() if text}
        self.hints += found
        return found

    def names(self) -> set[bytes]:
        """What was heard of since the last call."""
        self.hear()
        heard, self.hints = self.hints, []
        return {name for hint in heard for name in hint.names} | {
            b"GAP" for hint in heard if hint.kind is Kind.GAP
        }


def append(path: Path, *lines: bytes) -> None:
    with open(path, "ab") as file:
        file.write(b"".join(lines))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_first_start_then_lines_as_they_come(reader: Reader) -> None:
    """What was there before is for the sweep; a line counts when it is whole."""
    log = reader.day / "auditLogFile_n1_02:00"
    append(log, record("old"), record("half")[:30])
    reader.start()
    assert reader.names() == {b"GAP"}
    append(log, record("half")[30:], record("new"))
    assert reader.names() == {b"half", b"new"}
    append(reader.day / "auditLogFile_n2_02:00", record("other"))
    assert reader.names() == {b"other"}
    assert reader.names() == set()


def test_read_on_after_a_restart_over_rotation_and_compression(reader: Reader) -> None:
    """Renamed, then compressed, with lines that nobody has read in both the old and the new file."""
    log = reader.day / "auditLogFile_n1"
    append(log, record("a"))
    reader.start()
    assert reader.names() == {b"GAP"}
    append(log, record("b"))
    assert reader.names() == {b"b"}
    append(log, record("c"))
    log.rename(reader.day / "auditLogFile_n1_2026-11-21")
    append(log, record("d"))
    reader.start()
    assert reader.names() == {b"c", b"d"}
    old = reader.day / "auditLogFile_n1_2026-11-21"
    append(old, record("e"))
    (reader.day / "auditLogFile_n1_2026-11-21.gz").write_bytes(gzip.compress(old.read_bytes()))
    old.unlink()
    reader.start()
    assert reader.names() == {b"e"}
    assert reader.names() == set()


def test_what_was_heard_and_not_kept_is_heard_again(reader: Reader) -> None:
    log = reader.day / "auditLogFile_n1"
    append(log, record("a"))
    reader.start()
    reader.names()
    append(log, record("b"))
    reader.hear(keep=False)
    reader.hints = []
    reader.start()
    assert reader.names() == {b"b"}


def test_a_file_that_goes_away_before_its_end_was_read(reader: Reader) -> None:
    """That is a gap; one that was read to its end and closed is none."""
    first, second = reader.day / "auditLogFile_n1_1", reader.day / "auditLogFile_n1_2"
    append(first, record("a"))
    os.utime(first, (1e9, 1e9))
    append(second, record("b"))
    reader.start()
    assert reader.names() == {b"GAP"}
    append(second, record("c"))
    assert reader.names() == {b"c"}
    first.unlink()
    assert reader.names() == set()
    second.unlink()
    assert reader.names() == {b"GAP"}
    append(second, record("d"))
    assert reader.names() == {b"d"}


def test_a_file_that_was_replaced_by_another(reader: Reader) -> None:
    """The same name and a longer one, but not what was read."""
    log = reader.day / "auditLogFile_n1"
    append(log, record("a"))
    reader.start()
    reader.names()
    append(log, record("b"))
    reader.names()
    log.unlink()
    append(log, *[record(f"x{number}") for number in range(20)])
    assert reader.names() == {b"GAP", *[b"x%d" % number for number in range(20)]}


def test_lines_that_cannot_be_read_and_a_directory_that_is_away(
    reader: Reader, allow_log: Callable[[str], None]
) -> None:
    allow_log("a message that is malformed")
    log = reader.day / "auditLogFile_n1"
    append(log, record("a"))
    reader.start()
    reader.names()
    append(log, b"{\n", b"\n", record("b"))
    assert reader.names() == {b"b", b"GAP"}
    assert reader.source is not None
    status = reader.source.status("s")
    assert status is not None
    assert status.stream is not None
    assert status.stream["rejected"]["malformed"] == 1
    reader.logs.rename(reader.base / "away")
    assert reader.names() == set()
    status = reader.source.status("s")
    assert status is not None
    assert status.stream is not None
    assert not status.stream["reading"]
    (reader.base / "away").rename(reader.logs)
    append(log, record("c"))
    assert wait_for(reader.names) == {b"c"}


def test_a_space_that_comes_later(reader: Reader) -> None:
    """It is swept, the other goes on."""
    log = reader.day / "auditLogFile_n1"
    append(log, record("a"))
    reader.start()
    reader.names()
    assert reader.source is not None
    reader.source.resume("t", {})
    reader.source.add("t", b"/srv/projects", (0, 0))
    append(log, record("b"))
    assert {(hint.space, hint.kind) for hint in reader.hear()} == {("t", Kind.GAP), ("s", Kind.ENTRIES)}
