"""Who is writing a file, and which files were handed out meanwhile.

Stores through a shared mapping after its first fault change neither ctime nor mtime, so what a reader got while there
was a writer may stand for other content under the same etag. Such files are remembered in the state database until
they are ready; then their `rev` rises (ready.py).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING

from fsd.core import ids
from fsd.core.syscalls import fs_type, read_lease, statx

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS handed (
    binding BLOB NOT NULL, etag TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (binding, etag)) WITHOUT ROWID
"""
ANY = ""
"""In `handed.etag`: noted by a release that kept no etags."""

_BLIND = {
    0x6969,  # NFS
    0x517B, 0xFE534D42, 0xFF534D42,  # SMB
    0x00C36400, 0x65735546, 0x01021997, 0x47504653, 0x0BD00BD0, 0x5346414F,  # Ceph, FUSE, 9p, GPFS, Lustre, AFS
}  # fmt: skip
"""statfs(2) types whose writers may sit on other machines, where no lease of ours can see them."""
_MOST_NOTED = 10_000
_LATE_S = 60.0
"""An etag that a file had so long before another one is not its present one, however late it was noted. Seconds."""
KEEP_S = 7 * 86400.0
"""A file that nobody finishes for so long was deleted. Seconds."""


def has_writer(fd: int) -> bool | None:
    """Whether somebody has the file open for writing or mapped writable; None where that can't be known.

    `fd` is open for reading only; a descriptor for writing of this process counts as a writer.
    """
    lease = read_lease(fd)
    if lease is None or fs_type(fd) in _BLIND:
        return None
    return not lease


_noted: weakref.WeakKeyDictionary[Space, set[str]] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def upgrade(db: sqlite3.Connection) -> None:
    """Take over what an earlier release noted."""
    db.execute(SCHEMA)
    if db.execute("SELECT 1 FROM sqlite_master WHERE name='served'").fetchone() is not None:
        db.execute("INSERT OR IGNORE INTO handed SELECT binding, ?, at FROM served", (ANY,))
        db.execute("DROP TABLE served")


def note_served(space: Space, fd: int, etag: str) -> None:
    """Content of this file is about to be read for somebody, under this etag. Durable when it returns, if there is, or
    may be, a writer; a state disk that takes nothing is logged, and reading goes on."""
    if has_writer(fd) is False:
        return
    found = statx(fd, b"")
    binding = ids.node_binding(fd, b"", found)
    with _guard:
        noted = _noted.setdefault(space, set())
        if etag in noted:
            return
    now = time.time()
    try:
        with space.state.write() as db:
            if found.nlink == 1:
                db.execute("DELETE FROM handed WHERE binding=? AND at<?", (binding, now - _LATE_S))
            db.execute("INSERT OR REPLACE INTO handed VALUES (?, ?, ?)", (binding, etag, now))
    except OSError as error:
        _log.warning("space %s: a file that is being written was read unnoted: %s", space.record.id, error)
        return
    with _guard:
        if len(noted) >= _MOST_NOTED:
            noted.clear()
        noted.add(etag)


def served(space: Space, etags: Collection[tuple[bytes, str]]) -> set[str]:
    """Those of these etags, each with its node's binding, under which it was handed out while it may have had a
    writer. An etag it had before doesn't count: what it stood for nobody can take for the present content."""
    with space.state.read() as db:
        if not etags or db.execute("SELECT 1 FROM handed LIMIT 1").fetchone() is None:
            return set()
        return {etag for binding, etag in etags if _is_noted(db, binding, etag)}


def forget(space: Space, etags: Collection[tuple[bytes, str]]) -> None:
    """They are ready, and have other etags; from now on a reader has to be noted again."""
    with space.state.write() as db:
        db.executemany("DELETE FROM handed WHERE binding=? AND etag IN (?, '')", etags)


def forget_older(space: Space, before: float) -> None:
    """Drop what was noted before a time (seconds since the epoch): files that were deleted before they were ready."""
    with space.state.read() as db:
        old = db.execute("SELECT 1 FROM handed WHERE at<? LIMIT 1", (before,)).fetchone()
    if old is not None:
        with space.state.write() as db:
            db.execute("DELETE FROM handed WHERE at<?", (before,))


def _is_noted(db: sqlite3.Connection, binding: bytes, etag: str) -> bool:
    query = "SELECT 1 FROM handed WHERE binding=? AND etag IN (?, '')"
    return db.execute(query, (binding, etag)).fetchone() is not None


def _forget_after_fork() -> None:
    global _noted, _guard
    _noted, _guard = weakref.WeakKeyDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
