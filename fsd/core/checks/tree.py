"""The disk against the rows: every entry has a row that says what is there, with an id that a lost index gets back.

Directories are taken by their row numbers, a page at a time, and their entries in blocks, so memory does not grow with
the tree. What a directory is waiting to be looked at for is late, not wrong.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import copying, ids, index, properties, relabel
from fsd.core.checks.finding import Suspect
from fsd.core.commit import ToLabel
from fsd.core.errors import FsdError, StorageUnavailable
from fsd.core.index import DIRECTORY, FILE, LABELLED, OTHER, NodeRow
from fsd.core.memory import place_key
from fsd.core.names import join
from fsd.core.observe import Seen, look
from fsd.core.reconcile import reconcile
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space

_PAGE = 200
_BLOCK = 500
_TEXT = {
    "row-missing": "The entry is not in the index.",
    "row-gone": "The index holds an entry that is not on disk.",
    "row-other-node": "The index holds another node at this place.",
    "row-stale": "Size, time, mode or owner in the index differ from the disk.",
    "label-differs": "The label on disk names another id or rev than the index.",
    "label-missing": "The index says that the node is labelled, and it is not.",
    "id-unkept": "The id can't be derived and is kept neither on the node nor in the state database.",
    "property-lost": "The node announces more properties than there are: their file in '.fsd/meta' is missing.",
    "unavailable": "A filesystem that was mounted here is not mounted now; its rows and sizes are kept.",
    "unreadable": "The entry cannot be read.",
}


class _Wrong(NamedTuple):
    code: str
    name: bytes
    row: NodeRow | None


def suspects(space: Space) -> Iterator[Suspect]:
    """What looks wrong between disk and rows."""
    after = 0
    while True:
        with space.index.read() as db:
            page = db.execute(
                "SELECT n FROM dir WHERE n>? AND epoch>0 AND n NOT IN (SELECT n FROM dirty) ORDER BY n LIMIT ?",
                (after, _PAGE),
            ).fetchall()
        for (n,) in page:
            yield from _directory(space, n)
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def _directory(space: Space, n: int) -> Iterator[Suspect]:
    path = _settled_path(space, n)
    if path is None:
        return
    try:
        fd = _open(space, n, path)
    except FsdError as error:
        if isinstance(error, StorageUnavailable) and not path:
            raise
        yield Suspect("unavailable", path, str(error), "", lambda: _openable(space, n, path))
        return
    except (FileNotFoundError, NotADirectoryError):
        return  # its own entry, in the directory above, is what is wrong
    except OSError as error:
        text = f"The directory cannot be read: {error.strerror}."
        yield Suspect("unreadable", path, text, "", lambda: _openable(space, n, path))
        return
    if fd is None:
        return
    try:
        for wrong in _entries(space, n, fd):
            yield _suspect(space, n, path, wrong)
    finally:
        os.close(fd)


def _settled_path(space: Space, n: int) -> bytes | None:
    with space.index.read() as db:
        waiting = db.execute("SELECT 1 FROM dirty WHERE n=?", (n,)).fetchone()
        return index.path_of(db, n) if waiting is None else None


def _open(space: Space, n: int, path: bytes) -> int | None:
    """The directory of a row; None if another one stands at its path."""
    fd = space.open_dir(path)
    with space.index.read() as db:
        row = index.node(db, n)
    if row is not None and ids.node_binding(fd, b"", statx(fd, b"")) == row.binding:
        return fd
    os.close(fd)
    return None


def _openable(space: Space, n: int, path: bytes) -> str | None:
    try:
        fd = _open(space, n, path)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    if fd is not None:
        os.close(fd)
    return None


def _entries(space: Space, n: int, fd: int) -> Iterator[_Wrong]:
    met = 0
    with os.scandir(fd) as listing:
        names = (os.fsencode(entry.name) for entry in listing)
        while block := list(islice(names, _BLOCK)):
            rows = _rows(space, n, block)
            met += len(rows)
            for name in block:
                wrong = _entry(space, n, fd, name, rows.get(name))
                if wrong is not None:
                    yield wrong
    with space.index.read() as db:
        (known,) = db.execute("SELECT count(*) FROM node WHERE parent=?", (n,)).fetchone()
    if known != met:
        yield from _gone(space, n, fd)


def _rows(space: Space, n: int, names: Sequence[bytes]) -> dict[bytes, NodeRow]:
    marks = ",".join("?" * len(names))
    query = f"SELECT * FROM node WHERE parent=? AND name IN ({marks})"
    with space.index.read() as db:
        return {row[3]: NodeRow._make(row) for row in db.execute(query, (n, *names))}


def _gone(space: Space, n: int, fd: int) -> Iterator[_Wrong]:
    after = b""
    query = "SELECT * FROM node WHERE parent=? AND name>? ORDER BY name LIMIT ?"
    while True:
        with space.index.read() as db:
            rows = [NodeRow._make(row) for row in db.execute(query, (n, after, _BLOCK))]
        for row in rows:
            try:
                os.stat(row.name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                yield _Wrong("row-gone", row.name, row)
            except OSError:
                continue
        if len(rows) < _BLOCK:
            return
        after = rows[-1].name


def _entry(space: Space, n: int, fd: int, name: bytes, row: NodeRow | None) -> _Wrong | None:
    """What is wrong with one entry; None if nothing is, or if it is gone."""
    try:
        if space.is_hidden(os.stat(name, dir_fd=fd, follow_symlinks=False), name):
            return None
        seen = look(space, fd, name)
    except FileNotFoundError:
        return None
    except OSError:
        return _Wrong("unreadable", name, row)
    if row is None:
        return _Wrong("row-missing", name, None)
    if row.kind == OTHER and seen.kind == DIRECTORY:
        return None  # a second appearance of a directory, which is shown and not entered
    if (row.binding, row.kind) != (seen.binding, seen.kind):
        return _Wrong("unavailable" if _was_mounted(space, row, seen, fd) else "row-other-node", name, row)
    if (row.mode, row.uid, row.gid) != (seen.mode, seen.uid, seen.gid):
        return _Wrong("row-stale", name, row)
    if row.kind == FILE and (row.size, row.mtime_ns) != (seen.size, seen.mtime_ns):
        return _Wrong("row-stale", name, row)
    code = _identity(space, n, row, seen)
    if code is None and seen.xattrs and _announces_lost(space, fd, row):
        code = "property-lost"
    return _Wrong(code, name, row) if code else None


def _was_mounted(space: Space, row: NodeRow, seen: Seen, fd: int) -> bool:
    with space.index.read() as db:
        old = index.directory(db, row.n)
    return bool(old is not None and old.mounted and seen.dev == os.fstat(fd).st_dev)


def _identity(space: Space, n: int, row: NodeRow, seen: Seen) -> str | None:
    """Whether the row's id would be found again without the row."""
    label = seen.label if seen.label is not None and seen.label.proven else None
    shared = row.kind not in (FILE, DIRECTORY) or (row.kind == FILE and seen.nlink > 1)
    if row.flags & LABELLED and not shared and space.record.label != "none":
        if label is None:
            return "label-missing"
        return "label-differs" if (label.id, label.rev) != (row.id, row.rev) else None
    if row.n == index.ROOT or (row.id == ids.derived_id(space.key, row.binding) and not row.rev):
        return None
    with space.index.read() as db:
        if db.execute("SELECT 1 FROM pending WHERE n=?", (row.n,)).fetchone():
            return None
        parent = index.node(db, n)
    if label is not None and (label.id, label.rev) == (row.id, row.rev):
        return None
    if parent is None:
        return None
    if not row.rev and row.id == ids.link_id(space.key, row.binding, parent.id, row.name):
        return None
    return (
        None
        if space.state.bound(row.binding, place_key(parent.id, row.name)) == (row.id, row.rev)
        else "id-unkept"
    )


def _announces_lost(space: Space, fd: int, row: NodeRow) -> bool:
    link = b"/proc/self/fd/%d/%b" % (fd, row.name)
    return properties.MORE in copying.list_attributes(link) and not properties.has_overflow(
        space, row.id.hex()
    )


def _suspect(space: Space, n: int, path: bytes, wrong: _Wrong) -> Suspect:
    def again() -> object | None:
        fact = _look_again(space, n, wrong)
        return fact if fact is not None else None

    mend = {
        "row-missing": lambda: _reconcile(space, n, wrong),
        "row-gone": lambda: _reconcile(space, n, wrong),
        "row-other-node": lambda: _reconcile(space, n, wrong),
        "row-stale": lambda: _reconcile(space, n, wrong),
        "label-differs": lambda: _label(space, n, wrong),
        "label-missing": lambda: _label(space, n, wrong),
        "id-unkept": lambda: _keep(space, n, wrong),
        "property-lost": lambda: _no_announcement(space, n, wrong),
    }.get(wrong.code)
    return Suspect(wrong.code, join(path, wrong.name), _TEXT[wrong.code], (wrong.row,), again, mend)


def _look_again(space: Space, n: int, wrong: _Wrong) -> tuple[NodeRow | None] | None:
    """(the row) if the same is wrong with this name still, None if not, or if it is waiting to be looked at."""
    path = _settled_path(space, n)
    fd = _open(space, n, path) if path is not None else None
    if fd is None:
        return None
    try:
        row = _rows(space, n, [wrong.name]).get(wrong.name)
        found = _entry(space, n, fd, wrong.name, row)
        if found is None and row is not None and wrong.code == "row-gone":
            try:
                os.stat(wrong.name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return (row,)
        return (found.row,) if found is not None and found.code == wrong.code else None
    finally:
        os.close(fd)


def _place(space: Space, n: int) -> bytes:
    with space.index.read() as db:
        path = index.path_of(db, n)
    if path is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return path


def _reconcile(space: Space, n: int, wrong: _Wrong) -> None:
    if wrong.row is not None:
        with space.index.write() as db:
            # A row that contradicts the disk is not to be believed: whatever it says, it is looked at.
            db.execute("UPDATE node SET ctime_ns=0 WHERE n=?", (wrong.row.n,))
            db.execute("UPDATE node SET mode=0 WHERE n=? AND kind=1", (wrong.row.n,))
    reconcile(space, _place(space, n), [wrong.name])


def _label(space: Space, n: int, wrong: _Wrong) -> None:
    assert wrong.row is not None
    with space.index.write() as db:
        db.execute("UPDATE node SET flags=flags & ~? WHERE n=?", (LABELLED, wrong.row.n))
    fd = space.open_dir(_place(space, n))
    try:
        relabel.write_labels(space, fd, [ToLabel(wrong.row.n, wrong.name, True)])
    finally:
        os.close(fd)


def _keep(space: Space, n: int, wrong: _Wrong) -> None:
    row = wrong.row
    assert row is not None
    with space.index.read() as db:
        parent = index.node(db, n)
    if parent is not None:
        place = place_key(parent.id, row.name) if row.nlink > 1 and row.kind != DIRECTORY else b""
        space.state.bind([(row.binding, place, row.id, row.rev)])


def _no_announcement(space: Space, n: int, wrong: _Wrong) -> None:
    fd = space.open_dir(_place(space, n))
    try:
        os.removexattr(b"/proc/self/fd/%d/%b" % (fd, wrong.name), properties.MORE, follow_symlinks=False)
    finally:
        os.close(fd)
    reconcile(space, _place(space, n), [wrong.name])
