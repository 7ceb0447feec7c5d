"""What is changed elsewhere is forgotten by the kernel: changes in the tree, over WebDAV, of rights.

The kernel keeps names and attributes for a minute. Every directory it was told of is listened to (inotify) before it
is told. What is heard carries no action: each name is compared with what the kernel was told of it, so our own
changes, which are heard as well, cost a comparison and nothing else. Where a directory can't be listened to, answers
are kept for a second only.

Forgetting a name may wait for a request that is being served. So it is done by a thread, never by a handler.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pyfuse3
import trio

from fsd.mount.nodes import Node, Nodes

if TYPE_CHECKING:
    from fsd.mount.exports import Export
    from fsd.mount.shim import Compare

_log = logging.getLogger(__name__)

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED, _CREATE, _DELETE = 0xC0, 0x100, 0x200
_ONLYDIR, _EXCL_UNLINK = 0x01000000, 0x04000000
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_WANTED = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _ONLYDIR | _EXCL_UNLINK
_EVENT = struct.Struct("iIII")
_GATHER = 0.001
"""Seconds between the first event and the look: what belongs together is looked at once."""
_SLICE = 200
"""Names that are compared before requests get their turn."""
_libc = ctypes.CDLL(None, use_errno=True)

Order = tuple[int, bytes | None]
"""What the kernel is to forget: a node's attributes, or a name in a node."""


class Coherence:
    """Listens to the directories the kernel knows. All but the invalidations happens in the loop's thread."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watched: dict[int, Node] = {}
        self._refused = self._fd < 0
        self.pausing: Callable[[int], object] = lambda fd: None
        """Told what of `descriptors` is worth waking up for at the moment; -1 for nothing."""
        self.compiled: Compare | None = None
        nodes.on_forget = self.forgotten

    @property
    def descriptors(self) -> list[int]:
        """What is waited for."""
        return [self._fd] if self._fd >= 0 else []

    def listen(self, node: Node) -> bool:
        """Hear of changes in a directory from now on; False where the system has no more watches."""
        if self._refused or not node.is_dir or node.export is None:
            return False
        path = b"/proc/self/fd/%d" % self._nodes.fd(node)
        watch = _libc.inotify_add_watch(self._fd, path, _WANTED)
        if watch < 0:
            if ctypes.get_errno() == errno.ENOSPC:
                self._refused = True
                _log.warning("no more inotify watches: changes made elsewhere are seen after a second")
            return False
        other = self._watched.get(watch)
        if other is not None and other is not node:
            other.watch = -1
        self._watched[watch] = node
        node.watch = watch
        return True

    def forgotten(self, node: Node) -> None:
        """The kernel knows the directory no more."""
        if node.watch >= 0:
            if self._watched.get(node.watch) is node:
                del self._watched[node.watch]
                _libc.inotify_rm_watch(self._fd, node.watch)
            node.watch = -1

    async def run(self) -> None:
        """Compare what is heard, for ever."""
        if self._fd < 0:
            return
        while True:
            self.pausing(self._fd)
            await trio.lowlevel.wait_readable(self._fd)
            self.pausing(-1)
            await trio.sleep(_GATHER)
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                continue
            if self.compiled is not None:
                orders, rest = self.compiled(data, self._watched)
                await self._give(orders)
                await self._compare_all(self._heard(rest))
            else:
                await self._compare_all(self._heard(_events(data)))

    def _heard(self, events: Iterable[tuple[int, int, bytes]]) -> dict[tuple[Node, bytes], None]:
        heard: dict[tuple[Node, bytes], None] = {}
        for watch, mask, name in events:
            if mask & _OVERFLOW:
                heard.update(dict.fromkeys(self._everything()))
                continue
            node = self._watched.get(watch)
            if node is None:
                continue
            if mask & _IGNORED:
                del self._watched[watch]
                node.watch = -1
                continue
            heard[node, name] = None
        return heard

    def _everything(self) -> list[tuple[Node, bytes]]:
        """All the kernel was told: events were lost."""
        return [(node, name) for node in self._watched.values() for name in [b"", *node.told]]

    async def _compare_all(self, heard: dict[tuple[Node, bytes], None]) -> None:
        if not heard:
            return
        orders: dict[Order, None] = {}
        for index, (node, name) in enumerate(heard):
            if index % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            try:
                orders.update(dict.fromkeys(self._compare(node, name)))
            except OSError as error:
                _log.info("%r is not compared: %s", name, error)
        await self._give(list(orders))

    async def _give(self, orders: list[Order]) -> None:
        """Have the kernel forget."""
        # Attributes alone are forgotten without waiting for anybody (the kernel takes no lock of the inode for it).
        forget_all([order for order in orders if order[1] is None])
        names = [order for order in orders if order[1] is not None]
        if names:
            await trio.to_thread.run_sync(forget_all, names)

    def _compare(self, node: Node, name: bytes) -> list[Order]:
        """What of an entry the kernel holds and is no longer so."""
        orders: list[Order] = []
        if node.known is not None and _differs(node, self._nodes.status(node)):
            node.known = None
            orders.append((node.id, None))
        told = node.told.get(name) if name else None
        if told is None:
            return orders
        try:
            found = os.stat(name, dir_fd=self._nodes.fd(node), follow_symlinks=False)
        except FileNotFoundError:
            if told:
                del node.told[name]
                orders.append((node.id, name))
            return orders
        child = self._nodes.by_key.get((found.st_dev, found.st_ino))
        if child is None or child.id != told or child.dead:
            del node.told[name]
            orders.append((node.id, name))
        elif child.known is not None and _differs(child, found):
            child.known = None
            orders.append((child.id, None))
        return orders

    async def renew(self, export: Export) -> None:
        """Rights or state of a space changed: the kernel forgets all attributes and ACLs it has of it."""
        orders: list[Order] = [(node.id, None) for node in self._nodes.of(export)]
        for node in self._nodes.of(export):
            node.known = None
        await trio.to_thread.run_sync(forget_all, orders)

    def close(self) -> None:
        """Stop listening."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Watch, mask and name of what inotify(7) said."""
    at = 0
    while at < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield watch, mask, data[at : at + length].rstrip(b"\0")
        at += length


def _differs(node: Node, found: os.stat_result) -> bool:
    return node.known != (found.st_ctime_ns, found.st_mtime_ns, found.st_size)


def forget_all(orders: list[Order]) -> None:
    """Have the kernel forget; what it does not hold is as good. Called in a thread."""
    for ident, name in orders:
        try:
            if name is None:
                pyfuse3.invalidate_inode(ident, attr_only=True)
            else:
                pyfuse3.invalidate_entry(ident, name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ENODEV, errno.ENOTCONN):
                _log.info("the kernel does not forget %r of node %d: %s", name, ident, error)
