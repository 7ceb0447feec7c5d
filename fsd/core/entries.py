"""What a row of the index and an lstat say together: an entry as readers see it."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple, Protocol

from fsd.core import ids, index
from fsd.core.index import DIRECTORY, FILE, KIND_LETTERS, WRITING, NodeRow
from fsd.core.syscalls import clamp_ns


class Lstat(Protocol):
    """What is asked of a stat_result."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


class Entry(NamedTuple):
    """An entry as readers see it. `size`: bytes of a file, tree size of a directory, else 0. `etag`: unquoted."""

    path: bytes
    name: bytes
    kind: str
    id: str
    size: int
    etag: str
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int
    nlink: int
    ino: int
    unreadable: bool
    writing: bool = False
    """A file that was not yet seen closed and quiet since its content changed (ready.py)."""


class Child(NamedTuple):
    """A row with what its directory part adds."""

    row: NodeRow
    total: int
    counter: int
    mounted: bool
    made: dict[str, Entry]
    """The entry that was made of it, as long as it is remembered."""


CHILDREN = (
    "SELECT node.*, dir.total, dir.counter, dir.mounted FROM node LEFT JOIN dir ON dir.n = node.n WHERE "
)


def file_entry(path: bytes, row: NodeRow) -> Entry:
    """The entry that a file's row describes, without a look at the disk: for those who have just looked."""
    etag = ids.file_etag(row.id, row.size, row.mtime_ns, row.rev)
    return Entry(
        path, row.name, KIND_LETTERS[row.kind], row.id.hex(), row.size, etag, row.mtime_ns, row.ctime_ns, row.mode,
        row.uid, row.gid, row.nlink, row.ino, unreadable=False,
    )  # fmt: skip


def child_of(found: tuple[object, ...]) -> Child:
    """A row as `CHILDREN` gives it."""
    total, counter, mounted = found[17:20]
    return Child(NodeRow._make(found[:17]), total or 0, counter or 0, bool(mounted), {})  # type: ignore[arg-type]


def fits(row: NodeRow, found: Lstat) -> bool:
    """Whether a row says what lstat says; for a directory only that it is the same one."""
    if row.ino != found.st_ino:
        return False
    if row.kind == DIRECTORY:
        return stat.S_ISDIR(found.st_mode)
    if row.kind == index.OTHER and stat.S_ISDIR(found.st_mode):
        return True
    return (row.ctime_ns, row.mtime_ns) == (clamp_ns(found.st_ctime_ns), clamp_ns(found.st_mtime_ns)) and (
        row.kind != FILE or row.size == found.st_size
    )


def entry_of(path: bytes, child: Child, found: Lstat, incarnation: bytes) -> Entry:
    """The entry at `path`, made once for a remembered row and the same lstat."""
    known = child.made.get("entry")
    if known is not None and known.path == path and _same(known, found):
        return known
    entry = _make_entry(path, child, found, incarnation)
    child.made["entry"] = entry
    return entry


def _same(entry: Entry, found: Lstat) -> bool:
    return (
        entry.ctime_ns == clamp_ns(found.st_ctime_ns)
        and entry.ino == found.st_ino
        and entry.mtime_ns == clamp_ns(found.st_mtime_ns)
        and entry.mode == found.st_mode
        and entry.uid == found.st_uid
        and entry.gid == found.st_gid
        and entry.nlink == found.st_nlink
    )


def _make_entry(path: bytes, child: Child, found: Lstat, incarnation: bytes) -> Entry:
    row = child.row
    if row.kind == DIRECTORY:
        size, etag = child.total, ids.directory_etag(row.id, child.counter, incarnation)
    else:
        size, etag = row.size, ids.file_etag(row.id, row.size, row.mtime_ns, row.rev)
    return Entry(
        path, row.name, KIND_LETTERS[row.kind], row.id.hex(), size, etag, clamp_ns(found.st_mtime_ns),
        clamp_ns(found.st_ctime_ns), found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_ino,
        unreadable(found.st_mode, found.st_uid, found.st_gid), bool(row.flags & WRITING),
    )  # fmt: skip


def unreadable(mode: int, uid: int, gid: int) -> bool:
    """Whether the service may not read a node with these attributes."""
    own = os.geteuid()
    if own == 0 or stat.S_ISLNK(mode):
        return False
    if uid == own:
        return not mode & stat.S_IRUSR
    if gid == os.getegid() or gid in os.getgroups():
        return not mode & stat.S_IRGRP
    return not mode & stat.S_IROTH
