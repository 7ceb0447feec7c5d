"""Verifying a whole space: every directory is compared with its rows once in an epoch, in two passes.

**Directories first**: one lstat(2) each, beneath the root's descriptor. Creating, deleting and renaming change the
mtime and ctime of the directory they happen in, so this finds every entry that came, went or moved while nobody
listened. All of them are looked at before the first one that differs is compared: what was moved is then found
where it is soon after it was missed where it was, and keeps its rows.

**Then files**: each directory that was not compared in this epoch is listed, one lstat an entry, for what was edited
in place. That also catches what the first pass can't see: a change within the clock tick of the last look, or a
filesystem with coarse times.

What is left to do is in the index: the first pass's place is a cursor, differing directories are in the dirty set at
its lower rank, and a directory that was compared carries the epoch. So a sweep can be stopped and killed anywhere.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from fsd.core import dirty, index, large
from fsd.core.bulk import first_looks
from fsd.core.dirty import Item
from fsd.core.errors import StorageUnavailable
from fsd.core.reconcile import reconcile_item
from fsd.core.syscalls import times_ns
from fsd.core.verify import Verifier

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

_log = logging.getLogger(__name__)
_AHEAD = 64
_COUNT_EVERY_S = 1.0
_PAGE = 500
_KEEP_EVERY_S = 2.0
_MAX_PARENTS = 20_000
_DONE = -1
_CURSOR = "sweep directories"
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

Phase = Literal["directories", "files", "done"]


class Progress(NamedTuple):
    """Directories compared in this epoch and known in all; `finished` when nothing is left to verify. `looked`: how
    many of them the pass over directories has come past."""

    done_dirs: int
    total_dirs: int
    finished: bool
    phase: Phase = "files"
    looked: int = 0


class Sweep:
    """A resumable sweep of one space. Used by one thread."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._ahead: list[Item] = []
        self._last = Progress(0, 0, False)
        self._counted_at = 0.0
        self._place: int | None = None
        self._epoch = 0
        self._unkept: list[_Mark] = []
        self._kept_at = 0.0
        self._parents: dict[int, bytes] = {}
        self._verifier = Verifier(space)

    def begin(self) -> None:
        """Start a new epoch: what was verified before counts no more."""
        dirty.mark_tree(self._space)
        self._forget()

    def resume(self) -> None:
        """Go on with an epoch after a gap: all directories are looked at again, files go on where they were."""
        with self._space.index.write() as db:
            _set_cursor(db, 0)
        self._forget()

    def _forget(self) -> None:
        self._ahead.clear()
        self._unkept.clear()
        self._place = None
        self._counted_at = 0.0
        self._verifier.restart()

    def step(self, budget_s: float) -> Progress:
        """Work for about `budget_s` seconds, but do something. Directories that can't be read are left to the next
        sweep."""
        deadline = time.monotonic() + budget_s
        finished = False
        while True:
            if self._directories(deadline):
                finished = not self._contents(deadline)
            if finished or time.monotonic() >= deadline:
                return self._counted(finished)

    def _contents(self, deadline: float) -> bool:
        """Compare some directories; False if there are none left in this epoch."""
        if not self._ahead:
            self._ahead = dirty.pending(self._space, _AHEAD, sweep=True)[::-1]
        if self._ahead:
            for item in first_looks(self._space, self._ahead, deadline):
                self._verify(item)
        elif not self._files(deadline):
            self._complete()
            return False
        return True

    # -- the pass over directories

    def _directories(self, deadline: float) -> bool:
        """Look at further directories; True if all have been looked at in this epoch."""
        with self._space.index.read() as db:
            (epoch,) = db.execute("SELECT epoch FROM head").fetchone()
            if self._place is None or self._epoch != epoch:
                self._epoch, self._place = epoch, _cursor(db)
                self._unkept.clear()
                self._parents.clear()
        while self._place != _DONE:
            place = self._look(self._place)
            if place == _DONE or time.monotonic() - self._kept_at > _KEEP_EVERY_S:
                self._keep(place)
            self._place = place
            if time.monotonic() >= deadline:
                break
        return self._place == _DONE

    def _look(self, after: int) -> int:
        """Look at one page of directories in the order of their rows; the last one's number, _DONE after the last."""
        space = self._space
        root = space.root_fd()
        with space.index.read() as db:
            page = db.execute(_DIRECTORIES, (after, _PAGE)).fetchall()
            for n, parent, name, ino, mtime_ns, ctime_ns, epoch in page:
                path = self._path(db, parent, name) if n != index.ROOT else b"."
                if path is None or epoch == 0:
                    continue  # in limbo, or waiting for its first look
                try:
                    found = os.stat(path, dir_fd=root, follow_symlinks=False)
                except OSError as error:
                    if error.errno in _GONE:
                        self._unkept.append((parent, name))
                    elif error.errno == errno.EACCES:
                        self._unkept.append((n, None))
                    continue
                if (found.st_ino, *times_ns(found)) != (ino, mtime_ns, ctime_ns):
                    self._unkept.append((n, None))
        return int(page[-1][0]) if len(page) == _PAGE else _DONE

    def _path(self, db: sqlite3.Connection, parent: int | None, name: bytes) -> bytes | None:
        if parent is None:
            return None
        if parent == index.ROOT:
            return name
        above = self._parents.get(parent)
        if above is None:
            above = index.path_of(db, parent)
            if above is None:
                return None
            if len(self._parents) >= _MAX_PARENTS:
                self._parents.clear()
            self._parents[parent] = above
        return above + b"/" + name

    def _keep(self, place: int) -> None:
        """Make durable how far the pass is, with what it found."""
        now = time.time()
        with self._space.index.write() as db:
            for n, name in self._unkept:
                dirty.mark_row(db, n, None if name is None else [name], now, sweep=True)
            _set_cursor(db, place)
        self._unkept.clear()
        self._kept_at = time.monotonic()

    # -- the pass over files

    def _files(self, deadline: float) -> bool:
        """Compare further directories that were not compared in this epoch; False if there are none left."""
        more, differing = self._verifier.run(deadline)
        for item in differing:
            self._verify(item)
        return more

    def _verify(self, item: Item) -> None:
        try:
            if large.is_large(self._space, item):
                large.compare(self._space, item)
            else:
                reconcile_item(self._space, item)
        except StorageUnavailable as error:
            self._space.root_fd()  # raises if all of it is away
            self._verifier.leave(item.path, error)
            dirty.done(self._space, [item])
        except OSError as error:
            _log.info("space %s: %r is left to the next sweep: %s", self._space.record.id, item.path, error)
            dirty.done(self._space, [item])

    # -- the end, and how far it is

    def _complete(self) -> None:
        with self._space.index.read() as db:
            swept_at, complete = db.execute("SELECT swept_at, complete FROM head").fetchone()
            (marked,) = db.execute(
                "SELECT epoch=(SELECT epoch FROM head) FROM dir WHERE n=?", (index.ROOT,)
            ).fetchone()
            # What was hinted before the sweep came to it is verified by serving the hint.
            (fresh,) = db.execute(
                "SELECT count(*) FROM dirty JOIN dir ON dir.n=dirty.n, head"
                " WHERE sweep=0 AND (dir.n=? OR dir.epoch<>head.epoch)",
                (index.ROOT,),
            ).fetchone()
            current = _is_current(db)
        if marked and not fresh and (not complete or not swept_at or not current):
            with self._space.index.write() as db:
                db.execute("UPDATE head SET complete=1, swept_at=?", (time.time(),))
                db.execute("INSERT OR REPLACE INTO cursor VALUES ('sweep', (SELECT epoch FROM head))")

    def _counted(self, finished: bool) -> Progress:
        """Counting reads every directory's row, so a sweep in small steps counts once in a while."""
        now = time.monotonic()
        if finished or now - self._counted_at > _COUNT_EVERY_S:
            self._last = self.progress()
            self._counted_at = time.monotonic()
        return self._last._replace(finished=finished)

    def progress(self) -> Progress:
        """How far it is."""
        with self._space.index.read() as db:
            place = _cursor(db) if self._place is None else self._place
            total, done, looked = db.execute(
                "SELECT count(*), sum(epoch=(SELECT epoch FROM head)), sum(n<=?) FROM dir", (place,)
            ).fetchone()
            current = _is_current(db)
        finished = current and not dirty.pending(self._space, 1, sweep=True)
        phase: Phase = "done" if finished else "files" if place == _DONE else "directories"
        return Progress(done or 0, total, finished, phase, total if place == _DONE else looked or 0)


_Mark = tuple[int, bytes | None]
"""A directory's row, and the name in it that is gone, or None if it is the directory that differs."""
_DIRECTORIES = (
    "SELECT dir.n, node.parent, node.name, node.ino, dir.mtime_ns, dir.ctime_ns, dir.epoch"
    " FROM dir JOIN node ON node.n=dir.n WHERE dir.n>? ORDER BY dir.n LIMIT ?"
)


def _cursor(db: sqlite3.Connection) -> int:
    """The last directory that the pass came past in this epoch; 0 at its begin, _DONE after its end."""
    (epoch,) = db.execute("SELECT epoch FROM head").fetchone()
    row = db.execute("SELECT value FROM cursor WHERE source=?", (_CURSOR,)).fetchone()
    if row is None:
        return 0
    of, _, place = row[0].partition(":")
    return int(place) if int(of) == epoch else 0


def _set_cursor(db: sqlite3.Connection, place: int) -> None:
    (epoch,) = db.execute("SELECT epoch FROM head").fetchone()
    db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?)", (_CURSOR, f"{epoch}:{place}"))


def _is_current(db: sqlite3.Connection) -> bool:
    """Whether the sweep of this epoch came to its end."""
    (epoch,) = db.execute("SELECT epoch FROM head").fetchone()
    row = db.execute("SELECT value FROM cursor WHERE source='sweep'").fetchone()
    return row is not None and int(row[0]) == epoch
