"""Handlers of files: their bytes and their attributes."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pyfuse3 import FileInfo, FUSEError, StatvfsData

from fsd.mount.base import guarded, guarded_wait
from fsd.mount.loop import away, in_thread
from fsd.mount.remote.base import Base
from fsd.mount.remote.errors import Refused
from fsd.mount.remote.nodes import Node

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, RequestContext, SetattrFields

    from fsd.mount.remote.contents import Content

T = TypeVar("T")
_FRAGMENT = 4096
_INLINE = 1 << 16
_UNKNOWN = 1 << 40
"""Bytes shown as free where the server does not say."""


class Handle:
    """An open file. It keeps the bytes it was opened with, whatever the server has later."""

    __slots__ = ("content", "node", "writes")

    def __init__(self, node: Node, content: Content, *, writes: bool) -> None:
        self.node, self.content, self.writes = node, content, writes


class Files(Base):
    """Opening, reading, writing, closing; attributes."""

    handles: dict[int, Handle]
    _next_handle = 0

    # -- opening

    async def _open(self, ident: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self.tree.node(ident)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if not node.dead and node.parent is not None and not self.sync.fresh(node.parent):
            await self.children(node.parent.ino)
        if writes:
            self.changeable(node)
            with away():
                await self.uploader.admit()
        content = self._content(node)
        if not writes and not content.complete and node.size:
            self.fetcher.missed(node)
        self.contents.open(content)
        info = self._opened(node, content, writes=writes)
        version = content.etag if not content.n else f"pending {content.n}"
        info.keep_cache = node.pages == version
        node.pages = version
        try:
            if flags & os.O_TRUNC and node.size:
                await self._truncate(node, 0)
        except BaseException:
            self._close(info.fh)
            raise
        return info

    def _content(self, node: Node) -> Content:
        """The bytes as they are now; another version than that of older handles if the server has one."""
        content = node.content
        if node.pending is not None or node.dead:
            if content is None:
                raise FUSEError(errno.ESTALE)
            return content
        if content is None or content.etag != node.etag:
            if node.id is None:
                raise FUSEError(errno.EACCES)  # no file: a link, a pipe
            content = node.content = self.contents.cached(node.id, node.etag, node.size)
        return content

    def _opened(self, node: Node, content: Content, *, writes: bool) -> FileInfo:
        self._next_handle += 1
        self.handles[self._next_handle] = Handle(node, content, writes=writes)
        node.handles += 1
        node.writers += writes
        return FileInfo(fh=self._next_handle)

    async def _create(
        self, parent_id: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        folder, children = await self.children(parent_id)
        self.changeable(folder)
        self.check_name(name)
        node = children.get(name)
        if node is not None:
            if flags & os.O_EXCL:
                raise FUSEError(errno.EEXIST)
            info = await self._open(node.ino, flags, ctx)
        else:
            if folder.dead or folder.id is None:
                raise FUSEError(errno.ENOENT)
            if self.uploader.bytes > self.contents.limit or len(self.uploader.waiting) > 1000:
                with away():
                    await self.uploader.admit()
            node, info = self._make(folder, name)
        node.lookups += 1
        return info, self.answer(node)

    def _make(self, folder: Node, name: bytes) -> tuple[Node, FileInfo]:
        node = self.tree.make(name, is_dir=False)
        node.permissions, node.parent = "RDNVW", folder
        try:
            change = self._with_room(self.uploader.create, folder, name, node)
        except OSError:
            self.tree.drop_unused(node)
            raise
        node.mtime_ns = time.time_ns()
        self.tree.touch(folder, name)
        self.tree.put(folder, name, node)
        folder.mtime_ns = node.mtime_ns
        info = self._opened(node, change.content, writes=True)
        node.pages = f"pending {change.n}"
        info.keep_cache = True
        return node, info

    async def _mknod(
        self, parent_id: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            raise FUSEError(errno.EPERM)
        info, entry = await self._create(parent_id, name, mode, os.O_EXCL | os.O_WRONLY, ctx)
        self._close(info.fh)
        return entry

    # -- reading and writing

    async def _read(self, fh: int, offset: int, size: int) -> bytes:
        content = self.handles[fh].content
        if not content.complete:
            size = min(size, max(0, content.size - offset))
        if not content.complete and content.missing(offset, size):
            with away():
                try:
                    await self.fetcher.ensure(content, offset, size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    return await self.fetcher.directly(content, offset, size)
        if not content.complete:
            self.fetcher.read_on(content, offset, size)
        if size <= _INLINE:
            return os.pread(content.fd, size, offset)
        buffer = bytearray(size)
        try:
            count = os.preadv(content.fd, [buffer], offset, os.RWF_NOWAIT)
            if count == size:
                return buffer  # type: ignore[return-value]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
        return await in_thread(os.pread, content.fd, size, offset)

    async def _write(self, fh: int, offset: int, data: bytes) -> int:
        handle = self.handles[fh]
        await self._changing(handle, whole=True)
        done = 0
        while done < len(data):
            done += self._with_room(os.pwrite, handle.content.fd, memoryview(data)[done:], offset + done)
        node = handle.node
        if handle.content is node.content:
            node.size = max(node.size, offset + len(data))
            node.mtime_ns = time.time_ns()
        return done

    async def _changing(self, handle: Handle, *, whole: bool) -> None:
        """The handle's bytes are about to be changed: all of them are here, and the change is written down."""
        node, content = handle.node, handle.content
        if node.dead:
            if whole and not content.complete:
                with away():
                    await self.fetcher.whole(content)
            return
        if node.pending is not None and node.pending.content is content:
            self.uploader.written(node.pending)
            return
        if whole and not content.complete:
            with away():
                await self.fetcher.whole(content)
        if node.content is not content:
            raise FUSEError(errno.ESTALE)  # opened before the server's file became another one
        if not node.dead and (node.pending is None or node.pending.content is content):
            self._with_room(self.uploader.change, node)

    def _with_room(self, work: Callable[..., T], *args: Any) -> T:
        """Do what takes room on the cache's disk; cached bytes give way. ENOSPC if there are none."""
        try:
            return work(*args)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self.contents.evict(all_of_it=True):
                raise
        return work(*args)

    def _flush(self, fh: int) -> None:
        # Nothing is to be said at close: the upload comes later. The kernel does not ask again.
        raise FUSEError(errno.ENOSYS)

    async def _fsync(self, fh: int, datasync: bool) -> None:
        node = self.handles[fh].node
        with away():
            await self.uploader.flush(node)

    async def _fsyncdir(self, fh: int, datasync: bool) -> None:
        """Folders are changed on the server before the answer; new files in them are its once they are closed."""

    def _release(self, fh: int) -> None:
        self._close(fh)

    def _close(self, fh: int) -> None:
        handle = self.handles.pop(fh)
        node, content = handle.node, handle.content
        node.handles -= 1
        node.writers -= handle.writes
        if handle.writes and not node.writers and node.pending is not None:
            self.uploader.closed(node)
        self.contents.close(content)
        if not node.handles:
            if node.pending is None and not node.dead:
                node.content = None
            self.tree.drop_unused(node)

    # -- attributes

    async def _getattr(self, ident: int, ctx: RequestContext) -> EntryAttributes:
        node = self.tree.node(ident)
        folder = node.parent
        if folder is not None and not node.dead and not self.sync.fresh(folder):
            try:
                await self.children(folder.ino)
            except Refused as error:
                if error.status != 404:
                    raise
        if node.dead and not node.handles and not node.is_dir:
            raise FUSEError(errno.ESTALE)
        return self.answer(node)

    async def _setattr(
        self, ident: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.changeable(self.tree.node(ident))
        if (fields.update_uid and attr.st_uid != self._uid) or (
            fields.update_gid and attr.st_gid != self._gid
        ):
            raise FUSEError(errno.EPERM)
        if fields.update_size:
            await self._truncate(node, attr.st_size)
        if fields.update_mtime:
            await self._set_time(node, attr.st_mtime_ns)
        # Modes are the role's: a chmod is heard and changes nothing, as on other filesystems without modes.
        return self.answer(node)

    async def _truncate(self, node: Node, size: int) -> None:
        if node.is_dir:
            raise FUSEError(errno.EISDIR)
        if node.size == size and node.pending is None:
            return
        content = self._content(node)
        self.contents.open(content)
        handle = Handle(node, content, writes=True)
        try:
            await self._changing(handle, whole=size > 0)
            self._with_room(os.ftruncate, content.fd, size)
            node.size, node.mtime_ns = size, time.time_ns()
        finally:
            self.contents.close(content)
        if not node.writers and node.pending is not None:
            self.uploader.closed(node)

    async def _set_time(self, node: Node, mtime_ns: int) -> None:
        """A folder's stays here: the server's is that of its newest entry, whatever a program says."""
        if node.is_dir or node.dead:
            node.mtime_ns = mtime_ns
            return
        async with self.uploader.still(node):
            if node.pending is not None or node.id is None:
                node.mtime_ns = mtime_ns
                if node.pending is not None:
                    self.uploader.written(node.pending)
                    if not node.writers:
                        self.uploader.closed(node)
                return
            folder, name, ident = node.parent, node.name, node.id
            assert folder is not None
            self.sync.busy(folder, name)
            try:
                with away():
                    await self.dav.set_time(ident, mtime_ns)
                    found = await self.dav.one(f"/dav/spaces/{ident}")
            finally:
                self.sync.done(folder, name, echoes=ident)
            if found is not None and found.size == node.size:
                self.now_has(node, found.etag)
            node.mtime_ns = mtime_ns
            self.tree.touch(folder, name)
            self.sync.changed(folder)

    def _access(self, ident: int, mask: int, ctx: RequestContext) -> bool:
        return True  # the kernel has checked (default_permissions)

    def _getxattr(self, ident: int, name: bytes, ctx: RequestContext) -> bytes:
        node = self.tree.node(ident)
        values = {b"user.fsd.id": node.id, b"user.fsd.etag": node.etag, b"user.fsd.space": node.space}
        value = values.get(name)
        if not value:
            raise FUSEError(errno.ENODATA)
        return value.encode()

    def _listxattr(self, ident: int, ctx: RequestContext) -> list[bytes]:
        return []

    def _setxattr(self, ident: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.EOPNOTSUPP)

    def _removexattr(self, ident: int, name: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.EOPNOTSUPP)

    def _statfs(self, ctx: RequestContext) -> StatvfsData:
        """Of the user's first space: a mount has only one figure."""
        used, free = next(iter(self.rooms.values()), (0, -3))
        free = free if free >= 0 else _UNKNOWN
        data = StatvfsData()
        data.f_bsize = data.f_frsize = _FRAGMENT
        data.f_blocks = (used + free) // _FRAGMENT
        data.f_bfree = data.f_bavail = free // _FRAGMENT
        data.f_files = data.f_ffree = data.f_favail = 1 << 32
        data.f_namemax = 255
        return data

    open = guarded_wait(_open)
    create = guarded_wait(_create)
    mknod = guarded_wait(_mknod)
    read = guarded_wait(_read)
    write = guarded_wait(_write)
    flush = guarded(_flush)
    fsync = guarded_wait(_fsync)
    fsyncdir = guarded_wait(_fsyncdir)
    release = guarded(_release)
    getattr = guarded_wait(_getattr)
    setattr = guarded_wait(_setattr)
    access = guarded(_access)
    getxattr = guarded(_getxattr)
    listxattr = guarded(_listxattr)
    setxattr = guarded(_setxattr)
    removexattr = guarded(_removexattr)
    statfs = guarded(_statfs)
