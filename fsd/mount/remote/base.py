"""What all handlers of a remote mount share. A handler that asks the server does it within `away`, so that others go
on; what is known already is answered without awaiting."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from fsd.core.names import NAME_MAX, check_new_name
from fsd.mount.base import BRIEF, KEPT
from fsd.mount.loop import away
from fsd.mount.remote.nodes import ROOT, Node, Tree

if TYPE_CHECKING:
    from fsd.mount.remote.contents import Contents
    from fsd.mount.remote.dav import Dav
    from fsd.mount.remote.fetching import Fetcher
    from fsd.mount.remote.sync import Sync
    from fsd.mount.remote.uploads import Uploader

_BLOCK = 512


class Base:
    """The parts of a mount and answers about nodes."""

    def __init__(
        self,
        sync: Sync,
        dav: Dav,
        contents: Contents,
        fetcher: Fetcher,
        uploader: Uploader,
        *,
        read_only: bool,
    ) -> None:
        self.sync, self.dav, self.contents = sync, dav, contents
        self.fetcher, self.uploader = fetcher, uploader
        self.tree: Tree = sync.tree
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._mask = 0o555 if read_only else 0o777
        self._started = time.time_ns()
        self.rooms: dict[str, tuple[int, int]] = {}
        """(used, available) bytes by space."""

    async def children(self, ident: int) -> tuple[Node, dict[bytes, Node]]:
        """A folder and what is in it, as the server has it now."""
        node = self.tree.node(ident)
        if not self.sync.fresh(node) and not (node.dead and node.children is not None):
            with away():
                await self.sync.load(node)
        if node.children is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node, node.children

    def lasting(self) -> float:
        """Seconds the kernel may keep what it is told."""
        return KEPT if self.sync.live else BRIEF

    def answer(self, node: Node) -> EntryAttributes:
        """The attributes to send."""
        entry = EntryAttributes()
        entry.st_ino = node.ino
        entry.entry_timeout = entry.attr_timeout = self.lasting()
        entry.st_mode = self._mode(node)
        entry.st_uid, entry.st_gid = self._uid, self._gid
        entry.st_nlink = 0 if node.dead else 1
        if node.is_dir:
            entry.st_nlink = 2
        entry.st_size = 4096 if node.is_dir else node.size
        entry.st_blocks = -(-entry.st_size // _BLOCK)
        entry.st_blksize = 4096
        when = node.mtime_ns or self._started
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = when
        return entry

    def _mode(self, node: Node) -> int:
        if node.ino == ROOT:
            return stat.S_IFDIR | 0o555
        if node.is_dir:
            mode = 0o755 if "C" in node.permissions or "K" in node.permissions else 0o555
            return stat.S_IFDIR | mode & self._mask
        return stat.S_IFREG | (0o644 if "W" in node.permissions else 0o444) & self._mask

    def nothing(self) -> EntryAttributes:
        """The answer that there is no such entry, to be kept."""
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self.lasting()
        return entry

    def changeable(self, node: Node) -> Node:
        """EPERM above the spaces, EACCES where the user may only look. The kernel lets root do anything; an upload that
        is refused would be late to find it out."""
        if node.ino == ROOT:
            raise PermissionError(errno.EPERM, "Only what is inside a space can be changed.")
        if not self._mode(node) & 0o200:
            raise PermissionError(errno.EACCES, "This may only be looked at.")
        return node

    def check_name(self, name: bytes) -> None:
        """Whether the server will take a new name: EINVAL (NameRefused), ENAMETOOLONG."""
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        check_new_name(name)

    def now_has(self, node: Node, etag: str) -> None:
        """The server gave it another etag for the same bytes."""
        if not etag or node.etag == etag:
            return
        if node.pending is not None:
            node.pending.base = etag
        elif not node.is_dir and node.id is not None:
            content = node.content or self.contents.cached(node.id, node.etag, node.size)
            self.contents.rekey(content, etag)
            if node.pages == node.etag:
                node.pages = etag
        node.etag = etag
