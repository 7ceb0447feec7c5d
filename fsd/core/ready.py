"""Ready: a file that is closed and quiet. Listing never waits for it; hashing, versions and announcements do.

A file whose content changed carries the flag WRITING until it is ready: nobody has it open for writing (a read lease
can be had, fcntl(2) F_SETLEASE) and it has been quiet for CLOSED_S, or, where writers can't be seen (no leases on this
filesystem, a file of another user without CAP_LEASE, writers on other machines), it has been quiet for QUIET_S. A file
that somebody keeps open for writing is not ready, however quiet. What fsd publishes itself is ready at once.

When a file becomes ready the journal says so, in the transaction that clears the flag: as `ready`, or as `changed`
with a raised rev if it was read while it had a writer (writers.py). So consumers hear of each content at least once
after it is whole: `news` is what they follow, `reading` is how they read.

Crash: a flag that is set stays set, also with the label unwritten; a lost index finds young files by their ctime.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from fsd.core import dirty, ids, index, journal, relabel, tree, writers
from fsd.core.commit import QUIET_S, ToLabel
from fsd.core.errors import NotYetKnown, StorageUnavailable
from fsd.core.index import FILE, LABELLED, READY, WRITING, Head, NodeRow
from fsd.core.journal import Change
from fsd.core.memory import place_key
from fsd.core.syscalls import times_ns
from fsd.core.totals import Deltas

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.core.tree import Entry

T = TypeVar("T")
CLOSED_S = 2.0
"""A file that nobody has open for writing is ready when it has been quiet for so long. Seconds."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = 500
_CLEAR = "UPDATE node SET flags=flags & ~? | ? WHERE n=? AND ctime_ns=? AND rev=? AND parent=? AND name=?"
_MOST_SEEN = 50_000


class Ready(NamedTuple):
    """A content that became ready, as the journal numbers it; `path` is where the file is now."""

    number: int
    node_id: str
    path: bytes


class News(NamedTuple):
    """`last`: where to go on. `whole` False: the journal doesn't reach back so far, look at the tree instead."""

    ready: list[Ready]
    last: int
    whole: bool


def news(space: Space, after: int, limit: int = 1000, *, paths: bool = True) -> News:
    """Contents that became ready after journal number `after`, oldest first. One may be told more than once, none that
    is being written is: it comes again, under a later number, when it is ready. `paths` False: without them."""
    query = (
        "SELECT number, node FROM journal WHERE number>? AND node_kind=0"
        " AND kind IN ('created', 'changed', 'ready') ORDER BY number LIMIT ?"
    )
    found: dict[bytes, Ready] = {}
    with space.index.read() as db:
        (behind,) = db.execute("SELECT number FROM head").fetchone()
        (oldest,) = db.execute("SELECT min(number) FROM journal").fetchone()
        rows = db.execute(query, (after, limit)).fetchall()
        for number, node_id in rows:
            row = index.by_id(db, node_id)
            path = None
            if row is not None and not row.flags & WRITING:
                path = index.path_of(db, row.n) if paths else b""
            found.pop(node_id, None)
            if path is not None:
                found[node_id] = Ready(number, node_id.hex(), path)
    last = rows[-1][0] if len(rows) == limit else max(after, behind - 1)
    first = behind if oldest is None else oldest
    return News(list(found.values()), last, after >= first - 1)


def waiting(space: Space) -> int:
    """How many files are not ready."""
    with space.index.read() as db:
        return int(db.execute("SELECT count(*) FROM node WHERE flags & 16").fetchone()[0])


@contextmanager
def reading(space: Space, path: bytes) -> Iterator[tuple[int, Entry]]:
    """A ready file, open for reading, and its entry: what is computed within stands for exactly this etag.

    Raises NotYetKnown if the file is not ready, and at the end if it was changed meanwhile; the result is void then.
    Otherwise as `tree.open_file`.
    """
    fd, entry = tree.open_file(space, path, noted=False)
    try:
        if entry.writing or writers.has_writer(fd):
            raise NotYetKnown("The file is being written; ask again when it is closed.")
        before = os.fstat(fd)
        yield fd, entry
        after = os.fstat(fd)
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if not same or writers.has_writer(fd):
            raise NotYetKnown("The file was changed while it was read.")
    finally:
        os.close(fd)


class Described(Protocol):
    """What a row of the index and an entry both say of a file's content."""

    @property
    def name(self) -> bytes: ...
    @property
    def ino(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...


def in_peace(directory: int, known: Described, read: Callable[[int], T]) -> T | None:
    """What `read` makes of a file that is exactly what is known of it, by its name in an open directory; None if it is
    something else, is being written, or was changed meanwhile. The cheap form of `reading`, for many. OSError."""
    fd = os.open(known.name, _READ, dir_fd=directory)
    try:
        found = os.fstat(fd)
        as_known = (found.st_ino, found.st_size, *times_ns(found)) == (
            known.ino, known.size, known.mtime_ns, known.ctime_ns,
        )  # fmt: skip
        if not stat.S_ISREG(found.st_mode) or not as_known or writers.has_writer(fd):
            return None
        made = read(fd)
        after = os.fstat(fd)
        same = (found.st_size, found.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        return made if same and not writers.has_writer(fd) else None
    finally:
        os.close(fd)


def _closed(fd: int, quiet_s: float) -> bool:
    writer = writers.has_writer(fd)
    return quiet_s >= QUIET_S if writer is None else not writer and quiet_s >= CLOSED_S


class Readiness:
    """Makes the files of one space ready in their time. One thread at a time."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._after = 0
        self._seen: dict[int, tuple[int, float]] = {}
        """When (monotonic) a row was first met with its ctime: clocks of file servers may be ahead of ours."""

    def settle(self, budget_s: float) -> bool:
        """Work for about `budget_s` seconds; True if files were left for the next call.

        Files that are still being written are compared with their rows, because stores through mappings tell nobody.
        Raises StorageUnavailable, OSError of the state disk.
        """
        deadline = time.monotonic() + budget_s
        while True:
            with self._space.index.read() as db:
                query = "SELECT * FROM node WHERE flags & 16 AND n>? ORDER BY n LIMIT ?"
                rows = [NodeRow._make(row) for row in db.execute(query, (self._after, _PAGE))]
                paths = {
                    parent: index.path_of(db, parent) for parent in {row.parent for row in rows} if parent
                }
            due = [row for row in rows if self._quiet(row) >= CLOSED_S]
            for parent, path in paths.items():
                members = [row for row in due if row.parent == parent]
                if path is not None and members:
                    self._settle_in(path, members)
            if len(rows) < _PAGE:
                self._after = 0
                self._forget_seen()
                return False
            self._after = rows[-1].n
            if time.monotonic() >= deadline:
                return True

    def _quiet(self, row: NodeRow) -> float:
        now = time.monotonic()
        ctime_ns, since = self._seen.get(row.n, (0, now))
        if ctime_ns != row.ctime_ns:
            since = now
            self._seen[row.n] = (row.ctime_ns, now)
        age = time.time() - row.ctime_ns / 1e9
        return max(now - since, age if age >= 0 else 0.0)

    def _forget_seen(self) -> None:
        if len(self._seen) > _MOST_SEEN:
            self._seen.clear()
        if self._seen and waiting(self._space) == 0:
            self._seen.clear()

    def _settle_in(self, path: bytes, members: list[NodeRow]) -> None:
        try:
            fd = self._space.open_dir(path)
        except StorageUnavailable:
            raise
        except OSError:
            return  # gone or unreadable: a hint or the sweep tells
        try:
            done, stale = [], []
            for row in members:
                match self._look(fd, row):
                    case "ready":
                        done.append(row)
                    case "stale":
                        stale.append(row.name)
            if stale:
                dirty.mark(self._space, [(path, stale)])
            make_ready(self._space, fd, done)
        finally:
            os.close(fd)

    def _look(self, fd: int, row: NodeRow) -> str:
        try:
            found = os.stat(row.name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return "stale"
        said = (row.ino, row.size, row.mtime_ns, row.ctime_ns)
        if said != (found.st_ino, found.st_size, *times_ns(found)):
            return "stale"
        try:
            file = os.open(row.name, _READ, dir_fd=fd)
        except OSError:
            return "ready" if self._quiet(row) >= QUIET_S else "writing"
        try:
            return "ready" if _closed(file, self._quiet(row)) else "writing"
        finally:
            os.close(file)


def make_ready(space: Space, fd: int, rows: list[NodeRow]) -> None:
    """Clear the flags of rows of the open directory `fd` that are as they were looked at, and tell the journal, in one
    transaction. A rev that rises is written down before that is committed."""
    if not rows:
        return
    now = time.time()
    etags = {row.n: ids.file_etag(row.id, row.size, row.mtime_ns, row.rev) for row in rows}
    risen = writers.served(space, [(row.binding, etags[row.n]) for row in rows])
    changes: list[Change] = []
    labels: list[ToLabel] = []
    # Elsewhere the flag comes with the label; what has none would count as somebody's temporary file for ever.
    established = READY if space.record.label == "none" else 0
    with space.index.write() as db:
        deltas, bound = Deltas(), []
        parents = {n: index.node(db, n) for n in {row.parent for row in rows} if n is not None}
        for row in rows:
            parent = parents.get(row.parent) if row.parent is not None else None
            # One that was looked at again, or moved, waits for the next time.
            stays = (WRITING, established, row.n, row.ctime_ns, row.rev, row.parent, row.name)
            if parent is None or not db.execute(_CLEAR, stays).rowcount:
                continue
            if etags[row.n] not in risen:
                changes.append(Change("ready", row.id, FILE, parent.id, row.name))
                continue
            fresh = index.node(db, row.n)
            assert fresh is not None, "it was updated just now"
            db.execute("UPDATE node SET rev=rev+1, flags=flags & ~? WHERE n=?", (LABELLED, row.n))
            db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 1)", (row.n, now))
            deltas.add(parent.n)
            changes.append(Change("changed", row.id, FILE, parent.id, fresh.name))
            if fresh.nlink > 1 or space.record.label == "none":
                place = place_key(parent.id, fresh.name) if fresh.nlink > 1 else b""
                bound.append((fresh.binding, place, fresh.id, fresh.rev + 1))
            else:
                labels.append(ToLabel(row.n, fresh.name, True))
        if bound:
            space.state.bind(bound)
        relabel.keep(space, db, fd, labels)
        if changes:
            head = Head(space, db)
            first = head.numbers(len(changes))
            journal.append(db, first, changes, now)
            deltas.apply(db, first + len(changes) - 1)
            head.save()
    if risen:
        writers.forget(space, [(row.binding, etags[row.n]) for row in rows if etags[row.n] in risen])
