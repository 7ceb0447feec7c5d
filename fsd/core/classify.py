"""Who is it? The rules of identity for an entry whose node is new at its place. Facts in, verdict out: no disk, no
database.

In order: the node is known by its binding (moved, or a further link); a remembered binding; a proven label; a label
whose owner is gone and whose place or owner agrees (a restore); the id of what stood under this name a moment ago
(save-by-rename); the derived id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fsd.core.claims import Claim
from fsd.core.index import DIRECTORY, DOUBTED, FILE, LABELLED, READY, NodeRow
from fsd.core.observe import Seen

Source = Literal["place", "limbo", "recent"]


class Donor(NamedTuple):
    """A row whose id a node without an identity of its own may take over, and where it was found."""

    row: NodeRow
    source: Source


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a seen entry. `known` are rows of the same node that are no longer where they were;
    `linked` tells that another name of it is still there. `owner` is the row of a proven label's id, with whether it
    is alive; `claim` is what comes of a label without proof."""

    seen: Seen
    explicit: bool
    known: Sequence[NodeRow]
    linked: bool
    remembered: tuple[bytes, int] | None
    owner: NodeRow | None
    owner_alive: bool
    claim: Claim | None
    donor: Donor | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`row`: an existing row to use (moved or rebound). `inherit`: take the donor's id. `node_id`: a given id.
    `link`: a further name of a hard-linked node. All empty: the derived id; `waits`: until its claim is decided."""

    row: NodeRow | None = None
    inherit: Donor | None = None
    node_id: bytes | None = None
    rev: int = 0
    link: bool = False
    rebound: bool = False
    waits: bool = False


def identify(facts: Facts) -> Verdict:
    """Decide; deterministic and total."""
    label = facts.seen.label
    if facts.known:
        moved = facts.known[0]
        if _takes_over(facts) and not moved.flags & READY:
            return Verdict(row=moved, inherit=facts.donor)
        return Verdict(row=moved)
    if facts.linked:
        node_id, rev = facts.remembered or (None, 0)
        return Verdict(link=True, node_id=node_id, rev=rev)
    if facts.remembered is not None:
        node_id, rev = facts.remembered
        told = label.rev if label is not None and label.proven and label.id == node_id else 0
        return Verdict(node_id=node_id, rev=max(rev, told))
    claim = facts.claim
    if label is not None and claim is None:
        if facts.owner is None:
            return Verdict(node_id=label.id, rev=label.rev)
        if not facts.owner_alive:
            return Verdict(row=facts.owner, rev=max(label.rev, facts.owner.rev), rebound=True)
    if label is not None and claim is not None and claim.decision == "take":
        if claim.owner is not None:
            return Verdict(row=claim.owner, rev=claim.rev, rebound=True)
        return Verdict(node_id=label.id, rev=claim.rev)
    if _takes_over(facts):
        return Verdict(inherit=facts.donor)
    return Verdict(waits=claim is not None and claim.decision == "wait")


def _takes_over(facts: Facts) -> bool:
    """Save-by-rename applies to single-named regular files; fsd's own changes say themselves who is who."""
    donor = facts.donor
    if donor is None or facts.seen.kind != FILE or donor.row.kind != FILE or facts.seen.nlink > 1:
        return False
    return donor.source == "place" or not facts.explicit


def content_rev(row: NodeRow, seen: Seen, *, same: bool = False) -> int:
    """The rev of a node that was looked at again: rises unless a strictly rising mtime already changes the etag.

    So (rev, mtime) only ever grows, and no two contents of a file share an etag, also with `touch -r`. A change of
    ctime alone is metadata if links, mode, owner, attributes or our own label explain it. `same`: its name does, or the
    content was compared.
    """
    ours = seen.label if seen.label is not None and seen.label.proven and seen.label.id == row.id else None
    rev = max(row.rev, ours.rev if ours else 0)
    if seen.kind == DIRECTORY or seen.kind != FILE:
        return rev
    if (row.size, row.mtime_ns) != (seen.size, seen.mtime_ns):
        return rev if seen.mtime_ns > row.mtime_ns else rev + 1
    if row.ctime_ns == DOUBTED:
        return rev + 1
    if row.ctime_ns == seen.ctime_ns or same:
        return rev
    if row.flags & LABELLED and row.binding == seen.binding and (ours is None or ours.rev < row.rev):
        return rev + 1  # a backup was put back over it, label and all, or so it may be
    explained = (
        (row.mode, row.uid, row.gid, row.nlink, row.xattrs)
        != (seen.mode, seen.uid, seen.gid, seen.nlink, seen.xattrs)
        or (ours is not None and ours.rev == row.rev and not row.flags & LABELLED)
        or (ours is not None and ours.rev > row.rev)
    )
    return rev if explained else rev + 1
