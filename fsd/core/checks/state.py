"""What can't be rebuilt: intents, locks and tombstones in the state database."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fsd.core import intents, replay
from fsd.core.checks.finding import Suspect
from fsd.core.checks.internals import names_in
from fsd.core.limbo import TOMBSTONE_S
from fsd.core.locks import LockTable
from fsd.core.replay import KINDS

if TYPE_CHECKING:
    from fsd.core.replay import Peers
    from fsd.core.space import Space

_DAY_S = 86400.0


def suspects(space: Space, *, served: bool, peers: Peers | None) -> Iterator[Suspect]:
    """Leftovers of changes, locks of nothing, and what is older than it should get. `served`: somebody runs who
    should have cleared it away."""
    if not space.record.read_only:
        yield from _intents(space, peers)
    yield from _locks(space, served)
    if served:
        yield from _tombstones(space)


def _intents(space: Space, peers: Peers | None) -> Iterator[Suspect]:
    """An intent is left if nobody is at work on it and a step of it is still to be seen. A finished one stays in its
    table until the next is written, which is no finding."""
    for found in intents.of(space).pending():

        def again(number: int = found.number) -> object | None:
            return _abandoned(space, number)

        kind = again()
        if kind is None:
            continue
        if found.kind not in KINDS:
            text = f"An unfinished change of the unknown kind '{found.kind}': made by a later release?"
            yield Suspect("intent-unknown", intents.staged_name(found.number), text, kind, again)
            continue
        yield Suspect(
            "intent-left", intents.staged_name(found.number),
            f"An unfinished change ({found.kind}) waits to be finished or undone.",
            kind, again, lambda: replay.replay(space, peers),
        )  # fmt: skip


def _abandoned(space: Space, number: int) -> str | None:
    known = intents.of(space)
    with known.take_over(number) as free:
        intent = known.get(number) if free else None
    if intent is None:
        return None
    return intent.kind if intent.kind not in KINDS or _unfinished(space, intent) else None


def _unfinished(space: Space, intent: intents.Intent) -> bool:
    if intent.kind == "properties":
        return True  # deleted at once when it is over
    name = intents.staged_name(intent.number)
    return any(each.startswith(name) for each in names_in(space, "staging"))


def _locks(space: Space, served: bool) -> Iterator[Suspect]:
    with space.state.read() as db:
        rows = db.execute("SELECT token, path, expires FROM lock").fetchall()
    for token, path, expires in rows:
        if expires <= time.time() - _DAY_S and served:

            def old(token: str = token) -> object | None:
                with space.state.read() as db:
                    row: object | None = db.execute(
                        "SELECT expires FROM lock WHERE token=?", (token,)
                    ).fetchone()
                return row

            text = "A lock that timed out long ago."
            yield Suspect("lock-expired", path, text, (expires,), old, lambda: LockTable(space).expire())
        elif expires > time.time() and not _stands(space, path):

            def gone(token: str = token, path: bytes = path) -> object | None:
                with space.state.read() as db:
                    row = db.execute("SELECT path FROM lock WHERE token=?", (token,)).fetchone()
                return row if row is not None and not _stands(space, path) else None

            def drop(path: bytes = path) -> object:
                return LockTable(space).drop(path)

            text = "A lock on something that was deleted behind the server."
            yield Suspect("lock-orphan", path, text, (path,), gone, drop)


def _stands(space: Space, path: bytes) -> bool:
    if not path:
        return True
    try:
        fd, name = space.open_parent(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)
    return True


def _tombstones(space: Space) -> Iterator[Suspect]:
    def again() -> object | None:
        with space.state.read() as db:
            (oldest,) = db.execute("SELECT min(at) FROM tombstone").fetchone()
        return oldest if oldest is not None and oldest < time.time() - TOMBSTONE_S - _DAY_S else None

    def mend() -> None:
        space.state.exhume([], time.time() - TOMBSTONE_S)

    oldest = again()
    if oldest is not None:
        yield Suspect("tombstone-old", b"", "Deleted nodes are remembered for too long.", oldest, again, mend)
