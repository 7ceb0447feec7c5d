"""What adapters read: entries, listings, files. The disk decides what is there; the index adds ids, sums and etags.

Where disk and index differ, the difference is reconciled first, so a reader sees its own and everybody's writes at
once. Where that can't be committed (a full state disk), entries are shown with what the disk and their labels say.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from fsd.core import dirty, ids, index, writers
from fsd.core.absent import is_absent
from fsd.core.announced import settle
from fsd.core.entries import CHILDREN, Child, child_of, entry_of, fits
from fsd.core.entries import Entry as Entry
from fsd.core.entries import file_entry as file_entry
from fsd.core.errors import Forbidden, FsdError, NotYetKnown, StorageUnavailable
from fsd.core.index import DIRECTORY, FILE, KIND_LETTERS, READY, NodeRow
from fsd.core.names import INTERNAL, join, split
from fsd.core.observe import Seen, kind_of, look, still_at
from fsd.core.reconcile import reconcile
from fsd.core.syscalls import clamp_ns

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

_log = logging.getLogger(__name__)
_TURNS = 4
_INLINE = 2000
"""A listing reconciles at most so many entries itself; a directory that was never looked at and is larger is shown
from the disk, and waits for the watcher."""


def lookup(space: Space, path: bytes) -> Entry:
    """The entry at `path`. FileNotFoundError only when its absence is proven; StorageUnavailable in doubt."""
    settle(space)
    if not path:
        return _lookup_root(space)
    parent, name = split(path)
    for _ in range(_TURNS):
        fd = open_dir(space, parent)
        try:
            found = _stat(space, fd, parent, name)
            child, incarnation = _row_at(space, path)
            if child is not None and fits(child.row, found):
                return entry_of(path, child, found, incarnation)
            if not take_in(space, parent, [name]):
                return provisional(space, fd, parent, name)
            if child is not None and child.mounted:
                _refuse_lost_mount(space, path)
        finally:
            os.close(fd)
    fd = open_dir(space, parent)
    try:
        return provisional(space, fd, parent, name)
    finally:
        os.close(fd)


def listing(space: Space, path: bytes) -> tuple[Entry, list[Entry]]:
    """A directory and its entries, sorted by name. Whole, or an error.

    The directory's own etag and size are read before its entries, so a change in between shows in the next etag.
    """
    own, entries, _ = listing_with_rows(space, path)
    return own, entries


class RowsOf(NamedTuple):
    """The rows of a directory's entries, sorted by name, and the incarnation they belong to."""

    rows: list[tuple[Any, ...]]
    incarnation: bytes


def listing_with_rows(space: Space, path: bytes) -> tuple[Entry, list[Entry], RowsOf | None]:
    """`listing`, and the rows that all of its entries were made of; None if some were made of the disk alone."""
    settle(space)
    for turn in range(_TURNS):
        fd = open_listed(space, path)
        try:
            own = lookup(space, path)
            if own.kind != "d":
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            entries, differing, rows = _list_once(space, fd, path)
            if not differing:
                return own, entries, rows
            large = len(differing) > _INLINE and never_looked_at(space, path)
            if large:
                dirty.mark(space, [(path, None)])
            names = differing if len(differing) <= dirty.MAX_NAMES else None
            if large or turn == _TURNS - 1 or not take_in(space, path, names):
                return own, _complete(space, fd, path, entries, differing), None
        finally:
            os.close(fd)
    raise AssertionError("unreachable: the last turn returns")


def open_file(space: Space, path: bytes, *, noted: bool = True) -> tuple[int, Entry]:
    """Open a regular file for reading; the entry describes exactly the bytes behind the descriptor. `noted` False: what
    is read of a file that is being written goes to nobody.

    Raises IsADirectoryError, Forbidden (a link or a special file, never followed or opened), PermissionError.
    """
    parent, name = split(path)
    if not path:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    opened = _open_known(space, path, noted=noted)
    if opened is not None:
        return opened
    for _ in range(_TURNS):
        entry = lookup(space, path)
        if entry.kind == "d":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if entry.kind != "f":
            raise Forbidden("This is a symbolic link or a special file; its content is not served.")
        dir_fd = open_dir(space, parent)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        finally:
            os.close(dir_fd)
        found = os.fstat(fd)
        if (found.st_ino, clamp_ns(found.st_ctime_ns), found.st_size) == (
            entry.ino,
            entry.ctime_ns,
            entry.size,
        ):
            if noted and entry.writing:
                writers.note_served(space, fd, entry.etag)
            return fd, entry
        os.close(fd)
    raise NotYetKnown("The file is being replaced faster than it can be opened; ask again in a moment.")


def _open_known(space: Space, path: bytes, *, noted: bool) -> tuple[int, Entry] | None:
    """The usual case of `open_file`, in one step: a file of which the index knows already what the disk says."""
    settle(space)
    child, incarnation = _row_at(space, path)
    if child is None or child.row.kind != FILE:
        return None
    try:
        fd = space.open_file(path)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not (stat.S_ISREG(found.st_mode) and fits(child.row, found)):
            os.close(fd)
            return None
        entry = entry_of(path, child, found, incarnation)
        if noted and entry.writing:
            writers.note_served(space, fd, entry.etag)
    except BaseException:
        os.close(fd)
        raise
    return fd, entry


def path_of(space: Space, node_id: str) -> bytes:
    """The present path of an id, proven on disk. NotYetKnown while the index can't know; FileNotFoundError if gone."""
    try:
        wanted = bytes.fromhex(node_id)
    except ValueError:
        raise FileNotFoundError(errno.ENOENT, "No such id") from None
    for _ in range(_TURNS):
        with space.index.read() as db:
            row = index.by_id(db, wanted)
            path = index.path_of(db, row.n) if row else None
            (complete,) = db.execute("SELECT complete FROM head").fetchone()
        if row is None and complete:
            space.root_fd()
            raise FileNotFoundError(errno.ENOENT, "No such id")
        if row is None or path is None:
            break
        if still_at(space, path, row.binding):
            return path
        reconcile(space, split(path)[0], [split(path)[1]])
    raise NotYetKnown("The id is not known yet; ask again in a moment.")


def last_known_root(space: Space) -> Entry | None:
    """The root as the index has it, without a look at the disk: for telling that a space exists while its storage is
    away. None while the index knows nothing."""
    child, incarnation = _row_at(space, b"")
    if child is None:
        return None
    row = child.row
    etag = ids.directory_etag(row.id, child.counter, incarnation)
    return Entry(b"", b"", "d", row.id.hex(), child.total, etag, row.mtime_ns, row.ctime_ns, row.mode, row.uid, row.gid,
                 row.nlink, row.ino, unreadable=False)  # fmt: skip


def usage(space: Space) -> int:
    """The tree size of the space in bytes."""
    settle(space)
    with space.index.read() as db:
        total: int = db.execute("SELECT total FROM dir WHERE n=?", (index.ROOT,)).fetchone()[0]
    return total


def data_fingerprint(space: Space) -> str:
    """`oc:data-fingerprint`: empty until a restore was noticed."""
    return space.state.fingerprint()


def open_dir(space: Space, path: bytes) -> int:
    """Open a directory for a reader: what lies behind a link or a file does not exist."""
    try:
        return space.open_dir(path)
    except FsdError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
        _refuse_lost_mount(space, path)
        if error.errno == errno.ENOTDIR:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error


def open_listed(space: Space, path: bytes) -> int:
    """`open_dir` for what is listed itself: a link is there, and no directory (NotADirectoryError, as for a file)."""
    try:
        return open_dir(space, path)
    except FileNotFoundError:
        if path and lookup(space, path).kind != "d":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        raise


def _stat(space: Space, fd: int, parent: bytes, name: bytes) -> os.stat_result:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        _refuse_lost_mount(space, join(parent, name))
        known = _row_at(space, join(parent, name))[0]
        if is_absent(space, fd, name, known.row.nlink if known is not None else 1):
            if known is not None:
                take_in(space, parent, [name])
            raise
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
        raise
    if space.is_hidden(found, name):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return found


def _lookup_root(space: Space) -> Entry:
    found = os.fstat(space.root_fd())
    child, incarnation = _row_at(space, b"")
    if child is None:
        raise NotYetKnown("The index is being rebuilt; ask again in a moment.")
    return entry_of(b"", child, found, incarnation)


def _row_at(space: Space, path: bytes) -> tuple[Child | None, bytes]:
    answers = space.index.answers()
    known: tuple[Child | None, bytes] | None = answers.get(path)
    if known is None:
        known = answers[path] = _ask_row_at(space, path)
    return known


def _ask_row_at(space: Space, path: bytes) -> tuple[Child | None, bytes]:
    parent, name = split(path)
    with space.index.read() as db:
        n, incarnation = index.resolve(space.index, db, parent)
        if not path:
            found = db.execute(CHILDREN + "node.n=?", (n,)).fetchone()
        elif n is not None:
            found = db.execute(CHILDREN + "node.parent=? AND node.name=?", (n, name)).fetchone()
        else:
            found = None
    return (child_of(found) if found else None), incarnation


def _incarnation(db: sqlite3.Connection) -> bytes:
    value: bytes = db.execute("SELECT incarnation FROM head").fetchone()[0]
    return value


def rows_of(space: Space, path: bytes) -> RowsOf:
    """What the index says of a directory's entries now."""
    with space.index.read() as db:
        n, incarnation = index.resolve(space.index, db, path)
        found = db.execute(CHILDREN + "node.parent=? ORDER BY node.name", (n,)).fetchall()
    return RowsOf(found, incarnation)


def _list_once(space: Space, fd: int, path: bytes) -> tuple[list[Entry], list[bytes], RowsOf]:
    """(entries whose rows fit the disk, names that differ or are gone, all rows)."""
    known = rows_of(space, path)
    incarnation = known.incarnation
    rows = {found[3]: found for found in known.rows}
    entries: list[Entry] = []
    differing: list[bytes] = []
    hidden_ino = space.fsd_ident[1]
    with os.scandir(fd) as scan:
        for item in scan:
            name = os.fsencode(item.name)
            found = rows.pop(name, None)
            try:
                st = item.stat(follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.ENOENT or found is not None:
                    differing.append(name)
                continue
            if (st.st_ino == hidden_ino or name == INTERNAL) and space.is_hidden(st, name):
                continue
            child = child_of(found) if found is not None else None
            if child is not None and fits(child.row, st):
                entries.append(entry_of(join(path, name), child, st, incarnation))
            else:
                differing.append(name)
    differing.extend(rows)
    entries.sort(key=lambda entry: entry.name)
    return entries, differing, known


def _complete(
    space: Space, fd: int, path: bytes, entries: list[Entry], differing: list[bytes]
) -> list[Entry]:
    """Add what is on disk but could not be brought into the index."""
    for name in differing:
        try:
            entries.append(provisional(space, fd, path, name))
        except FileNotFoundError:
            continue
    entries.sort(key=lambda entry: entry.name)
    return entries


def provisional(space: Space, fd: int, parent: bytes, name: bytes) -> Entry:
    """An entry from the disk alone: the label's or the derived id; for a directory the size it publishes."""
    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if space.is_hidden(found, name):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    path = join(parent, name)
    try:
        seen = look(space, fd, name)
    except FileNotFoundError:
        raise
    except OSError:
        node_id = ids.link_id(space.key, b"unreadable", parent, name)
        kind = KIND_LETTERS[kind_of(found.st_mode)]
        etag = ids.file_etag(node_id, 0, 0, 0)
        return Entry(path, name, kind, node_id.hex(), 0, etag, clamp_ns(found.st_mtime_ns),
                     clamp_ns(found.st_ctime_ns), found.st_mode, found.st_uid, found.st_gid, found.st_nlink,
                     found.st_ino, True)  # fmt: skip
    child, incarnation = _known_as(space, parent, seen)
    return entry_of(path, child, found, incarnation)


def _known_as(space: Space, parent: bytes, seen: Seen) -> tuple[Child, bytes]:
    with space.index.read() as db:
        n, _ = index.resolve(space.index, db, parent)
        before = index.at(db, n, seen.name) if n is not None else None
        here = before is not None and before.binding == seen.binding
        rows = [before] if before is not None and here else index.by_binding(db, space.key, seen.binding)
        parts = index.directory(db, rows[0].n) if rows else None
        incarnation = _incarnation(db)
    label = seen.label if seen.label is not None and seen.label.proven else None
    if before is not None and not here and _saved_over(before, seen, rows):
        node_id, rev = before.id, max([before.rev, *(row.rev for row in rows)]) + 1
    elif rows:
        node_id, rev = rows[0].id, rows[0].rev
    elif label is not None:
        node_id, rev = label.id, label.rev
    else:
        node_id, rev = ids.derived_id(space.key, seen.binding), 0
    row = NodeRow(0, node_id, None, seen.name, seen.kind, seen.binding, seen.ino, seen.size, seen.mtime_ns,
                  seen.ctime_ns, seen.mode, seen.uid, seen.gid, seen.nlink, rev, 0, 0)  # fmt: skip
    return Child(
        row, parts.total if parts else seen.assumed, parts.counter if parts else 0, False, {}
    ), incarnation


def _saved_over(before: NodeRow, seen: Seen, rows: list[NodeRow]) -> bool:
    """Whether a node took the place of a file and will have its id: as `classify` decides of a save by rename."""
    if before.kind != FILE or seen.kind != FILE or seen.nlink > 1:
        return False
    return not rows[0].flags & READY if rows else seen.label is None


def never_looked_at(space: Space, path: bytes) -> bool:
    """Whether the directory's entries were not yet compared with the disk in full."""
    with space.index.read() as db:
        row = index.find(db, path)
        parts = index.directory(db, row.n) if row else None
    return parts is None or parts.epoch == 0


def take_in(space: Space, path: bytes, names: list[bytes] | None) -> bool:
    """Bring what differs into the index; False when it can't be committed now, and reading goes on without."""
    try:
        reconcile(space, path, names)
    except StorageUnavailable:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EAGAIN, errno.EIO):
            raise
        _log.warning("space %s: a change could not be recorded: %s", space.record.id, error)
        return False
    return True


def _refuse_lost_mount(space: Space, path: bytes) -> None:
    """Below a directory that was a mount point and is none now, nothing is proven to be absent."""
    with space.index.read() as db:
        n = index.ROOT
        known: list[tuple[bytes, bytes]] = []
        here = b""
        for name in path.split(b"/") if path else ():
            row = index.at(db, n, name)
            if row is None:
                break
            n, here = row.n, join(here, name)
            parts = index.directory(db, n) if row.kind == DIRECTORY else None
            if parts is not None and parts.mounted:
                known.append((here, row.binding))
    for place, binding in known:
        parent = os.stat(split(place)[0] or b".", dir_fd=space.root_fd(), follow_symlinks=False)
        try:
            found = os.stat(place, dir_fd=space.root_fd(), follow_symlinks=False)
        except FileNotFoundError:
            continue
        if found.st_dev == parent.st_dev and not still_at(space, place, binding):
            raise StorageUnavailable("A filesystem that was mounted inside the space is not mounted now.")
