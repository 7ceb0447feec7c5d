"""The directory of a space was replaced as a whole by an earlier state of itself: a snapshot of its subvolume was put
in its place, or a backup was copied there.

It is another node than the registered one, so the space is unavailable until somebody says what happened. Nobody has to
if the directory proves it by itself: it lies at the registered path, on the filesystem where the space has always been,
and its `.fsd` has this space's id and grants that this service signed. A mount point whose storage is away lies on
another filesystem, whatever it holds.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from dataclasses import replace

from fsd.core import ids, restoring, roots
from fsd.core.errors import FsdError
from fsd.core.installation import Installation
from fsd.core.space import Space, SpaceRecord
from fsd.core.syscalls import filesystem_id, statx

_log = logging.getLogger(__name__)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def note_filesystem(space: Space, installation: Installation) -> None:
    """Remember on which filesystem the proven root lies, as that may change with a boot (xfs). Raises OSError."""
    found = filesystem_id(space.root_fd())
    if installation.setting(_key(space.record.id)) != found:
        with installation.db.write() as db:  # not a change of the registry: nobody has to read it again
            _note(db, space.record.id, found)


def first_note(db: sqlite3.Connection, space_id: str, root: bytes) -> None:
    """The same within the transaction that registers a space."""
    fd = os.open(root, _DIRECTORY)
    try:
        _note(db, space_id, filesystem_id(fd))
    finally:
        os.close(fd)


def _note(db: sqlite3.Connection, space_id: str, found: str) -> None:
    db.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", (_key(space_id), found))


def accept(record: SpaceRecord, installation: Installation) -> bool:
    """Take the directory at the space's path for the space again, if it proves to be it; renews the space then.

    A crash in between leaves it to be done again. False if the registered directory is there, or if nothing is
    proven. Raises OSError.
    """
    if record.read_only:
        return False
    try:
        fd = os.open(record.path, _DIRECTORY)
    except OSError:
        return False
    try:
        binding = ids.node_binding(fd, b"", statx(fd, b"")).hex()
        if binding == record.root_binding or filesystem_id(fd) != installation.setting(_key(record.id)):
            return False
    finally:
        os.close(fd)
    try:
        identity = roots.read_identity(record.path, installation.key)
    except FsdError:
        return False
    if identity is None or identity.space_id != record.id or not identity.ours:
        return False
    _log.warning("space %s was restored: an earlier state of it was put in its place", record.id)
    space = Space(replace(record, root_binding=binding), installation.state_dir)
    try:
        restoring.restore(space, installation)
    finally:
        space.close()
    with installation.write() as db:
        db.execute("UPDATE spaces SET root_binding = ? WHERE id = ?", (binding, record.id))
    return True


def _key(space_id: str) -> str:
    return f"filesystem:{space_id}"
