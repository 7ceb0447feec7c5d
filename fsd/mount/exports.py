"""A space in a mount: its Space, what is announced of it, whose rights hold, how much room is left."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from fsd.core import lease, quota, tree
from fsd.core.announced import Announcer
from fsd.core.errors import QuotaExceeded, ReadOnlySpace, StorageUnavailable
from fsd.core.grants import Role
from fsd.core.names import INTERNAL, SNAPSHOTS
from fsd.core.space import Space
from fsd.mount.rights import AS_IT_IS, Rights

if TYPE_CHECKING:
    from pyfuse3 import RequestContext

    from fsd.mount.nodes import Node

_ROOM_AGE = 0.5
"""Seconds after which the room that is left is asked for again while somebody writes."""


class Export:
    """One space. Belongs to the thread of the event loop."""

    def __init__(self, space: Space, *, read_only: bool) -> None:
        self.space = space
        self.hidden_ino = space.fsd_ident[1]
        self._snapshots = space.keeps_snapshots()
        self.rights: Rights = AS_IT_IS
        self.limit: int | None = None
        self.trash = False
        self.gone = False
        """The space is not served now: everything fails until it is again."""
        self.read_only = read_only or space.record.read_only
        self.announcer = None if self.read_only else Announcer(space)
        self._room = 0
        self._room_at = float("-inf")

    def check_read(self, ctx: RequestContext) -> None:
        """Raise unless the caller may look."""
        if self.gone:
            raise StorageUnavailable("The space is not served now.")
        if self.rights is not AS_IT_IS:
            self.rights.check_read(ctx)

    def check_write(self, ctx: RequestContext) -> None:
        """Raise unless the caller may change the tree."""
        if self.read_only:
            raise ReadOnlySpace("The space is read-only.")
        lease.require(self.space)
        self.check_read(ctx)
        if self.rights is not AS_IT_IS:
            self.rights.check_write(ctx)

    def may_create(self, parent: Node, name: bytes) -> None:
        """Refuse the name of the internals at the space's root, and the filesystem's own."""
        if self.is_snapshots(name):
            raise PermissionError(1, "The name is the filesystem's own.")
        if name == INTERNAL and (parent.parent is None or parent.parent.export is None):
            raise PermissionError(1, "The name is fsd's own.")

    def hides(self, found: os.stat_result, name: bytes) -> bool:
        """Whether an entry is never shown, by the same rule as over every other door: `Space.is_hidden`."""
        return self.is_snapshots(name) or self.space.is_hidden(found, name)

    def is_snapshots(self, name: bytes) -> bool:
        """Whether this name is a filesystem's directory of snapshots, in whatever directory."""
        return name == SNAPSHOTS and self._snapshots

    # -- quota

    def take_room(self, extra: int) -> None:
        """Count `extra` bytes that are about to be added; QuotaExceeded if they don't fit."""
        if self.limit is None or extra <= 0:
            return
        if extra > self._room or time.monotonic() - self._room_at > _ROOM_AGE:
            self._room = max(0, self.limit - tree.usage(self.space))
            self._room_at = time.monotonic()
        if extra > self._room:
            raise QuotaExceeded(f"The space has room for {self._room} more bytes, not {extra}.")
        self._room -= extra

    def forget_room(self) -> None:
        """Something was deleted, or the limit is another one: ask again."""
        self._room_at = float("-inf")

    def sizes(self, bytes_each: int, on_disk: os.statvfs_result) -> tuple[int, int]:
        """(blocks in all, blocks free) as `df` shows them: the quota's, never more than the disk has."""
        limit = self.limit
        free = on_disk.f_bavail * on_disk.f_frsize
        if limit is None:
            return on_disk.f_blocks * on_disk.f_frsize // bytes_each, free // bytes_each
        left = quota.available(self.space, lambda _: limit)
        return limit // bytes_each, (left or 0) // bytes_each

    def role(self, ctx: RequestContext) -> Role | None:
        """The caller's role, MANAGER where the disk's own rights hold."""
        return Role.MANAGER if self.rights is AS_IT_IS else self.rights.role(ctx)

    def close(self) -> None:
        """Settle what was announced."""
        if self.announcer is not None:
            self.announcer.close()
        self.space.close()
