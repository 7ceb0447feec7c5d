"""Handlers of attributes: what stat(2) shows and chmod, chown, utimes and truncate change; extended ones; statfs."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError, StatvfsData

from fsd.core import tree
from fsd.core.names import join
from fsd.mount.base import SET_IDS, Base, guarded, taken
from fsd.mount.exports import Export
from fsd.mount.files import FD
from fsd.mount.nodes import Node
from fsd.mount.rights import AS_IT_IS

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, RequestContext, SetattrFields

_OURS = b"user.fsd."
_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"
_BLOCK = 4096
_FIELDS = tuple(f"update_{each}" for each in ("atime", "mtime", "mode", "uid", "gid", "size"))
_PROC = b"/proc/self/fd/%d"
"""Leads to the node behind a descriptor and nowhere else, also to a symbolic link itself."""


def _refuse_foreign(name: bytes, ctx: RequestContext) -> None:
    """The kernel leaves `system.` to the filesystem (xattr(7)), and checks the POSIX ACLs alone among it."""
    if name.startswith(b"system.") and name not in (_ACL, _DEFAULT_ACL) and ctx.uid != 0:
        raise FUSEError(errno.EPERM)


class Attributes(Base):
    """Handlers of attributes."""

    def _getattr(self, ident: int, ctx: RequestContext) -> EntryAttributes:
        node = self.node(ident)
        if node.export is None:
            return self.virtual_root()
        kept = self._kept if node.parent is None or node.parent.watch >= 0 else self._brief
        return self.answer(node, self.nodes.status(node), kept)

    def _setattr(
        self, ident: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        node, export = self.inside(ident)
        export.check_write(ctx)
        if fields.update_size:
            # First: what the kernel takes of the mode with it is kept if it fails.
            self._truncate(node, export, attr.st_size, fh, ctx)
        if fields.update_uid or fields.update_gid:
            self._chown(
                node,
                export,
                attr.st_uid if fields.update_uid else -1,
                attr.st_gid if fields.update_gid else -1,
                ctx,
            )
        if fields.update_mode:
            self._chmod(node, export, stat.S_IMODE(attr.st_mode))
        if fields.update_atime or fields.update_mtime:
            now = self.nodes.status(node)
            times = (
                attr.st_atime_ns if fields.update_atime else now.st_atime_ns,
                attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns,
            )
            if node.handles:
                os.utime(node.handles[0], ns=times)
            else:
                with self.nodes.reach(node) as fd:
                    os.utime(_PROC % fd, ns=times)
        if not any(getattr(fields, each) for each in _FIELDS):
            self._chown_to_nobody(node, export, ctx)
        self.touched(node)
        return self.answer(node, self.nodes.status(node), self._brief)

    def _chown(self, node: Node, export: Export, uid: int, gid: int, ctx: RequestContext) -> None:
        shown = export.rights.shown
        if shown is not None:
            if uid not in (-1, shown.uid) or gid not in (-1, shown.gid):
                raise FUSEError(errno.EPERM)
            return
        with self.nodes.reach(node) as fd:
            found = os.fstat(fd)
            os.chown(_PROC % fd, uid, gid)
            if found.st_mode & SET_IDS and not node.is_dir and (lost := taken(found, ctx)):
                # The disk's kernel has taken what it takes from root.
                os.chmod(_PROC % fd, stat.S_IMODE(os.fstat(fd).st_mode) & ~lost)

    def _chown_to_nobody(self, node: Node, export: Export, ctx: RequestContext) -> None:
        """Changes ctime, and takes set-id bits (chown(2)). The kernel asks the same before somebody writes to a file
        that has some: if it is not the owner, writing takes them, and chown(2) would not be theirs to call."""
        found = self.nodes.status(node)
        if node.is_dir or not found.st_mode & SET_IDS or ctx.uid in (0, found.st_uid):
            self._chown(node, export, -1, -1, ctx)

    def _chmod(self, node: Node, export: Export, mode: int) -> None:
        if export.rights is not AS_IT_IS:
            # A role's mode bits are not the disk's: what is kept of them is whether the file is a program.
            now = stat.S_IMODE(self.nodes.status(node).st_mode)
            mode = now & ~0o111 | (now >> 2 & 0o111 if mode & 0o100 else 0) if not node.is_dir else now
            if mode == now:
                return
        if node.handles:
            os.fchmod(node.handles[0], mode)
        else:
            with self.nodes.reach(node) as fd:
                os.chmod(_PROC % fd, mode)

    def _truncate(self, node: Node, export: Export, size: int, fh: int | None, ctx: RequestContext) -> None:
        found = self.nodes.status(node)
        before = found.st_size
        if export.limit is not None:
            export.take_room(size - before)
        if fh is not None:
            os.ftruncate(fh & FD, size)
            self.strip(fh & FD, found, ctx)
            return
        with self.nodes.reach(node) as here:
            if not stat.S_ISREG(os.fstat(here).st_mode):
                raise FUSEError(errno.EINVAL)
            fd = os.open(_PROC % here, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self.strip(fd, found, ctx)
        finally:
            os.close(fd)
        if size < before:
            export.forget_room()

    def _readlink(self, ident: int, ctx: RequestContext) -> bytes:
        node, _ = self.inside(ident)
        with self.nodes.reach(node) as fd:
            return os.readlink(b"", dir_fd=fd)

    def _access(self, ident: int, mask: int, ctx: RequestContext) -> bool:
        return True  # the kernel has checked (default_permissions)

    # -- extended attributes

    def _getxattr(self, ident: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == b"security.capability":
            # Asked for at each write. Programs here can't have capabilities: the mount is nosuid.
            raise FUSEError(errno.ENODATA)
        node = self.node(ident)
        export = node.export
        if export is None:
            raise FUSEError(errno.ENODATA)
        if name.startswith(_OURS):
            return self._virtual(node, export, name)
        if export.rights is not AS_IT_IS:
            if name == _ACL and export.rights.acl is not None:
                program = node.is_dir or bool(self.nodes.status(node).st_mode & 0o111)
                return export.rights.acl[0 if program else 1]
            if not name.startswith(b"user."):
                raise FUSEError(errno.ENODATA)
        _refuse_foreign(name, ctx)
        with self.nodes.reach(node) as fd:
            return os.getxattr(_PROC % fd, name)

    def _virtual(self, node: Node, export: Export, name: bytes) -> bytes:
        """`user.fsd.…`: what the core knows of the entry. Our own attributes on disk are nobody's business."""
        if name == b"user.fsd.space":
            return export.space.record.id.encode()
        if name not in (b"user.fsd.id", b"user.fsd.etag", b"user.fsd.treesize"):
            raise FUSEError(errno.ENODATA)
        if node.unnamed:
            raise FUSEError(errno.ENODATA)
        entry = tree.lookup(export.space, self._path(node))
        if name == b"user.fsd.id":
            return f"{export.space.record.id}!{entry.id}".encode()
        return entry.etag.encode() if name == b"user.fsd.etag" else b"%d" % entry.size

    def _path(self, node: Node) -> bytes:
        if node.parent is None or node.parent.export is None:
            return b""
        return join(self.nodes.path(node.parent), node.name)

    def _refuse_attribute(self, export: Export, name: bytes, ctx: RequestContext) -> None:
        if name.startswith(_OURS):
            raise FUSEError(errno.EPERM)
        _refuse_foreign(name, ctx)
        if name == b"security.capability":
            raise FUSEError(errno.EOPNOTSUPP)
        if export.rights is not AS_IT_IS and not name.startswith(b"user."):
            # As a filesystem without ACLs answers: cp -p and tar then keep the mode and say nothing.
            raise FUSEError(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.EPERM)

    def _setxattr(self, ident: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        node, export = self.inside(ident)
        export.check_write(ctx)
        self._refuse_attribute(export, name, ctx)
        with self.nodes.reach(node) as fd:
            os.setxattr(_PROC % fd, name, value)
        self.touched(node)

    def _removexattr(self, ident: int, name: bytes, ctx: RequestContext) -> None:
        node, export = self.inside(ident)
        export.check_write(ctx)
        self._refuse_attribute(export, name, ctx)
        with self.nodes.reach(node) as fd:
            os.removexattr(_PROC % fd, name)
        self.touched(node)

    def _listxattr(self, ident: int, ctx: RequestContext) -> list[bytes]:
        node = self.node(ident)
        if node.export is None:
            return []
        try:
            with self.nodes.reach(node) as fd:
                names = [os.fsencode(name) for name in os.listxattr(_PROC % fd)]
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return []
            raise
        kinds: tuple[bytes, ...] = (b"user.",)
        if node.export.rights is AS_IT_IS:
            # Who may not read trusted attributes is not told of them (xattr(7)).
            kinds += (b"system.", b"security.") + ((b"trusted.",) if ctx.uid == 0 else ())
        return [name for name in names if name.startswith(kinds) and not name.startswith(_OURS)]

    def _statfs(self, ctx: RequestContext) -> StatvfsData:
        root = self.node(1)
        export = root.export
        fd = root.fd
        if export is None:
            if not self.spaces:
                return StatvfsData()
            fd = next(iter(self.spaces.values())).space.root_fd()
        found = os.fstatvfs(fd)
        data = StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK
        if export is not None:
            data.f_blocks, data.f_bavail = export.sizes(_BLOCK, found)
            data.f_bfree = data.f_bavail
            if export.limit is None:
                data.f_bfree = found.f_bfree * found.f_frsize // _BLOCK
        else:
            blocks = (found.f_blocks, found.f_bfree, found.f_bavail)
            data.f_blocks, data.f_bfree, data.f_bavail = (n * found.f_frsize // _BLOCK for n in blocks)
        data.f_files, data.f_ffree, data.f_favail = found.f_files, found.f_ffree, found.f_favail
        data.f_namemax = found.f_namemax
        return data

    getattr = guarded(_getattr)
    setattr = guarded(_setattr)
    readlink = guarded(_readlink)
    access = guarded(_access)
    getxattr = guarded(_getxattr)
    setxattr = guarded(_setxattr)
    removexattr = guarded(_removexattr)
    listxattr = guarded(_listxattr)
    statfs = guarded(_statfs)
