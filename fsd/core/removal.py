"""Deleting for good: trees that are already out of sight, in `.fsd/staging`."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from fsd.core import ids, index, labels
from fsd.core.intents import number_of
from fsd.core.places import internal, rename_new
from fsd.core.syscalls import open_beneath, statx

if TYPE_CHECKING:
    from fsd.core.space import Space

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_staged(space: Space, staging: int, name: bytes) -> None:
    """Remove an entry of the staging directory, whatever it is and however deep; nothing there is fine.

    Directories are moved up into staging one by one under names with the same number, so depth costs neither stack
    nor descriptors, and a crash leaves only what the next sweep finds. Links are removed, never followed.
    """
    assert number_of(name) is not None, "only what fsd staged"
    with internal(space, "meta") as meta:
        overflows = set(os.listdir(os.fsencode(f"/proc/self/fd/{meta}")))
        waiting, made = [name], 0
        while waiting:
            here = waiting.pop()
            try:
                found = statx(staging, here)
            except FileNotFoundError:
                continue
            if overflows:
                _forget_properties(space, staging, here, meta, overflows)
            if not stat.S_ISDIR(found.mode):
                os.unlink(here, dir_fd=staging)
                continue
            made = _clear(space, staging, here, waiting, made, meta, overflows)
            os.rmdir(here, dir_fd=staging)


def _clear(
    space: Space, staging: int, here: bytes, waiting: list[bytes], made: int, meta: int, overflows: set[bytes]
) -> int:
    try:
        fd = open_beneath(staging, here, _DIRECTORY)
    except PermissionError:
        os.chmod(here, 0o700, dir_fd=staging)
        fd = open_beneath(staging, here, _DIRECTORY)
    try:
        if os.fstat(fd).st_mode & 0o300 != 0o300:
            os.fchmod(fd, 0o700)
        for name in os.listdir(b"/proc/self/fd/%d" % fd):
            if overflows:
                _forget_properties(space, fd, name, meta, overflows)
            try:
                os.unlink(name, dir_fd=fd)
            except (IsADirectoryError, PermissionError) as error:
                if isinstance(error, PermissionError) and not stat.S_ISDIR(statx(fd, name).mode):
                    raise
                made, aside = _move_up(fd, name, staging, here[:16], made)
                waiting.append(aside)
    finally:
        os.close(fd)
    return made


def _move_up(fd: int, name: bytes, staging: int, prefix: bytes, made: int) -> tuple[int, bytes]:
    while True:
        made += 1
        aside = b"%b.%d" % (prefix, made)
        try:
            rename_new(fd, name, staging, aside)
            return made, aside
        except FileExistsError:
            continue  # left by a removal that was cut off
        except PermissionError:
            # Moving a directory rewrites its "..", which needs write permission on it for all but root.
            if statx(fd, name).mode & 0o200:
                raise
            os.chmod(name, 0o700, dir_fd=fd)


def _forget_properties(space: Space, fd: int, name: bytes, meta: int, overflows: set[bytes]) -> None:
    """Drop the overflow file of a node that goes away; only with a proven label, a copy's would be another's."""
    try:
        if statx(fd, name).nlink > 1 and not stat.S_ISDIR(statx(fd, name).mode):
            return
        raw = os.getxattr(b"/proc/self/fd/%d/%b" % (fd, name), labels.ID_ATTRIBUTE, follow_symlinks=False)
        label = labels.parse(raw, space.secret, ids.node_binding(fd, name, statx(fd, name)))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOENT):
            raise
        return
    file = label.id.hex().encode() + b".json" if label and label.proven else b""
    if label is not None and file in overflows and not _lives(space, label.id):
        try:
            os.unlink(file, dir_fd=meta)
        except FileNotFoundError:
            pass


def _lives(space: Space, node_id: bytes) -> bool:
    """Whether a successor in the tree has the id now."""
    with space.index.read() as db:
        row = index.by_id(db, node_id)
    return row is not None and (row.n == index.ROOT or row.parent is not None)
