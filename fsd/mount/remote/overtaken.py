"""A change that somebody was faster with: theirs stays under the name, ours appears beside it as a conflict copy,
unless it is the same file elsewhere by now, or the same bytes.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import trio

from fsd.mount.remote.dav import Dav, address
from fsd.mount.remote.errors import Refused
from fsd.mount.remote.pending import Pending, conflict_name

if TYPE_CHECKING:
    from fsd.mount.remote.contents import Contents
    from fsd.mount.remote.ledger import Ledger
    from fsd.mount.remote.multistatus import Found
    from fsd.mount.remote.sync import Sync

_log = logging.getLogger(__name__)


class Overtaken:
    """Finds out why the server did not take changes. `conflicts`: names of the copies that were made."""

    def __init__(self, sync: Sync, dav: Dav, contents: Contents, ledger: Ledger, user: str) -> None:
        self._sync, self._dav, self._contents, self._ledger, self._user = sync, dav, contents, ledger, user
        self.conflicts: list[str] = []

    async def resolve(self, change: Pending) -> Found | None:
        """Find out why the server did not take a change. What the server has if it is just these bytes; None: send it
        again, as what it is by now. Offline, Refused."""
        node = change.node
        change.upload = None
        there = (
            await self._dav.one(address(change.folder, change.name)) if await self._folder(change) else None
        )
        if change.base is not None and node.id is not None:
            mine = there if there is not None and there.id == node.id else None
            if mine is None and (mine := await self._dav.one(address(node.id))) is not None:
                change.by_id = True  # somebody moved it: it is the same file there
            if mine is None:
                self._sync.tree.unname(node)  # somebody deleted it: ours is a new one
                change.base = None
                self._ledger.put(change.row())
                if there is None:
                    return None
            elif mine.etag == change.base:
                return None
            else:
                there = mine
        if there is None:
            return None
        if not there.is_dir and await self._same(change, there):
            return there
        self._set_aside(change)
        return None

    async def _folder(self, change: Pending) -> bool:
        """Whether its folder is there; else it goes to the root of the space, as a copy that somebody will find."""
        if await self._dav.one(address(change.folder)) is not None:
            return True
        space = change.folder.partition("!")[0]
        root = await self._dav.one(address(space))
        if root is None:
            raise Refused(404, "the space is not there any more")
        if change.folder == root.id:
            return True
        self._set_aside(change, root.id)
        return False

    async def _same(self, change: Pending, found: Found) -> bool:
        """Whether the server has just our bytes: perhaps it got them, and only its answer was lost."""
        fd = self._contents.open(change.content)
        try:
            if os.fstat(fd).st_size != found.size:
                return False
            if not found.size:
                return True
            at = 0
            async with self._dav.get(found.id, found.etag, 0, found.size, found.size) as got:
                async for chunk in got.chunks:
                    if await trio.to_thread.run_sync(os.pread, fd, len(chunk), at) != chunk:
                        return False
                    at += len(chunk)
            return at == found.size
        finally:
            self._contents.close(change.content)

    def _set_aside(self, change: Pending, folder: str | None = None) -> None:
        """Ours becomes a conflict copy; the name is the other's."""
        tree, node, old = self._sync.tree, change.node, change.name
        name = conflict_name(old, self._user, time.time())
        _log.warning("%r was changed elsewhere: ours becomes %r", old, name)
        self.conflicts.append(os.fsdecode(name))
        before = node.parent
        tree.unname(node)
        change.base, change.name, change.by_id = None, name, False
        change.folder = folder or change.folder
        there = tree.by_id.get(change.folder)
        tree.take(node)
        if there is not None and there.children is not None:
            tree.touch(there, name)
            tree.put(there, name, node)
            self._sync.order([(there.ino, name)])
        elif before is not None:
            node.parent, node.name = None, name
        if before is not None:
            before.stale = True
            tree.touch(before, old)
            before.touched.pop(old, None)
            self._sync.order([(before.ino, old), (before.ino, None), (node.ino, None)])
        self._ledger.put(change.row())
