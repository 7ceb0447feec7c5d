"""Filesystems mounted inside a space that are not there now. Their rows and sizes are kept; this says which
they are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fsd.core import index
from fsd.core.names import split
from fsd.core.observe import still_at

if TYPE_CHECKING:
    from fsd.core.space import Space


def known(space: Space) -> list[tuple[bytes, bytes]]:
    """(path, binding) of every directory that was a filesystem of its own when it was last seen."""
    with space.index.read() as db:
        rows = db.execute("SELECT n, binding FROM dir JOIN node USING (n) WHERE mounted").fetchall()
        found = [(index.path_of(db, n), binding) for n, binding in rows]
    return [(path, binding) for path, binding in found if path]


def away(space: Space, mounts: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those of `known` in whose place only the empty mount point is. One that is gone itself is none: that
    shows."""
    return [(path, binding) for path, binding in mounts if _is_away(space, path, binding)]


def _is_away(space: Space, path: bytes, binding: bytes) -> bool:
    root = space.root_fd()
    try:
        above = os.stat(split(path)[0] or b".", dir_fd=root, follow_symlinks=False)
        found = os.stat(path, dir_fd=root, follow_symlinks=False)
        return found.st_dev == above.st_dev and not still_at(space, path, binding)
    except (FileNotFoundError, NotADirectoryError):
        return False
