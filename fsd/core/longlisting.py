"""The listing of a large directory: whole, taken at one moment, and small.

An Entry takes more than half a kilobyte of memory; of 100,000 that is too much for one request. Here each entry is a
packed record of about 100 bytes and its name, made in one pass over the disk and one over the rows, and turned into an
Entry when a reader comes to it. Whoever reads slowly holds these bytes, and neither a descriptor nor a transaction.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from fsd.core import dirty, disk, index, tree
from fsd.core.entries import CHILDREN, Entry, child_of, entry_of, fits, unreadable
from fsd.core.index import KIND_LETTERS
from fsd.core.names import INTERNAL, join

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

LARGE = 2000
"""Entries from which on a directory is read this way."""
_TURNS = 3
_BATCH = 500
_RECORD = struct.Struct("<B?16sQqqIIIIQ32s")
"""Kind, writing, id, size, mtime, ctime, mode, uid, gid, nlink, inode, etag."""


class LongListing:
    """`own`, read before the entries; iterating gives the entries sorted by name, any number of times."""

    def __init__(self, path: bytes, own: Entry) -> None:
        self.own = own
        self._path = path
        self._names: list[bytes] = []
        self._records = bytearray()

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Entry]:
        path, size = self._path, _RECORD.size
        for number, name in enumerate(self._names):
            kind, writing, node_id, length, mtime, ctime, mode, uid, gid, nlink, ino, etag = (
                _RECORD.unpack_from(self._records, number * size)
            )
            yield Entry(join(path, name), name, KIND_LETTERS[kind], node_id.hex(), length, etag.decode().rstrip("\0"),
                        mtime, ctime, mode, uid, gid, nlink, ino, unreadable(mode, uid, gid), writing)  # fmt: skip

    def add(self, entry: Entry) -> None:
        """Append; the caller adds them sorted."""
        self._names.append(entry.name)
        self._records += _RECORD.pack(
            KIND_LETTERS.index(entry.kind), entry.writing, bytes.fromhex(entry.id), entry.size, entry.mtime_ns,
            entry.ctime_ns, entry.mode, entry.uid, entry.gid, entry.nlink, entry.ino, entry.etag.encode(),
        )  # fmt: skip


def is_large(space: Space, path: bytes) -> bool:
    """Whether the directory has more than LARGE entries, as the index knows, or where it knows nothing, the disk. No
    for what is no directory."""
    with space.index.read() as db:
        n, _ = index.resolve(space.index, db, path)
        query = "SELECT 1 FROM node WHERE parent=? LIMIT 1 OFFSET ?"
        if n is not None and db.execute(query, (n, LARGE)).fetchone() is not None:
            return True
    if not tree.never_looked_at(space, path):
        return False
    try:
        fd = tree.open_listed(space, path)
    except NotADirectoryError:
        return False
    try:
        with os.scandir(fd) as scan:
            return next(islice(scan, LARGE, None), None) is not None
    finally:
        os.close(fd)


def read(space: Space, path: bytes) -> LongListing:
    """The listing of a directory, whole or an error, as `tree.listing` has it."""
    for turn in range(_TURNS):
        own = tree.lookup(space, path)
        if own.kind != "d":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        fd = tree.open_dir(space, path)
        try:
            names, found = _scan(space, fd)
            made, differing = _match(space, path, own, names, found)
            if not differing:
                return made
            last = turn == _TURNS - 1
            if len(differing) > LARGE and tree.never_looked_at(space, path):
                dirty.mark(space, [(path, None)])  # the watcher's work; it is shown from the disk meanwhile
                last = True
            if last or not tree.take_in(space, path, differing if len(differing) <= LARGE else None):
                return _completed(space, fd, path, made, differing)
        finally:
            os.close(fd)
    raise AssertionError("unreachable: the last turn returns")


def _scan(space: Space, fd: int) -> tuple[list[bytes], dict[bytes, bytes]]:
    """(names in order, packed lstat by name); an entry that cannot be looked at has none."""
    found = disk.lstat_all(fd)
    hidden = space.fsd_ident[1]
    for name, packed in list(found.items()):
        suspect = packed and (disk.inode_of(packed) == hidden or name == INTERNAL)
        if suspect and space.hides(fd, name):
            del found[name]
    return sorted(found), found


class _Lstat:
    """A packed lstat as a stat_result has it, as far as entries ask."""

    __slots__ = ("st_ctime_ns", "st_gid", "st_ino", "st_mode", "st_mtime_ns", "st_nlink", "st_size", "st_uid")

    def __init__(self, packed: bytes) -> None:
        (
            self.st_mode, self.st_ino, self.st_nlink, self.st_uid, self.st_gid, self.st_size, self.st_mtime_ns,
            self.st_ctime_ns,
        ) = disk.PACKED.unpack(packed)  # fmt: skip


def _match(
    space: Space, path: bytes, own: Entry, names: list[bytes], found: dict[bytes, bytes]
) -> tuple[LongListing, list[bytes]]:
    """(the entries whose rows say what the disk says, the names of the others and of rows that are left over)."""
    made, differing, place = LongListing(path, own), [], 0
    with space.index.read() as db:
        n, incarnation = index.resolve(space.index, db, path)
        for row in _rows(db, n):
            name = row[3]
            while place < len(names) and names[place] < name:
                differing.append(names[place])
                place += 1
            if place == len(names) or names[place] != name:
                differing.append(name)
                continue
            place += 1
            packed, child = found[name], child_of(row)
            st = _Lstat(packed) if packed else None
            if st is not None and fits(child.row, st):
                made.add(entry_of(join(path, name), child, st, incarnation))
            else:
                differing.append(name)
    differing += names[place:]
    return made, differing


def _rows(db: sqlite3.Connection, n: int | None) -> Iterator[tuple[Any, ...]]:
    cursor = db.execute(CHILDREN + "node.parent=? ORDER BY node.name", (n,))
    while batch := cursor.fetchmany(_BATCH):
        yield from batch


def _completed(space: Space, fd: int, path: bytes, made: LongListing, differing: list[bytes]) -> LongListing:
    """Add what is on disk but could not be brought into the index."""
    whole = LongListing(path, made.own)
    waiting = sorted(differing, reverse=True)

    def add_up_to(name: bytes | None) -> None:
        while waiting and (name is None or waiting[-1] < name):
            try:
                whole.add(tree.provisional(space, fd, path, waiting.pop()))
            except FileNotFoundError:
                continue

    for entry in made:
        add_up_to(entry.name)
        whole.add(entry)
    add_up_to(None)
    return whole
