"""Handlers of files: opening, reading, writing, what makes it durable, closing.

A handle's number is its descriptor's. With kernel passthrough (`shim`) reads and writes never come here; all handles
of a file that are open at the same time then have to be of that kind, or go past the page cache (fuse.h, FOPEN_*). A
file with set-id bits is not passed through (`setids.c`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from pyfuse3 import FileInfo, FUSEError

from fsd.core.hosts import NETWORK, mounts
from fsd.mount.base import SET_IDS, Base, guarded, guarded_wait
from fsd.mount.exports import Export
from fsd.mount.loop import in_thread
from fsd.mount.nodes import Node, stale

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, RequestContext

    from fsd.mount.shim import Shim

_PASSED = (
    os.O_ACCMODE | os.O_APPEND | os.O_DSYNC | os.O_SYNC | os.O_NOATIME | os.O_TRUNC | os.O_DIRECT | os.O_EXCL
)
"""Flags of open(2) that reach the disk; O_DIRECT only if the kernel itself reads and writes there."""
_INLINE = 1 << 14
"""Bytes that are read at once; more only if the page cache has them, else by a thread."""
UNNAMED = b"/"
"""The name of what is created without one (O_TMPFILE): the shim hands such requests on as CREATE of this."""
FD = 0xFFFFFFFF
"""The part of a handle's number that is the descriptor."""
ACCOUNTED = 1 << 32
"""Set in the number of a handle whose writes are counted against a quota: nothing may go past us there."""


def open_regular(name: bytes, flags: int, mode: int, where: int) -> int:
    """open(2) of a regular file, or one that is to be made. ESTALE if something else stands there by now: opening a
    pipe may wait for ever (fifo(7)), and opening a device may do something."""
    try:
        fd = os.open(name, flags | os.O_NONBLOCK, mode, dir_fd=where)
    except BlockingIOError:
        return _open_leased(name, flags, where)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise stale() from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise stale()
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return fd


def _open_leased(name: bytes, flags: int, where: int) -> int:
    """The same, where somebody has to give a lease back first (fcntl(2)); the kernel takes it after a time."""
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=where)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise stale()
        return os.open(b"/proc/self/fd/%d" % found, flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
    finally:
        os.close(found)


class Handle:
    """An open file."""

    __slots__ = ("appends", "node", "token", "writes")

    def __init__(self, node: Node, *, writes: bool) -> None:
        self.node = node
        self.writes = writes
        self.appends = False
        self.token = 0


class Files(Base):
    """Handlers of open files."""

    handles: dict[int, Handle]
    shim: Shim | None = None
    _late: dict[int, bool]

    def _open(self, ident: int, flags: int, ctx: RequestContext) -> FileInfo:
        node, export = self.inside(ident)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if writes:
            export.check_write(ctx)
        else:
            export.check_read(ctx)
        direct = self._directly(node, export, writes)
        passed = flags & _PASSED & ~os.O_EXCL & ~(0 if direct else os.O_DIRECT)
        if node.fd >= 0:
            fd = os.open(b"/proc/self/fd/%d" % node.fd, passed | os.O_CLOEXEC)
        elif node.parent is None:
            raise stale()
        else:
            where = self.nodes.fd(node.parent)
            try:
                fd = open_regular(node.name, passed | os.O_NOFOLLOW | os.O_CLOEXEC, 0, where)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                raise stale() from None
        found = os.fstat(fd)
        if found.st_ino != node.ino or found.st_dev != node.dev:
            os.close(fd)
            raise stale()
        if flags & os.O_TRUNC:
            self.strip(fd, found, ctx)
            export.forget_room()
            self.touched(node)
        return self._opened(node, export, fd, found, writes=writes, direct=direct)

    def _create(
        self, parent_id: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent, export = self.inside(parent_id)
        export.check_write(ctx)
        export.may_create(parent, name)
        where = parent.fd if parent.fd >= 0 else self.nodes.fd(parent)
        if parent.watch < 0:
            self.hear(parent)
        direct = self.shim is not None and self.shim.passthrough and not export.counts
        passed = flags & _PASSED & ~(0 if direct else os.O_DIRECT)
        passed |= os.O_NOFOLLOW | os.O_CLOEXEC
        mode = self.masked(mode, where, ctx)
        if name == UNNAMED:
            fd = os.open(".", passed | os.O_TMPFILE, mode, dir_fd=where)
        else:
            fd = open_regular(name, passed | os.O_CREAT, mode, where)
        try:
            self.dress(export, where, fd, ctx, directory=False)
            found = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        old = self.nodes.by_key.get((found.st_dev, found.st_ino))
        if old is not None and not old.handles and found.st_nlink == 1 and found.st_size == 0:
            old.dead = True
        if name == UNNAMED:
            node = self.nodes.nameless(export, found)
            node.lookups += 1
            entry = self.answer(node, found, 0.0)
        else:
            parent.known = None
            entry = self.found(parent, name, found)
            node = self.nodes.by_key[found.st_dev, found.st_ino]
        info = self._opened(node, export, fd, found, writes=True, direct=direct)
        if node.unnamed:
            export.lost_name(node)
        return info, entry

    def _directly(self, node: Node, export: Export, writes: bool) -> bool:
        """Whether the kernel may read and write the disk's file itself: never past a quota that only we keep."""
        shim = self.shim
        return shim is not None and shim.passthrough and (bool(node.backing) or not export.counts)

    def _opened(
        self, node: Node, export: Export, fd: int, found: os.stat_result, *, writes: bool, direct: bool
    ) -> FileInfo:
        accounted = writes and export.counts
        backed = False
        number = fd | ACCOUNTED if accounted else fd
        handle = Handle(node, writes=writes)
        handle.appends = accounted and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
        info = FileInfo(fh=number)
        if direct and (node.backing or not (node.handles or found.st_mode & SET_IDS)):
            backed = self._back(node, fd, info, accounted=accounted)
        if direct and not backed:
            # The daemon reads and writes after all, from buffers that are not aligned.
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        if not backed and not info.direct_io:
            # What the kernel still has of the content is right if the file is as it was at the last close.
            info.keep_cache = node.data == (found.st_mtime_ns, found.st_size)
        if writes and export.announcer is not None and node.parent is not None:
            handle.token = export.announcer.opened(self.nodes.path(node.parent), node.name)
        node.handles.append(fd)
        self.handles[number] = handle
        if backed and self.shim is not None:
            self.shim.use(node.backing)  # last: the next answer is this one
        return info

    def _back(self, node: Node, fd: int, info: FileInfo, *, accounted: bool) -> bool:
        """Have the kernel read and write `fd` itself, if it can. One registration serves all handles of a file; beside
        it a writer that is counted goes past the page cache."""
        shim = self.shim
        assert shim is not None
        info.keep_cache = False
        if accounted:
            info.direct_io = True
            return False
        if not node.backing:
            try:
                node.backing = shim.register(fd)
            except OSError:
                return False
        return True

    async def _read(self, fh: int, offset: int, size: int) -> bytes:
        fd = fh & FD
        if size <= _INLINE:
            return os.pread(fd, size, offset)
        buffer = bytearray(size)
        try:
            count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
            if count == size:
                return buffer  # type: ignore[return-value]
            if offset + count >= os.fstat(fd).st_size:
                del buffer[count:]
                return buffer  # type: ignore[return-value]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
        return await in_thread(os.pread, fd, size, offset)

    def _write(self, fh: int, offset: int, data: bytes) -> int:
        handle = self.handles[fh]
        export, fd = handle.node.export, fh & FD
        if export is not None and export.limit is not None:
            # What is appended goes to the end wherever the kernel thinks that is (pwrite(2), BUGS).
            end = offset + len(data) - os.fstat(fd).st_size
            export.take_room(len(data) if handle.appends else end)
        handle.node.known = None
        done = os.pwrite(fd, data, offset)
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        return done

    async def _flush(self, fh: int) -> None:
        """Each close(2): says what the file's own filesystem says there. Where none of the mount's says anything the
        kernel does not ask again, which saves a request at each close."""
        handle = self.handles[fh]
        if self._speaks_late(handle.node.dev):
            if handle.writes:
                await in_thread(os.close, os.dup(fh & FD))
        elif not any(map(self._speaks_late, self.nodes.devices)):
            raise FUSEError(errno.ENOSYS)

    def _speaks_late(self, device: int) -> bool:
        """Whether writes to a filesystem may fail as late as at close(2): those of other machines, and other FUSE."""
        known = self._late.get(device)
        if known is None:
            number = f"{os.major(device)}:{os.minor(device)}"
            kinds = {mount.fstype for mount in mounts() if mount.dev == number}
            known = any(kind in NETWORK or kind == "9p" or kind.startswith("fuse") for kind in kinds)
            self._late[device] = known
        return known

    async def _fsync(self, fh: int, datasync: bool) -> None:
        await in_thread(os.fdatasync if datasync else os.fsync, fh & FD)

    async def _fsyncdir(self, handle: int, datasync: bool) -> None:
        listing = self._listings[handle]  # type: ignore[attr-defined]
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.nodes.fd(listing.node))
        try:
            await in_thread(os.fsync, fd)
        finally:
            os.close(fd)

    def _release(self, fh: int) -> None:
        handle = self.handles.pop(fh)
        node, fd = handle.node, fh & FD
        node.handles.remove(fd)
        export = node.export
        try:
            found = os.fstat(fd)
            if handle.writes:
                node.known = (found.st_ctime_ns, found.st_mtime_ns, found.st_size)
            node.data = (found.st_mtime_ns, found.st_size)
            if handle.token and export is not None and export.announcer is not None:
                export.announcer.closed(handle.token)
        finally:
            os.close(fd)
            if not node.handles and export is not None and node in export.nameless:
                export.nameless.discard(node)
                export.forget_room()
            if not node.handles and node.backing and self.shim is not None:
                backing, node.backing = node.backing, 0
                self.shim.unregister(backing)
            self.nodes.released(node)

    open = guarded(_open)
    create = guarded(_create)
    read = guarded_wait(_read)
    write = guarded(_write)
    flush = guarded_wait(_flush)
    fsync = guarded_wait(_fsync)
    fsyncdir = guarded_wait(_fsyncdir)
    release = guarded(_release)
