"""Save by rename: a program writes a new file and gives it the name of the old one, or renames the old one away and
writes a new one of its name. Either way the name keeps its id, and the new node is the heir of the old.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from fsd.core import index
from fsd.core.classify import Donor
from fsd.core.index import FILE, READY, NodeRow
from fsd.core.observe import Seen, is_taken

if TYPE_CHECKING:
    from fsd.core.commit import Commit

MEMORY_S = 10.0
"""How long a vanished name or node is remembered: limbo, save-by-rename. Seconds."""


def latest(work: Commit, known: list[NodeRow]) -> list[NodeRow]:
    """Rows of one node that are not where they were, the one first that was last seen: of a file with several names
    one may have vanished long before the one that has moved now."""
    if len(known) < 2:
        return known
    marks = ",".join("?" * len(known))
    query = f"SELECT n, since FROM limbo WHERE n IN ({marks})"
    since: dict[int, float] = dict(work.db.execute(query, [row.n for row in known]).fetchall())

    def seen_at(row: NodeRow) -> float:
        if row.parent is None:
            return since.get(row.n, 0.0)
        # Below a directory in limbo it went with that one, some time ago; else it has moved just now.
        return float("inf") if index.path_of(work.db, row.n) is not None else 0.0

    return sorted(known, key=seen_at, reverse=True)


def donor(work: Commit, row: NodeRow | None, seen: Seen, known: list[NodeRow]) -> Donor | None:
    """Whose id the node at `seen.name` would take over: of what stands there in the index, or stood there a moment
    ago. `known` are rows of the node itself."""
    if row is not None:
        return Donor(row, "place") if row.kind == FILE else None
    temporary = bool(known) and not known[0].flags & READY
    if work.explicit or (seen.label is not None and seen.label.proven and not temporary):
        return None  # it has an identity of its own
    place = (work.n, seen.name, work.now - MEMORY_S)
    found = work.db.execute(
        "SELECT n FROM limbo WHERE parent=? AND name=? AND since>=? ORDER BY since DESC", place
    ).fetchone()
    in_limbo = found is not None
    if found is None:
        query = "SELECT n FROM recent WHERE parent=? AND name=? AND since>=?"
        found = work.db.execute(query, place).fetchone()
    row = index.node(work.db, found[0]) if found else None
    if row is None or row.binding == seen.binding:
        return None
    return Donor(row, "limbo" if in_limbo else "recent")


def leave(work: Commit, moved: NodeRow) -> None:
    """The node of a row goes on under another row. Its id goes, unless somebody stands at its old name already: where
    two names were exchanged (renameat2(2)) both names keep their ids."""
    if moved.parent is not None:
        work.deltas.add(moved.parent, -moved.size, -moved.size)
    work.memory.lose_name(moved)
    path = index.path_of(work.db, moved.n)
    if moved.parent is not None and path is not None and is_taken(work.space, path):
        nobody = blake2b(moved.binding, digest_size=16, person=b"gone").digest()
        query = "UPDATE node SET parent=NULL, binding=?, flags=flags|? WHERE n=?"
        work.db.execute(query, (nobody, index.GIVEN, moved.n))
        vanished = (moved.n, moved.parent, moved.name, work.now)
        work.db.execute("INSERT OR REPLACE INTO limbo VALUES (?, ?, ?, ?)", vanished)
        return
    for table in ("limbo", "pending", "node"):
        work.db.execute(f"DELETE FROM {table} WHERE n=?", (moved.n,))
