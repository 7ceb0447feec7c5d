"""Every invariant of a space, as functions that compare disk, rows and sums and yield findings. Read-only
unless asked.

`check` never changes users' bytes; repairing means reconciling, recounting, and dropping rows and leftovers.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import dirty, index, totals
from fsd.core.commit import MEMORY_S
from fsd.core.errors import FsdError, StorageUnavailable
from fsd.core.index import DIRECTORY, NodeRow
from fsd.core.names import join
from fsd.core.observe import look
from fsd.core.reconcile import reconcile
from fsd.core.sweep import Sweep

if TYPE_CHECKING:
    from fsd.core.space import Space

_STEP_S = 1.0
_LIMBO_GRACE_S = 600.0


class Finding(NamedTuple):
    """One broken invariant. `code` is stable for scripts; `path` is below the space; `repaired` only with
    `repair`."""

    code: str
    path: bytes
    text: str
    repairable: bool
    repaired: bool


def check(space: Space, repair: bool = False) -> Iterator[Finding]:
    """Check a whole space; with `repair`, mend what can be mended and say so. Safe beside a running
    server."""
    try:
        space.root_fd()
        _ = space.secret
    except StorageUnavailable as error:
        yield Finding("storage-unavailable", b"", str(error), False, False)
        return
    if repair:
        _verify_all(space)
    yield from _directories(space, repair)
    yield from _rows(space, repair)
    yield from _internals(space)


def _verify_all(space: Space) -> None:
    sweep = Sweep(space)
    sweep.begin()
    while not sweep.step(_STEP_S).finished:
        pass


def _directories(space: Space, repair: bool) -> Iterator[Finding]:
    """Walk the disk from the root: what is there has a row that says the same, and the other way round."""
    stack = [b""]
    while stack:
        path = stack.pop()
        try:
            fd = space.open_dir(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except FsdError as error:
            yield Finding("unavailable", path, str(error), False, False)
            continue
        except OSError as error:
            yield Finding(
                "unreadable", path, f"The directory cannot be read: {error.strerror}.", False, False
            )
            continue
        try:
            findings, below = _directory(space, fd, path)
        finally:
            os.close(fd)
        if findings and repair:
            reconcile(space, path)
            findings = [finding._replace(repaired=finding.repairable) for finding in findings]
        yield from findings
        stack.extend(sorted(below, reverse=True))


def _directory(space: Space, fd: int, path: bytes) -> tuple[list[Finding], list[bytes]]:
    """(findings, directories below)."""
    with space.index.read() as db:
        here = index.find(db, path)
        rows = {row.name: row for row in index.children(db, here.n)} if here else {}
        waiting = db.execute("SELECT 1 FROM dirty WHERE n=?", (here.n,)).fetchone() if here else None
    findings: list[Finding] = []
    below: list[bytes] = []
    if here is None:
        return [Finding("row-missing", path, "The directory is not in the index.", True, False)], below
    for raw in os.listdir(fd):
        name = os.fsencode(raw)
        place = join(path, name)
        try:
            if space.is_hidden(os.stat(name, dir_fd=fd, follow_symlinks=False)):
                continue
            seen = look(space, fd, name)
        except FileNotFoundError:
            continue
        except OSError as error:
            findings.append(
                Finding("unreadable", place, f"The entry cannot be read: {error.strerror}.", False, False)
            )
            rows.pop(name, None)
            continue
        row = rows.pop(name, None)
        if row is None:
            findings.append(Finding("row-missing", place, "The entry is not in the index.", True, False))
        elif row.kind == DIRECTORY and row.binding == seen.binding:
            below.append(place)
        elif row.binding != seen.binding and row.kind != index.OTHER:
            findings.append(
                Finding("row-other-node", place, "The index holds another node at this place.", True, False)
            )
        elif row.kind == index.FILE and (row.size, row.mtime_ns) != (seen.size, seen.mtime_ns):
            findings.append(
                Finding("row-stale", place, "Size or time in the index differ from the disk.", True, False)
            )
        label = seen.label
        if label is not None and label.proven and row is not None and label.id != row.id and seen.nlink == 1:
            findings.append(
                Finding(
                    "label-differs", place, "The label on disk names another id than the index.", False, False
                )
            )
    for name in rows:
        findings.append(
            Finding(
                "row-gone", join(path, name), "The index holds an entry that is not on disk.", True, False
            )
        )
    # What is waiting to be looked at is late, not wrong.
    return ([] if waiting else findings), below


def _rows(space: Space, repair: bool) -> Iterator[Finding]:
    """The index in itself: sums, parents, limbo, bindings."""
    with space.index.read() as db:
        numbers = [n for (n,) in db.execute("SELECT n FROM dir")]
    for n in numbers:
        yield from _sums(space, n, repair)
    now = time.time()
    with space.index.read() as db:
        orphans = [NodeRow._make(row) for row in db.execute(
            "SELECT * FROM node WHERE n<>1 AND ((parent IS NULL AND n NOT IN (SELECT n FROM limbo))"
            " OR (parent IS NOT NULL AND parent NOT IN (SELECT n FROM node)))"
        )]  # fmt: skip
        late = db.execute(
            "SELECT count(*) FROM limbo WHERE since<?", (now - MEMORY_S - _LIMBO_GRACE_S,)
        ).fetchone()[0]
        integrity = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    for row in orphans:
        if repair:
            with space.index.write() as db:
                db.execute("UPDATE node SET parent=NULL WHERE n=?", (row.n,))
                db.execute("INSERT OR IGNORE INTO limbo VALUES (?, 0, ?, ?)", (row.n, row.name, now))
        yield Finding("row-orphan", row.name, "A row belongs to no directory.", True, repair)
    if late:
        yield Finding(
            "limbo-late",
            b"",
            f"{late} vanished entries were not settled: is the watcher running?",
            False,
            False,
        )
    if integrity != "ok":
        yield Finding("index-damaged", b"", f"The index file is damaged: {integrity}.", False, False)


def _sums(space: Space, n: int, repair: bool) -> Iterator[Finding]:
    with space.index.read() as db:
        db.execute("BEGIN")
        try:
            parts = index.directory(db, n)
            own, total = totals.recount(db, n)
            path = index.path_of(db, n)
        finally:
            db.execute("COMMIT")
    if parts is None or path is None or parts.epoch == 0:
        return
    if (parts.own, parts.total) != (own, total + parts.assumed):
        if repair:
            with space.index.write() as db:
                own, total = totals.recount(db, n)
                fresh = index.directory(db, n)
                if fresh is not None:
                    totals.climb(db, n, total + fresh.assumed - fresh.total, index.take_numbers(space, db, 1))
                    db.execute("UPDATE dir SET own=? WHERE n=?", (own, n))
        text = f"Tree size {parts.total} recorded, {total} by its entries."
        yield Finding("sum-wrong", path, text, True, repair)


def _internals(space: Space) -> Iterator[Finding]:
    """Leftovers in `.fsd`."""
    try:
        fd = space.open_internal("trash")
    except OSError as error:
        yield Finding("internals", b"", f"The internal directory cannot be used: {error}.", False, False)
        return
    try:
        infos = {os.fsencode(name).removesuffix(b".trashinfo") for name in _names(fd, b"info")}
        files = {os.fsencode(name) for name in _names(fd, b"files")}
    finally:
        os.close(fd)
    for name in sorted(files - infos):
        yield Finding(
            "trash-without-info",
            name,
            "A trashed entry has no .trashinfo; its old place is unknown.",
            False,
            False,
        )
    counts = dirty.counts(space)
    if counts.oldest is not None and time.time() - counts.oldest > _LIMBO_GRACE_S:
        yield Finding(
            "dirty-late",
            b"",
            "A changed directory has waited for ten minutes: is the watcher running?",
            False,
            False,
        )


def _names(fd: int, name: bytes) -> list[str]:
    try:
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    try:
        return os.listdir(below)
    finally:
        os.close(below)
