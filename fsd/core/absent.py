"""Absence where ENOENT does not prove it: the names that ceph-fuse forgets.

When a rename replaces a file that has other names, ceph-fuse (16.2) keeps these names in its cache as ones that do not
exist. Until something is made or removed in their directory it answers ENOENT for them and leaves them out of
listings: for some milliseconds, or, where a file had three names or more, for as long as the directory stands still.
Other clients see them all the time, and how many entries a directory has (`ceph.dir.entries`) is told right.

So on such a mount a name is absent if a listing that is as long as the directory does not have it. A listing that is
too short is mended by making and removing an empty directory: nothing less makes the client ask again.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from fsd.core import ids, lease
from fsd.core.errors import FsdError, StorageUnavailable
from fsd.core.names import to_text

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
_ENTRIES = "ceph.dir.entries"
_PROBE = b".fsd-asks-"
_SMALL = 2000
"""Directories up to so many entries are listed also for a name that is not known to have others beside it."""
_TURNS = 4


class Absence:
    """Whether names are absent that lstat(2) did not find in an open directory. One serves one look at it."""

    def __init__(self, space: Space, fd: int) -> None:
        self._space, self._fd = space, fd
        self._listed: frozenset[bytes] | None = None

    def holds(self, name: bytes, links: int = 1) -> bool:
        """False if the name is there; lstat(2) finds it then. `links`: how many names the file is known to have had.

        StorageUnavailable where the client can't be made to tell, for a file that had several.
        """
        if not ids.forgets_names(self._fd):
            return True
        if links < 2 and self._entries() > _SMALL:
            return True
        for _ in range(_TURNS):
            whole = self._list()
            assert self._listed is not None
            if name in self._listed:
                with suppress(FileNotFoundError):
                    os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                    return False
            elif whole:
                return True
            self._listed = None
        if links < 2:
            return True
        raise StorageUnavailable(
            f"The storage's client lists fewer entries than there are; '{to_text(name)}' may be one of them."
        )

    def _entries(self) -> int:
        return int(os.getxattr(self._fd, _ENTRIES))

    def _list(self) -> bool:
        """Whether the listing that is at hand now is as long as the directory."""
        if self._listed is not None:
            return True
        for _ in range(2):  # who writes in between makes a difference as well
            self._listed = _names(self._fd)
            if len(self._listed) == self._entries():
                return True
        self._ask_again()
        self._listed = _names(self._fd)
        return len(self._listed) == self._entries()

    def _ask_again(self) -> None:
        """Change the directory, so that the client drops what it believes of it. What a crash left of an earlier time
        is removed."""
        record = self._space.record
        if record.state != "active" or record.read_only:
            return
        name = _PROBE + os.urandom(8).hex().encode()
        try:
            lease.require(self._space)
            os.mkdir(name, 0o700, dir_fd=self._fd)
        except FsdError:
            return  # another host writes here
        except OSError as error:
            _log.warning("space %s: the storage's client can't be asked again: %s", record.id, error)
            return
        for each in _names(self._fd):
            if each == name or (each.startswith(_PROBE) and len(each) == len(name)):
                with suppress(OSError):
                    os.rmdir(each, dir_fd=self._fd)


def is_absent(space: Space, fd: int, name: bytes, links: int = 1) -> bool:
    """`Absence.holds`, for one name."""
    return Absence(space, fd).holds(name, links)


def _names(fd: int) -> frozenset[bytes]:
    fresh = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return frozenset(map(os.fsencode, os.listdir(fresh)))
    finally:
        os.close(fresh)
