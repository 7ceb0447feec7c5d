"""Reading a directory and comparing it with its rows, cheaply: one lstat an entry, no lock, no write.

What differs becomes a candidate for a closer look; what has gone is confirmed by name before it counts as gone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fsd.core import index
from fsd.core.absent import Absence
from fsd.core.commit import ToLabel
from fsd.core.errors import StorageUnavailable
from fsd.core.index import CLAIMING, DIRECTORY, FILE, LABELLED, READY, Generation, NodeRow
from fsd.core.names import INTERNAL
from fsd.core.syscalls import Statx, clamp_ns, statx, times_ns

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

_LIST_AGAIN = 3
_LARGE = 5000
"""Entries from which on listing again takes longer than a busy directory ever stands still."""


class Scan(NamedTuple):
    """The difference. `seq`, `epoch`, `moves`: the generation that the rows are of, at least. `found`: the directory as
    it was before it was listed, if it was listed whole; `own`: the sum of the rows' file sizes; `stale_dirs`: row
    numbers of unchanged children that have to be looked into; `steady`: whether the directory stood still while it was
    listed; `rows`: what the index said of the named entries; `touched`: rows of files of which only the ctime moved."""

    seq: int
    epoch: int
    moves: int
    found: Statx | None
    steady: bool
    candidates: list[bytes]
    vanished: list[NodeRow]
    stale_dirs: list[int]
    to_label: list[ToLabel]
    own: int
    rows: dict[bytes, NodeRow]
    touched: Sequence[NodeRow] = ()


ROWS = (
    "SELECT node.*, dir.mtime_ns, dir.ctime_ns FROM node LEFT JOIN dir ON dir.n = node.n WHERE node.parent=?"
)
"""Of each entry its row, and of a directory the times it was listed at."""
_INO, _SIZE, _MTIME, _CTIME, _FLAGS = 6, 7, 8, 9, 15
_KIND, _DIR_MTIME, _DIR_CTIME = 4, 17, 18


def scan_names(
    space: Space, fd: int, n: int, names: Iterable[bytes], generation: Generation | None = None
) -> Scan:
    """Compare the named entries. A name that can't be read keeps its row. `generation`: if it was read already."""
    with space.index.read() as db:
        generation = generation or _generation(db, n)
        rows = {row.name: row for row in index.children(db, n, sorted(names))}
    candidates: list[bytes] = []
    vanished: list[NodeRow] = []
    absence = Absence(space, fd)
    touched: list[NodeRow] = []
    for name in sorted(names):
        row = rows.get(name)
        try:
            found = _stat(absence, fd, name, row)
        except FileNotFoundError:
            if row is not None:
                vanished.append(row)
            continue
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
                continue
            if error.errno in (errno.EIO, errno.EACCES, errno.ESTALE):
                continue
            raise
        if space.is_hidden(found, name):
            if row is not None:
                vanished.append(row)
        elif row is None or row.kind == DIRECTORY or _differs(row, found) or row.flags & CLAIMING:
            candidates.append(name)
            touched += _touched(row, found) if row is not None else []
    return Scan(*generation, None, True, candidates, vanished, [], [], 0, rows, touched)


def _stat(absence: Absence, fd: int, name: bytes, row: NodeRow | None) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        if row is None or row.kind == DIRECTORY or absence.holds(name, row.nlink):
            raise
    return os.stat(name, dir_fd=fd, follow_symlinks=False)


def _differs(row: tuple[int, ...] | NodeRow, found: os.stat_result) -> bool:
    return (
        row[_INO] != found.st_ino
        or row[_CTIME] != clamp_ns(found.st_ctime_ns)
        or row[_MTIME] != clamp_ns(found.st_mtime_ns)
        or (row[_SIZE] != found.st_size and stat.S_ISREG(found.st_mode))
    )


def _touched(row: tuple[Any, ...] | NodeRow, found: os.stat_result) -> list[NodeRow]:
    """The row, if it is a file's and only its ctime differs."""
    same = (found.st_ino, found.st_size, clamp_ns(found.st_mtime_ns)) == (row[_INO], row[_SIZE], row[_MTIME])
    touched = same and row[_KIND] == FILE and row[_CTIME] != clamp_ns(found.st_ctime_ns)
    return [_row(row)] if touched else []


def judge(row: tuple[Any, ...], found: os.stat_result) -> tuple[bool, bool]:
    """(whether an entry has to be looked at closely, whether it is a known directory in which something changed), by
    its row of ROWS."""
    if row[_KIND] != DIRECTORY:
        return _differs(row, found) or bool(row[_FLAGS] & CLAIMING), False
    if row[_INO] != found.st_ino or not stat.S_ISDIR(found.st_mode):
        return True, False
    inside = (row[_DIR_MTIME], row[_DIR_CTIME]) != times_ns(found)
    return inside or bool(row[_FLAGS] & CLAIMING), inside


class TooLarge(Exception):
    """A directory has more entries, on disk or in the index, than are compared at once."""


_MORE = "SELECT 1 FROM node WHERE parent=? LIMIT 1 OFFSET ?"


def scan_all(space: Space, fd: int, n: int, most: int | None = None) -> Scan:
    """Compare the whole directory. An entry that can't be read keeps its row; a listing that fails is an error.

    Raises TooLarge where more than `most` entries are known or listed.
    """
    with space.index.read() as db:
        if most is not None and db.execute(_MORE, (n, most)).fetchone() is not None:
            raise TooLarge
        generation = _generation(db, n)
        rows = {row[3]: row for row in db.execute(ROWS, (n,))}
        dubious = db.execute("SELECT mtime_ns FROM dir WHERE n=?", (n,)).fetchone() == (index.DUBIOUS,)
    for _ in range(_LIST_AGAIN if len(rows) < _LARGE else 1):
        before = statx(fd, b"")
        scan = _compare(space, fd, dict(rows), generation, before, dubious=dubious, most=most)
        after = statx(fd, b"")
        if (before.mtime_ns, before.ctime_ns) == (after.mtime_ns, after.ctime_ns):
            return scan
    return scan._replace(steady=False)


def _at_most(most: int, entries: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    for count, entry in enumerate(entries):
        if count >= most:
            raise TooLarge
        yield entry


def _generation(db: sqlite3.Connection, n: int) -> Generation:
    row = db.execute("SELECT dir.seq, head.epoch, head.moves FROM dir, head WHERE dir.n=?", (n,)).fetchone()
    return Generation(*row) if row is not None else Generation(-1, 0, 0)


def _compare(
    space: Space,
    fd: int,
    rows: dict[bytes, tuple[int, ...]],
    generation: Generation,
    found: Statx,
    *,
    dubious: bool,
    most: int | None,
) -> Scan:
    candidates: list[bytes] = []
    touched: list[NodeRow] = []
    stale: list[int] = []
    to_label: list[ToLabel] = []
    own, labelling, hidden_ino = 0, space.record.label == "now", space.fsd_ident[1]
    with os.scandir(fd) as entries:
        for entry in entries if most is None else _at_most(most, entries):
            name = os.fsencode(entry.name)
            row = rows.pop(name, None)
            if row is None and entry.inode() != hidden_ino and name != INTERNAL:
                candidates.append(name)
                continue
            try:
                st = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                if row is not None:
                    rows[name] = row
                continue
            except OSError:
                if row is not None:
                    own += row[_SIZE]
                continue
            if (st.st_ino == hidden_ino or name == INTERNAL) and space.is_hidden(st, name):
                if row is not None:
                    rows[name] = row
                continue
            if row is None:
                candidates.append(name)
                continue
            own += row[_SIZE]
            differs, inside = judge(row, st)
            if differs or dubious:
                candidates.append(name)
            if inside:
                stale.append(row[0])
            elif differs:
                touched += _touched(row, st)
            if (
                labelling
                and row[_FLAGS] & (READY | LABELLED | CLAIMING) == READY
                and row[_KIND] in (FILE, DIRECTORY)
            ):
                to_label.append(ToLabel(row[0], name, False))
    absence = Absence(space, fd)
    vanished = [row for row in map(_row, rows.values()) if is_gone(space, fd, row, absence)]
    return Scan(*generation, found, True, candidates, vanished, stale, to_label, own, {}, touched)


def _row(found: tuple[Any, ...]) -> NodeRow:
    return NodeRow._make(found[:17])


def is_gone(space: Space, fd: int, row: NodeRow, absence: Absence | None = None) -> bool:
    """Absence from a listing that raced with renames proves nothing; ENOENT for the name does, or an `Absence`."""
    try:
        found = _stat(absence or Absence(space, fd), fd, row.name, row)
    except FileNotFoundError:
        return True
    except StorageUnavailable:
        raise
    except OSError:
        return False
    return space.is_hidden(found, row.name)
