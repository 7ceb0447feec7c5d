"""A label without proof is a claim: this node says that it is who another one was.

It came with a copy, with a restore, with a move from another filesystem, or by somebody's hand. The id is its own if
the owner is gone from the space and place or owner agree. Whether the owner is gone often can't be told yet: what made
the copy may be about to remove the original, or the original is known to be gone from its place but not yet where it
is now. Such a claim stays open (`CLAIMING`) and is looked at again, until the node has been quiet and the owner is
settled; until then the node has the id that it has by itself. Programs also write attributes last: a directory that
cp(1) or tar(1) made gets its label when it is known already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from fsd.core import dirty, index
from fsd.core.index import CLAIMING, DIRECTORY, FILE, GIVEN, LABELLED, READY, NodeRow
from fsd.core.observe import Seen, still_at

if TYPE_CHECKING:
    from fsd.core.commit import Commit

GRACE_S = 5.0
"""A copy whose original is still there after it has been quiet for so long is a copy. Seconds."""


PLACE_FIRST_S = 12.0
"""Of several that were restored at once the one at the old place is the heir: others of its owner wait. Seconds."""


class Claim(NamedTuple):
    """What comes of a label without proof. `owner`: the row that has the id, None if only a tombstone knows it.
    `rev` is the one to go on with if it is taken."""

    decision: Literal["take", "wait", "refuse"]
    owner: NodeRow | None = None
    rev: int = 0


def judge(work: Commit, seen: Seen) -> Claim:
    """Decide about the label of a node that is not known to be the owner."""
    label = seen.label
    assert label is not None
    owner = index.by_id(work.db, label.id)
    if owner is None:
        stone = work.space.state.tombstone(label.id)
        if stone is None:
            return Claim("refuse")
        take = Claim("take", None, max(label.rev, stone.rev) + 1)
        if (stone.parent, stone.name) == (work.id, seen.name):
            return take
        if stone.uid != seen.uid:
            return Claim("refuse")
        return take if work.now - stone.at > PLACE_FIRST_S else Claim("wait")
    if owner.kind != seen.kind or owner.n == index.ROOT:
        return Claim("refuse")
    take = Claim("take", owner, max(label.rev, owner.rev) + 1)
    if owner.parent is None:
        place = work.db.execute("SELECT parent, name FROM limbo WHERE n=?", (owner.n,)).fetchone()
        return take if place == (work.n, seen.name) else Claim("wait")
    path = index.path_of(work.db, owner.n)
    if path is None:
        return Claim("wait")  # somewhere below a directory in limbo
    if still_at(work.space, path, owner.binding):
        return Claim("wait" if work.now - seen.ctime_ns / 1e9 < GRACE_S else "refuse")
    if (owner.parent, owner.name) == (work.n, seen.name):
        return take
    dirty.mark_row(work.db, owner.parent, [owner.name], work.now)
    return Claim("wait")


def late(work: Commit, row: NodeRow, seen: Seen) -> Claim | None:
    """The claim of a node that has a row already; None if it makes none that still counts.

    An id that is established is kept whatever somebody writes on the node. A directory's label may come long after
    it: cp(1) and tar(1) write a directory's attributes when all that is in it is there.
    """
    label = seen.label
    if label is None or label.proven or label.id == row.id or seen.kind not in (FILE, DIRECTORY):
        return None
    if seen.kind == FILE and seen.nlink > 1:
        return None
    replaced = row.kind == DIRECTORY and row.flags & LABELLED
    if not (replaced or row.flags & CLAIMING or not row.flags & READY):
        return None
    claim = judge(work, seen)
    if claim.owner is not None and claim.decision == "take" and _has_children(work, claim.owner):
        return Claim("wait")  # they are settled with it; each of them may be claimed as well
    return claim


def adopt(work: Commit, row: NodeRow, claim: Claim, node_id: bytes) -> NodeRow:
    """Give a row the id it claims; the row of the old owner goes. Its label is due."""
    if claim.owner is not None:
        work.drop(claim.owner)
    flags = row.flags & ~(LABELLED | CLAIMING | GIVEN) | index.given(work.space.key, node_id, row.binding)
    work.db.execute("UPDATE node SET id=?, rev=?, flags=? WHERE n=?", (node_id, claim.rev, flags, row.n))
    work.deltas.add(work.n, visible=True)
    if row.kind == DIRECTORY:
        dirty.mark_row(
            work.db, row.n, None, work.now
        )  # what claims to be from within it may be at its place now
    return row._replace(id=node_id, rev=claim.rev, flags=flags)


def _has_children(work: Commit, row: NodeRow) -> bool:
    return work.db.execute("SELECT 1 FROM node WHERE parent=? LIMIT 1", (row.n,)).fetchone() is not None
