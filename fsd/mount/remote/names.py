"""Handlers of names. What the server has is changed there before the answer; what it has not got yet, here alone."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError, readdir_reply

from fsd.mount.base import guarded, guarded_wait
from fsd.mount.loop import away
from fsd.mount.remote.base import Base
from fsd.mount.remote.dav import address
from fsd.mount.remote.errors import Refused
from fsd.mount.remote.nodes import ROOT, Node

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, ReaddirToken, RequestContext

_NOREPLACE = 1


def _missing() -> FUSEError:
    return FUSEError(errno.ENOENT)


class Names(Base):
    """Looking up, listing, making, removing, renaming."""

    _listings: dict[int, tuple[Node, list[tuple[bytes, Node]]]]
    _next_listing = 0

    async def _lookup(self, parent_id: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name in (b".", b".."):
            node = self.tree.node(parent_id)
            node = node.parent if name == b".." and node.parent is not None else node
        else:
            _, children = await self.children(parent_id)
            found = children.get(name)
            if found is None:
                return self.nothing()
            node = found
        node.lookups += 1
        return self.answer(node)

    async def _opendir(self, ident: int, ctx: RequestContext) -> int:
        node, children = await self.children(ident)
        self._next_listing += 1
        self._listings[self._next_listing] = (node, list(children.items()))
        return self._next_listing

    async def _readdir(self, handle: int, start: int, token: ReaddirToken) -> None:
        node, entries = self._listings[handle]
        if start == 0 and not self.sync.fresh(node) and not node.dead:
            _, children = await self.children(node.ino)
            entries = list(children.items())
            self._listings[handle] = (node, entries)
        if start < 1 and not readdir_reply(token, b".", self.answer(node), 1):
            return
        if start < 2 and not readdir_reply(token, b"..", self.answer(node.parent or node), 2):
            return
        for index in range(max(start, 2) - 2, len(entries)):
            name, child = entries[index]
            if child.dead or child.ino not in self.tree.by_ino:
                continue
            child.lookups += 1
            if not readdir_reply(token, name, self.answer(child), index + 3):
                self.tree.forget(child.ino, 1)
                return

    def _releasedir(self, handle: int) -> None:
        self._listings.pop(handle, None)

    # -- making

    def _new(self, folder: Node, name: bytes) -> None:
        self.changeable(folder)
        if folder.dead:
            raise _missing()
        self.check_name(name)

    async def _mkdir(self, parent_id: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        folder, children = await self.children(parent_id)
        self._new(folder, name)
        if name in children:
            raise FUSEError(errno.EEXIST)
        self.sync.busy(folder, name)
        try:
            with away():
                answer = await self.dav.make(folder.id or "", name)
        except Refused as error:
            if error.status == 405:
                folder.stale = True
            raise
        else:
            node = self.tree.make(name, is_dir=True, ident=answer.headers.get("oc-fileid") or None)
            node.children, node.permissions = {}, "RDNVCK"
            node.etag = node.listed = answer.etag
            node.mtime_ns = time.time_ns()
            if node.id is None:
                folder.stale = True
            self._place(folder, name, node)
            node.lookups += 1
            return self.answer(node)
        finally:
            self.sync.done(folder, name)

    def _place(self, folder: Node, name: bytes, node: Node) -> None:
        self.tree.touch(folder, name)
        self.tree.put(folder, name, node)
        folder.mtime_ns = time.time_ns()
        self.sync.changed(folder)

    # -- removing

    async def _unlink(self, parent_id: int, name: bytes, ctx: RequestContext) -> None:
        folder, children = await self.children(parent_id)
        self.changeable(folder)
        node = children.get(name)
        if node is None:
            raise _missing()
        async with self.uploader.still(node):
            with away():
                await self._keep_open(node)
                if node.id is not None:
                    await self._delete(folder, name, None)
            self.uploader.drop(node)
            self._removed(folder, name, node)

    async def _keep_open(self, node: Node) -> None:
        """Whoever has it open reads on after it is gone on the server: all of it has to be here."""
        if node.handles and node.content is not None and not node.content.complete:
            try:
                await self.fetcher.whole(node.content)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.ESTALE):
                    raise

    async def _delete(self, folder: Node, name: bytes, etag: str | None) -> None:
        self.sync.busy(folder, name)
        try:
            await self.dav.delete(address(folder.id or "", name), etag)
        except Refused as error:
            if error.status != 404:
                raise
            folder.stale = True  # somebody else was faster; it is gone as was wanted
        finally:
            self.sync.done(folder, name)

    def _removed(self, folder: Node, name: bytes, node: Node) -> None:
        self.tree.touch(folder, name)
        self.tree.kill(node)
        folder.mtime_ns = time.time_ns()
        self.sync.changed(folder)

    async def _rmdir(self, parent_id: int, name: bytes, ctx: RequestContext) -> None:
        folder, children = await self.children(parent_id)
        self.changeable(folder)
        node = children.get(name)
        if node is None:
            raise _missing()
        if not node.is_dir:
            raise FUSEError(errno.ENOTDIR)
        with away():
            await self._empty_on_the_server(node)
            await self._delete(folder, name, node.listed)
        self._removed(folder, name, node)

    async def _empty_on_the_server(self, node: Node) -> None:
        """ENOTEMPTY unless a folder has nothing in it, here and there; `listed` is the etag of just that."""
        if node.children or any(change.folder == node.id for change in self.uploader.waiting.values()):
            raise FUSEError(errno.ENOTEMPTY)
        node.stale = True
        live, self.sync.live = self.sync.live, True
        try:
            await self.sync.load(node)
        finally:
            self.sync.live = live
        if node.children:
            raise FUSEError(errno.ENOTEMPTY)

    # -- renaming

    async def _rename(
        self, old_id: int, old: bytes, new_id: int, new: bytes, flags: int, ctx: RequestContext
    ) -> None:
        source, names = await self.children(old_id)
        target, others = await self.children(new_id)
        node, over = names.get(old), others.get(new)
        self.changeable(source)
        self._new(target, new)
        if node is None:
            raise _missing()
        if flags not in (0, _NOREPLACE):
            raise FUSEError(errno.EINVAL)
        if flags == _NOREPLACE and over is not None:
            raise FUSEError(errno.EEXIST)
        if over is node:
            return
        if source.space != target.space:
            raise FUSEError(errno.EXDEV)
        async with self.uploader.still(node, over):
            with away():
                if over is not None:
                    await self._make_way(node, over)
                if node.id is not None:
                    await self._move(node, source, old, target, new, over)
            if node.id is None and over is not None:
                self.uploader.replaces(node, over)
            elif over is not None:
                self.uploader.drop(over)
            self.tree.touch(source, old)
            self.tree.take(node)
            source.mtime_ns = time.time_ns()
            self._place(target, new, node)
            self.uploader.moved(node, target, new)
            self.sync.changed(source)

    async def _make_way(self, node: Node, over: Node) -> None:
        if over.is_dir != node.is_dir:
            raise FUSEError(errno.EISDIR if over.is_dir else errno.ENOTDIR)
        if over.is_dir:
            await self._empty_on_the_server(over)
        else:
            await self._keep_open(over)

    async def _move(
        self, node: Node, source: Node, old: bytes, target: Node, new: bytes, over: Node | None
    ) -> None:
        """On the server, too. What stands there is replaced only if it is what was seen (EBUSY)."""
        covered = None
        if over is not None and over.id is not None:
            covered = over.listed if over.is_dir else over.etag
            if over.pending is not None:
                covered = over.pending.base
        self.sync.busy(source, old)
        self.sync.busy(target, new)
        echoes = None
        try:
            answer = await self.dav.move(node.id or "", target.id or "", new, covered)
            echoes = node.id if not node.is_dir else None
            self.now_has(node, answer.etag)
        except Refused as error:
            source.stale = target.stale = True
            if error.status == 412:
                raise FUSEError(errno.EBUSY) from None
            raise
        finally:
            self.sync.done(source, old)
            self.sync.done(target, new, echoes=echoes if covered is not None else None)

    def _link(self, ident: int, parent_id: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        raise FUSEError(errno.EPERM)  # link(2): the filesystem has no hard links

    def _symlink(self, parent_id: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        """The kernel gives lookups back. Nobody waits for an answer, so nothing is raised."""
        for ident, count in inodes:
            if ident != ROOT:
                self.tree.forget(ident, count)

    lookup = guarded_wait(_lookup)
    opendir = guarded_wait(_opendir)
    readdir = guarded_wait(_readdir)
    releasedir = guarded(_releasedir)
    mkdir = guarded_wait(_mkdir)
    unlink = guarded_wait(_unlink)
    rmdir = guarded_wait(_rmdir)
    rename = guarded_wait(_rename)
    link = guarded(_link)
    symlink = guarded(_symlink)
