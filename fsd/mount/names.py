"""Handlers of names: looking up, listing, making, removing, renaming, linking."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError, readdir_reply

from fsd.core import operations
from fsd.core.names import join
from fsd.core.syscalls import rename_exchange, rename_noreplace
from fsd.mount.base import SET_IDS, Base, guarded, guarded_wait
from fsd.mount.exports import Export
from fsd.mount.loop import in_thread
from fsd.mount.nodes import ROOT_ID, Node
from fsd.mount.rights import AS_IT_IS

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, ReaddirToken, RequestContext

    from fsd.mount.files import Handle

_log = logging.getLogger(__name__)
_NOREPLACE, _EXCHANGE = 1, 2
_SPECIAL = (stat.S_IFCHR, stat.S_IFBLK)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ASIDE = b"\0"
"""Makes a path that no directory has, for the moment between two moves that are one exchange."""


class _Listing:
    """A directory that is open: its names as they were when reading began."""

    __slots__ = ("allowed", "names", "node")

    def __init__(self, node: Node, allowed: list[bytes] | None) -> None:
        self.node = node
        self.names: list[bytes] | None = None
        self.allowed = allowed


class Names(Base):
    """Handlers of names."""

    _listings: dict[int, _Listing]
    handles: dict[int, Handle]
    _next_listing = 0

    def _lookup(self, parent_id: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self.node(parent_id)
        if name in (b".", b".."):
            return self._lookup_dots(parent, name)
        export = parent.export
        if export is None:
            return self._lookup_space(parent, name, ctx)
        if export.gone:
            export.check_read(ctx)
        fd = parent.fd if parent.fd >= 0 else self.nodes.fd(parent)
        if parent.watch < 0:
            self.hear(parent)
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return self.nothing(parent, name)
        if (found.st_ino == export.hidden_ino or name[:1] == b".") and export.hides(found, name):
            raise FUSEError(errno.ENOENT)
        return self.found(parent, name, found)

    def _lookup_dots(self, node: Node, name: bytes) -> EntryAttributes:
        if name == b".." and node.parent is not None:
            node = node.parent
        node.lookups += 1
        if node.export is None:
            return self.virtual_root()
        return self.answer(node, self.nodes.status(node), 0.0)

    def _lookup_space(self, above: Node, name: bytes, ctx: RequestContext) -> EntryAttributes:
        export = self.spaces.get(name)
        if export is None or not self._sees(export, ctx):
            raise FUSEError(errno.ENOENT)
        fd = os.dup(export.space.root_fd())
        found = os.fstat(fd)
        node = self.nodes.by_key.get((found.st_dev, found.st_ino))
        if node is None:
            node = self.nodes.space_root(above, name, export, fd)
        else:
            os.close(fd)
            node.name = name
        node.lookups += 1
        # Not kept: the kernel's names are the same for all callers, these are not.
        return self.answer(node, found, 0.0)

    def _sees(self, export: Export, ctx: RequestContext) -> bool:
        return not export.gone and export.role(ctx) is not None

    # -- listing

    def _opendir(self, ident: int, ctx: RequestContext) -> int:
        node = self.node(ident)
        allowed = None
        if node.export is None:
            allowed = sorted(name for name, export in self.spaces.items() if self._sees(export, ctx))
        else:
            node.export.check_read(ctx)
        self._next_listing += 1
        self._listings[self._next_listing] = _Listing(node, allowed)
        return self._next_listing

    def _readdir(self, handle: int, start: int, token: ReaddirToken) -> None:
        listing = self._listings[handle]
        node = listing.node
        if listing.names is None or start == 0:
            listing.names = self._names(node) if listing.allowed is None else listing.allowed
        if start < 1 and not readdir_reply(token, b".", self._own(node), 1):
            return
        if start < 2 and not readdir_reply(token, b"..", self._own(node.parent or node), 2):
            return
        if node.export is None:
            self._reply_spaces(node, listing.names, start, token)
        else:
            self._reply(node, node.export, listing.names, max(start, 2), token)

    def _names(self, node: Node) -> list[bytes]:
        self.heard(node)
        fd = os.open(".", _DIRECTORY, dir_fd=self.nodes.fd(node))
        try:
            return os.listdir(b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)

    def hides_at(self, directory: Node, name: bytes) -> bool:
        """Whether an entry is not listed: one that is hidden, or vanished."""
        try:
            found = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return directory.export is None or directory.export.hides(found, name)

    def _own(self, node: Node) -> EntryAttributes:
        if node.export is None:
            return self.virtual_root()
        return self.answer(node, self.nodes.status(node), 0.0)

    def _reply(self, node: Node, export: Export, names: list[bytes], start: int, token: ReaddirToken) -> None:
        """Entries with their attributes, as many as fit; one that vanished since is left out."""
        fd = self.nodes.fd(node)
        refer, answer, tell = self.nodes.refer, self.answer, self.tell
        hidden = export.hidden_ino
        for index in range(start - 2, len(names)):
            name = names[index]
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if (found.st_ino == hidden or name[:1] == b".") and export.hides(found, name):
                continue
            child = refer(node, name, found)
            # Counted before it is sent, taken back if it does not fit: a new node must not be lost in between.
            child.lookups += 1
            if not readdir_reply(token, name, answer(child, found, tell(node, name, child.id)), index + 3):
                self.nodes.forget(child.id, 1)
                return

    def _reply_spaces(self, above: Node, names: list[bytes], start: int, token: ReaddirToken) -> None:
        for index in range(max(0, start - 2), len(names)):
            name = names[index]
            export = self.spaces.get(name)
            if export is None or export.gone:
                continue
            fd = os.dup(export.space.root_fd())
            found = os.fstat(fd)
            node = self.nodes.by_key.get((found.st_dev, found.st_ino))
            if node is None:
                node = self.nodes.space_root(above, name, export, fd)
            else:
                os.close(fd)
            node.lookups += 1
            if not readdir_reply(token, name, self.answer(node, found, 0.0), index + 3):
                self.nodes.forget(node.id, 1)
                return

    def _releasedir(self, handle: int) -> None:
        self._listings.pop(handle, None)

    # -- making

    def _into(self, parent_id: int, name: bytes, ctx: RequestContext) -> tuple[Node, Export, int]:
        """The directory that something new goes into, its space and descriptor."""
        parent, export = self.inside(parent_id)
        export.check_write(ctx)
        export.may_create(parent, name)
        self.heard(parent)
        return parent, export, self.nodes.fd(parent)

    def _made(self, parent: Node, fd: int, name: bytes) -> EntryAttributes:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        self._replaced(found)
        self.changed(parent, name)
        return self.found(parent, name, found)

    def _replaced(self, found: os.stat_result) -> None:
        """Something new with the number of a node the kernel still knows: that one is no more."""
        old = self.nodes.by_key.get((found.st_dev, found.st_ino))
        if old is not None and not old.handles:
            old.dead = True

    def _mkdir(self, parent_id: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        parent, export, fd = self._into(parent_id, name, ctx)
        os.mkdir(name, self.masked(mode, fd, ctx), dir_fd=fd)
        if export.rights is not AS_IT_IS or (ctx.uid, ctx.gid) != (os.geteuid(), os.getegid()):
            made = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                self.dress(export, fd, made, ctx, directory=True)
            finally:
                os.close(made)
        return self._made(parent, fd, name)

    def _mknod(
        self, parent_id: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent, export, fd = self._into(parent_id, name, ctx)
        if export.rights is not AS_IT_IS and stat.S_IFMT(mode) in _SPECIAL:
            raise FUSEError(errno.EPERM)
        mode = stat.S_IFMT(mode) | self.masked(mode, fd, ctx)
        os.mknod(name, mode, rdev, dir_fd=fd)
        self._own_by_name(export, fd, name, ctx)
        if mode & SET_IDS and export.rights is AS_IT_IS:
            self._mode_by_name(fd, name, mode)  # chown(2) took them away
        return self._made(parent, fd, name)

    def _symlink(self, parent_id: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        parent, export, fd = self._into(parent_id, name, ctx)
        os.symlink(target, name, dir_fd=fd)
        self._own_by_name(export, fd, name, ctx)
        return self._made(parent, fd, name)

    def _own_by_name(self, export: Export, fd: int, name: bytes, ctx: RequestContext) -> None:
        """The owner of what can't be opened: a link or a special file."""
        record = export.space.record
        uid, gid = (ctx.uid, ctx.gid) if export.rights is AS_IT_IS else (record.uid, record.gid)
        if (uid, gid) in ((None, None), (os.geteuid(), os.getegid())):
            return
        if os.fstat(fd).st_mode & stat.S_ISGID:
            gid = None
        os.chown(
            name, -1 if uid is None else uid, -1 if gid is None else gid, dir_fd=fd, follow_symlinks=False
        )

    def _mode_by_name(self, fd: int, name: bytes, mode: int) -> None:
        made = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            if stat.S_IFMT(os.fstat(made).st_mode) == stat.S_IFMT(mode):
                os.chmod(b"/proc/self/fd/%d" % made, stat.S_IMODE(mode))
        finally:
            os.close(made)

    def _link(self, ident: int, parent_id: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent, export, fd = self._into(parent_id, name, ctx)
        node = self.node(ident)
        if node.export is not export:
            raise FUSEError(errno.EXDEV)
        # The source is what the kernel means, not what stands at its name by now.
        with self.nodes.reach(node) as source:
            os.link(b"/proc/self/fd/%d" % source, name, dst_dir_fd=fd, follow_symlinks=True)
        if node.parent is not None:
            self.changed(node.parent, node.name)
        elif node.unnamed:
            self._named(node, export, parent, name)
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        self.changed(parent, name)
        node.lookups += 1
        return self.answer(node, found, self.tell(parent, name, node.id))

    def _named(self, node: Node, export: Export, parent: Node, name: bytes) -> None:
        """A file that was made without a name has one now: what is written through its handles is announced there."""
        node.parent, node.name = parent, name
        export.nameless.discard(node)
        for handle in self.handles.values():
            if handle.node is node and handle.writes and export.announcer is not None:
                handle.token = export.announcer.opened(self.nodes.path(parent), name)

    # -- removing and renaming

    def _victim(self, export: Export, fd: int, name: bytes) -> tuple[Node | None, os.stat_result]:
        """The node that stands at a name, kept reachable if it will still be in use without it."""
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if (found.st_ino == export.hidden_ino or name[:1] == b".") and export.hides(found, name):
            raise FUSEError(errno.ENOENT)
        node = self.nodes.by_key.get((found.st_dev, found.st_ino))
        if node is not None and node.fd < 0 and not node.is_dir and (node.handles or found.st_nlink > 1):
            try:
                self.nodes.fd(node)
            except OSError:
                pass  # its name leads elsewhere; handles still reach it
        return node, found

    def _lost(self, node: Node | None, found: os.stat_result) -> None:
        if node is None:
            return
        node.known = None
        if found.st_nlink <= 1 or node.is_dir:
            node.dead = True
            if node.handles and node.export is not None:
                node.export.lost_name(node)

    async def _unlink(self, parent_id: int, name: bytes, ctx: RequestContext) -> None:
        parent, export = self.inside(parent_id)
        export.check_write(ctx)
        fd = self.nodes.fd(parent)
        node, found = self._victim(export, fd, name)
        if export.trash and not stat.S_ISDIR(found.st_mode):
            path = join(self.nodes.path(parent), name)
            await in_thread(operations.delete, export.space, path)
            if node is not None:
                node.known = None
        else:
            os.unlink(name, dir_fd=fd)
            self._lost(node, found)
        self._removed(parent, export, name)

    def _removed(self, parent: Node, export: Export, name: bytes) -> None:
        parent.told.pop(name, None)
        export.forget_room()
        self.changed(parent, name)

    def _rmdir(self, parent_id: int, name: bytes, ctx: RequestContext) -> None:
        parent, export = self.inside(parent_id)
        export.check_write(ctx)
        fd = self.nodes.fd(parent)
        node, found = self._victim(export, fd, name)
        if node is not None and stat.S_ISDIR(found.st_mode):
            self.nodes.fd(node)
        os.rmdir(name, dir_fd=fd)
        self._lost(node, found)
        self._removed(parent, export, name)

    def _rename(
        self, old_id: int, old: bytes, new_id: int, new: bytes, flags: int, ctx: RequestContext
    ) -> None:
        source, export = self.inside(old_id)
        target, other = self.inside(new_id)
        if other is not export:
            raise FUSEError(errno.EXDEV)
        export.check_write(ctx)
        export.may_create(target, new)
        self.heard(target)
        here, there = self.nodes.fd(source), self.nodes.fd(target)
        node, found = self._victim(export, here, old)
        if node is not None and node.is_dir:
            self.nodes.fd(node)
        try:
            over, covered = self._victim(export, there, new)
        except FileNotFoundError:
            over, covered = None, None
        if flags == _NOREPLACE:
            rename_noreplace(here, old, there, new)
        elif flags == _EXCHANGE:
            export.may_create(source, old)
            rename_exchange(here, old, there, new)
        elif flags:
            raise FUSEError(errno.EINVAL)
        else:
            os.rename(old, new, src_dir_fd=here, dst_dir_fd=there)
        if covered is not None and (covered.st_dev, covered.st_ino) == (found.st_dev, found.st_ino):
            return  # two names of one file: nothing happens (rename(2))
        was, now = join(self.nodes.path(source), old), join(self.nodes.path(target), new)
        exchanged = flags == _EXCHANGE and covered is not None
        if covered is not None and not exchanged:
            self._lost(over, covered)
            export.forget_room()
        self._announce_moved(export, found, was, now, covered if exchanged else None)
        source.told.pop(old, None)
        target.told.pop(new, None)
        self._moved(node, target, new)
        if exchanged:
            self._moved(over, source, old)
        self.changed(target, new)
        self.changed(source, old)

    def _moved(self, node: Node | None, parent: Node, name: bytes) -> None:
        if node is not None:
            self.nodes.moved(node, parent, name)
            node.known = None
            parent.told[name] = node.id

    def _announce_moved(
        self, export: Export, found: os.stat_result, was: bytes, now: bytes, other: os.stat_result | None
    ) -> None:
        """What was announced below a directory is below its new place; `other` went the opposite way."""
        announcer = export.announcer
        if announcer is None:
            return
        back = other is not None and stat.S_ISDIR(other.st_mode)
        if back:
            announcer.moved(now, now + _ASIDE)
        if stat.S_ISDIR(found.st_mode):
            announcer.moved(was, now)
        if back:
            announcer.moved(now + _ASIDE, was)

    async def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        """The kernel gives lookups back. Nobody waits for an answer, so nothing may be raised at all."""
        for ident, count in inodes:
            try:
                if ident != ROOT_ID:
                    self.nodes.forget(ident, count)
            except Exception:
                _log.exception("forget failed")

    lookup = guarded(_lookup)
    opendir = guarded(_opendir)
    readdir = guarded(_readdir)
    releasedir = guarded(_releasedir)
    mkdir = guarded(_mkdir)
    mknod = guarded(_mknod)
    symlink = guarded(_symlink)
    link = guarded(_link)
    unlink = guarded_wait(_unlink)
    rmdir = guarded(_rmdir)
    rename = guarded(_rename)
