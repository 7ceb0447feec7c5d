"""A space whose tree was put back: from a backup, a copy, a snapshot of its volume.

It is noticed by the *epoch*: a number in `.fsd/epoch` that rises, at most once a minute, while the space changes, and
that the registry knows too. The file is written first, so after a crash it may be one ahead; anything else means that
one of the two went back in time.

The rows are kept, so that what carries its label gets its id back where place or owner agree. Everything that was
said of the old tree ends: directory etags get a new incarnation, and `oc:data-fingerprint` changes, so that clients
ask before they delete newer files of theirs.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from fsd.core import dirty, ids, index
from fsd.core.installation import Installation, write_file
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
EPOCH_NAME = "epoch"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        db.execute("UPDATE dir SET dev = ? WHERE n = ?", (found.dev, index.ROOT))
        db.execute("UPDATE dir SET mtime_ns = ?", (index.DUBIOUS,))
        db.execute("DELETE FROM dirty WHERE sweep = 1")
        dirty.mark_row(db, index.ROOT, None, time.time(), sweep=True)


def skip_numbers(space: Space) -> None:
    """At each start: go on with journal numbers that no earlier state of the databases can have led to.

    Tree and state may have been put back together, as a machine's snapshot does; that goes unnoticed, but no etag
    and no token may then come to stand for something else than it did in the time that is lost.
    """
    with space.index.write() as db:
        db.execute("UPDATE head SET boot = ''")


def take_over(space: Space, installation: Installation) -> None:
    """Another host worked on the space until now: what this one said of it earlier must not be said again.

    All directory etags change, since this index numbers changes by itself; the epoch goes on from where the tree's is.
    A sweep has to follow. Nothing is written into the tree.
    """
    incarnation = os.urandom(8)
    with space.index.write() as db:
        with space.state.write() as state:
            state.execute("UPDATE ident SET incarnation = ?", (incarnation,))
        db.execute("UPDATE head SET incarnation = ?, boot = ''", (incarnation,))
    known, on_disk = _known(space, installation), _on_disk(space)
    if on_disk is not None and (known is None or on_disk > known[0]):
        _note_epoch(space, installation, on_disk)


def check_epoch(space: Space, installation: Installation) -> bool:
    """Compare the epochs; if the tree or the state went back in time, renew the space and return True.

    Cheap when all is well: one small file and one row. Raises StorageUnavailable, OSError.
    """
    if not went_back(space, installation):
        return False
    _log.warning("space %s was restored: its epoch is not the one that was last known", space.record.id)
    restore(space, installation)
    return True


def went_back(space: Space, installation: Installation) -> bool:
    """Whether the epochs disagree. Raises StorageUnavailable, OSError."""
    known, on_disk = _known(space, installation), _on_disk(space)
    return known is not None and (on_disk is None or on_disk - known[0] not in (0, 1))


def restore(space: Space, installation: Installation) -> None:
    """Renew a space that is known to be restored, and agree on the epoch again.

    The file is written first, two ahead: a disk that takes no file changes nothing, and a crash before the end leaves
    the difference to be found again.
    """
    known, on_disk = _known(space, installation), _on_disk(space)
    epoch = max(known[0] if known else 0, on_disk or 0) + 2
    _write_epoch(space, epoch)
    renew(space)
    _note_epoch(space, installation, epoch)


def raise_epoch(space: Space, installation: Installation) -> None:
    """Raise the epoch if the space changed since it was raised last."""
    known, on_disk = _known(space, installation), _on_disk(space) or 0
    if known is None or known[1] != _number(space) or on_disk != known[0]:
        epoch = max(known[0] if known else 0, on_disk) + 1
        _write_epoch(space, epoch)
        _note_epoch(space, installation, epoch)


def _write_epoch(space: Space, epoch: int) -> None:
    fd = space.open_internal(".")
    try:
        write_file(fd, EPOCH_NAME, b"%d\n" % epoch)
    finally:
        os.close(fd)


def _note_epoch(space: Space, installation: Installation, epoch: int) -> None:
    number = _number(space)
    with installation.db.write() as db:  # not a change of the registry: nobody has to read it again
        values = (f"epoch:{space.record.id}", f"{epoch} {number}")
        db.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", values)


def _number(space: Space) -> int:
    with space.index.read() as db:
        return int(db.execute("SELECT number FROM head").fetchone()[0])


def _known(space: Space, installation: Installation) -> tuple[int, int] | None:
    text = installation.setting(f"epoch:{space.record.id}")
    if text is None:
        return None
    epoch, _, number = text.partition(" ")
    return int(epoch), int(number)


def _on_disk(space: Space) -> int | None:
    fd = space.open_internal(".")  # proves the root and `.fsd`: without them nothing can be said
    try:
        with open(os.open(EPOCH_NAME, _READ, dir_fd=fd), "rb") as file:
            return int(file.read(32))
    except (FileNotFoundError, ValueError):
        return None
    finally:
        os.close(fd)
