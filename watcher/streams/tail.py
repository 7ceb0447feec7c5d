"""Files that others append lines to, rotate, compress and expire: where each was read to, and what comes next.

A file is known by its path below the directory, without `.gz`, and proven by the checksum of its head: one that was
renamed is found by its inode, one that was compressed by its name. A last line without a newline is not yet whole,
unless the file was closed, which is so when it is compressed or its node has begun another.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, cast

CHUNK = 1 << 20
HEAD = 256
MAX_LINE = 8 << 20
_NODE = re.compile(r"(auditLogFile_.+?)(?:[_.-]\d.*)?$")


class Mark(NamedTuple):
    """Where a file was read to, in uncompressed bytes. `head`, `crc`: the length of its proven beginning and that's
    checksum. `closed`: nothing is appended any more."""

    inode: int
    offset: int
    head: int = 0
    crc: int = 0
    closed: bool = False

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(self)


def parse(text: str) -> Mark | None:
    """A stored mark; None if it is damaged."""
    try:
        inode, offset, head, crc, closed = json.loads(text)
        return Mark(int(inode), int(offset), int(head), int(crc), bool(closed))
    except (ValueError, TypeError):
        return None


class Log(NamedTuple):
    """A file that is there."""

    stem: str
    path: Path
    inode: int
    size: int
    changed: float

    @property
    def compressed(self) -> bool:
        """Whether it is a .gz file; GPFS's own compression does not show."""
        return self.path.suffix == ".gz"

    @property
    def node(self) -> str:
        """Who writes it, as far as its name says."""
        found = _NODE.match(self.stem.rpartition("/")[2])
        return found[1] if found else self.stem

    def open(self, offset: int) -> IO[bytes]:
        """Open for reading at an uncompressed offset. OSError, EOFError and zlib.error if it is damaged."""
        file = cast(IO[bytes], (gzip.open if self.compressed else open)(self.path, "rb"))
        file.seek(offset)
        return file

    def head(self, length: int) -> tuple[int, int]:
        """(length, checksum) of its beginning."""
        with self.open(0) as file:
            data = file.read(length)
        return len(data), zlib.crc32(data)

    def fits(self, mark: Mark) -> bool:
        """Whether it is the file that a mark is about."""
        if not self.compressed and self.size < mark.offset:
            return False
        return self.head(mark.head) == (mark.head, mark.crc)


def look(directory: Path) -> dict[str, Log]:
    """All log files by stem, oldest first. OSError if the directory can't be read."""
    found: dict[str, Log] = {}
    os.stat(directory)
    for top, _, names in os.walk(directory):
        for name in names:
            if name.startswith("auditLogFile"):
                path = Path(top, name)
                try:
                    info = path.stat()
                except FileNotFoundError:
                    continue
                stem = str(path.relative_to(directory)).removesuffix(".gz")
                if stem not in found or not found[stem].compressed:
                    found[stem] = Log(stem, path, info.st_ino, info.st_size, info.st_mtime)
    return dict(sorted(found.items(), key=lambda item: (item[1].changed, item[0])))


class Match(NamedTuple):
    """What became of the marks: those of files that are there, by their stems now; `gone`: stems whose file went
    away before it was known to be closed."""

    marks: dict[str, Mark]
    gone: list[str]


def match(logs: Mapping[str, Log], marks: Mapping[str, Mark]) -> Match:
    """Find the files of marks again. OSError if one can't be read."""
    found: dict[str, Mark] = {}
    gone = []
    inodes = {log.inode: log for log in logs.values()}
    for stem, mark in marks.items():
        candidates = [logs.get(stem), inodes.get(mark.inode)]
        log = next((each for each in candidates if each is not None and each.fits(mark)), None)
        if log is not None:
            # Compressed since: what came after it counted as closed is in there as well.
            same = log.inode == mark.inode
            found[log.stem] = mark._replace(inode=log.inode, closed=mark.closed and same)
        elif not mark.closed:
            gone.append(stem)
    return Match(found, gone)


def lines(file: IO[bytes], mark: Mark, *, closed: bool) -> Iterator[tuple[bytes, Mark]]:
    """The whole lines of a chunk, each with the mark behind it."""
    data = file.read(CHUNK)
    while data and b"\n" not in data and len(data) < MAX_LINE and (more := file.read(CHUNK)):
        data += more
    end = data.rfind(b"\n") + 1
    if not end and data and (closed or len(data) >= MAX_LINE):
        end = len(data)
    at = mark.offset
    for line in data[:end].splitlines(keepends=True):
        at += len(line)
        if mark.head < HEAD and at <= HEAD + len(line):
            head = data[: min(HEAD, at)] if mark.offset == 0 else b""
            if head:
                mark = mark._replace(head=len(head), crc=zlib.crc32(head))
        yield line, mark._replace(offset=at)
    file.seek(at)
