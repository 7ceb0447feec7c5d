"""What one transaction has the state database remember of nodes: ids and revs that they can't carry themselves, or not
yet. Links and special files, each name of a hard-linked node by its place, files whose label could not be written.

It is written before the transaction is committed, so what a reader was told survives the index, whenever both the
process and the index are lost. What is remembered of a node counts more than its label, and is never the older one.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import hardlinks, index
from fsd.core.hardlinks import Met, has_names
from fsd.core.index import DIRECTORY, FILE, NodeRow

if TYPE_CHECKING:
    from fsd.core.commit import Commit
    from fsd.core.observe import Seen

SETTLE_S = 5.0
"""A closed node is labelled when it has been quiet for so long. Seconds."""


class Recalled(NamedTuple):
    """`known`: the (id, rev) of a node at this place. `linked`: other names of it are known, each with its id."""

    known: tuple[bytes, int] | None
    linked: bool


def place_key(parent_id: bytes, name: bytes) -> bytes:
    """Names one place of a hard-linked node in the state database."""
    return blake2b(parent_id + name, digest_size=8).digest()


class Memory:
    """Collects for one `Commit`."""

    def __init__(self, work: Commit) -> None:
        self._work = work
        self._rows: list[tuple[bytes, bytes, bytes, int]] = []
        self._linked: dict[bytes, Met] = {}
        """Hard-linked nodes that were met."""
        self._parents: dict[int, bytes | None] = {}
        """Ids of the directories that their names are in."""
        self.told: set[int] = set()
        """Row numbers of other directories in which rows were told what was learnt here."""
        self.taken: dict[bytes, int] = {}
        """Nodes whose remembered id somebody else has now, with the rev that they had under it."""

    @property
    def _any(self) -> bool:
        """Whether the state database remembers any node's id: asked once in a transaction."""
        head = self._work.head
        if head.remembers is None:
            with self._work.space.state.read() as db:
                head.remembers = db.execute("SELECT 1 FROM binding LIMIT 1").fetchone() is not None
        return head.remembers

    def recall(self, seen: Seen) -> Recalled:
        """What is remembered of a node that has no row at its place."""
        if not self._any:
            return Recalled(None, False)
        state = self._work.space.state
        known = state.bound(seen.binding, place_key(self._work.id, seen.name))
        if known is None:
            return Recalled(None, has_names(seen) and state.remembered([seen.binding]) != set())
        if index.by_id(self._work.db, known[0]) is not None:
            self.taken[seen.binding] = known[1]
            return Recalled(None, False)
        return Recalled(known, False)

    def met(self, seen: Seen, *, again: bool = False) -> None:
        """A node that has, or had, several names was looked at; `again`: at a place where it was known."""
        old = self._linked.get(seen.binding, Met())
        self._linked[seen.binding] = Met(seen, again or old.again, old.here | {seen.name}, old.moved)

    def renamed(self, old: NodeRow, new: NodeRow) -> None:
        """A row came to another place. Of a file with several names the others can't tell why their ctime moved."""
        if hardlinks.is_renamed(old, new):
            self._linked[new.binding] = self._linked.get(new.binding, Met())._replace(moved=old)

    def lose_name(self, row: NodeRow) -> None:
        """A row is no longer one of its node's names: the others are looked at."""
        if row.nlink > 1 and row.kind != DIRECTORY:
            self._linked.setdefault(row.binding, Met())

    def keep(self, binding: bytes, node_id: bytes, rev: int) -> None:
        """Remember a node with one name."""
        self._rows.append((binding, b"", node_id, rev))

    def keep_row(self, row: NodeRow) -> None:
        """Remember a row's id: for its place, where it is one name of several."""
        if row.nlink == 1 or row.kind == DIRECTORY:
            self.keep(row.binding, row.id, row.rev)
            return
        parent = index.node(self._work.db, row.parent) if row.parent is not None else None
        if parent is not None:
            self._rows.append((row.binding, place_key(parent.id, row.name), row.id, row.rev))

    def correct(self, seen: Seen, node_id: bytes, rev: int) -> None:
        """What is remembered of a node that gets a row says the same."""
        if not self._any or has_names(seen):
            return
        state = self._work.space.state
        if state.remembered([seen.binding]) and state.bound(seen.binding, b"") != (node_id, rev):
            self.keep(seen.binding, node_id, rev)

    def write(self) -> None:
        """At the end of the transaction, before it is committed. Durable when it returns."""
        db = self._work.db
        for binding, met in self._linked.items():
            self._settle_names(binding, met)
        db.executemany("UPDATE dir SET seq=seq+1 WHERE n=?", [(n,) for n in self.told])
        if self._rows:
            self._work.space.state.bind(self._rows)
            self._work.head.remembers = True

    def _settle_names(self, binding: bytes, met: Met) -> None:
        """Remember which name of a hard-linked node has which id: the one label on the inode can't tell."""
        work, seen = self._work, met.seen
        if seen is None:
            if not hardlinks.lost(work, binding):
                self._remember_all(binding)
            return
        known = hardlinks.count(work.db, work.space.key, binding)
        if 0 < seen.nlink < known:
            hardlinks.doubt(work, binding, seen.nlink)
        # Most of very many may be in limbo: then there are few.
        few = min(known, seen.nlink) <= hardlinks.MANY
        hardlinks.tell(work, met, few=few)
        if few:
            self._remember_all(binding)
        else:
            self._remember_met(binding, met, known)

    def _remember_all(self, binding: bytes) -> None:
        work = self._work
        names = [row for row in index.by_binding(work.db, work.space.key, binding) if row.parent is not None]
        have = work.space.state.bound_names(binding) if self._any else {}
        for row in names:
            place = self._place(row)
            if place is None:
                continue
            if len(names) == 1 and row.nlink == 1:
                place = b""
            if have.get(place) != (row.id, row.rev) or (place == b"" and len(have) > 1):
                self._rows.append((binding, place, row.id, row.rev))
        if names and names[0].nlink > len(names):
            self._look_again(names[0])
        elif len(names) == 1 and names[0].kind == FILE:
            work.db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 1)", (names[0].n, work.now))

    def _remember_met(self, binding: bytes, met: Met, known: int) -> None:
        """Of very many those that are at hand: the others were remembered when they were."""
        last: NodeRow | None = None
        for name in met.here:
            row = index.at(self._work.db, self._work.n, name)
            place = self._place(row) if row is not None and row.binding == binding else None
            if row is not None and place is not None:
                self._rows.append((binding, place, row.id, row.rev))
                last = row
        if last is not None and last.nlink > known:
            self._look_again(last)

    def _look_again(self, row: NodeRow) -> None:
        """Through a name that was never seen here its content may change unheard: look once more when quiet."""
        due = (row.n, self._work.now + SETTLE_S)
        self._work.db.execute("INSERT OR IGNORE INTO pending VALUES (?, ?, 0)", due)

    def _place(self, row: NodeRow) -> bytes | None:
        if row.parent is None:
            return None
        if row.parent not in self._parents:
            parent = index.node(self._work.db, row.parent)
            self._parents[row.parent] = parent.id if parent is not None else None
        above = self._parents[row.parent]
        return None if above is None else place_key(above, row.name)
