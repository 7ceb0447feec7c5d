"""The changes of one directory, made true in one transaction: rows, sums, counters, journal. Part of reconcile.

Everything is read again inside the transaction; what the disk said is given. Identity is decided by classify.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import claims, dirty, heirs, ids, index, journal, weak
from fsd.core.classify import Donor, Facts, Verdict, content_rev, identify
from fsd.core.hardlinks import Others, has_names
from fsd.core.index import CLAIMING, DIRECTORY, FILE, LABELLED, READY, SYMLINK, WRITING, DirRow, Head, NodeRow
from fsd.core.journal import Change
from fsd.core.memory import SETTLE_S, Memory
from fsd.core.names import join
from fsd.core.observe import Seen
from fsd.core.totals import Deltas

if TYPE_CHECKING:
    from fsd.core.space import Space

MEMORY_S = heirs.MEMORY_S
QUIET_S = 35.0
"""A node whose ctime is older counts as closed and quiet without asking (leases tell earlier). Seconds."""


class ToLabel(NamedTuple):
    """A node whose label on disk has to say what its row says; `urgent` ones are not found again by derivation."""

    n: int
    name: bytes
    urgent: bool


@dataclass(slots=True)
class Result:
    """What a transaction did, for the work after it."""

    changed: bool = False
    visible: bool = False
    new_dirs: list[bytes] = field(default_factory=list)
    to_label: list[ToLabel] = field(default_factory=list)
    rows: dict[bytes, NodeRow] = field(default_factory=dict)
    """What was written for entries, by their names."""

    def add(self, later: Result) -> None:
        """Take over what another transaction for the same directory did."""
        self.changed |= later.changed
        self.new_dirs += later.new_dirs
        self.to_label += later.to_label


class Commit:
    """Collects the changes of directory row `n` (at `path`) inside an open write transaction."""

    def __init__(
        self, space: Space, db: sqlite3.Connection, head: Head, row: NodeRow, parts: DirRow, mount: int, path: bytes,
        now: float, *, explicit: bool, sweep: bool, first_look: bool, defer_labels: bool,
        proven: Mapping[bytes, str] | None = None,
    ) -> None:  # fmt: skip
        self.space, self.db, self.n, self.path, self.now = space, db, row.n, path, now
        self.explicit, self.sweep, self.first_look = explicit, sweep, first_look
        self._defer_labels = defer_labels
        self.id, self.mount, self.seq = row.id, mount, parts.seq
        self.head = head
        self.deltas = Deltas()
        self.changes: list[Change] = []
        self.result = Result()
        self.memory, self._others = Memory(self), Others(self)
        self._proven = proven or {}

    def tell_look(self) -> None:
        """Tell the journal of a first look, once; but for those of a tree that was never known whole: of what nobody
        has a token for there is no news."""
        if not self.changes or self.changes[-1].kind != "scanned":
            (complete,) = self.db.execute("SELECT complete FROM head").fetchone()
            if complete:
                self.changes.append(Change("scanned", self.id, DIRECTORY, self.id, b""))

    # -- entries that are there -------------------------------------------------------------------------------

    def put_all(self, entries: Sequence[Seen]) -> None:
        """`put` each, with one look for the other names of all."""
        self._others.look(entries)
        for seen in entries:
            self.put(seen)

    def put(self, seen: Seen) -> None:
        """Make the row at `seen.name` say what was seen."""
        row = index.at(self.db, self.n, seen.name)
        if row is not None and row.kind == seen.kind and (
            row.binding == seen.binding or weak.is_same(row, seen)
        ):  # fmt: skip
            self._update(row, seen)
            return
        if row is not None and self._mount_is_gone(row, seen):
            return  # its rows and sizes stay until the filesystem is back
        facts = self._facts(row, seen)
        verdict = identify(facts)
        if facts.linked and seen.kind == DIRECTORY:
            seen, verdict = self._opaque(seen), Verdict(link=True)
        label = seen.label
        free = label is not None and label.proven and facts.owner is None and verdict.node_id == label.id
        self._place(row, seen, verdict, free=free)
        if has_names(seen) or (verdict.row is not None and verdict.row.nlink > 1 and seen.kind != DIRECTORY):
            self.memory.met(seen)

    def _mount_is_gone(self, row: NodeRow, seen: Seen) -> bool:
        if row.kind != DIRECTORY or seen.kind != DIRECTORY or seen.mount != self.mount:
            return False
        old = index.directory(self.db, row.n)
        return old is not None and bool(old.mounted)

    @staticmethod
    def _opaque(seen: Seen) -> Seen:
        """A second appearance of a living directory (a bind mount inside the space) is shown, never descended."""
        return seen._replace(
            kind=index.OTHER, size=0, binding=blake2b(seen.binding, digest_size=16, person=b"mount").digest()
        )

    def _facts(self, row: NodeRow | None, seen: Seen) -> Facts:
        known: list[NodeRow] = []
        hard = has_names(seen)
        rows, linked = self._others.of(seen)
        for other in rows:
            # The root hangs nowhere and is not in limbo: mounted inside itself it is a second appearance.
            if other.n == index.ROOT or (
                other.parent is not None and self._others.alive(other, unknown=hard)
            ):
                linked = True
            elif weak.may_have_moved(other, seen):
                known.append(other)
        known = heirs.latest(self, known)
        remembered = None
        if not known and not (self.explicit and seen.label and seen.label.proven):
            remembered, others = self.memory.recall(seen)
            linked = linked or others
        owner, claim = None, None
        if seen.label and not known:
            if seen.label.proven:
                owner = index.by_id(self.db, seen.label.id)
            else:
                claim = claims.judge(self, seen)
        alive = owner is not None and owner.parent is not None and self._others.alive(owner)
        donor = heirs.donor(self, row, seen, known) if seen.kind == FILE and not linked else None
        return Facts(seen, self.explicit, known, linked, remembered, owner, alive, claim, donor)

    # -- carrying out a verdict -------------------------------------------------------------------------------

    def _place(self, row: NodeRow | None, seen: Seen, verdict: Verdict, *, free: bool = False) -> None:
        if verdict.inherit is not None:
            self._inherit(row, seen, verdict.row, verdict.inherit)
            return
        if row is not None and (verdict.row is None or verdict.row.n != row.n):
            self.remove(row)
        if verdict.row is not None:
            rev = verdict.rev if verdict.rebound else content_rev(verdict.row, seen, same=True)
            if verdict.rebound and _same(verdict.row, seen):
                rev = verdict.row.rev  # down to the ctime: a snapshot's, with the same content
            self._attach(verdict.row, seen, rev, rebound=verdict.rebound)
            return
        node_id, special = self._choose_id(seen, verdict, free)
        known = node_id == verdict.node_id  # and so is its rev
        rev = verdict.rev if known else max(verdict.rev, self._rev_elsewhere(seen, node_id) + 1)
        self._insert(seen, node_id, rev, urgent=special or rev != verdict.rev, claiming=verdict.waits)

    def _rev_elsewhere(self, seen: Seen, node_id: bytes) -> int:
        """The rev that a file reached under an id that another node has now, -1 if it had none.

        A file that took over an id and lost it again gets back the one that derives, under which it may have had
        another content with the same size and mtime.
        """
        if seen.kind != FILE:
            return -1
        label = seen.label
        told = label.rev if label is not None and label.proven and label.id != node_id else -1
        return max(told, self.memory.taken.get(seen.binding, -1))

    def _choose_id(self, seen: Seen, verdict: Verdict, free: bool) -> tuple[bytes, bool]:
        """(a free id, whether it must be written on the node at once because derivation alone won't find it)."""
        space = self.space
        proven = seen.label is not None and seen.label.proven
        if free or (verdict.node_id is not None and index.by_id(self.db, verdict.node_id) is None):
            assert verdict.node_id is not None
            return verdict.node_id, not (proven and seen.label and seen.label.id == verdict.node_id)
        if verdict.link:
            candidate = ids.link_id(space.key, seen.binding, self.id, seen.name)
        else:
            candidate = ids.derived_id(space.key, seen.binding)
        turn = 0
        while index.by_id(self.db, candidate) is not None or weak.was_deleted(self, candidate, seen):
            turn += 1
            candidate = ids.spare_id(space.key, seen.binding, turn)
        # A label that says that it is somebody else counts before what derives.
        other = proven and seen.label is not None and seen.label.id != candidate
        return candidate, (turn > 0 and not verdict.link) or other

    def _inherit(self, row: NodeRow | None, seen: Seen, moved: NodeRow | None, donor: Donor) -> None:
        """`seen` takes the donor's id and its history; the donor's node, if it lives on as a backup, gets a spare."""
        # Higher than what the node reached under its own id, which may come back to it (`_rev_elsewhere`).
        heir_id = donor.row.id
        rev = (
            max(donor.row.rev, moved.rev if moved is not None else 0, self._rev_elsewhere(seen, heir_id)) + 1
        )
        if donor.source == "recent":
            turn = 1
            spare = ids.derived_id(self.space.key, donor.row.binding)
            while index.by_id(self.db, spare) is not None:
                spare = ids.spare_id(self.space.key, donor.row.binding, turn)
                turn += 1
            flags = donor.row.flags & ~(LABELLED | index.GIVEN) | index.given(
                self.space.key, spare, donor.row.binding
            )
            self.db.execute("UPDATE node SET id=?, flags=? WHERE n=?", (spare, flags, donor.row.n))
            # Two labels can't be written at once, and until both are, two nodes say that they are the same one.
            self.memory.keep_row(donor.row._replace(id=spare))
            self.memory.keep(seen.binding, heir_id, rev)
            self.db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 1)", (donor.row.n, self.now))
            if donor.row.parent == self.n and self.space.record.label != "none":
                self.result.to_label.append(ToLabel(donor.row.n, donor.row.name, True))
            self.db.execute("DELETE FROM recent WHERE parent=? AND name=?", (self.n, seen.name))
        else:
            self.drop(donor.row)
        if row is not None and row.n != donor.row.n:
            self.remove(row)
        if moved is not None:
            heirs.leave(self, moved)
        # An id that is established stays so for its heir: the next save may come before the heir has its label.
        self._insert(seen, heir_id, rev, urgent=True, kind="changed", ready=donor.row.flags & READY)

    def _insert(
        self,
        seen: Seen,
        node_id: bytes,
        rev: int,
        *,
        urgent: bool,
        kind: journal.Kind = "created",
        ready: int = 0,
        claiming: bool = False,
    ) -> None:
        n = self.head.rows(1)
        flags = self.flags(seen, node_id, rev) | ready | (CLAIMING if claiming else 0)
        row = _row(n, node_id, self.n, seen, rev, flags)
        self.db.execute(f"INSERT INTO node VALUES ({'?,' * 16}?)", row)
        self.result.rows[seen.name] = row
        total = seen.size
        if seen.kind == DIRECTORY:
            total = seen.assumed
            counter = self.head.numbers(1)
            self.db.execute(
                "INSERT INTO dir VALUES (?,0,?,?,?,0,?,?,?,?,0,0)",
                (
                    n,
                    total,
                    total,
                    counter,
                    seen.mtime_ns,
                    seen.ctime_ns,
                    seen.dev,
                    int(seen.mount != self.mount),
                ),
            )
            dirty.mark_row(self.db, n, None, self.now, sweep=self.sweep)
            self.result.new_dirs.append(join(self.path, seen.name))
        self.note_label(n, seen, flags, urgent)
        self.memory.correct(seen, node_id, rev)
        if self.first_look:
            # Entries older than the index are not news: whoever read the etag of this directory has seen them.
            self.deltas.add(self.n, visible=seen.ctime_ns > self.head.born_ns)
            self.tell_look()
        else:
            self.deltas.add(self.n, seen.size, total)
            self.changes.append(Change(kind, node_id, seen.kind, self.id, seen.name))

    def _attach(self, row: NodeRow, seen: Seen, rev: int, *, rebound: bool) -> None:
        """Bring an existing row to this place; a directory brings its whole subtree."""
        total = self._total(row)
        if row.kind == DIRECTORY:
            self.head.moved()
        if row.parent is None:
            self.db.execute("DELETE FROM limbo WHERE n=?", (row.n,))
        else:
            self.deltas.add(row.parent, -row.size, -total)
            remembered = row.parent == self.n and row.kind == FILE and row.flags & READY and not rebound
            if remembered and not self.explicit and row.name != seen.name:
                old = (self.n, row.name, row.n, self.now)
                self.db.execute("INSERT OR REPLACE INTO recent VALUES (?, ?, ?, ?)", old)
        flags = self.flags(seen, row.id, rev, row, rebound=rebound)
        claim = None if rebound else claims.late(self, row, seen)
        if claim is not None and claim.decision != "refuse":
            flags |= CLAIMING  # decided at the next look, when it is at rest
        self._rewrite(row, seen, rev, flags)
        self.memory.renamed(row, self.result.rows[seen.name])
        if row.kind == DIRECTORY:
            self.db.execute(
                "UPDATE dir SET mounted=?, dev=? WHERE n=?", (int(seen.mount != self.mount), seen.dev, row.n)
            )
            parts = index.directory(self.db, row.n)
            if rebound:
                dirty.mark_row(self.db, row.n, None, self.now, sweep=self.sweep)
            elif parts is not None and parts.epoch != self.head.epoch:
                # A sweep passes it by where it was, and where it is it looks only at what was there before.
                dirty.mark_row(self.db, row.n, None, self.now, sweep=True)
            total = self._total(row)
        else:
            total = seen.size
        if row.kind != DIRECTORY and seen.nlink == 1 < row.nlink:
            # The last one of several names: what each was called, by its place, counts no more.
            self.memory.keep(seen.binding, row.id, rev)
        else:
            # It may have been seen as the last one at its old place, and still be remembered by that.
            self.memory.correct(seen, row.id, rev)
        self.note_label(row.n, seen, flags, rebound or rev != row.rev)
        self.deltas.add(self.n, seen.size, total)
        stayed = (row.parent, row.name) == (self.n, seen.name)
        before = index.node(self.db, row.parent) if row.parent is not None and not stayed else None
        if before is not None:
            self.changes.append(Change("left", row.id, seen.kind, before.id, row.name))
        self.changes.append(Change("changed" if stayed else "moved", row.id, seen.kind, self.id, seen.name))

    def _update(self, row: NodeRow, seen: Seen) -> None:
        """The same node at the same place."""
        claim = claims.late(self, row, seen)
        taken = claim is not None and claim.decision == "take"
        if claim is not None and seen.label is not None and taken:
            row = claims.adopt(self, row, claim, seen.label.id)
        claiming = CLAIMING if claim is not None and claim.decision == "wait" else 0
        etag = self._proven.get(seen.name)
        same = etag is not None and etag == ids.file_etag(row.id, row.size, row.mtime_ns, row.rev)
        rev = content_rev(row, seen, same=same)
        flags = self.flags(seen, row.id, rev, row) | claiming
        unlabelled = row.flags & LABELLED and not flags & LABELLED
        if row.binding != seen.binding:
            self.memory.keep(seen.binding, row.id, rev)
        elif _same(row, seen) and not (taken or unlabelled or row.flags & CLAIMING != claiming):
            self.result.rows[seen.name] = row
            return
        self._rewrite(row, seen, rev, flags)
        missed = unlabelled and (rev or flags & index.GIVEN)
        self.note_label(row.n, seen, flags, bool(taken or rev != row.rev or missed))
        visible = seen.kind != DIRECTORY and (row.size, row.mtime_ns, row.rev) != (
            seen.size,
            seen.mtime_ns,
            rev,
        )
        if seen.kind == DIRECTORY:
            self.db.execute(
                "UPDATE dir SET mounted=?, dev=? WHERE n=?", (int(seen.mount != self.mount), seen.dev, row.n)
            )
        self.deltas.add(self.n, seen.size - row.size, seen.size - row.size, visible=visible)
        self.changes.append(
            Change("changed" if visible else "metadata", row.id, seen.kind, self.id, seen.name)
        )
        if has_names(seen) or row.nlink > 1:
            self.memory.met(seen, again=True)

    # -- entries that are gone --------------------------------------------------------------------------------

    def remove(self, row: NodeRow) -> None:
        """The entry is not there any more: into limbo; sizes and etags drop at once."""
        fresh = index.node(self.db, row.n)
        if fresh is None or (fresh.parent, fresh.name) != (self.n, row.name):
            return
        if row.kind == DIRECTORY:
            self.head.moved()
        self.db.execute("UPDATE node SET parent=NULL WHERE n=?", (row.n,))
        self.db.execute(
            "INSERT OR REPLACE INTO limbo VALUES (?, ?, ?, ?)", (row.n, self.n, row.name, self.now)
        )
        self.deltas.add(self.n, -fresh.size, -self._total(fresh))
        self.changes.append(Change("deleted", row.id, row.kind, self.id, row.name))
        self.memory.lose_name(row)

    def drop(self, row: NodeRow) -> None:
        """Delete the row of a file, or of a directory without rows below it, whose id lives on in another row."""
        if row.parent is not None:
            self.deltas.add(row.parent, -row.size, -self._total(row))
        self.memory.lose_name(row)
        for table in ("limbo", "pending", "dir", "dirty", "node"):
            self.db.execute(f"DELETE FROM {table} WHERE n=?", (row.n,))

    # -- the end ----------------------------------------------------------------------------------------------

    def finish(self) -> Result:
        """Apply sums and counters, write the journal."""
        last = self.tell()
        if last is not None:
            self.deltas.apply(self.db, last)
        self.head.save()
        return self.result

    def tell(self) -> int | None:
        """Write the journal, and what the state database has to remember; the number of the last change, None without
        any. Whoever calls this applies `deltas` with it, or with a later one, and saves `head`."""
        self.memory.write()
        if not self.deltas.touched():
            return None
        self.result.changed = True
        self.result.visible = self.deltas.visible()
        first = self.head.numbers(max(1, len(self.changes)))
        journal.append(self.db, first, self.changes, self.now)
        return first + max(0, len(self.changes) - 1)

    # -- small things -----------------------------------------------------------------------------------------

    def _total(self, row: NodeRow) -> int:
        if row.kind != DIRECTORY:
            return row.size
        found = index.directory(self.db, row.n)
        return found.total if found else 0

    def flags(
        self, seen: Seen, node_id: bytes, rev: int, old: NodeRow | None = None, *, rebound: bool = False
    ) -> int:
        """What a look tells; `old`: what the row said, of another node if `rebound`.

        Of a node that is new to the index a label says that it was ready once. A known one may have been labelled
        while it was being written, because its rev rose: what it is then renamed over still leaves it its id.
        """
        label = seen.label
        quiet = self.now - seen.ctime_ns / 1e9 > QUIET_S
        ours = label is not None and label.proven and label.id == node_id
        ready = ours if old is None or rebound else bool(old.flags & READY)
        flags = index.given(self.space.key, node_id, seen.binding) | (READY if ready or quiet else 0)
        if ours and label is not None and label.rev == rev:
            flags |= LABELLED
        if seen.kind != FILE:
            return flags
        if old is not None and (old.binding, old.size, old.mtime_ns, old.rev) == (
            seen.binding, seen.size, seen.mtime_ns, rev,
        ):  # fmt: skip
            return flags | old.flags & WRITING
        whole = self.explicit and flags & LABELLED  # before it got its name and its label
        return flags if quiet or whole else flags | WRITING

    def note_label(self, n: int, seen: Seen, flags: int, urgent: bool) -> None:
        """Arrange that the node's label will say what its row says."""
        if seen.kind not in (FILE, DIRECTORY):
            if urgent and seen.kind in (SYMLINK, index.OTHER):
                self._keep(n)
            return
        if flags & LABELLED:
            return
        if flags & CLAIMING and not urgent:
            due = self.now + SETTLE_S
            self.db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 0)", (n, due))
            return
        if self.space.record.label == "none":
            if urgent:
                self._keep(n)
            return
        if not urgent and self.first_look and self.space.record.label == "lazy":
            return
        if urgent:
            self.db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 1)", (n, self.now))
            self.result.to_label.append(ToLabel(n, seen.name, True))
        elif flags & READY and not self._defer_labels:
            self.result.to_label.append(ToLabel(n, seen.name, False))
        else:
            due = self.now if flags & READY else self.now + SETTLE_S
            self.db.execute("INSERT OR IGNORE INTO pending VALUES (?, ?, 0)", (n, due))

    def _keep(self, n: int) -> None:
        row = index.node(self.db, n)
        assert row is not None
        self.memory.keep_row(row)

    def _rewrite(self, row: NodeRow, seen: Seen, rev: int, flags: int) -> None:
        new = _row(row.n, row.id, self.n, seen, rev, flags)
        self.db.execute(
            "UPDATE node SET parent=?, name=?, kind=?, binding=?, ino=?, size=?, mtime_ns=?, ctime_ns=?, mode=?, uid=?,"
            " gid=?, nlink=?, rev=?, flags=?, xattrs=? WHERE n=?",
            (*new[2:], row.n),
        )
        self.result.rows[seen.name] = new


def _row(n: int, node_id: bytes, parent: int, seen: Seen, rev: int, flags: int) -> NodeRow:
    return NodeRow(n, node_id, parent, seen.name, seen.kind, seen.binding, seen.ino, seen.size, seen.mtime_ns,
                   seen.ctime_ns, seen.mode, seen.uid, seen.gid, seen.nlink, rev, flags, seen.xattrs)  # fmt: skip


def _same(row: NodeRow, seen: Seen) -> bool:
    if row.kind == DIRECTORY:
        if row.flags & LABELLED and (seen.label is None or not seen.label.proven):
            return False  # somebody took its label away: it gets it back
        return (row.mode, row.uid, row.gid, row.xattrs) == (seen.mode, seen.uid, seen.gid, seen.xattrs)
    return (row.ino, row.size, row.mtime_ns, row.ctime_ns) == (
        seen.ino,
        seen.size,
        seen.mtime_ns,
        seen.ctime_ns,
    )
