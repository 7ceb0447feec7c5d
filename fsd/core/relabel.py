"""Writing labels and published tree sizes on nodes, and noting the ctime this causes, so that it wakes
nobody."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from fsd.core import dirty, index, labels, lease, writers
from fsd.core.commit import Result, ToLabel
from fsd.core.index import CLAIMING, DIRECTORY, FILE, LABELLED, READY, NodeRow
from fsd.core.memory import SETTLE_S

if TYPE_CHECKING:
    from fsd.core.space import Space

_QUIET_WITHOUT_LEASE_S = 35.0
_AHEAD_S = 60.0
"""A ctime so far ahead is of before the clock was set back: it says nothing about when. Nothing is due later than that,
either. Seconds."""
_BATCH = 500
_Update = tuple[int, int, int, int]
"""(ctime_ns, flags to set, n, ctime_ns the row had)"""


def write_labels(space: Space, fd: int, due: Iterable[ToLabel]) -> None:
    """Label nodes of the open directory `fd` as their rows say; what changed meanwhile is left to the next
    look."""
    write_labels_in(space, [(fd, due)])


def write_labels_in(space: Space, directories: Iterable[tuple[int, Iterable[ToLabel]]]) -> None:
    """`write_labels` in several open directories, noted in one transaction."""
    if space.record.label == "none" or space.record.read_only or not lease.may_write(space):
        return
    found = [(fd, label) for fd, due in directories for label in due]
    if not found:
        return
    with space.index.read() as db:
        rows = [(fd, index.node(db, label.n), label) for fd, label in found]
    _remember_first(space, [row for _, row, _ in rows if row is not None])
    updates: list[_Update] = []
    unkept: list[NodeRow] = []
    done: list[int] = []
    for fd, row, label in rows:
        if (
            row is None
            or row.kind not in (FILE, DIRECTORY)
            or row.flags & (LABELLED | CLAIMING)
            or row.name != label.name
        ):
            continue
        if row.nlink > 1 and row.kind == FILE:
            done.append(row.n)  # one label can't speak for several names: the state database does
            continue
        update = _label_one(space, fd, row)
        if update is not None:
            updates.append(update)
            done.append(row.n)
        elif label.urgent:
            unkept.append(row)
    _note(space, updates, done, unkept)


def kept(space: Space, db: sqlite3.Connection, fd: int | None, result: Result) -> Result:
    """`keep` what a transaction came to."""
    keep(space, db, fd, result.to_label)
    return result


def keep(space: Space, db: sqlite3.Connection, fd: int | None, due: Iterable[ToLabel]) -> None:
    """Write down what nothing else tells (an id that was given, a rev that rose) before the transaction that makes it
    known is committed: so whatever a reader was told survives the index, also if both are lost the moment after.

    On the nodes themselves, in the open directory `fd`; in the state database where that can't be now. Raises OSError
    of the state disk.
    """
    if space.record.label == "none" or not lease.may_write(space):
        return
    found = [index.node(db, label.n) for label in due if label.urgent]
    if not found:
        return
    rows = [row for row in found if row is not None]
    # What several names are called is remembered for each place (commit.py).
    rows = [row for row in rows if not row.flags & LABELLED and (row.kind == DIRECTORY or row.nlink == 1)]
    _remember_first(space, rows)
    updates: list[_Update] = []
    unkept: list[NodeRow] = []
    for row in rows:
        update = None
        if fd is not None and not space.record.read_only and not row.flags & CLAIMING:
            update = _label_one(space, fd, row)
        if update is None:
            unkept.append(row)
        else:
            updates.append(update)
    if unkept:
        space.state.bind([(row.binding, b"", row.id, row.rev) for row in unkept])
    _apply(db, updates, [row.n for row in rows if fd is not None and not row.flags & CLAIMING])


def _remember_first(space: Space, rows: list[NodeRow]) -> None:
    """What the state database remembers of a node counts more than its label: it is never the older one."""
    single = [row for row in rows if row.kind == DIRECTORY or row.nlink == 1]
    known: set[bytes] = set()
    for start in range(0, len(single), _BATCH):
        known |= space.state.remembered([row.binding for row in single[start : start + _BATCH]])
    older = [
        row
        for row in single
        if row.binding in known and space.state.bound(row.binding, b"") != (row.id, row.rev)
    ]
    if older:
        space.state.bind([(row.binding, b"", row.id, row.rev) for row in older])


def _label_one(space: Space, fd: int, row: NodeRow) -> _Update | None:
    """Write one label; None if the node is not as its row says, or can't be labelled."""
    try:
        before = os.stat(row.name, dir_fd=fd, follow_symlinks=False)
        if before.st_ino != row.ino or (row.kind == FILE and before.st_ctime_ns != row.ctime_ns):
            return None
        value = labels.encode(space.secret, row.id, row.binding, row.rev)
        if not lease.may_write(space) or not labels.set_on_entry(fd, row.name, value):
            return None
        after = os.stat(row.name, dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO, errno.ESTALE):
            return None
        raise
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    ):
        return None
    return after.st_ctime_ns, LABELLED, row.n, row.ctime_ns if row.kind == FILE else before.st_ctime_ns


def _note(space: Space, updates: list[_Update], done: list[int], unkept: list[NodeRow]) -> None:
    if unkept:
        space.state.bind([(row.binding, b"", row.id, row.rev) for row in unkept])
        done = done + [row.n for row in unkept]
    if updates or done:
        with space.index.write() as db:
            _apply(db, updates, done)


def _apply(db: sqlite3.Connection, updates: list[_Update], done: list[int]) -> None:
    """Note in the rows what was written on nodes, and that it is not due any more."""
    # A row that was looked at again meanwhile keeps what that look found: its ctime then includes our write.
    db.executemany("UPDATE node SET ctime_ns=?, flags=flags|? WHERE n=? AND ctime_ns=?", updates)
    db.executemany(
        "UPDATE dir SET ctime_ns=? WHERE n=? AND ctime_ns=?", ((u[0], u[2], u[3]) for u in updates)
    )
    db.executemany("UPDATE node SET flags=flags|? WHERE n=? AND kind=1", ((u[1], u[2]) for u in updates))
    db.executemany(
        "DELETE FROM pending WHERE n=?"
        " AND NOT EXISTS (SELECT 1 FROM node WHERE node.n=pending.n AND flags & 1 = 0)",
        ((n,) for n in done),
    )
    # Labelled while it was being written: whether it is closed and quiet is asked later all the same.
    later = time.time() + SETTLE_S
    db.executemany("UPDATE pending SET due=max(due, ?), force=0 WHERE n=?", ((later, n) for n in done))


def label_due(space: Space, limit: int = 500) -> int:
    """Label nodes that have become quiet, and those that must be labelled; the number of rows that were due.

    Called every second by the watcher. A file that is open for writing stays unlabelled until it is closed.
    """
    if not lease.may_write(space):
        return 0
    now = time.time()
    _set_back(space, now)
    with space.index.read() as db:
        query = (
            "SELECT node.*, pending.force FROM pending JOIN node ON node.n=pending.n"
            " WHERE due<=? ORDER BY due LIMIT ?"
        )
        due = db.execute(query, (now, limit)).fetchall()
        placed: dict[bytes | None, list[tuple[NodeRow, bool]]] = {}
        paths: dict[int | None, bytes | None] = {None: None}
        for found in due:
            row = NodeRow._make(found[:17])
            if row.parent is not None and row.parent not in paths:
                paths[row.parent] = index.path_of(db, row.parent)
            placed.setdefault(paths[row.parent], []).append((row, bool(found[17])))
    lost = placed.pop(None, [])
    _label_in(space, {path: members for path, members in placed.items() if path is not None}, now)
    again = {
        path: [row.name for row, _ in members if (row.nlink > 1 and row.kind == FILE) or row.flags & CLAIMING]
        for path, members in placed.items()
        if path is not None
    }
    if any(again.values()):
        dirty.mark(space, [(path, names) for path, names in again.items() if names])
    if lost:
        with space.index.write() as db:
            # In limbo: gone, or labelled when it reappears.
            db.executemany("DELETE FROM pending WHERE n=?", ((row.n,) for row, _ in lost))
    return len(due)


def _set_back(space: Space, now: float) -> None:
    """What is due in a time that no wait is as long as became so when the clock was set back: it waits from now on."""
    last = now + _AHEAD_S
    with space.index.read() as db:
        later = db.execute("SELECT 1 FROM pending WHERE due>? LIMIT 1", (last,)).fetchone()
    if later is not None:
        with space.index.write() as db:
            db.execute("UPDATE pending SET due=? WHERE due>?", (now + SETTLE_S, last))


def _label_in(space: Space, placed: Mapping[bytes, list[tuple[NodeRow, bool]]], now: float) -> None:
    """Label what is ready in several directories: what comes to rest at the same time shares its transactions."""
    later: list[tuple[float, int]] = []
    urgent: list[tuple[float, int]] = []
    ready: list[int] = []
    with ExitStack() as opened:
        directories: list[tuple[int, list[ToLabel]]] = []
        for path, members in placed.items():
            try:
                fd = space.open_dir(path)
            except OSError:
                later += [(now + SETTLE_S, row.n) for row, _ in members]
                continue
            opened.callback(os.close, fd)
            due: list[ToLabel] = []
            for row, force in members:
                quiet = _is_ready(fd, row, now)
                if row.flags & CLAIMING or not quiet:
                    later.append((now + SETTLE_S, row.n))
                if row.flags & CLAIMING:
                    continue
                if quiet:
                    ready.append(row.n)
                if force or quiet:
                    due.append(ToLabel(row.n, row.name, force))
                if force and not (row.nlink > 1 and row.kind == FILE):
                    urgent.append((now + SETTLE_S, row.n))
            directories.append((fd, due))
        write_labels_in(space, directories)
    unlabelled = {n for _, n in urgent}
    with space.index.write() as db:
        db.executemany("UPDATE node SET flags=flags|? WHERE n=?", ((READY, n) for n in ready))
        # What could not be labelled now is found READY and unlabelled by the next sweep, unless it can't
        # wait.
        db.executemany("DELETE FROM pending WHERE n=?", ((n,) for n in ready if n not in unlabelled))
        db.executemany("UPDATE pending SET due=? WHERE n=?", later + urgent)


def _is_ready(fd: int, row: NodeRow, now: float) -> bool:
    """Closed and quiet: a read lease can be taken, or nothing has happened for a long time (fcntl(2),
    F_SETLEASE)."""
    if row.kind != FILE:
        return True
    quiet = now - row.ctime_ns / 1e9
    if -_AHEAD_S < quiet < SETTLE_S:
        return False
    if quiet >= _QUIET_WITHOUT_LEASE_S:
        return True
    try:
        file = os.open(row.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False
    try:
        return writers.has_writer(file) is False
    finally:
        os.close(file)


def publish_trees(space: Space, limit: int = 100) -> int:
    """Write the totals of directories whose counter moved since the last time; the number written or given
    up.

    Called about once a second, so a busy directory is written once a second at most.
    """
    if space.record.label == "none" or space.record.read_only or not lease.may_write(space):
        return 0
    with space.index.read() as db:
        rows = db.execute(
            "SELECT node.n, node.binding, dir.total, dir.counter FROM dir JOIN node ON node.n=dir.n"
            " WHERE NOT published AND epoch>0 LIMIT ?", (limit,)
        ).fetchall()  # fmt: skip
        paths = [index.path_of(db, row[0]) for row in rows]
    published: list[tuple[int, int]] = []
    seen: list[tuple[int, int, int]] = []
    for (n, binding, total, counter), path in zip(rows, paths, strict=True):
        published.append((counter, n))
        if path is not None:
            times = _publish_one(
                space, path, binding, labels.encode_tree(space.secret, binding, total, counter)
            )
            if times is not None:
                seen.append((times[1], n, times[0]))
    if published:
        with space.index.write() as db:
            # What changed meanwhile is not what was published.
            db.executemany("UPDATE dir SET published=1 WHERE counter=? AND n=?", published)
            db.executemany("UPDATE dir SET ctime_ns=? WHERE n=? AND ctime_ns=?", seen)
    return len(rows)


def _publish_one(space: Space, path: bytes, binding: bytes, value: bytes) -> tuple[int, int] | None:
    """Write one directory's total; (ctime before, ctime after) if it was written."""
    try:
        fd = space.open_dir(path)
    except OSError:
        return None
    try:
        before = os.fstat(fd).st_ctime_ns
        ours = labels.parse_tree(value, space.secret, binding) is not None and lease.may_write(space)
        if not ours or not labels.set_xattr(fd, labels.TREE_ATTRIBUTE, value):
            return None
        return before, os.fstat(fd).st_ctime_ns
    finally:
        os.close(fd)
