"""A space whose tree was put back from elsewhere: a backup, a copy, another volume.

The rows are kept, so that what carries its label gets its id back where place or owner agree. Everything that was
said of the old tree ends: directory etags get a new incarnation, and `oc:data-fingerprint` changes, so that clients
ask before they delete newer files of theirs.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from fsd.core import dirty, ids, index
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space


def renew(space: Space) -> None:
    """Begin anew with the tree that is at the space's root now; all of it is verified next.

    Idempotent but for the numbers that change. A crash in between leaves it to be called again.
    """
    fd = space.root_fd()
    found = statx(fd, b"")
    binding = ids.node_binding(fd, b"", found)
    incarnation = os.urandom(8)
    with space.index.write() as db:
        with space.state.write() as state:
            state.execute(
                "UPDATE ident SET incarnation = ?, fingerprint = ?", (incarnation, os.urandom(16).hex())
            )
        db.execute("UPDATE head SET incarnation = ?, complete = 0, epoch = epoch + 1", (incarnation,))
        db.execute("UPDATE node SET binding = ?, ino = ? WHERE n = ?", (binding, found.ino, index.ROOT))
        db.execute("DELETE FROM dirty WHERE sweep = 1")
        dirty.mark_row(db, index.ROOT, None, time.time(), sweep=True)
