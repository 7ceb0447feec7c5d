"""Which files have the content they had, though their ctime moved and nothing that is kept of them explains it.

`chown -R` to the owner they have, a rename there and back, a link that came and went: for all of these the kernel moves
the ctime as it does for a write whose mtime was set back. Where a checksum of the old content is known, reading the
file tells which it was, and a file that was only touched keeps its etag: else every client would fetch it again.
Without one, and beyond MOST bytes, the etag changes, so that no etag ever stands for two contents.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fsd.core import ids
from fsd.core.index import FILE, NodeRow
from fsd.core.observe import Seen
from fsd.core.sums import EMPTY, Sum
from fsd.core.syscalls import clamp_ns

if TYPE_CHECKING:
    from fsd.core.space import Space

MOST: Final = 32 << 20
"""Bytes that one comparison of a directory reads: about as long as 30 ms."""
_BLOCK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def proven(space: Space, dir_fd: int, touched: Sequence[NodeRow], seen: Sequence[Seen]) -> dict[bytes, str]:
    """The etags that still stand for what is on disk, by name.

    `touched`: rows of files of which the disk tells another ctime, and nothing else that makes an etag. Never raises
    OSError: what can't be read is not proven.
    """
    rows = {row.name: row for row in touched}
    suspects = [
        (rows[each.name], each) for each in seen if each.name in rows and _is_suspect(rows[each.name], each)
    ]
    if not suspects:
        return {}
    etags = [ids.file_etag(row.id, row.size, row.mtime_ns, row.rev) for row, _ in suspects]
    known = space.sums.known(etags)
    found: dict[bytes, str] = {}
    left = MOST
    for (row, each), etag in zip(suspects, etags, strict=True):
        value = known.get(etag) if row.size else EMPTY
        if value is None or row.size > left:
            continue
        left -= row.size
        if _holds(dir_fd, each, value):
            found[row.name] = etag
    return found


def _is_suspect(row: NodeRow, seen: Seen) -> bool:
    """Whether only the ctime tells of a change (classify.content_rev)."""
    return seen.kind == FILE and (row.binding, row.size, row.mtime_ns, row.mode, row.uid, row.gid, row.nlink) == (
        seen.binding, seen.size, seen.mtime_ns, seen.mode, seen.uid, seen.gid, seen.nlink,
    )  # fmt: skip


def _holds(dir_fd: int, seen: Seen, value: Sum) -> bool:
    """Whether the file that was seen has this content, from before the first byte is read until after the last."""
    try:
        fd = os.open(seen.name, _READ, dir_fd=dir_fd)
    except OSError:
        return False
    try:
        return _is(fd, seen) and same_content(fd, seen.size, value) and _is(fd, seen)
    except OSError:
        return False
    finally:
        os.close(fd)


def _is(fd: int, seen: Seen) -> bool:
    found = os.fstat(fd)
    return (found.st_ino, found.st_size, clamp_ns(found.st_ctime_ns)) == (seen.ino, seen.size, seen.ctime_ns)


def same_content(fd: int, size: int, value: Sum) -> bool:
    """Whether the first `size` bytes of an open file have the strongest of these checksums. OSError."""
    if value.sha1 is None and value.md5 is None:
        return value.adler32 is not None and not size
    running = hashlib.new("sha1" if value.sha1 is not None else "md5", usedforsecurity=False)
    offset = 0
    while offset < size:
        block = os.pread(fd, min(_BLOCK, size - offset), offset)
        if not block:
            return False
        running.update(block)
        offset += len(block)
    return running.digest() == (value.sha1 or value.md5)
