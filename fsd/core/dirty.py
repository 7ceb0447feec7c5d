"""The durable dirty set: directories that may differ from their rows. A million hints for one are one row.

A row names entries, or stands for the whole directory. Its stamp rises with each mark, so that a reconcile which
began before a mark does not delete it. Sweeping is the same work at a lower rank (`sweep`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import ids, index, positions
from fsd.core.names import split
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space

MAX_NAMES = 2000
"""More named entries than this become the whole directory."""


_AT_ONCE = 1000
_BEGUN = b""
"""Among the names, where no other one can be empty: a pass over the whole directory is under way."""
_OWED = "UPDATE dir SET epoch=-1 WHERE n=? AND epoch=(SELECT epoch FROM head)"


class Item(NamedTuple):
    """A dirty directory; `since` in seconds since the epoch."""

    n: int
    path: bytes
    names: frozenset[bytes] | None
    stamp: int
    since: float
    sweep: bool


class Counts(NamedTuple):
    """Dirty directories by rank, and when the oldest hinted one was marked (seconds since the epoch)."""

    hinted: int
    sweep: int
    oldest: float | None


def mark_row(
    db: sqlite3.Connection, n: int, names: Collection[bytes] | None, now: float, *, sweep: bool = False
) -> None:
    """Mark a directory's row within a transaction; merges with what is there.

    Names that are hinted, before or after a sweep wants the directory, don't have to wait for all of it: they come
    first, and the epoch says that the rest is still owed (see `served`).
    """
    row = db.execute("SELECT names, stamp, sweep FROM dirty WHERE n=?", (n,)).fetchone()
    if row is None:
        db.execute("INSERT INTO dirty VALUES (?, ?, 1, ?, ?)", (n, _pack(names), now, int(sweep)))
        return
    if sweep and names is None and not row[2] and _only_names(row[0]) and _was_looked_at(db, n):
        db.execute(_OWED, (n,))
        return
    if row[0] is None and row[2] and names is not None and not sweep:
        db.execute(_OWED, (n,))
        db.execute(
            "UPDATE dirty SET names=?, stamp=stamp+1, since=?, sweep=0 WHERE n=?", (_pack(names), now, n)
        )
        return
    merged = None if names is None or row[0] is None else _unpack(row[0]) | set(names)
    db.execute(
        "UPDATE dirty SET names=?, stamp=stamp+1, sweep=min(sweep, ?) WHERE n=?",
        (_pack(merged), int(sweep), n),
    )


def mark_rows(
    db: sqlite3.Connection, marks: Mapping[int, Collection[bytes] | None], now: float, *, sweep: bool = False
) -> None:
    """`mark_row` for many directories, with as few statements."""
    have: dict[int, tuple[bytes | None, int]] = {}
    for start in range(0, len(marks), _AT_ONCE):
        some = json.dumps(sorted(marks)[start : start + _AT_ONCE])
        query = "SELECT n, names, sweep FROM dirty WHERE n IN (SELECT value FROM json_each(?))"
        have.update((n, (names, rank)) for n, names, rank in db.execute(query, (some,)))
    again: list[tuple[bytes | None, int]] = []
    for n in have:
        packed, rank = have[n]
        names = marks[n]
        if rank or sweep:
            mark_row(db, n, names, now, sweep=sweep)
        else:
            merged = None if names is None or packed is None else _unpack(packed) | set(names)
            again.append((_pack(merged), n))
    fresh = [(n, _pack(names), now, int(sweep)) for n, names in marks.items() if n not in have]
    db.executemany("UPDATE dirty SET names=?, stamp=stamp+1 WHERE n=?", again)
    db.executemany("INSERT INTO dirty VALUES (?, ?, 1, ?, ?)", fresh)


def begin(space: Space, item: Item) -> None:
    """A hinted pass over the whole directory begins: names that are marked from now on are kept apart from it.

    A crash leaves it marked as a whole.
    """
    with space.index.write() as db:
        db.execute(
            "UPDATE dirty SET names=? WHERE n=? AND stamp=? AND names IS NULL", (_BEGUN, item.n, item.stamp)
        )


def apart(space: Space, n: int) -> tuple[frozenset[bytes], int] | None:
    """The names that were marked since a pass over a whole directory began, and the stamp; None if there are none, or
    more than are kept."""
    with space.index.read() as db:
        row = db.execute("SELECT names, stamp FROM dirty WHERE n=?", (n,)).fetchone()
    names = frozenset(_unpack(row[0])) if row is not None and row[0] is not None else frozenset()
    return (names - {_BEGUN}, row[1]) if _BEGUN in names and len(names) > 1 else None


def apart_done(space: Space, n: int, stamp: int) -> None:
    """The names that `apart` gave were served, and none was marked again since `stamp`."""
    with space.index.write() as db:
        db.execute("UPDATE dirty SET names=? WHERE n=? AND stamp=?", (_BEGUN, n, stamp))


def served(db: sqlite3.Connection, item: Item) -> None:
    """A pass over `item` ended well, within its transaction: what was not marked again since is done.

    What is left then: names that came during a whole pass; or a whole look that a sweep owes.
    """
    row = db.execute(
        "SELECT names, stamp, coalesce(dir.epoch=head.epoch OR dir.epoch=0, 1)"
        " FROM head, dirty LEFT JOIN dir USING (n) WHERE n=?",
        (item.n,),
    ).fetchone()
    if row is None:
        return
    packed, stamp, verified = row
    left = _unpack(packed) - {_BEGUN} if item.names is None and packed is not None else set[bytes]()
    if left and not item.sweep:
        db.execute("UPDATE dirty SET names=? WHERE n=?", (_pack(left), item.n))
    elif stamp == item.stamp or (item.names is None and packed == _BEGUN):
        if verified or item.names is None:
            db.execute("DELETE FROM dirty WHERE n=?", (item.n,))
        else:
            db.execute("UPDATE dirty SET names=NULL, stamp=stamp+1, sweep=1 WHERE n=?", (item.n,))


class Hinted(NamedTuple):
    """A directory that may differ: `names` None is the whole of it. `binding` says which directory is meant, where
    that is known (see `fsd.core.ids`); else it is the one that is at the path."""

    path: bytes
    names: Collection[bytes] | None
    binding: bytes = b""


def mark(
    space: Space,
    hints: Iterable[tuple[bytes, Collection[bytes] | None] | Hinted],
    *,
    sweep: bool = False,
    reached: Mapping[str, str] | None = None,
    owed: bool = False,
    trees: bool = False,
    by_path: bool = False,
) -> None:
    """Mark directories, in one transaction: (path, names or None for the whole directory), or more exactly a Hinted.

    With them goes how far the logs that they come from were read (`reached`), and whether a sweep is `owed` since, or
    would be after a crash, as the caller has `trees` in mind that the set doesn't hold (see `fsd.core.positions`).

    A directory that the index has elsewhere (it was moved, and that was not noticed yet) is found by its binding. One
    that the index doesn't know marks the nearest known one above it, with the name that leads down: new directories
    are dirty as a whole when they become known.

    `by_path`: whoever hints says of each directory that is moved that all of it may differ. Then a hint of names is for
    the directory that the index has at the path, without asking the disk which one is there: if it has another one,
    the moved one is still to be looked at as a whole.
    """
    now = time.time()
    wanted = [Hinted(*hint) for hint in hints]
    moves, known = _known(space, wanted) if by_path else (0, dict[bytes, int]())
    # The disk is asked before the lock is taken: nobody else shall wait for a storage that hangs.
    bound = [
        hint
        if hint.binding or (hint.names is not None and hint.path in known)
        else hint._replace(binding=_binding_at(space, hint.path))
        for hint in wanted
    ]
    with space.index.write() as db:
        if known and db.execute("SELECT moves FROM head").fetchone() != (moves,):
            known = {}  # what the index has at these paths may be another directory by now
        marks: dict[int, set[bytes] | None] = {}
        for hint in bound:
            n, names = known.get(hint.path), hint.names
            if n is None or names is None or hint.binding:
                n, rest = _resolve(db, space.key, hint.path, hint.binding)
                names = names if rest is None else [rest]
            have = marks.get(n, set()) if names is not None else None
            marks[n] = have if have is None or names is None else have | set(names)
        mark_rows(db, marks, now, sweep=sweep)
        positions.keep(db, reached or {}, owed=owed, trees=trees)


def _known(space: Space, hints: Iterable[Hinted]) -> tuple[int, dict[bytes, int]]:
    """The row numbers of those hinted directories that the index has; see `index.resolve_many`."""
    with space.index.read() as db:
        return index.resolve_many(
            space.index, db, (hint.path for hint in hints if hint.names is not None and not hint.binding)
        )


def mark_tree(space: Space) -> None:
    """Mark the whole space for a sweep: begins a new epoch, in which every directory is verified once."""
    with space.index.write() as db:
        db.execute("UPDATE head SET epoch=epoch+1")
        positions.paid(db)
        db.execute("DELETE FROM dirty WHERE sweep=1")
        mark_row(db, index.ROOT, None, time.time(), sweep=True)


def pending(space: Space, limit: int, *, sweep: bool, after: tuple[float, int] = (0.0, 0)) -> list[Item]:
    """The oldest dirty directories of one rank, beginning behind `after`: (since, n) of another one.

    One in limbo has no place now: it waits until it has, or is settled.
    """
    query = (
        "SELECT n, names, stamp, since, sweep FROM dirty WHERE sweep=? AND (since, n) > (?, ?)"
        " ORDER BY since, n LIMIT ?"
    )
    items: list[Item] = []
    with space.index.read() as db:
        while len(items) < limit:
            rows = db.execute(query, (int(sweep), *after, limit)).fetchall()
            for n, packed, stamp, since, rank in rows:
                path = index.path_of(db, n)
                if path is not None:
                    names = _names(packed)
                    items.append(Item(n, path, names, stamp, since, bool(rank)))
            if len(rows) < limit:
                break
            after = rows[-1][3], rows[-1][0]
    return items[:limit]


def done(space: Space, items: Iterable[Item]) -> None:
    """Delete rows that were handled without a commit of their own, unless they were marked again."""
    rows = list(items)
    if rows:
        with space.index.write() as db:
            for item in rows:
                served(db, item)


def counts(space: Space) -> Counts:
    """How much is waiting."""
    with space.index.read() as db:
        hinted, oldest = db.execute("SELECT count(*), min(since) FROM dirty WHERE sweep=0").fetchone()
        (sweep,) = db.execute("SELECT count(*) FROM dirty WHERE sweep=1").fetchone()
    return Counts(hinted, sweep, oldest)


def _nearest(db: sqlite3.Connection, path: bytes) -> tuple[int, bytes | None]:
    """The row of the deepest known directory on a path, and the first unknown name below it."""
    n = index.ROOT
    for name in path.split(b"/") if path else ():
        row = db.execute("SELECT n, kind FROM node WHERE parent=? AND name=?", (n, name)).fetchone()
        if row is None or row[1] != index.DIRECTORY:
            return n, name
        n = row[0]
    return n, None


def _resolve(
    db: sqlite3.Connection, space_key: bytes, path: bytes, binding: bytes
) -> tuple[int, bytes | None]:
    """The row of the directory with a binding, wherever the index has it; else the nearest known one on its path.

    The index may still hold another directory at the path, one that was replaced: a hint is never for that one.
    """
    if binding:
        for row in index.by_binding(db, space_key, binding):
            if row.kind == index.DIRECTORY:
                return row.n, None
    n, rest = _nearest(db, path)
    if binding and rest is None and path:
        parent, name = split(path)
        n, above = _nearest(db, parent)
        return n, name if above is None else above
    return n, rest


def _binding_at(space: Space, path: bytes) -> bytes:
    """b"" for the root, which is always known, and where there is no directory."""
    if not path:
        return b""
    try:
        fd = space.open_dir(path)
    except OSError:
        return b""
    try:
        return ids.node_binding(fd, b"", statx(fd, b""))
    finally:
        os.close(fd)


def waiting_at(space: Space, path: bytes) -> tuple[int | None, Item | None]:
    """The row number of the directory at a path, None if the index has none there, and its dirty row, if any."""
    with space.index.read() as db:
        n, _ = index.resolve(space.index, db, path)
        if n is None:
            return None, None
        found = db.execute("SELECT names, stamp, since, sweep FROM dirty WHERE n=?", (n,)).fetchone()
    if found is None:
        return n, None
    packed, stamp, since, rank = found
    names = _names(packed)
    return n, Item(n, path, names, stamp, since, bool(rank))


def _pack(names: Collection[bytes] | None) -> bytes | None:
    if names is None or len(names) > MAX_NAMES:
        return None
    return b"/".join(sorted(names))


def _names(packed: bytes | None) -> frozenset[bytes] | None:
    found = None if packed is None else frozenset(_unpack(packed))
    return None if found is None or _BEGUN in found else found


def _only_names(packed: bytes | None) -> bool:
    """Whether no look at the whole directory is hinted or under way."""
    return packed is not None and packed[:1] not in (b"", b"/")


def _was_looked_at(db: sqlite3.Connection, n: int) -> bool:
    """Whether the directory was ever compared as a whole: only then can its epoch owe anything."""
    row = db.execute("SELECT epoch FROM dir WHERE n=?", (n,)).fetchone()
    return row is not None and row[0] != 0


def _unpack(packed: bytes) -> set[bytes]:
    return set(packed.split(b"/"))
