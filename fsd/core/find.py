"""Finding by name: one pass over the index's rows, in SQLite; no look at the disk."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsd.core import index
from fsd.core.announced import settle

if TYPE_CHECKING:
    from fsd.core.space import Space


def by_name(space: Space, pattern: str, below: bytes, limit: int) -> list[bytes]:
    """Paths below a directory whose last name holds `pattern` (`*` and `?` as in a shell, else a part of the name), in
    any case, up to `limit`. The reader looks whether they are still there."""
    settle(space)
    with space.index.read() as db:
        found = _names(db, pattern)
        paths: list[bytes] = []
        for (n,) in found:
            path = index.path_of(db, n)
            if path and (not below or path.startswith(below + b"/")):
                paths.append(path)
                if len(paths) >= limit:
                    break
        found.close()
    return sorted(paths)


def matcher(pattern: str) -> Callable[[bytes], bool]:
    """Whether a name fits a pattern of `by_name`."""
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in _whole(pattern).casefold().split("*"))
    # The leftmost place of a middle part serves as well as any other: atomic, or names could cost exponential time.
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1] if part)
    wanted = re.compile(first + middle + (f".*{rest[-1]}" if rest else ""), re.DOTALL)
    return lambda name: wanted.fullmatch(name.decode("utf-8", "replace").casefold()) is not None


def _whole(pattern: str) -> str:
    return pattern if set(pattern) & set("*?") else f"*{pattern}*"


def _names(db: sqlite3.Connection, pattern: str) -> sqlite3.Cursor:
    pattern = _whole(pattern)
    if pattern.isascii():
        like = re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%").replace("?", "_")
        query = "SELECT n FROM node WHERE parent IS NOT NULL AND CAST(name AS TEXT) LIKE ? ESCAPE '\\'"
        return db.execute(query, (like,))
    # SQLite folds ASCII only.
    db.create_function("named", 1, matcher(pattern), deterministic=True)
    return db.execute("SELECT n FROM node WHERE parent IS NOT NULL AND named(name)")
