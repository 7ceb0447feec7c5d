"""A source that reads GPFS file audit logs where GPFS writes them. See `watcher.streams.base`, `watcher.streams.tail`.

Files are looked for every few seconds and read on whenever somebody asks, so a change is heard within a second or so of
its line. One thread calls it, and it asks a storage: the one that the spaces lie on.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from watcher.hint import Hint
from watcher.sources.base import SourceStatus
from watcher.streams import tail
from watcher.streams.base import LogSource
from watcher.streams.heard import Decoder
from watcher.streams.letters import Letters
from watcher.streams.places import Prefix
from watcher.streams.tail import Log, Mark

LOOK = 2.0
READ = 0.2
_HEAD = "audit:"


class AuditSource(LogSource):
    """The log files of all nodes below one directory."""

    def __init__(
        self,
        name: str,
        decode: Decoder,
        mapping: list[Prefix],
        letters: Letters,
        directory: Path,
        *,
        bell: threading.Event | None = None,
    ) -> None:
        super().__init__(name, decode, mapping, letters, bell=bell)
        self._directory = directory
        self._logs: dict[str, Log] = {}
        self._marks: dict[str, Mark] = {}
        self._told: dict[str, dict[str, str]] = {}
        """What each space was told of the marks."""
        self._waiting: list[str] = []
        """Spaces that were added since the last look."""
        self._file: IO[bytes] | None = None
        self._at = ""
        self._next_look = self._next_read = 0.0
        self._error = ""
        self._down_since = time.monotonic()
        self._last_line = 0.0

    def add(
        self,
        space: str,
        root: bytes,
        hidden: tuple[int, int],
        *,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        super().add(space, root, hidden, base=base, without=without)
        if space not in self._waiting and space not in self._told:
            self._waiting.append(space)
        self._next_look = 0.0

    def remove(self, space: str) -> None:
        super().remove(space)
        self._told.pop(space, None)
        self._waiting = [each for each in self._waiting if each != space]

    # -- reading

    def busy(self) -> bool:
        return bool(self._at or self._hints)

    def collect(self, budget: float) -> list[Hint]:
        now = time.monotonic()
        deadline = now + budget
        try:
            if now >= self._next_look:
                self._next_look = now + LOOK
                self._look(now)
            if not self._waiting:
                self._read(deadline)
            self._error, self._down_since = "", 0.0
        except (OSError, EOFError, zlib.error) as error:
            self._error = str(error)
            self._down_since = self._down_since or now
            self._forget_file()
        return self._gathered(now)

    def _look(self, now: float) -> None:
        logs = tail.look(self._directory)
        found = tail.match(logs, self._marks)
        self._logs, self._marks = logs, found.marks
        for _ in found.gone:
            self._gap(None, "log gone", now)
        while self._waiting:
            self._join(self._waiting[0], now)
            self._waiting.pop(0)

    def _join(self, space: str, now: float) -> None:
        """A space's marks: the least of all counts, as hearing twice is harmless."""
        stored = {
            name[len(_HEAD) :]: mark
            for name, text in self._stored[space].items()
            if name.startswith(_HEAD) and (mark := tail.parse(text)) is not None
        }
        self._told[space] = {
            name: text for name, text in self._stored[space].items() if name.startswith(_HEAD)
        }
        if not stored:
            self._gap(space, "first", now)
            if not self._marks:
                self._marks = {stem: _end(log) for stem, log in self._logs.items()}
            return
        found = tail.match(self._logs, stored)
        if found.gone:
            self._gap(space, "log gone", now)
        others = bool(self._marks)
        for stem in self._logs:
            mine, theirs = found.marks.get(stem), self._marks.get(stem)
            if mine is not None and (theirs is None or mine.offset < theirs.offset):
                if theirs is None and others:
                    continue  # unknown to the others: it is read from its beginning
                self._marks[stem] = mine
            elif mine is None and theirs is not None:
                self._marks[stem] = Mark(theirs.inode, 0)
        self._forget_file()

    def _read(self, deadline: float) -> None:
        now = time.monotonic()
        if not self._at and now < self._next_read:
            return
        for stem, log in list(self._logs.items()):
            if self._at and stem != self._at:
                continue
            self._at = stem
            mark = self._marks.get(stem) or Mark(log.inode, 0)
            ended = mark.closed and (log.compressed or mark.offset >= log.size)
            if not ended and not self._read_file(log, mark, deadline):
                return
            self._forget_file()
        self._next_read = time.monotonic() + READ

    def _read_file(self, log: Log, mark: Mark, deadline: float) -> bool:
        """Read a file on to its end; False if time is up before."""
        newest = max(
            (each for each in self._logs.values() if each.node == log.node), key=lambda each: each.changed
        )
        closed = log.compressed or (newest.stem != log.stem and newest.changed > log.changed)
        if self._file is None:
            self._file = log.open(mark.offset)
        while True:
            before = mark.offset
            for line, behind in tail.lines(self._file, mark, closed=closed):
                mark = behind
                if line.strip():
                    rejected = self._gatherer.hear(line)
                    if rejected is not None:
                        self._reject(rejected, line, f"{log.stem}@{mark.offset - len(line)}")
                    self._last_line = time.time()
            self._marks[log.stem] = mark._replace(closed=closed and mark.offset == before)
            if mark.offset == before:
                return True
            if time.monotonic() >= deadline:
                return False

    def _forget_file(self) -> None:
        file, self._file, self._at = self._file, None, ""
        if file is not None:
            file.close()

    # -- positions

    def positions(self, space: str) -> dict[str, str]:
        """What has changed since it was told, "" for a file that is no more."""
        told = self._told.get(space)
        if told is None:
            return {}
        now = {_HEAD + stem: mark.text() for stem, mark in self._marks.items()}
        news = {name: text for name, text in now.items() if told.get(name) != text}
        news |= dict.fromkeys(told.keys() - now.keys(), "")
        self._told[space] = now
        return news

    def kept(self, space: str, stored: Mapping[str, str]) -> None:
        """Nothing: who writes the files does not wait for us."""

    def commit(self) -> None:
        """Nothing."""

    # -- status

    def status(self, space: str) -> SourceStatus | None:
        if space not in self._places.spaces():
            return None
        files: dict[str, dict[str, int]] = {}
        for log in list(self._logs.values()):
            mark = self._marks.get(log.stem)
            if mark is None or not mark.closed:
                at = mark.offset if mark is not None else 0
                lag = 0 if log.compressed else max(0, log.size - at)
                files[log.stem] = {"offset": at, "end": log.size, "lag": lag}
        stream = {
            "topics": [str(self._directory)],
            "connected": not self._down_since,
            "reading": not self._down_since and not self._waiting,
            "error": self._error,
            "down_for": round(time.monotonic() - self._down_since, 1) if self._down_since else 0.0,
            "partitions": files,
            "others": [],
            "lag": sum(each["lag"] for each in files.values()),
            "last_message": self._last_line or None,
            "rebalances": 0,
        }
        return self._status(space, ready=space not in self._waiting, backlog=0, stream=stream)

    def close(self) -> None:
        self._forget_file()


def _end(log: Log) -> Mark:
    """Everything in it is old: a sweep that begins later finds what it tells. Its last line may not be whole."""
    if log.compressed:
        return Mark(log.inode, 0, closed=True)
    with log.open(0) as file:
        data = file.read(log.size)
    end = data.rfind(b"\n") + 1
    head = data[: min(tail.HEAD, end)]
    return Mark(log.inode, end, len(head), zlib.crc32(head))
