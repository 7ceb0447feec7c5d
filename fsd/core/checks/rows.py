"""The index in itself: rows, sums, numbers, and what waits in it. Pages through its tables, so memory is bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fsd.core import dirty, index, journal, limbo, relabel, totals
from fsd.core.checks.finding import JOBS_S, Suspect
from fsd.core.commit import MEMORY_S
from fsd.core.errors import DatabaseDamaged, StorageUnavailable
from fsd.core.reconcile import reconcile_item
from fsd.core.sweep import Sweep

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.space import Space

LATE_S = 600.0
_PAGE = 500
_STEP_S = 1.0
_ORPHANS = (
    "SELECT node.n, node.name FROM node LEFT JOIN node AS above ON above.n=node.parent"
    " WHERE node.n>? AND node.n<>1 AND CASE WHEN node.parent IS NULL"
    " THEN node.n NOT IN (SELECT n FROM limbo) ELSE above.kind IS NOT 1 END ORDER BY node.n LIMIT ?"
)
_PARTS = (
    "SELECT node.n, node.name FROM node LEFT JOIN dir ON dir.n=node.n"
    " WHERE node.n>? AND node.kind=1 AND dir.n IS NULL ORDER BY node.n LIMIT ?"
)
_REACHED = (
    "WITH RECURSIVE down(n) AS (SELECT 1 UNION ALL"
    " SELECT limbo.n FROM limbo JOIN node ON node.n=limbo.n WHERE node.kind=1 AND node.parent IS NULL UNION ALL"
    " SELECT node.n FROM down JOIN node ON node.parent=down.n AND node.kind=1)"
    " SELECT (SELECT count(*) FROM down) - (SELECT count(*) FROM node WHERE kind=1)"
)
_LEFT = {
    "dirty": "n NOT IN (SELECT n FROM dir)",
    "pending": "n NOT IN (SELECT n FROM node)",
    "limbo": "n NOT IN (SELECT n FROM node WHERE parent IS NULL)",
    "dir": "n NOT IN (SELECT n FROM node WHERE kind=1)",
}


def damaged(space: Space) -> Iterator[Suspect]:
    """SQLite's own word on both databases, before anything in them is believed."""
    for database, code in ((space.index, "index-damaged"), (space.state, "state-damaged")):

        def again(database: object = database) -> object | None:
            try:
                with database.read() as db:  # type: ignore[attr-defined]
                    said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            except DatabaseDamaged as error:
                return str(error.__cause__ or error)
            return None if said == "ok" else said

        said = again()
        if said is not None:
            mend = space.index.discard if code == "index-damaged" else None
            yield Suspect(code, b"", f"SQLite says of {database.path.name}: {said}.", said, again, mend)


def suspects(space: Space, *, served: bool) -> Iterator[Suspect]:
    """What contradicts itself. `served`: a watcher runs, so what waits for long is a finding, too."""
    yield from _numbers(space)
    yield from _each(space, "row-orphan", _ORPHANS, "A row belongs to no directory.", _to_limbo)
    yield from _each(space, "row-parts", _PARTS, "A directory's row has no sums.", _add_parts)
    yield from _cycles(space)
    yield from _left(space)
    yield from _all_sums(space)
    if served:
        yield from _late(space)


def catch_up(space: Space) -> None:
    """Do what waits: hinted directories, vanished entries, labels; and, if the tree was never seen whole, sweep it."""
    failed = []
    while items := dirty.pending(space, 64, sweep=False):
        for item in items:
            try:
                reconcile_item(space, item)
            except StorageUnavailable:
                raise
            except OSError:
                dirty.done(space, [item])
                failed.append(item)
    with space.index.write() as db:
        for item in failed:
            dirty.mark_row(db, item.n, item.names, item.since)
    limbo.settle(space)
    with space.index.read() as db:
        (complete,) = db.execute("SELECT complete FROM head").fetchone()
    sweep = Sweep(space)
    while not complete and not sweep.step(_STEP_S).finished:
        pass


def _each(
    space: Space, code: str, query: str, text: str, mend: Callable[[sqlite3.Connection, int, bytes], None]
) -> Iterator[Suspect]:
    after = 0
    while True:
        with space.index.read() as db:
            page = db.execute(query, (after, _PAGE)).fetchall()
        for n, name in page:
            yield _of_row(space, code, query, text, mend, n, name)
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def _of_row(
    space: Space,
    code: str,
    query: str,
    text: str,
    mend: Callable[[sqlite3.Connection, int, bytes], None],
    n: int,
    name: bytes,
) -> Suspect:
    def again() -> object | None:
        with space.index.read() as db:
            found = db.execute(query, (n - 1, 1)).fetchone()
        return (n, name) if found == (n, name) else None

    def repair() -> None:
        with space.index.write() as db:
            mend(db, n, name)

    return Suspect(code, name, text, (n, name), again, repair)


def _to_limbo(db: sqlite3.Connection, n: int, name: bytes) -> None:
    """It is settled from there like anything that vanished; what is on disk is found by its directory."""
    db.execute("UPDATE node SET parent=NULL WHERE n=?", (n,))
    db.execute("INSERT OR IGNORE INTO limbo VALUES (?, 0, ?, ?)", (n, name, time.time()))


def _add_parts(db: sqlite3.Connection, n: int, _name: bytes) -> None:
    db.execute("INSERT OR IGNORE INTO dir VALUES (?,0,0,0,0,0,0,0,0,0,0,0)", (n,))
    dirty.mark_row(db, n, None, time.time())


def _cycles(space: Space) -> Iterator[Suspect]:
    """Directories that hang on each other instead of on the root."""

    def lost() -> object | None:
        with space.index.read() as db:
            return db.execute(_REACHED).fetchone()[0] or None

    count = lost()
    if count is None:
        return

    def mend() -> None:
        with space.index.write() as db:
            for (n,) in db.execute("SELECT n FROM dir").fetchall():
                if _hangs_on_itself(db, n):
                    row = index.node(db, n)
                    assert row is not None
                    _to_limbo(db, n, row.name)

    yield Suspect("row-cycle", b"", "Directories in the index are not below the root.", count, lost, mend)


def _hangs_on_itself(db: sqlite3.Connection, n: int) -> bool:
    seen: set[int] = set()
    here: int | None = n
    while here is not None and here not in seen:
        seen.add(here)
        found = db.execute("SELECT parent FROM node WHERE n=?", (here,)).fetchone()
        here = found[0] if found else None
    return here is not None


def _left(space: Space) -> Iterator[Suspect]:
    for table, where in _LEFT.items():

        def again(table: str = table, where: str = where) -> object | None:
            with space.index.read() as db:
                return db.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0] or None

        def mend(table: str = table, where: str = where) -> None:
            with space.index.write() as db:
                db.execute(f"DELETE FROM {table} WHERE {where}")

        count = again()
        if count is not None:
            yield Suspect(
                "row-leftover", b"", f"{count} rows of '{table}' are about nothing.", count, again, mend
            )


def _numbers(space: Space) -> Iterator[Suspect]:
    """Journal numbers rise and were reserved, row numbers are free, the incarnation is the state's."""

    def wrong() -> object | None:
        facts = _number_facts(space)
        limit, number, behind, used, next_n, last_n = facts
        fine = number <= limit <= behind and used < number and last_n < next_n
        return None if fine else facts

    def mend() -> None:
        limit, number, _, used, _, last_n = _number_facts(space)
        with space.index.write() as db:
            first, behind = space.state.reserve(max(limit, number, used + 1))
            db.execute(
                "UPDATE head SET number=?, number_limit=?, next_n=max(next_n, ?)", (first, behind, last_n + 1)
            )

    fact = wrong()
    if fact is not None:
        text = "Numbers of the journal or of rows could be given twice."
        yield Suspect("numbers", b"", text, fact, wrong, mend)

    def foreign() -> object | None:
        with space.index.read() as db:
            (known,) = db.execute("SELECT incarnation FROM head").fetchone()
        return None if known == space.state.incarnation() else known

    def adopt() -> None:
        with space.index.write() as db:
            db.execute("UPDATE head SET incarnation=?", (space.state.incarnation(),))

    fact = foreign()
    if fact is not None:
        text = "The index belongs to another incarnation than the state database."
        yield Suspect("incarnation", b"", text, fact, foreign, adopt)

    def long() -> object | None:
        # The jobs trim each hour; within one a busy tree may write any number of rows.
        query = "SELECT at FROM journal ORDER BY number DESC LIMIT 1 OFFSET ?"
        with space.index.read() as db:
            low, high = db.execute("SELECT min(number), max(number) FROM journal").fetchone()
            if low is None or high - low < 2 * journal.KEEP:
                return None
            row = db.execute(query, (2 * journal.KEEP,)).fetchone()
        return True if row is not None and row[0] < time.time() - JOBS_S else None

    if long() is not None:
        text = "The journal was never trimmed."
        yield Suspect("journal-long", b"", text, True, long, lambda: journal.trim(space))


def _number_facts(space: Space) -> tuple[int, int, int, int, int, int]:
    """(limit, next number, first number not reserved, highest used, next row, highest row). The state is read last:
    blocks are reserved there before the index uses them."""
    with space.index.read() as db:
        number, limit, next_n, counter, last, row = db.execute(
            "SELECT number, number_limit, next_n, (SELECT max(counter) FROM dir),"
            " (SELECT max(number) FROM journal), (SELECT max(n) FROM node) FROM head"
        ).fetchone()
    with space.state.read() as db:
        (behind,) = db.execute("SELECT next FROM ident").fetchone()
    return limit, number, behind, max(counter or 0, last or 0), next_n, row or 0


def _all_sums(space: Space) -> Iterator[Suspect]:
    after = 0
    while True:
        with space.index.read() as db:
            page = db.execute(
                "SELECT n FROM dir WHERE n>? AND epoch>0 ORDER BY n LIMIT ?", (after, _PAGE)
            ).fetchall()
        for (n,) in page:
            yield from _sums(space, n)
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def _sums(space: Space, n: int) -> Iterator[Suspect]:
    def wrong() -> tuple[int, int] | None:
        with space.index.read() as db:
            db.execute("BEGIN")
            try:
                parts, (own, total) = index.directory(db, n), totals.recount(db, n)
                path = index.path_of(db, n)
            finally:
                db.execute("COMMIT")
        if parts is None or path is None or parts.epoch == 0:
            return None
        return None if (parts.own, parts.total) == (own, total + parts.assumed) else (parts.total, total)

    def mend() -> None:
        with space.index.write() as db:
            own, total = totals.recount(db, n)
            fresh = index.directory(db, n)
            if fresh is not None:
                totals.climb(db, n, total + fresh.assumed - fresh.total, index.take_numbers(space, db, 1))
                db.execute("UPDATE dir SET own=?, seq=seq+1 WHERE n=?", (own, n))

    fact = wrong()
    if fact is not None:
        with space.index.read() as db:
            path = index.path_of(db, n) or b""
        text = f"Tree size {fact[0]} recorded, {fact[1]} by its entries."
        yield Suspect("sum-wrong", path, text, fact, wrong, mend)


def _late(space: Space) -> Iterator[Suspect]:
    """Work that a running watcher should have done long ago."""
    tables: tuple[tuple[str, str, str, Callable[[], object]], ...] = (
        ("dirty-late", "SELECT min(since) FROM dirty WHERE sweep=0",
         "A changed directory has waited for ten minutes: does it fail again and again?", lambda: catch_up(space)),
        ("limbo-late", "SELECT min(since) FROM limbo",
         "Vanished entries were not settled for ten minutes.", lambda: limbo.settle(space)),
        ("label-late", "SELECT min(due) FROM pending",
         "Labels are due since ten minutes.", lambda: relabel.label_due(space)),
    )  # fmt: skip
    for code, query, text, mend in tables:

        def again(query: str = query) -> object | None:
            with space.index.read() as db:
                (since,) = db.execute(query).fetchone()
            return since if since is not None and time.time() - since > LATE_S + MEMORY_S else None

        since = again()
        if since is not None:
            yield Suspect(code, b"", text, since, again, mend)
