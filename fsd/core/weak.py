"""Filesystems whose nodes nothing stands for: no handle that outlives the mount, no birth time, only inode numbers.

Numbers are used again, and some filesystems (FAT, many behind FUSE) give new ones at each mount. So a number alone
proves nothing here; the index is asked as well:

* what is at its place with its size and mtime is the same node, also with another number
* what appears elsewhere with a number that is known has moved only if size and mtime came along
* an id that belonged to a deleted node is not given again to the next one with its number

Ids that no longer derive from the number are kept in the state database. Lost together, index and mount leave nothing
to tell nodes by: then ids are derived anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsd.core import ids
from fsd.core.index import DIRECTORY

if TYPE_CHECKING:
    from fsd.core.commit import Commit
    from fsd.core.index import NodeRow
    from fsd.core.observe import Seen


def is_same(row: NodeRow, seen: Seen) -> bool:
    """Whether what is seen at a row's place is its node, though its number changed."""
    return (
        ids.is_weak(row.binding) and ids.is_weak(seen.binding) and row.kind == seen.kind and _alike(row, seen)
    )


def may_have_moved(row: NodeRow, seen: Seen) -> bool:
    """Whether a row of the same number, gone from its place, may be the node that is seen elsewhere."""
    return not ids.is_weak(seen.binding) or (
        row.kind == seen.kind and (row.mtime_ns, row.size) == _facts(seen)
    )


def was_deleted(work: Commit, node_id: bytes, seen: Seen) -> bool:
    """Whether an id derived from a number belonged to a node that is gone."""
    return ids.is_weak(seen.binding) and work.space.state.tombstone(node_id) is not None


def _alike(row: NodeRow, seen: Seen) -> bool:
    return row.kind == DIRECTORY or (row.mtime_ns, row.size) == _facts(seen)


def _facts(seen: Seen) -> tuple[int, int]:
    return seen.mtime_ns, seen.size
