"""What changed below a directory since a token (RFC 6578), as the journal tells.

A token is a journal number and the incarnation it belongs to. It holds as long as the journal reaches back so far, over
restarts and lost commits (numbers never repeat); where that can't be said it has expired. The journal says which places
may differ, not how: the caller looks at each, and what is not there any more is gone. A place may be named that is as
it was; none that differs is left out.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import index, journal
from fsd.core.announced import settle
from fsd.core.errors import NotYetKnown
from fsd.core.index import DIRECTORY
from fsd.core.journal import Numbered
from fsd.core.names import join

if TYPE_CHECKING:
    from fsd.core.space import Space

_PREFIX = "urn:fsd:sync:"
_PAGE = 1000
MOST = 10_000
"""Places named at once, if nobody asks for less."""


class TokenExpired(OSError):
    """The journal can't say what happened since: begin anew."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "The sync token has expired")


class TooMany(OSError):
    """What belongs together is more than was asked for at once."""

    def __init__(self) -> None:
        super().__init__(errno.E2BIG, "More changed at once than was asked for")


class News(NamedTuple):
    """`places`: paths that may differ, and whether a directory was (or is) there. `more`: ask again with `token`."""

    places: dict[bytes, bool]
    token: str
    more: bool


class _Now(NamedTuple):
    incarnation: bytes
    last: int
    complete: bool


def token(space: Space, *, deep: bool | None = None) -> str | None:
    """The token that stands for now. `deep`: for all that is below (None where that is not known yet: NotYetKnown), not
    for members alone; None: for both, if both are known."""
    settle(space)
    with space.index.read() as db:
        now = _now(db)
    if not now.complete and deep is not False:
        if deep:
            raise NotYetKnown("The space is still being looked at; ask again in a moment.")
        return None
    return _text(now, now.last)


def since(space: Space, path: bytes, text: str, *, deep: bool, limit: int | None = None) -> News:
    """What may differ below the directory `path` since a token, at most `limit` places. TokenExpired; TooMany;
    NotYetKnown; FileNotFoundError without a row for the directory."""
    settle(space)
    with space.index.read() as db:
        db.execute("BEGIN")
        try:
            now = _now(db)
            after = _parse(db, now, text, deep)
            row = index.find(db, path)
            if row is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return _Reader(db, path, row.id, deep, MOST if limit is None else limit).read(now, after, limit)
        finally:
            db.execute("COMMIT")


def _now(db: sqlite3.Connection) -> _Now:
    incarnation, behind, complete = db.execute("SELECT incarnation, number, complete FROM head").fetchone()
    return _Now(incarnation, behind - 1, bool(complete))


def _text(now: _Now, number: int) -> str:
    return f"{_PREFIX}{now.incarnation.hex()}:{number}" + ("" if now.complete else ":1")


def _parse(db: sqlite3.Connection, now: _Now, text: str, deep: bool) -> int:
    incarnation, _, rest = text.removeprefix(_PREFIX).partition(":")
    number, _, level = rest.partition(":")
    if not text.startswith(_PREFIX) or incarnation != now.incarnation.hex():
        raise TokenExpired
    if not (number.isascii() and number.isdigit() and len(number) < 20) or level not in ("", "1"):
        raise TokenExpired
    if (level and deep) or not journal.floor(db) <= int(number) <= now.last:
        raise TokenExpired
    return int(number)


class _Reader:
    """One reading of the journal, in one snapshot of the index."""

    def __init__(self, db: sqlite3.Connection, path: bytes, node_id: bytes, deep: bool, limit: int) -> None:
        self._db, self._path, self._id, self._deep, self._limit = db, path, node_id, deep, limit
        self._paths: dict[bytes, bytes | None] = {}
        self._places: dict[bytes, bool] = {}

    def read(self, now: _Now, after: int, limit: int | None) -> News:
        done = after
        while rows := self._page(done):
            for row in rows:
                known = len(self._places)
                self._take(row)
                if len(self._places) > self._limit:
                    if known == 0 and limit is not None:
                        raise TooMany
                    if known:
                        kept = dict(list(self._places.items())[:known])
                        return News(kept, _text(now, done), True)
                done = row.number
        if not self._deep:
            self._directories(after)
            if limit is not None and len(self._places) > limit:
                raise TooMany
        return News(self._places, _text(now, now.last), False)

    def _page(self, after: int) -> list[Numbered]:
        query = "SELECT * FROM journal WHERE number>? AND kind<>'ready' ORDER BY number LIMIT ?"
        return [Numbered._make(row) for row in self._db.execute(query, (after, _PAGE))]

    def _take(self, row: Numbered) -> None:
        parent = self._path_of(row.parent)
        if parent is None:
            return  # it is gone itself, and told as such where it was
        if row.kind == "scanned":
            if self._holds(parent):
                self._expand(row.node, parent, deep=False)
            return
        place = join(parent, row.name)
        if row.kind in ("moved", "left", "deleted", "created") and (
            place == self._path or self._path.startswith(place + b"/")
        ):
            raise TokenExpired  # another directory than the one that the token was given for
        if not self._holds(parent):
            return
        folder = row.node_kind == DIRECTORY
        self._places[place] = folder
        if folder and self._deep and row.kind in ("moved", "created"):
            self._expand(row.node, place, deep=True)

    def _holds(self, parent: bytes) -> bool:
        if parent == self._path:
            return True
        return self._deep and (not self._path or parent.startswith(self._path + b"/"))

    def _path_of(self, node_id: bytes) -> bytes | None:
        if node_id not in self._paths:
            row = index.by_id(self._db, node_id)
            self._paths[node_id] = index.path_of(self._db, row.n) if row is not None else None
        return self._paths[node_id]

    def _expand(self, node_id: bytes, path: bytes, *, deep: bool) -> None:
        row = index.by_id(self._db, node_id)
        waiting = [(row.n, path)] if row is not None else []
        while waiting:
            n, at = waiting.pop()
            for child in index.children(self._db, n):
                place = join(at, child.name)
                self._places[place] = child.kind == DIRECTORY
                if deep and child.kind == DIRECTORY:
                    waiting.append((child.n, place))

    def _directories(self, after: int) -> None:
        """Members that are directories, and have another etag because of what is below them."""
        row = index.by_id(self._db, self._id)
        query = "SELECT name FROM node JOIN dir ON dir.n=node.n WHERE node.parent=? AND node.kind=1 AND dir.counter>?"
        for (name,) in self._db.execute(query, (row.n if row is not None else 0, after)):
            self._places[join(self._path, name)] = True
