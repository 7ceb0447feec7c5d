"""What the kernel knows of the mount: nodes by number, how often each was looked up, and how to reach it on disk.

A directory is reached by its own descriptor (O_PATH, opened when needed, given back when there are too many), a file
by its directory and name. A file gets a descriptor of its own only where a name can't lead to it: it has several, or
lost its last while it is open. Everything here belongs to the thread of the event loop; nothing awaits.

Invariants: 1. `by_id` and `by_key` hold the same nodes. 2. A node stays while the kernel holds lookups or handles are
open. 3. The kernel tells two files of one number apart by `generation`, which no two nodes share. 4. What a
descriptor or a name leads to is compared with the node before it is used: a name may lead elsewhere by now (ESTALE).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fsd.core.names import join

if TYPE_CHECKING:
    from fsd.mount.exports import Export

ROOT_ID = 1
_NUMBER_BITS = 48
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Node:
    """A file or directory the kernel knows. `told` (directories): the names the kernel holds, and the node number it
    was told for each (0: that there is none). `known`: the times and size it was told last, None if it holds none."""

    __slots__ = (
        "backing", "data", "dead", "dev", "direct", "export", "fd", "generation", "handles", "id", "ino", "is_dir",
        "known", "lookups", "name", "parent", "path", "told", "watch",
    )  # fmt: skip

    def __init__(
        self, ident: int, generation: int, export: Export | None, parent: Node | None, name: bytes
    ) -> None:
        self.id = ident
        self.generation = generation
        self.export = export
        self.parent = parent
        self.name = name
        self.dev = self.ino = 0
        self.is_dir = False
        self.fd = -1
        self.lookups = 0
        self.handles: list[int] = []
        self.dead = False
        self.known: tuple[int, int, int] | None = None
        self.data: tuple[int, int] | None = None
        self.told: dict[bytes, int] = {}
        self.watch = -1
        self.path: tuple[int, bytes] = (-1, b"")
        self.backing = 0
        self.direct = 0

    @property
    def unnamed(self) -> bool:
        """Made without a name, and not linked yet."""
        return self.parent is None and not self.is_dir


def stale() -> OSError:
    """The name leads elsewhere by now, or nowhere; the kernel looks it up again before it tells the caller."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Nodes:
    """All nodes of a mount."""

    def __init__(self, max_descriptors: int) -> None:
        self.by_id: dict[int, Node] = {}
        self.by_key: dict[tuple[int, int], Node] = {}
        self.moves = 0
        """Rises when a directory moves: remembered paths don't hold any more."""
        self.on_forget: Callable[[Node], None] = lambda node: None
        self._generation = 0
        self._devices: dict[int, int] = {}
        self._open: dict[int, Node] = {}
        self._max = max_descriptors

    @property
    def devices(self) -> Iterable[int]:
        """The filesystems (st_dev) that the kernel was told of."""
        return self._devices

    def root(self, export: Export | None, fd: int) -> Node:
        """The node of the mountpoint; `fd` (owned by it from now on) is -1 for one that is on no disk."""
        node = Node(ROOT_ID, 0, export, None, b"")
        node.is_dir, node.lookups, node.fd = True, 1, fd
        if fd >= 0:
            found = os.fstat(fd)
            node.dev, node.ino = found.st_dev, found.st_ino
            self._devices[node.dev] = 0
            self.by_key[node.dev, node.ino] = node
        self.by_id[ROOT_ID] = node
        return node

    def space_root(self, above: Node, name: bytes, export: Export, fd: int) -> Node:
        """The node of a space below the root of a mount of several; owns `fd`."""
        found = os.fstat(fd)
        node = self._make(above, name, found)
        node.export, node.fd = export, fd
        return node

    def nameless(self, export: Export, found: os.stat_result) -> Node:
        """The node of a file that was made without a name. It is reached by its handles; a link names it."""
        old = self.by_key.get((found.st_dev, found.st_ino))
        node = (
            self._make(self.by_id[ROOT_ID], b"", found)
            if old is None
            else self._renew(old, self.by_id[ROOT_ID], b"", found)
        )
        node.export, node.parent = export, None
        return node

    def refer(self, parent: Node, name: bytes, found: os.stat_result) -> Node:
        """The node of what was found under a name; a new one where the number was used again."""
        node = self.by_key.get((found.st_dev, found.st_ino))
        if node is None:
            return self._make(parent, name, found)
        if node.dead or node.is_dir != stat.S_ISDIR(found.st_mode):
            return self._renew(node, parent, name, found)
        if node.fd < 0 or node.is_dir:
            if node.is_dir and (node.parent is not parent or node.name != name) and node.parent is not None:
                self.moves += 1
            if node.parent is not None:
                node.parent, node.name = parent, name
        return node

    def refer_at(self, parent: Node, name: bytes, fd: int) -> Node:
        """`refer`, for an entry of the directory `fd`."""
        return self.refer(parent, name, os.stat(name, dir_fd=fd, follow_symlinks=False))

    def _make(self, parent: Node, name: bytes, found: os.stat_result) -> Node:
        self._generation += 1
        node = Node(self._number(found), self._generation, parent.export, parent, name)
        node.dev, node.ino, node.is_dir = found.st_dev, found.st_ino, stat.S_ISDIR(found.st_mode)
        self.by_id[node.id] = node
        self.by_key[node.dev, node.ino] = node
        return node

    def _renew(self, old: Node, parent: Node, name: bytes, found: os.stat_result) -> Node:
        """The kernel has not forgotten the old file yet: its lookups count on, under another generation."""
        self._drop(old)
        node = self._make(parent, name, found)
        node.lookups, old.lookups = old.lookups, 0
        return node

    def _number(self, found: os.stat_result) -> int:
        device = self._devices.setdefault(found.st_dev, len(self._devices))
        number = found.st_ino if device == 0 else device << _NUMBER_BITS ^ found.st_ino
        while number in self.by_id or number <= ROOT_ID:
            number += 1 << 56
        return number

    def forget(self, ident: int, count: int) -> None:
        """The kernel gave `count` lookups back."""
        node = self.by_id.get(ident)
        if node is None:
            return
        node.lookups -= count
        if node.lookups <= 0 and not node.handles and ident != ROOT_ID:
            self._drop(node)

    def released(self, node: Node) -> None:
        """The last handle may have been closed."""
        if node.lookups <= 0 and not node.handles:
            self._drop(node)

    def _drop(self, node: Node) -> None:
        if self.by_id.get(node.id) is node:
            del self.by_id[node.id]
        if self.by_key.get((node.dev, node.ino)) is node:
            del self.by_key[node.dev, node.ino]
        if node.parent is not None and node.parent.told.get(node.name) == node.id:
            del node.parent.told[node.name]
        self.on_forget(node)
        if not node.handles:
            self.close(node)

    def close(self, node: Node) -> None:
        """Give the node's descriptor back."""
        if node.fd >= 0:
            self._open.pop(node.fd, None)
            os.close(node.fd)
            node.fd = -1

    def fd(self, node: Node) -> int:
        """A descriptor of the node itself (O_PATH); it stays the node's."""
        if node.fd >= 0:
            return node.fd
        if node.parent is None:
            raise stale()
        try:
            fd = os.open(node.name, _PATH, dir_fd=self.fd(node.parent))
        except FileNotFoundError:
            raise stale() from None
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (node.dev, node.ino):
            os.close(fd)
            raise stale()
        node.fd = fd
        if node.is_dir:
            self._open[fd] = node
            if len(self._open) > self._max:
                self._close_some()
        return fd

    @contextmanager
    def reach(self, node: Node) -> Iterator[int]:
        """The same, for the moment: a file keeps no descriptor."""
        if node.fd >= 0 or node.is_dir:
            yield self.fd(node)
            return
        if node.handles:
            yield node.handles[0]
            return
        fd = self.fd(node)
        node.fd = -1
        try:
            yield fd
        finally:
            os.close(fd)

    def _close_some(self) -> None:
        for fd in list(self._open)[: self._max // 4]:
            node = self._open[fd]
            # One that was removed can't be opened again.
            if not node.dead and node.parent is not None and not node.handles:
                self.close(node)

    def status(self, node: Node) -> os.stat_result:
        """The node's attributes on disk now; ESTALE if its name leads elsewhere or nowhere."""
        if node.fd >= 0:
            return os.fstat(node.fd)
        if node.handles:
            return os.fstat(node.handles[0])
        if node.parent is None:
            raise stale()
        try:
            found = os.stat(node.name, dir_fd=self.fd(node.parent), follow_symlinks=False)
        except FileNotFoundError:
            raise stale() from None
        if found.st_ino != node.ino or found.st_dev != node.dev:
            raise stale()
        return found

    def path(self, node: Node) -> bytes:
        """The path of a directory within its space."""
        moves, path = node.path
        if moves == self.moves:
            return path
        parent = node.parent
        if parent is None or parent.export is None:
            path = b""
        else:
            path = join(self.path(parent), node.name)
        node.path = (self.moves, path)
        return path

    def moved(self, node: Node, parent: Node, name: bytes) -> None:
        """The node has another place from now on."""
        old = node.parent
        if old is not None and old.told.get(node.name) == node.id:
            del old.told[node.name]
        node.parent, node.name = parent, name
        if node.is_dir:
            self.moves += 1

    def of(self, export: Export) -> Iterator[Node]:
        """All nodes of one space."""
        return iter([node for node in self.by_id.values() if node.export is export])
