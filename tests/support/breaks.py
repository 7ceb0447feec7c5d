"""Ways to break each invariant of a space by hand, by the code of the finding."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from fsd.core import dirty, index, intents, journal, partials
from fsd.core.locks import LockTable
from fsd.core.operations import delete
from fsd.core.places import binding_at
from fsd.core.space import Space
from fsd.core.state import Tombstone
from tests.unit.core_space import on_disk, write

Break = Callable[[Space], object]
BREAKS: dict[str, list[Break]] = {}
HOPELESS = {
    "unreadable", "unavailable", "storage-unavailable", "internals-displaced", "internals-foreign", "state-damaged",
    "trash-without-info", "trash-info-damaged", "meta-damaged", "intent-unknown", "registry-damaged", "space-nested",
    "space-ownerless", "space-unregistered", "state-leftover",
}  # fmt: skip
"""What no program can mend without touching users' bytes or guessing."""


def breaks(code: str) -> Callable[[Break], Break]:
    def note(function: Break) -> Break:
        BREAKS.setdefault(code, []).append(function)
        return function

    return note


def sql(space: Space, text: str, *values: object) -> None:
    with space.index.write() as db:
        db.execute(text, values)


def state_sql(space: Space, text: str, *values: object) -> None:
    with space.state.write() as db:
        db.execute(text, values)


def row_of(space: Space, path: bytes) -> index.NodeRow:
    with space.index.read() as db:
        row = index.find(db, path)
    assert row is not None
    return row


def internal(space: Space, name: str) -> str:
    return os.fsdecode(on_disk(space, b".fsd/" + name.encode()))


# -- disk against rows


@breaks("row-missing")
def _(space):
    sql(space, "DELETE FROM pending")
    sql(space, "DELETE FROM node WHERE n=?", row_of(space, b"d/e/g").n)
    sql(space, "UPDATE dir SET own=0, total=0 WHERE n=?", row_of(space, b"d/e").n)
    sql(space, "UPDATE dir SET total=total-3 WHERE n IN (1, ?)", row_of(space, b"d").n)


@breaks("row-gone")
def _(space):
    os.unlink(on_disk(space, b"link"))


@breaks("row-other-node")
def _(space):
    sql(space, "UPDATE node SET binding=? WHERE n=?", secrets.token_bytes(16), row_of(space, b"pipe").n)


@breaks("row-other-node")
def _(space):
    os.unlink(on_disk(space, b"put"))
    os.mkdir(on_disk(space, b"put"))


@breaks("row-stale")
def _(space):
    write(space, b"d/f", b"123456")


@breaks("row-stale")
def _(space):
    sql(space, "UPDATE node SET mode=mode+1 WHERE n=?", row_of(space, b"d/f").n)


@breaks("row-stale")
def _(space):
    sql(space, "UPDATE node SET uid=uid+1 WHERE n=?", row_of(space, b"d/e").n)


@breaks("label-differs")
def _(space):
    sql(space, "UPDATE node SET id=? WHERE n=?", secrets.token_bytes(16), row_of(space, b"put").n)


@breaks("label-missing")
def _(space):
    row = row_of(space, b"put")
    os.removexattr(on_disk(space, b"put"), "user.fsd.id")
    sql(space, "UPDATE node SET ctime_ns=? WHERE n=?", os.stat(on_disk(space, b"put")).st_ctime_ns, row.n)


@breaks("id-unkept")
def _(space):
    sql(space, "UPDATE node SET id=? WHERE n=?", secrets.token_bytes(16), row_of(space, b"link").n)


@breaks("property-lost")
def _(space):
    os.unlink(internal(space, f"meta/{row_of(space, b'd/f').id.hex()}.json"))


@breaks("unavailable")
def _(space):
    n = row_of(space, b"empty").n
    sql(space, "UPDATE dir SET mounted=1 WHERE n=?", n)
    sql(space, "UPDATE node SET binding=? WHERE n=?", secrets.token_bytes(16), n)


# -- the index in itself


@breaks("row-orphan")
def _(space):
    sql(space, "UPDATE node SET parent=999 WHERE n=?", row_of(space, b"pipe").n)
    os.unlink(on_disk(space, b"pipe"))


@breaks("row-parts")
def _(space):
    sql(space, "DELETE FROM dir WHERE n=?", row_of(space, b"empty").n)


@breaks("row-cycle")
def _(space):
    sql(space, "UPDATE dir SET total=total-8 WHERE n=1")
    sql(space, "UPDATE node SET parent=? WHERE n=?", row_of(space, b"d/e").n, row_of(space, b"d").n)
    os.rename(on_disk(space, b"d"), os.path.join(os.path.dirname(space.root), b"away"))


@breaks("row-leftover")
def _(space):
    sql(space, "INSERT INTO pending VALUES (999, 0, 0)")
    sql(space, "INSERT INTO limbo VALUES (?, 1, x'00', 0)", row_of(space, b"put").n)
    sql(space, "INSERT INTO dirty VALUES (?, NULL, 1, 0, 0)", row_of(space, b"put").n)


@breaks("row-leftover")
def _(space):
    sql(space, "INSERT INTO dir VALUES (999,0,0,0,0,0,0,0,0,0,0,0)")


@breaks("sum-wrong")
def _(space):
    sql(space, "UPDATE dir SET total=total+7 WHERE n=?", row_of(space, b"empty").n)
    sql(space, "UPDATE dir SET total=total+7 WHERE n=1")


@breaks("sum-wrong")
def _(space):
    sql(space, "UPDATE dir SET own=own+1 WHERE n=1")


@breaks("numbers")
def _(space):
    state_sql(space, "UPDATE ident SET next=1")


@breaks("numbers")
def _(space):
    sql(space, "UPDATE head SET number=1")


@breaks("numbers")
def _(space):
    sql(space, "UPDATE head SET next_n=2")


@breaks("incarnation")
def _(space):
    state_sql(space, "UPDATE ident SET incarnation=?", secrets.token_bytes(8))


@breaks("journal-long")
def _(space):
    last = journal.last(space)
    with space.index.write() as db:
        rows = ((n, "metadata", b"", 0, b"", b"", 0.0) for n in range(last - 41, last - 1))
        db.execute("DELETE FROM journal")
        db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


@breaks("index-damaged")
def _(space):
    damage(space, space.index.path, "node_id")


@breaks("state-damaged")
def _(space):
    damage(space, space.state.path, "tombstone_at")


def damage(space: Space, path: Path, what: str) -> None:
    space.close()
    damage_page(path, what)


def damage_page(path: Path, what: str) -> None:
    """Put garbage over one page of a database: the root of that table or index."""
    with sqlite3.connect(path) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name=?", (what,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    with open(path, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@breaks("dirty-late")
def _(space):
    dirty.mark(space, [(b"d", None)])
    sql(space, "UPDATE dirty SET since=since-1000")


@breaks("limbo-late")
def _(space):
    delete(space, b"put")
    sql(space, "UPDATE limbo SET since=since-1000")


@breaks("label-late")
def _(space):
    sql(space, "INSERT INTO pending VALUES (?, ?, 0)", row_of(space, b"d").n, time.time() - 1000)


# -- the state database


@breaks("intent-left")
def _(space):
    number = 12345
    intents.of(space).write(
        intents.Intent(
            number, "properties", {"path": b"d/f".hex(), "binding": "", "id": "", "old": "[{}, {}]"}
        )
    )


@breaks("intent-left")
def _(space):
    write(space, b".fsd/staging/" + intents.staged_name(77), b"cut off")
    found = os.stat(on_disk(space, b".fsd/staging/" + intents.staged_name(77)))
    body = {"path": b"d/new".hex(), "new": "00", "old": "00", "size": found.st_size, "mtime_ns": 1}
    intents.of(space).write(intents.Intent(77, "put", body))
    body["new"] = binding(space, b".fsd/staging/" + intents.staged_name(77)).hex()
    intents.of(space).write(intents.Intent(77, "put", body))


def binding(space: Space, path: bytes) -> bytes:
    fd = os.open(on_disk(space, os.path.dirname(path)), os.O_RDONLY)
    try:
        found = binding_at(fd, os.path.basename(path))
    finally:
        os.close(fd)
    assert found is not None
    return found


@breaks("intent-unknown")
def _(space):
    intents.of(space).write(intents.Intent(5, "of tomorrow", {}))


@breaks("lock-orphan")
def _(space):
    LockTable(space).acquire(b"put", principal="p")
    LockTable(space).acquire(b"never/was", principal="p")
    LockTable(space).drop(b"put")


@breaks("lock-expired")
def _(space):
    LockTable(space, clock=lambda: time.time() - 10**6).acquire(b"put", principal="p")


@breaks("tombstone-old")
def _(space):
    space.state.bury([Tombstone(b"x" * 16, b"y" * 16, b"z", 0, 0, 1.0)])


# -- .fsd


@breaks("internals-open")
def _(space):
    os.chmod(internal(space, "."), 0o755)


@breaks("internals-open")
def _(space):
    os.chmod(internal(space, "space.json"), 0o644)


@breaks("internals-missing")
def _(space):
    os.rmdir(internal(space, "versions"))


@breaks("internals-foreign")
def _(space):
    Path(internal(space, "notes.txt")).write_text("mine")


@breaks("internals-foreign")
def _(space):
    Path(internal(space, "staging/notes.txt")).write_text("mine")


@breaks("internals-displaced")
def _(space):
    assert space.fsd_ident
    os.rename(on_disk(space, b".fsd"), on_disk(space, b"d/hidden"))


@breaks("staging-left")
def _(space):
    os.mkdir(internal(space, "staging/" + intents.staged_name(9).decode()))


@breaks("upload-left")
def _(space):
    left = internal(space, "uploads/" + "a" * 32)
    os.makedirs(left)
    Path(left, "data").write_bytes(b"x")
    os.utime(left, (1, 1))


@breaks("upload-left")
def _(space):
    os.rmdir(internal(space, f"uploads/{partials.create(space, 'u', reserve=10).id}"))


@breaks("versions-left")
def _(space):
    left = internal(space, "versions/ab/ab" + "0" * 30)
    os.makedirs(left)
    Path(left, str(10**18)).write_bytes(b"old")


@breaks("trash-without-info")
def _(space):
    os.unlink(internal(space, "trash/info/" + os.listdir(internal(space, "trash/info"))[0]))


@breaks("trash-info-left")
def _(space):
    Path(internal(space, "trash/info/by-hand.trashinfo")).write_text("[Trash Info]\nPath=x\n")


@breaks("trash-info-damaged")
def _(space):
    Path(internal(space, "trash/info/" + os.listdir(internal(space, "trash/info"))[0])).write_text("")


@breaks("meta-left")
def _(space):
    Path(internal(space, "meta/" + "0" * 32 + ".json")).write_text('{"properties": {}}')


@breaks("meta-left")
def _(space):
    Path(internal(space, "meta/" + "0" * 32 + ".json.new")).write_text("")


@breaks("meta-damaged")
def _(space):
    Path(internal(space, f"meta/{row_of(space, b'd/f').id.hex()}.json")).write_text("{")
