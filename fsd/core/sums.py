"""`<space>.sums.db`: checksums of contents, by etag.

A file's etag stands for one content of one node, so a checksum that is kept with it can never be shown for another
one: whatever changes the etag leaves the sum behind. Renames, moves and restores keep the etag, and so the sum. It is a
cache: deleting it costs reading the files again, which hashing.py does in its own time. Nothing here ever fails a
request: what can't be read is not known, what can't be written is found out again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from fsd.core.errors import NameRefused
from fsd.core.store import Database

_log = logging.getLogger(__name__)

TYPES: Final = ("sha1", "md5", "adler32")
"""What is kept, in the order in which it is shown."""
SMALL: Final = 64 << 10
"""Uploads of up to so many bytes get all sums on their way in: 15 µs for 4 KiB. So do those that come with a sum: the
client cares, and may compare another one later (rclone sends SHA1 and asks for MD5). For others MD5 alone would halve
the rate at which they are taken in; they have time, in the background."""
_SCHEMA = """
CREATE TABLE sum (
    etag BLOB PRIMARY KEY, id BLOB NOT NULL, sha1 BLOB, md5 BLOB, adler32 BLOB) WITHOUT ROWID;
CREATE TABLE cursor (one INTEGER PRIMARY KEY CHECK (one = 1), born_ns INTEGER NOT NULL, row INTEGER NOT NULL,
    number INTEGER NOT NULL)
"""
_PUT = (
    "INSERT INTO sum VALUES (?, ?, ?, ?, ?) ON CONFLICT (etag) DO UPDATE SET"
    " sha1=coalesce(excluded.sha1, sha1), md5=coalesce(excluded.md5, md5), adler32=coalesce(excluded.adler32, adler32)"
)
_MANY = 500
_MOST = 20_000
_DELAY_S = 0.05
"""How long new sums wait for others before they are written: one transaction for all of them."""


class Sum(NamedTuple):
    """Checksums of one content, raw; None for what is not known."""

    sha1: bytes | None
    md5: bytes | None
    adler32: bytes | None

    @property
    def best(self) -> str:
        """The one that clients like best, as `OC-Checksum` has it."""
        return f"SHA1:{self.sha1.hex()}" if self.sha1 else self.text.partition(" ")[0]

    @property
    def text(self) -> str:
        """`SHA1:… MD5:… ADLER32:…`, as far as known."""
        found = zip(TYPES, self, strict=True)
        return " ".join(f"{name.upper()}:{value.hex()}" for name, value in found if value)


class Hash(Protocol):
    """A running checksum."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


class _Adler32:
    def __init__(self) -> None:
        self._value = 1

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = zlib.adler32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


@lru_cache
def _fresh(name: str) -> hashlib._Hash:
    return hashlib.new(name, usedforsecurity=False)


def new_hash(algorithm: str) -> Hash:
    """A running checksum; NameRefused for one that is not known. Names as in `OC-Checksum`, any case."""
    name = algorithm.lower().replace("-", "")
    if name == "adler32":
        return _Adler32()
    if name not in ("md5", "sha1", "sha256", "sha512"):
        raise NameRefused(f"The checksum algorithm '{algorithm}' is not known.")
    return _fresh(name).copy()  # a new one is looked for among the algorithms, which takes longer


def upload_hashes(length: int | None, asked: str | None) -> dict[str, Hash]:
    """What to compute while `length` bytes (None: unknown) pass through, and the client sent a checksum by `asked`."""
    small = length is not None and length <= SMALL
    names = dict.fromkeys(TYPES) if small or asked is not None else {}
    if asked is not None:
        names[asked.lower().replace("-", "")] = None
    return {name: new_hash(name) for name in names}


def of_hashes(hashes: Mapping[str, Hash]) -> Sum | None:
    """What running checksums have come to; None if none of them is kept."""
    found = [hashes[name].digest() if name in hashes else None for name in TYPES]
    return Sum(*found) if any(found) else None


def of_bytes(data: bytes) -> Sum:
    """All sums of a content that is in memory."""
    sha1 = hashlib.sha1(data, usedforsecurity=False).digest()
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return Sum(sha1, md5, zlib.adler32(data).to_bytes(4, "big"))


EMPTY: Final = of_bytes(b"")


class Cursor(NamedTuple):
    """How far the files of an index, made at `born_ns`, were looked at: by row number and by journal number."""

    born_ns: int
    row: int
    number: int


class Sums(Database):
    """The checksums of one space. Thread-safe."""

    def __init__(self, path: Path, lock: Path) -> None:
        super().__init__(path, _SCHEMA, synchronous="NORMAL", lock=lock, rebuildable=True)
        self._noted: dict[str, tuple[str, Sum]] = {}
        self._sure: dict[str, Sum] = {}
        """What was found lately. It stays true; at most, more comes to be known."""
        self._guard = threading.Lock()
        self._flushing = threading.RLock()
        """Writing and closing happen one after the other: the writing thread knows of neither."""
        self._said = False

    def known(self, etags: Iterable[str]) -> dict[str, Sum]:
        """What is known of contents, by their etags."""
        found: dict[str, Sum] = {}
        missing: list[str] = []
        for etag in etags:
            value = self._sure.get(etag)
            if value is not None:
                found[etag] = value
            else:
                missing.append(etag)
        return found | self._look(missing) if missing else found

    def one(self, etag: str) -> Sum | None:
        """The same for one content."""
        return self._sure.get(etag) or self._look([etag]).get(etag)

    def _look(self, etags: list[str]) -> dict[str, Sum]:
        answers = self.answers()
        missing = [etag for etag in etags if etag not in answers]
        if not missing:
            return {}
        try:
            found = self._ask(missing)
        except OSError as error:
            self._complain(error)
            return {}
        answers.update((etag, False) for etag in missing if etag not in found)
        if len(self._sure) > _MOST:
            self._sure = {}
        self._sure.update(found)
        return found

    def _ask(self, etags: list[str]) -> dict[str, Sum]:
        found = {}
        with self.read() as db:
            for start in range(0, len(etags), _MANY):
                keys = [bytes.fromhex(etag) for etag in etags[start : start + _MANY]]
                query = (
                    f"SELECT etag, sha1, md5, adler32 FROM sum WHERE etag IN ({','.join('?' * len(keys))})"
                )
                for etag, *values in db.execute(query, keys):
                    found[etag.hex()] = Sum(*values)
        return found

    def note(self, etag: str, node_id: str, value: Sum | None) -> None:
        """Remember the sums of a content; written a moment later, together with others."""
        if value is None:
            return
        with self._guard:
            first = not self._noted
            known = self._sure.get(etag)
            if known is not None:
                value = Sum(*(new or old for new, old in zip(value, known, strict=True)))
            self._noted[etag] = node_id, value
            self._sure[etag] = value
        if first:
            _writer.wake(self)

    def flush(self) -> None:
        """Write what was noted."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._guard:
            noted = dict(self._noted)
        if not noted:
            return
        rows = [(bytes.fromhex(etag), bytes.fromhex(ident), *value) for etag, (ident, value) in noted.items()]
        try:
            with self.write() as db:
                db.executemany(_PUT, rows)
        except OSError as error:
            self._complain(error)
        with self._guard:
            for etag, each in noted.items():
                if self._noted.get(etag) is each:
                    del self._noted[etag]
            left = bool(self._noted)
        if left:
            _writer.wake(self)

    def _complain(self, error: OSError) -> None:
        """Once: it costs time only, and comes back with each request."""
        if not self._said:
            self._said = True
            _log.info("%s: checksums are not kept: %s", self.path.name, error)

    def cursor(self) -> Cursor:
        """How far the background has come."""
        with self.read() as db:
            row = db.execute("SELECT born_ns, row, number FROM cursor").fetchone()
        return Cursor(*row) if row else Cursor(0, 0, 0)

    def move_cursor(self, cursor: Cursor) -> None:
        with self.write() as db:
            db.execute("INSERT OR REPLACE INTO cursor VALUES (1, ?, ?, ?)", cursor)

    def page(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """(etag, id) of rows behind an etag, in its order."""
        with self.read() as db:
            query = "SELECT etag, id FROM sum WHERE etag>? ORDER BY etag LIMIT ?"
            return [(etag, node_id) for etag, node_id in db.execute(query, (after, limit))]

    def forget(self, etags: Iterable[bytes]) -> None:
        """Drop the sums of contents that are gone."""
        gone = [(etag,) for etag in etags]
        if gone:
            with self.write() as db:
                db.executemany("DELETE FROM sum WHERE etag=?", gone)

    def close(self) -> None:
        """Write what was noted, and close."""
        with self._flushing:
            self._flush()
            super().close()


class _Writer:
    """The one thread of a process that writes what was noted, for all its spaces. Begun when first needed."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Sums] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()

    def wake(self, sums: Sums) -> None:
        self._waiting.put(sums)
        if self._thread is None:
            with self._guard:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="sums", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while True:
            sums = self._waiting.get()
            time.sleep(_DELAY_S)
            try:
                with _forking:
                    sums.flush()
            except Exception:
                # The only thread that does this must not end; what is not written will be computed again.
                _log.exception("%s: checksums were not written", sums.path.name)


_writer = _Writer()
_forking = threading.Lock()
"""Nobody forks while the thread is inside SQLite: the child would wait for ever for locks that nobody has there."""


def _after_fork() -> None:
    global _writer
    _forking.release()
    _writer = _Writer()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork)
