"""What a space looked like when it was last looked at, a few rows at a time, for whoever asks the disk again.

Reads the index only. Rows come in the order of their numbers, which is that of becoming known; what is new
meanwhile is at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fsd.core import index
from fsd.core.names import join

if TYPE_CHECKING:
    from fsd.core.space import Space


class Directory(NamedTuple):
    """A directory as it was at its last whole look; `entries`: how many the index has in it."""

    n: int
    path: bytes
    mtime_ns: int
    ctime_ns: int
    entries: int


class File(NamedTuple):
    """A file, link or special file; `parent` is the path of its directory."""

    n: int
    parent: bytes
    name: bytes
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


def directories(space: Space, after: int, limit: int) -> list[Directory]:
    """Directories with row numbers above `after`; what is in limbo is left out, so an empty list alone is the
    end."""
    query = (
        "SELECT n, mtime_ns, ctime_ns, (SELECT count(*) FROM node WHERE node.parent=dir.n) FROM dir"
        " WHERE n > ? ORDER BY n LIMIT ?"
    )
    found: list[Directory] = []
    with space.index.read() as db:
        while not found:
            rows = db.execute(query, (after, limit)).fetchall()
            if not rows:
                break
            for n, mtime_ns, ctime_ns, entries in rows:
                path = index.path_of(db, n)
                if path is not None:
                    found.append(Directory(n, path, mtime_ns, ctime_ns, entries))
            after = rows[-1][0]
    return found


def files(space: Space, after: int, limit: int) -> list[File]:
    """Entries that are no directories, likewise."""
    query = (
        "SELECT n, parent, name, ino, size, mtime_ns, ctime_ns FROM node"
        " WHERE n > ? AND kind <> ? AND parent IS NOT NULL ORDER BY n LIMIT ?"
    )
    with space.index.read() as db:
        parents: dict[int, bytes | None] = {}
        found: list[File] = []
        while not found:
            rows = db.execute(query, (after, index.DIRECTORY, limit)).fetchall()
            if not rows:
                break
            for n, parent, *rest in rows:
                if parent not in parents:
                    parents[parent] = index.path_of(db, parent)
                path = parents[parent]
                if path is not None:
                    found.append(File(n, path, *rest))
            after = rows[-1][0]
    return found


def place(file: File) -> bytes:
    """The file's path below the root."""
    return join(file.parent, file.name)


class Known(NamedTuple):
    """A directory in another one, and its tree size in bytes, as the index knows them."""

    path: bytes
    total: int


def below(space: Space, path: bytes) -> list[Known]:
    """The directories in a directory; none if the index does not know it."""
    with space.index.read() as db:
        n, _ = index.resolve(space.index, db, path)
        if n is None:
            return []
        query = "SELECT node.name, dir.total FROM node JOIN dir ON dir.n=node.n WHERE node.parent=?"
        rows = db.execute(query, (n,)).fetchall()
    return [Known(join(path, name), total) for name, total in rows]


def total_of(space: Space, path: bytes) -> int | None:
    """The tree size of a directory; None if the index does not know it."""
    with space.index.read() as db:
        n, _ = index.resolve(space.index, db, path)
        row = db.execute("SELECT total FROM dir WHERE n=?", (n,)).fetchone()
    return None if row is None else int(row[0])
