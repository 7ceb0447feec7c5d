"""A space in a mount: its Space, what is announced of it, whose rights hold, how much room is left."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from fsd.core import lease, quota, storagequota
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
_STORAGE_AGE = 5.0
"""Seconds after which the storage is asked again for a quota of its own."""
_PART, _PART_MOST = 8, 32 << 20
"""How much of the room a mount promises itself at a time: one part of so many, and at most so many bytes."""


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
        self.nameless: set[Node] = set()
        """Open files without a name, made so or removed since."""
        self._room = self._kept = self._promised = 0
        self._room_at = self._storage_at = float("-inf")
        self._storage: storagequota.StorageQuota | None = None

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
        """Count `extra` bytes that the caller adds at once; QuotaExceeded if they don't fit.

        Other doors of the space hear of it before they are on the disk: a mount promises itself a part of the room,
        tells so (`Board.promise`), and asks again when it is used up or old. Near the limit it is what is asked for.
        """
        if self.limit is None or self.announcer is None or extra <= 0:
            return
        if extra > self._room or time.monotonic() - self._room_at > _ROOM_AGE:
            self._ask(self.limit, extra, self.announcer.slot)
        self._room -= extra
        self._promise(self._room + extra)

    def _ask(self, limit: int, extra: int, slot: int) -> None:
        self._room = 0
        with quota.granting(self.space, limit, slot) as found:
            self._kept = sum(os.fstat(node.handles[0]).st_size for node in self.nameless)
            room = found - self._kept
            if extra > room:
                self._promise(0)
                raise QuotaExceeded(f"The space has room for {max(0, room)} more bytes, not {extra}.")
            self._room = max(extra, min(room // _PART, _PART_MOST))
            self._promise(self._room)
        self._room_at = time.monotonic()

    def _promise(self, count: int) -> None:
        if self.announcer is not None and self._promised != (promised := count + self._kept):
            self._promised = promised
            self.space.board.promise(self.announcer.slot, promised)

    def rest(self) -> None:
        """Give back what was promised and not used; to be called every so often."""
        if self._promised and time.monotonic() - self._room_at > _ROOM_AGE:
            self._room = 0
            self._kept = sum(os.fstat(node.handles[0]).st_size for node in self.nameless)
            self._promise(0)

    def lost_name(self, node: Node) -> None:
        """The node has no name any more, or none yet, and is open: it takes room until it is closed."""
        self.nameless.add(node)
        self._room_at = float("-inf")

    def forget_room(self) -> None:
        """Something was deleted, or the limit is another one: ask again."""
        self._room_at = float("-inf")

    def forget_storage(self) -> None:
        """The limit is another one: ask again whether the storage keeps it."""
        self._storage_at = float("-inf")

    @property
    def counts(self) -> bool:
        """Whether writes have to come here to be counted: there is a quota, and the storage has none that is as
        small. What the storage stops, it stops at every write, by whatever way."""
        if self.limit is None:
            return False
        now = time.monotonic()
        if now - self._storage_at > _STORAGE_AGE:
            self._storage_at, self._storage = now, storagequota.of(self.space.root_fd())
        return self._storage is None or self._storage.limit > self.limit

    def sizes(self, bytes_each: int, on_disk: os.statvfs_result) -> tuple[int, int]:
        """(blocks in all, blocks free) as `df` shows them: the quota's, never more than the disk or its quota has."""
        limit = self.limit
        whole, free = on_disk.f_blocks * on_disk.f_frsize, on_disk.f_bavail * on_disk.f_frsize
        if (storage := storagequota.of(self.space.root_fd())) is not None:
            whole, free = min(whole, storage.limit), min(free, storage.free)
        if limit is not None:
            whole, free = min(whole, limit), min(free, quota.available(self.space, lambda _: limit) or 0)
        return whole // bytes_each, free // bytes_each

    def role(self, ctx: RequestContext) -> Role | None:
        """The caller's role, MANAGER where the disk's own rights hold."""
        return Role.MANAGER if self.rights is AS_IT_IS else self.rights.role(ctx)

    def close(self) -> None:
        """Settle what was announced."""
        if self.announcer is not None:
            self.announcer.close()
        self.space.close()
