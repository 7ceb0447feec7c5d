"""What all handlers share: the nodes, answers about them, announcements, and the catch-all.

A handler that raises anything but FUSEError ends the mount. So each one is wrapped: what the core or the system says
becomes its errno, everything else EIO and a line in the log. Handlers run in the event loop's thread, one at a time,
and most never await: between two awaits everything is atomic. The answer object is shared, as pyfuse3 sends it before
another handler can run.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pyfuse3 import EntryAttributes, FUSEError, get_sup_groups

from fsd.core.content import set_owner
from fsd.mount import errnos
from fsd.mount.exports import Export
from fsd.mount.nodes import Node, Nodes, stale
from fsd.mount.rights import AS_IT_IS

if TYPE_CHECKING:
    from pyfuse3 import RequestContext

_log = logging.getLogger(__name__)
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

KEPT = 60.0
"""Seconds the kernel keeps what it was told, where changes made elsewhere are heard."""
BRIEF = 1.0
"""The same where they are not."""
SET_IDS = stat.S_ISUID | stat.S_ISGID
_DEFAULT_ACL = b"system.posix_acl_default"
MOST_NAMES = 100_000
"""Names remembered as told of one directory; the kernel is told further ones for no time at all."""


def guarded(
    work: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """A handler of something that does not await."""

    async def handler(this: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(this, *args, **kwargs)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(errnos.number(error)) from None
        except Exception:
            _log.exception("%s failed", work.__name__)
            raise FUSEError(errno.EIO) from None

    return handler


def guarded_wait(
    work: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """A handler of something that awaits."""

    async def handler(this: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await work(this, *args, **kwargs)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(errnos.number(error)) from None
        except Exception:
            _log.exception("%s failed", work.__name__)
            raise FUSEError(errno.EIO) from None

    return handler


def _in_group(ctx: RequestContext, gid: int) -> bool:
    if ctx.gid == gid:
        return True
    try:
        return gid in get_sup_groups(ctx.pid)
    except (OSError, RuntimeError):
        return False  # the caller is gone


def taken(found: os.stat_result, ctx: RequestContext) -> int:
    """The set-id bits that a caller takes from a file by changing it (inode(7)): set-group-ID alone is no right to
    anybody in its group."""
    if ctx.uid == 0:
        return 0
    lost = found.st_mode & stat.S_ISUID
    if found.st_mode & stat.S_ISGID and (found.st_mode & stat.S_IXGRP or not _in_group(ctx, found.st_gid)):
        lost |= stat.S_ISGID
    return lost


def _links(node: Node, found: os.stat_result) -> int:
    """Of a directory, two and one for each directory in it (where the filesystem counts): at a space's root the
    internal one is there and not seen."""
    return found.st_nlink - 1 if found.st_nlink > 2 and node.parent is None else found.st_nlink


class Base:
    """The state of a mount and what handlers do with it."""

    def __init__(self, nodes: Nodes, *, caching: bool = True) -> None:
        self.nodes = nodes
        self.spaces: dict[bytes, Export] = {}
        """The spaces by name, in a mount of several."""
        self.hear: Callable[[Node], bool] = lambda node: False
        """Listen to a directory; False where that can't be had."""
        self._entry = EntryAttributes()
        self._kept = KEPT if caching else 0.0
        self._brief = BRIEF if caching else 0.0
        self._started = time.time_ns()

    # -- nodes

    def node(self, ident: int) -> Node:
        """The node of that number; ESTALE for one that was forgotten."""
        try:
            return self.nodes.by_id[ident]
        except KeyError:
            raise stale() from None

    def inside(self, ident: int) -> tuple[Node, Export]:
        """The node and its space; EPERM above the spaces."""
        node = self.node(ident)
        if node.export is None:
            raise PermissionError(errno.EPERM, "Only spaces can be changed.")
        return node, node.export

    def heard(self, directory: Node) -> bool:
        """Listen to a directory before the kernel is told of what is in it."""
        return directory.watch >= 0 or self.hear(directory)

    # -- answers

    def answer(self, node: Node, found: os.stat_result, lasting: float) -> EntryAttributes:
        """The attributes to send, kept for `lasting` seconds."""
        entry = self._entry
        entry.st_ino = node.id
        entry.generation = node.generation
        entry.entry_timeout = entry.attr_timeout = lasting
        shown = node.export.rights.shown if node.export is not None else None
        if shown is None:
            entry.st_mode = found.st_mode
            entry.st_uid, entry.st_gid = found.st_uid, found.st_gid
        else:
            entry.st_mode = shown.mode(found.st_mode)
            entry.st_uid, entry.st_gid = shown.uid, shown.gid
        entry.st_nlink = found.st_nlink if not node.is_dir or node.name else _links(node, found)
        entry.st_rdev = found.st_rdev
        entry.st_size, entry.st_blocks, entry.st_blksize = found.st_size, found.st_blocks, found.st_blksize
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = (
            found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)  # fmt: skip
        node.known = (found.st_ctime_ns, found.st_mtime_ns, found.st_size)
        return entry

    def found(self, parent: Node, name: bytes, found: os.stat_result) -> EntryAttributes:
        """The answer that leads the kernel to an entry: counts as one lookup."""
        node = self.nodes.refer(parent, name, found)
        node.lookups += 1
        return self.answer(node, found, self.tell(parent, name, node.id))

    def tell(self, parent: Node, name: bytes, ident: int) -> float:
        """Note what the kernel is told of a name (0: that there is none); for how many seconds it may keep it."""
        told = parent.told
        if name not in told and len(told) >= MOST_NAMES:
            return 0.0
        told[name] = ident
        return self._kept if parent.watch >= 0 else self._brief

    def nothing(self, parent: Node, name: bytes) -> EntryAttributes:
        """The answer that there is no such entry, to be kept."""
        entry = self._entry
        entry.st_ino = 0
        entry.entry_timeout = self.tell(parent, name, 0)
        return entry

    def virtual_root(self) -> EntryAttributes:
        """The attributes of the directory above the spaces."""
        entry = EntryAttributes()
        entry.st_ino = 1
        entry.st_mode = stat.S_IFDIR | 0o555
        entry.st_uid, entry.st_gid = os.geteuid(), os.getegid()
        entry.st_nlink = 2 + len(self.spaces)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._started
        entry.entry_timeout = entry.attr_timeout = 1.0
        return entry

    # -- modes

    def masked(self, mode: int, parent_fd: int, ctx: RequestContext) -> int:
        """The permissions of something new. The caller's umask counts only where no default ACL stands for it
        (acl(5), umask(2)); without the shim the kernel has applied it already."""
        mode = stat.S_IMODE(mode)
        if mode & ctx.umask:
            try:
                os.getxattr(b"/proc/self/fd/%d" % parent_fd, _DEFAULT_ACL)
            except OSError:
                mode &= ~ctx.umask
        return mode

    def strip(self, fd: int, found: os.stat_result, ctx: RequestContext) -> None:
        """Take the set-id bits from a file whose content the caller changes, as the kernel does on a disk."""
        if found.st_mode & SET_IDS and (lost := taken(found, ctx)):
            os.fchmod(fd, stat.S_IMODE(found.st_mode) & ~lost)

    # -- changes

    def changed(self, parent: Node, name: bytes) -> None:
        """The entry is another one, or there is none any more: said before the caller hears of it."""
        parent.known = None
        export = parent.export
        if export is not None and export.announcer is not None:
            export.announcer.changed(self.nodes.path(parent), name)

    def touched(self, node: Node) -> None:
        """The node itself was changed, under whatever name."""
        node.known = None
        if node.parent is not None and node.parent.export is not None:
            self.changed(node.parent, node.name)

    def dress(self, export: Export, parent_fd: int, fd: int, ctx: RequestContext, *, directory: bool) -> None:
        """Give something new its owner: the caller's, or in a mount that shows roles the space's own."""
        if export.rights is AS_IT_IS:
            if ctx.uid != os.geteuid() or ctx.gid != os.getegid():
                group = -1 if os.fstat(parent_fd).st_mode & stat.S_ISGID else ctx.gid
                made = stat.S_IMODE(os.fstat(fd).st_mode)
                os.fchown(fd, ctx.uid, group)
                if made & SET_IDS and not directory:
                    os.fchmod(fd, made)  # chown(2) takes them away
            return
        record = export.space.record
        set_owner(fd, record.uid, record.gid, parent_fd)
        mode = record.dir_mode if directory else record.file_mode
        if mode is not None:
            os.fchmod(fd, mode | (os.fstat(fd).st_mode & stat.S_ISGID))
