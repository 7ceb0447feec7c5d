"""Reading files for their checksums: now, for somebody who needs one; in the background, for what nobody has hashed.

Only what is ready is read (ready.py), so a sum stands for exactly one etag. The background follows two numbers that
only rise: rows of the index (each file has one) and the journal (each content that became ready). It reads at a bounded
rate, keeps its place over restarts, and lets large files that change all the time be until they rest. What can't be
read is passed over; it comes again when it changes.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fsd.core import ids, index, journal, ready
from fsd.core.entries import Entry, file_entry
from fsd.core.errors import FsdError, StorageUnavailable
from fsd.core.index import FILE, WRITING, NodeRow
from fsd.core.names import split
from fsd.core.sums import EMPTY, SMALL, TYPES, Cursor, Sum, new_hash, of_bytes, of_hashes

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
_BLOCK = 1 << 20
_PAGE = 200
LARGE: Final = 16 << 20
REST_S: Final = 60.0
"""A file of more than LARGE bytes is hashed in the background when its content is so old, in seconds."""
_MOST_WAITING = 10_000
YOUNG_S: Final = 0.5
"""Whoever has just written a file through fsd is about to note its sums (sums.py)."""
Rest = Callable[[int], bool]
"""Told how many bytes were read (or what a small file costs beside); waits as it likes; True: stop."""
_COST = 64 << 10
"""What a file costs at least, in bytes: opening and asking for writers takes as long as reading so many."""


class Stopped(Exception):
    """Whoever wanted it said to stop."""


def of_file(fd: int, rest: Rest | None = None) -> Sum:
    """All sums of an open file, from its beginning. OSError; Stopped."""
    data = os.pread(fd, SMALL, 0)
    if len(data) < SMALL and not os.pread(fd, 1, len(data)):
        if rest is not None and rest(_COST):
            raise Stopped
        return of_bytes(data)
    hashes = {name: new_hash(name) for name in TYPES}
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        for each in hashes.values():
            each.update(view[:count])
        offset += count
        if rest is not None and rest(max(count, _COST)):
            raise Stopped
    found = of_hashes(hashes)
    assert found is not None
    return found


def compute(space: Space, path: bytes, rest: Rest | None = None) -> tuple[Entry, Sum]:
    """Read a file, and remember its sums. NotYetKnown while it is being written; otherwise as `tree.open_file`."""
    with ready.reading(space, path) as (fd, entry):
        # Somebody else may have read it since it was asked for.
        value = space.sums.one(entry.etag) or of_file(fd, rest)
    space.sums.note(entry.etag, entry.id, value)
    return entry, value


def of_entry(space: Space, entry: Entry, beside: Beside) -> tuple[Entry, Sum]:
    """`compute` for an entry of a listing, of which nothing may have changed meanwhile."""
    value = beside.sum_of(entry, split(entry.path)[0])
    if value is None:
        return compute(space, entry.path)
    space.sums.note(entry.etag, entry.id, value)
    return entry, value


def known(space: Space, entry: Entry) -> Sum | None:
    """The sums of an entry, without reading it."""
    if entry.kind != "f":
        return None
    return space.sums.one(entry.etag) if entry.size else EMPTY


def inherit(space: Space, etag: str, to: Entry) -> None:
    """The content of a file is that of another, whose etag was `etag`."""
    space.sums.note(to.etag, to.id, space.sums.one(etag))


def inherit_below(space: Space, source: bytes, copy: bytes) -> None:
    """The same for all files of a directory that was copied: those of equal name, size and time."""
    query = (
        "SELECT s.id, s.size, s.mtime_ns, s.rev, c.id, c.rev FROM node s JOIN node c ON c.parent=? AND c.name=s.name"
        " WHERE s.parent=? AND s.kind=0 AND c.kind=0 AND c.size=s.size AND c.mtime_ns=s.mtime_ns AND s.size>0"
    )
    below = (
        "SELECT s.n, c.n FROM node s JOIN node c ON c.parent=? AND c.name=s.name"
        " WHERE s.parent=? AND s.kind=1 AND c.kind=1"
    )
    with space.index.read() as db:
        first = index.find(db, source), index.find(db, copy)
        waiting = [(first[0].n, first[1].n)] if first[0] and first[1] else []
        while waiting:
            old, new = waiting.pop()
            pairs: dict[str, tuple[str, str]] = {}
            for old_id, size, mtime_ns, old_rev, new_id, new_rev in db.execute(query, (new, old)):
                etag = ids.file_etag(new_id, size, mtime_ns, new_rev)
                pairs[ids.file_etag(old_id, size, mtime_ns, old_rev)] = etag, new_id.hex()
            for etag, value in space.sums.known(pairs).items():
                space.sums.note(*pairs[etag], value)
            waiting += db.execute(below, (new, old)).fetchall()


class Beside:
    """Reads files of one directory after the other by their names in it: what is asked for at one time mostly lies
    beside each other, and a path costs more than a small file. One thread; close it."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._at: bytes | int | None = None
        self._fd = -1

    def sum_of(self, known: ready.Described, directory: bytes | int, rest: Rest | None = None) -> Sum | None:
        """The sums of the very content that is known of a file in `directory` (its path, or its row's number); None
        where that can't be had so simply (`compute` says why). Stopped."""
        if directory != self._at:
            self._enter(directory)
        if self._fd < 0:
            return None
        try:
            return ready.in_peace(self._fd, known, lambda fd: of_file(fd, rest))
        except OSError:
            return None

    def _enter(self, directory: bytes | int) -> None:
        self.close()
        self._at = directory
        try:
            if isinstance(directory, bytes):
                self._fd = self._space.open_dir(directory)
                return
            with self._space.index.read() as db:
                path = index.path_of(db, directory)
            if path is not None:
                self._fd = self._space.open_dir(path)
        except OSError:
            pass  # the long way will tell

    def close(self) -> None:
        """Close the directory; it can go on with another one."""
        if self._fd >= 0:
            os.close(self._fd)
        self._at, self._fd = None, -1

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Soon:
    """The one thread of a process that hashes what somebody has just asked for. Begun when first needed."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Space, Entry]] = queue.SimpleQueue()
        self._queued: set[tuple[str, bytes]] = set()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()

    def add(self, space: Space, entry: Entry) -> None:
        key = (space.record.id, entry.path)
        with self._guard:
            if key in self._queued or len(self._queued) >= _MOST_WAITING:
                return
            self._queued.add(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hashing", daemon=True)
                self._thread.start()
        self._waiting.put((space, entry))

    def _run(self) -> None:
        while True:
            space, entry = self._waiting.get()
            with Beside(space) as beside:
                self._hash(space, entry, beside)
                while not self._waiting.empty():  # nobody else takes from it
                    following, entry = self._waiting.get()
                    if following is not space:
                        self._waiting.put((following, entry))
                        break
                    self._hash(space, entry, beside)

    def _hash(self, space: Space, entry: Entry, beside: Beside) -> None:
        try:
            # The background, or another process, may have been faster.
            if space.sums.one(entry.etag) is None:
                of_entry(space, entry, beside)
        except OSError as error:
            _log.debug("space %s: not hashed: %s", space.record.id, error)
        except Exception:
            _log.exception("space %s: hashing failed", space.record.id)
        with self._guard:
            self._queued.discard((space.record.id, entry.path))


_soon = _Soon()


def _after_fork() -> None:
    global _soon
    _soon = _Soon()


os.register_at_fork(after_in_child=_after_fork)


def soon(space: Space, entry: Entry) -> None:
    """Hash a file as soon as possible, in a thread of this process; not again while it waits."""
    _soon.add(space, entry)


class Background:
    """Hashes what nobody has hashed, in one space. One thread at a time."""

    def __init__(self, space: Space, rest: Rest) -> None:
        self._space = space
        self._rest = rest
        self._later: dict[bytes, float] = {}
        self._waited = 0
        """The row before which a page ended because it was young: not twice before the same."""

    def step(self) -> bool:
        """A page of files; True if there may be more. StorageUnavailable, OSError of the state disk; Stopped."""
        space = self._space
        with space.index.read() as db:
            (born_ns,) = db.execute("SELECT born_ns FROM head").fetchone()
        known = at = space.sums.cursor()
        if at.born_ns != born_ns:
            at = Cursor(born_ns, 0, journal.last(space))
        with space.index.read() as db:
            query = "SELECT * FROM node WHERE n>? ORDER BY n LIMIT ?"
            rows = [NodeRow._make(row) for row in db.execute(query, (at.row, _PAGE))]
        rows = self._settled(rows)
        if rows:
            self._hash(rows)
            space.sums.move_cursor(at._replace(row=rows[-1].n))
            return True
        news = ready.news(space, at.number, _PAGE, paths=False)
        now = time.monotonic()
        rested = [node_id for node_id, due in self._later.items() if due <= now]
        for node_id in rested:
            del self._later[node_id]
        self._hash(self._rows([*(bytes.fromhex(each.node_id) for each in news.ready), *rested]))
        at = at._replace(number=news.last, row=at.row if news.whole else 0)
        if at != known:
            space.sums.move_cursor(at)
        return not news.whole or len(news.ready) == _PAGE

    def _settled(self, rows: list[NodeRow]) -> list[NodeRow]:
        """The rows before the first that is young, but for one that was so before: it goes behind, with the others."""
        for number, row in enumerate(rows):
            if row.kind == FILE and row.size and _is_young(row):
                if row.n == self._waited:
                    break
                self._waited = row.n
                return rows[:number]
        return rows

    def _rows(self, node_ids: list[bytes]) -> list[NodeRow]:
        with self._space.index.read() as db:
            found = [index.by_id(db, node_id) for node_id in node_ids]
        return [row for row in found if row is not None]

    def _hash(self, rows: list[NodeRow]) -> None:
        files = [row for row in rows if row.kind == FILE and row.size and not row.flags & WRITING]
        etags = [ids.file_etag(row.id, row.size, row.mtime_ns, row.rev) for row in files]
        have = self._space.sums.known(etags)
        with Beside(self._space) as beside:
            for row, etag in zip(files, etags, strict=True):
                if etag in have:
                    continue
                if row.size > LARGE and time.time() - row.mtime_ns / 1e9 < REST_S:
                    self._later[row.id] = time.monotonic() + REST_S
                    continue
                if _is_young(row):
                    self._later[row.id] = time.monotonic() + YOUNG_S
                    continue
                value = None if row.parent is None else beside.sum_of(row, row.parent, self._rest)
                if value is not None:
                    self._space.sums.note(etag, row.id.hex(), value)
                else:
                    self._hash_one(row)

    def _hash_one(self, row: NodeRow) -> None:
        """The long way: the disk may say something else than the row."""
        with self._space.index.read() as db:
            path = index.path_of(db, row.n)
        if path is None:
            return
        try:
            compute(self._space, path, self._rest)
        except StorageUnavailable:
            raise
        except FsdError:
            pass  # it comes again when it is ready
        except OSError as error:
            _log.debug("space %s: not hashed: %s", self._space.record.id, error)


def _is_young(row: NodeRow) -> bool:
    # A ctime that lies ahead is of before the clock was set back: it says nothing about when.
    return 0 <= time.time() - row.ctime_ns / 1e9 < YOUNG_S


def forget_gone(space: Space, after: bytes, kept: Callable[[str], bool], count: int = 500) -> bytes:
    """Drop sums of contents that no file has any more, a page behind the etag `after`; returns where to go on. `kept`
    tells whether an id has content outside the tree (trash, versions)."""
    rows = space.sums.page(after, count)
    gone = []
    with space.index.read() as db:
        (complete,) = db.execute("SELECT complete FROM head").fetchone()
        for etag, node_id in rows if complete else []:
            row = index.by_id(db, node_id)
            current = row is not None and file_entry(b"", row).etag == etag.hex()
            if not current and not kept(node_id.hex()):
                gone.append(etag)
    space.sums.forget(gone)
    return rows[-1][0] if len(rows) == count else b""
