"""The one mutator of the index: compare a directory on disk with its rows, and commit the difference.

It is idempotent and knows no actions, so hints may be lost, doubled, late or reordered. Any process may call it at
any time: the disk is read without a lock, then a short transaction commits if no other one was faster (`dir.seq`),
else it starts again. After a few turns it observes under the writers' lock, so that it always ends.

Crash: a transaction is committed or not; what was not committed is found by the next hint or sweep. A label that was
not yet written is due in `pending`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterable
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, ids, index, labels, relabel, totals, unchanged
from fsd.core.commit import Commit, Result
from fsd.core.dirty import Item
from fsd.core.errors import NotYetKnown, StorageUnavailable
from fsd.core.index import LABELLED, DirRow, Generation, NodeRow
from fsd.core.names import join, split
from fsd.core.observe import Seen, look_many
from fsd.core.populate import populate
from fsd.core.scan import Scan, is_gone, scan_all, scan_names
from fsd.core.syscalls import Statx, statx

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

_TURNS = 12
_TURNS_UNLOCKED = 3
_CHUNK = 250
"""Rows per transaction: others wait for the writers' lock meanwhile."""
BULK = 4
"""From so many entries on, the plain new ones among them are inserted together."""


class Outcome(NamedTuple):
    """`changed`: something was committed. `vanished_dir`: the directory isn't there (its parents were looked at).
    `new_dirs`: paths of directories that were not known before; they are dirty now. `ident`: (device, inode) of the
    directory that was compared. `rows`: the rows of named entries that are known from it, as they are now."""

    changed: bool
    vanished_dir: bool
    new_dirs: list[bytes]
    ident: tuple[int, int] | None
    rows: dict[bytes, NodeRow]


class Place(NamedTuple):
    """An open directory and its row, proven to be the same node."""

    fd: int
    found: Statx
    row: NodeRow
    dir: DirRow
    generation: Generation

    @property
    def ident(self) -> tuple[int, int]:
        """(device, inode)."""
        return self.found.dev, self.found.ino


def reconcile(
    space: Space,
    path: bytes,
    names: Collection[bytes] | None = None,
    *,
    explicit: bool = False,
    item: Item | None = None,
    most: int | None = None,
) -> Outcome:
    """Make the rows of the directory `path` equal to the disk: the entries `names`, or all.

    `explicit`: fsd made the change itself, identities are certain. `item`: the dirty row this serves; it is deleted
    with the commit unless it was marked again. `most`: raise TooLarge for a whole directory of more entries, which is
    to be compared in parts (large.py). Raises StorageUnavailable, OSError of the state disk.
    """
    if item is not None and names is None and not item.sweep:
        dirty.begin(space, item)
    for turn in range(_TURNS):
        with space.index.exclusive() if turn >= _TURNS_UNLOCKED else nullcontext():
            outcome = _attempt(space, path, None if names is None else frozenset(names), explicit, item, most)
        if outcome is not None:
            return outcome
    raise NotYetKnown("The directory changes faster than it can be read; ask again in a moment.")


def reconcile_item(space: Space, item: Item) -> Outcome:
    """Serve one row of the dirty set."""
    return reconcile(space, item.path, item.names, item=item)


def reconcile_moved(space: Space, src: bytes, dst: bytes) -> None:
    """After a rename inside one space made by fsd: the new place first, so that the row moves with its id."""
    new_parent, new_name = split(dst)
    old_parent, old_name = split(src)
    if new_parent == old_parent:
        reconcile(space, new_parent, [new_name, old_name], explicit=True)
        return
    reconcile(space, new_parent, [new_name], explicit=True)
    reconcile(space, old_parent, [old_name], explicit=True)


def _attempt(
    space: Space,
    path: bytes,
    names: frozenset[bytes] | None,
    explicit: bool,
    item: Item | None,
    most: int | None,
) -> Outcome | None:
    """One turn; None when another writer was faster or the way down had to be made known first."""
    try:
        fd = space.open_dir(path)
    except OSError as error:
        return _not_opened(space, path, error, item)
    try:
        place = locate(space, path, fd)
        if place is None:
            with suppress(FileNotFoundError, NotADirectoryError):
                _make_known(space, path)  # else it is gone again: the next turn says so
            with space.index.read() as db:
                row = index.find(db, path)
            if row is not None and row.kind == index.OTHER:
                # A second appearance of a living directory, never entered; what it covers waits in limbo.
                return Outcome(False, True, [], None, {})
            return None
        if item is not None and place.row.n != item.n:
            # Another directory took its name. The way down is known by now, so the dirty row has another path, or waits
            # in limbo; it must not be deleted for what was found here.
            return Outcome(False, True, [], None, {})
        scan = (
            scan_names(space, fd, place.row.n, names, place.generation)
            if names is not None
            else scan_all(space, fd, place.row.n, most)
        )
        if nothing(place, scan, names) and not scan.to_label and not scan.stale_dirs:
            if item is not None:
                dirty.done(space, [item])
            return Outcome(False, False, [], place.ident, scan.rows)
        seen = look_closer(space, fd, scan.candidates)
        if seen is None:
            return None
        result = _commit(space, path, place, scan, seen, explicit, item, full=names is None)
        if result is None:
            return None
        relabel.write_labels(space, fd, result.to_label + (scan.to_label if item is not None else []))
        return Outcome(result.changed, False, result.new_dirs, place.ident, result.rows)
    finally:
        os.close(fd)


def _not_opened(space: Space, path: bytes, error: OSError, item: Item | None) -> Outcome | None:
    if error.errno == errno.EACCES:
        # Unreadable: its rows and sizes stay as they were known (invariant 7).
        if item is not None:
            dirty.done(space, [item])
        return Outcome(False, False, [], None, {})
    if isinstance(error, StorageUnavailable) or error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        raise error
    if not path:
        raise StorageUnavailable("The root of the space is gone.") from error
    parent, name = split(path)
    changed = reconcile(space, parent, [name]).changed
    if item is not None:
        with space.index.read() as db:
            moved = index.path_of(db, item.n)
        if moved == path:
            return None
    return Outcome(changed, True, [], None, {})


def locate(space: Space, path: bytes, fd: int) -> Place | None:
    """The row of the open directory, if the index knows the way to it as it is on disk."""
    found = statx(fd, b"")
    binding = ids.node_binding(fd, b"", found)
    with space.index.read() as db:
        known = index.directory_at(space.index, db, path)
    if known is None or known[0].binding != binding:
        return None
    return Place(fd, found, *known)


def _make_known(space: Space, path: bytes) -> None:
    """Reconcile, by name, each step of the way down where disk and index part."""
    here = b""
    n = index.ROOT
    for name in path.split(b"/"):
        parent_fd = space.open_dir(here)
        try:
            binding = ids.node_binding(parent_fd, name, statx(parent_fd, name))
        finally:
            os.close(parent_fd)
        with space.index.read() as db:
            row = index.at(db, n, name)
        if row is None or row.binding != binding:
            reconcile(space, here, [name])
            with space.index.read() as db:
                row = index.at(db, n, name)
                old = index.directory(db, row.n) if row else None
            if row is not None and row.binding != binding and old is not None and old.mounted:
                raise StorageUnavailable("A filesystem that was mounted inside the space is not mounted now.")
            if row is None or row.binding != binding:
                return
        n, here = row.n, join(here, name)


def nothing(place: Place, scan: Scan, names: frozenset[bytes] | None) -> bool:
    """Whether a look found what the rows say."""
    if scan.candidates or scan.vanished or not scan.steady:
        return False
    if names is not None:
        return True
    assert scan.found is not None
    seen = (scan.found.mtime_ns, scan.found.ctime_ns)
    known = (place.dir.mtime_ns, place.dir.ctime_ns)
    return (
        seen == known
        and place.dir.epoch == scan.epoch
        and scan.own == place.dir.own
        and not place.dir.assumed
    )


def look_closer(space: Space, fd: int, names: Iterable[bytes]) -> list[Seen] | None:
    """Look at the named entries; None if one is gone meanwhile. One that can't be read is left out."""
    seen = []
    for each in look_many(space, fd, list(names)):
        if isinstance(each, Seen):
            seen.append(each)
        elif isinstance(each, FileNotFoundError):
            return None
        # This entry keeps its row, its neighbours are not affected (invariant 7).
        elif each.errno not in (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE):
            raise each
    return seen


def _commit(
    space: Space,
    path: bytes,
    place: Place,
    scan: Scan,
    seen: list[Seen],
    explicit: bool,
    item: Item | None,
    *,
    full: bool,
) -> Result | None:
    """Commit in chunks; None if `dir.seq` shows that another writer was faster."""
    whole, expected, overtaken = Result(), scan.seq, False
    first_look = full and place.dir.epoch == 0
    # A reader's own reconcile writes only the labels that can't wait; the watcher writes the rest.
    defer = item is None and not explicit
    proven = unchanged.proven(space, place.fd, scan.touched, seen)
    for start in range(0, max(1, len(seen)), _CHUNK):
        last = start + _CHUNK >= len(seen)
        now = time.time()
        with space.index.write() as db:
            seq, head = index.seq_of(db, place.row.n), index.Head(space, db)
            if seq is None or (seq != expected and not full):
                return None
            if seq != expected:
                # Large, or written into all the time: what somebody else has looked at since is theirs.
                expected, overtaken = seq, True
            if head.moves != scan.moves and index.path_of(db, place.row.n) != path:
                return None
            sweep = item.sweep if item is not None else _is_swept(db, place)
            work = Commit(
                space, db, head, place.row, place.dir._replace(seq=expected),
                place.found.mnt_id, path, now,
                explicit=explicit, sweep=sweep, first_look=first_look, defer_labels=defer, proven=proven,
            )  # fmt: skip
            batch = seen[start : start + _CHUNK]
            if overtaken:
                batch = _untouched(db, place, batch, now)
            if len(batch) >= BULK:
                batch = populate(work, place.fd, batch, label=item is not None)
            work.put_all(batch)
            if last:
                for row in scan.vanished:
                    if not overtaken or is_gone(space, place.fd, row):
                        work.remove(row)
                for n in scan.stale_dirs:
                    dirty.mark_row(db, n, None, now, sweep=sweep)
            result = relabel.kept(space, db, place.fd, work.finish())
            if last and full:
                _miss_label(space, db, place, scan)
                close_full(space, db, place.row.n, scan, result, path)
            if last and item is not None:
                dirty.served(db, item)
            if not last:
                expected = index.seq_of(db, place.row.n) or 0
        whole.add(result)
        whole.rows = whole.rows | result.rows if not full else {}
    return whole


def _is_swept(db: sqlite3.Connection, place: Place) -> bool:
    """Whether new directories that somebody meets here on the way are for the first sweep: nobody has looked at all of
    this one yet, nor is it hinted, as a new one is, whose own ones are new as well."""
    if place.dir.epoch != 0:
        return False
    row = db.execute("SELECT sweep FROM dirty WHERE n=?", (place.row.n,)).fetchone()
    return row is None or bool(row[0])


def _untouched(db: sqlite3.Connection, place: Place, batch: list[Seen], now: float) -> list[Seen]:
    """Of entries that were looked at before another writer's commit, those that are new still and as they were seen;
    the others are marked, to be looked at again."""
    kept, again = [], []
    for entry in batch:
        try:
            found = os.stat(entry.name, dir_fd=place.fd, follow_symlinks=False)
        except OSError:
            again.append(entry.name)
            continue
        same = (found.st_ino, found.st_ctime_ns) == (entry.ino, entry.ctime_ns)
        if same and index.at(db, place.row.n, entry.name) is None:
            kept.append(entry)
        else:
            again.append(entry.name)
    if again:
        dirty.mark_row(db, place.row.n, again, now)
    return kept


def close_full(space: Space, db: sqlite3.Connection, n: int, scan: Scan, result: Result, path: bytes) -> None:
    """After a full look the sums are absolute; a difference (first look, or drift) is carried up."""
    old = index.directory(db, n)
    assert old is not None and scan.found is not None
    own, total = totals.recount(db, n)
    if (own, total, 0) != (old.own, old.total, old.assumed):
        totals.climb(db, n, total - old.total, None)
        db.execute("UPDATE dir SET own=?, assumed=0, seq=seq+1 WHERE n=?", (own, n))
        result.changed = True
    # Where it did not stand still, its times are from before the listing: they will not fit, and the next sweep or poll
    # looks again. What came in between is hinted by itself.
    if old.epoch == 0 and scan.found.mtime_ns != old.mtime_ns and not result.visible:
        # Something vanished between the first sight of the directory and the first look into it.
        totals.climb(db, n, 0, index.take_numbers(space, db, 1))
    found = scan.found
    if found.ctime_ns != old.ctime_ns:
        # The directory above sees nothing new in it after this look.
        db.execute("UPDATE node SET mode=?, uid=?, gid=? WHERE n=?", (found.mode, found.uid, found.gid, n))
    db.execute(
        "UPDATE dir SET mtime_ns=?, ctime_ns=?, dev=?, epoch=? WHERE n=?",
        (found.mtime_ns, found.ctime_ns, found.dev, scan.epoch, n),
    )


def _miss_label(space: Space, db: sqlite3.Connection, place: Place, scan: Scan) -> None:
    """A directory whose label somebody took away gets it back: the one above it sees nothing new after this look."""
    row = place.row
    if not scan.steady or scan.found is None or scan.found.ctime_ns == place.dir.ctime_ns:
        return
    if not row.flags & LABELLED or row.n == index.ROOT or space.record.label == "none":
        return
    if labels.has_lost(place.fd, space.secret, row.binding, row.id):
        db.execute("UPDATE node SET flags=flags & ~? WHERE n=?", (LABELLED, row.n))
        db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, 1)", (row.n, time.time()))
