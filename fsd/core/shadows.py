"""Versions of what programs overwrite in place, where the filesystem clones and the space asks for it.

What is overwritten is gone before anybody hears of it. So each content that is ready is cloned beforehand: a *shadow*,
`.fsd/shadows/<first two digits>/<id>`, that shares the file's extents and costs an inode. When the file is ready with
other content, its shadow becomes a version, and a new one is made. What was written and overwritten before it was ready
leaves no version. A shadow carries the etag of the content that it is (`user.fsd.content`).

Crash: a shadow is whole or under a temporary name, which the next one replaces.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from fsd.core import index, journal, ready, versions
from fsd.core.errors import FsdError, StorageUnavailable
from fsd.core.index import FILE, WRITING, NodeRow
from fsd.core.places import internal
from fsd.core.syscalls import clone

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from fsd.core.space import Space

_log = logging.getLogger(__name__)
_CONTENT: Final = "user.fsd.content"
_SENTENCE: Final = "The filesystem of the space cannot clone files"
_PAGE = 200
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


def setting(space_id: str) -> str:
    """The registry's setting that is "on" where direct overwrites make versions."""
    return f"direct-versions:{space_id}"


class CannotClone(OSError):
    """The filesystem of the space has no reflinks."""


def require(space: Space) -> None:
    """CannotClone where shadows can't be made."""
    with internal(space, "staging") as staging, ExitStack() as stack:
        try:
            files = []
            for _ in range(2):
                files.append(os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=staging))
                stack.callback(os.close, files[-1])
            os.write(files[0], b"x")
            clone(files[0], files[1])
        except OSError as error:
            if error.errno in _CANNOT:
                raise CannotClone(error.errno, _SENTENCE) from error
            raise


def step(space: Space) -> bool:
    """Shadows for a page of files; True if there may be more. CannotClone, StorageUnavailable."""
    with space.index.read() as db:
        row = db.execute("SELECT value FROM cursor WHERE source='shadows'").fetchone()
        after, number = map(int, row[0].split(":")) if row else (0, journal.last(space))
        rows = [NodeRow._make(found) for found in db.execute(
            "SELECT * FROM node WHERE n>? ORDER BY n LIMIT ?", (after, _PAGE))]  # fmt: skip
        files = [each for each in rows if each.kind == FILE and each.size and not each.flags & WRITING]
        paths = [index.path_of(db, each.n) for each in files]
    if rows:
        after = rows[-1].n
    else:
        news = ready.news(space, number, _PAGE)
        paths = [each.path for each in news.ready]
        number = news.last
        if not news.whole:
            after = 0
    for path in paths:
        if path is not None:
            _renew(space, path)
    value = f"{after}:{number}"
    if row is None or row[0] != value:
        with space.index.write() as db:
            db.execute("INSERT OR REPLACE INTO cursor VALUES ('shadows', ?)", (value,))
    return len(rows) == _PAGE or len(paths) == _PAGE


def _renew(space: Space, path: bytes) -> None:
    try:
        with ready.reading(space, path) as (fd, entry):
            node_id, etag = entry.id, entry.etag
            with internal(space, f"shadows/{node_id[:2]}") as into:
                name = node_id.encode()
                old = _content(into, name)
                if old == etag:
                    return
                _clone(fd, into, name + b".new", etag)
        # What was cloned is what the etag stands for: `reading` has looked again.
        with internal(space, f"shadows/{node_id[:2]}") as into:
            if old is not None:
                versions.adopt(space, node_id, into, name, old)
            os.rename(name + b".new", name, src_dir_fd=into, dst_dir_fd=into)
    except (StorageUnavailable, CannotClone):
        raise
    except FsdError:
        return  # it comes again when it is ready
    except OSError as error:
        _log.debug("space %s: no shadow: %s", space.record.id, error)


def _clone(fd: int, into: int, name: bytes, etag: str) -> None:
    found = os.fstat(fd)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(name, flags, 0o600, dir_fd=into)
    try:
        try:
            clone(fd, target)
            os.setxattr(target, _CONTENT, etag.encode())
        except OSError as error:
            os.unlink(name, dir_fd=into)
            if error.errno in _CANNOT:
                raise CannotClone(error.errno, _SENTENCE) from error
            raise
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(target)


def _content(into: int, name: bytes) -> str | None:
    """The etag of what a shadow holds; None if there is none."""
    try:
        return os.getxattr(b"/proc/self/fd/%d/%b" % (into, name), _CONTENT, follow_symlinks=False).decode()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None


def sweep(space: Space, *, wanted: bool, kept: Collection[str | None] = ()) -> None:
    """Drop shadows of files that are gone and not in the trash; all of them where they are not wanted any more."""
    with space.index.read() as db, internal(space, "shadows") as above:
        (complete,) = db.execute("SELECT complete FROM head").fetchone()
        for first in os.listdir(b"/proc/self/fd/%d" % above):
            for name in os.listdir(b"/proc/self/fd/%d/%b" % (above, first)):
                node_id = name.partition(b".")[0].decode("ascii", "replace")
                known = node_id in kept or _is_there(db, node_id)
                if not wanted or (complete and not known):
                    with suppress(FileNotFoundError):
                        os.unlink(first + b"/" + name, dir_fd=above)
    if not wanted:
        with space.index.write() as db:
            db.execute("DELETE FROM cursor WHERE source='shadows'")


def _is_there(db: sqlite3.Connection, node_id: str) -> bool:
    try:
        return index.by_id(db, bytes.fromhex(node_id)) is not None
    except ValueError:
        return False
