"""The tree as this machine knows it: what the server told, with what was changed here and is not there yet.

A node keeps its number as long as the kernel or the tree has it. Numbers follow from the server's ids, so they are the
same after another mount; what was made here has one of its own. Everything belongs to the thread of the event loop, and
code between two awaits is atomic.

Invariants: 1. A node is its parent's child under its name, or dead, or its folder is not loaded. 2. `by_id` leads to
the node that has the server's id, if one is known. 3. What a listing says never replaces a node with a pending change.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fsd.mount.remote.multistatus import Found

if TYPE_CHECKING:
    import trio

    from fsd.mount.remote.contents import Content
    from fsd.mount.remote.pending import Pending

ROOT = 1
MOST_NODES = 400_000
"""Above this, folders nobody uses are forgotten and listed again when needed."""
Order = tuple[int, bytes | None]
"""What the kernel is to forget: a node's attributes, or a name in a node."""


class Node:
    """A file or folder. `etag`: of what `content` shows; `listed`: a folder's when it was listed; `held`: so many
    want no upload of it now."""

    __slots__ = (
        "children", "content", "dead", "etag", "handles", "held", "id", "ino", "is_dir", "listed", "listed_at",
        "loading", "lookups", "missed", "mtime_ns", "name", "pages", "parent", "pending", "permissions", "size",
        "stale", "touched", "writers",
    )  # fmt: skip

    def __init__(self, ino: int, name: bytes, *, is_dir: bool) -> None:
        self.ino, self.name, self.is_dir = ino, name, is_dir
        self.id: str | None = None
        self.parent: Node | None = None
        self.size = self.mtime_ns = 0
        self.etag = self.permissions = self.listed = ""
        self.listed_at = 0.0
        self.lookups = self.handles = self.writers = self.held = 0
        self.children: dict[bytes, Node] | None = None
        self.stale = self.dead = False
        self.touched: dict[bytes, int] = {}
        self.loading: trio.Event | None = None
        self.content: Content | None = None
        self.pending: Pending | None = None
        self.pages = ""
        self.missed = 0

    @property
    def space(self) -> str:
        """The id of its space; empty above the spaces."""
        node = self
        while node.id is None and node.parent is not None:
            node = node.parent
        return (node.id or "").partition("!")[0]

    @property
    def is_space(self) -> bool:
        return self.parent is not None and self.parent.ino == ROOT

    def path(self) -> bytes:
        """As people know it: the space's name first."""
        names = []
        node: Node | None = self
        while node is not None and node.ino != ROOT:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))


class Tree:
    """All nodes of a mount."""

    def __init__(self) -> None:
        self.root = Node(ROOT, b"", is_dir=True)
        self.root.lookups = 1
        self.by_ino: dict[int, Node] = {ROOT: self.root}
        self.by_id: dict[str, Node] = {}
        self.clock = 0
        """Counts changes made here: a listing that was asked for before one does not undo it."""
        self._given: dict[str, int] = {}

    def node(self, ino: int) -> Node:
        """The node of that number; ESTALE for one that was forgotten."""
        try:
            return self.by_ino[ino]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    # -- making and moving

    def make(self, name: bytes, *, is_dir: bool, ident: str | None = None) -> Node:
        """A node that has no place yet."""
        given = self._given.get(ident) if ident is not None else None
        seed = ident.encode() if ident is not None else os.urandom(16)
        ino = given or int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big") >> 1
        while ino <= ROOT or ino in self.by_ino:
            ino += 1
        node = Node(ino, name, is_dir=is_dir)
        self.by_ino[ino] = node
        if ident is not None:
            self.name_it(node, ident)
        return node

    def name_it(self, node: Node, ident: str) -> None:
        """The node has the server's id from now on."""
        if node.id is not None and self.by_id.get(node.id) is node:
            del self.by_id[node.id]
        if node.id is None and not node.is_dir:
            self._given[ident] = node.ino
        node.id = ident
        self.by_id[ident] = node

    def unname(self, node: Node) -> None:
        """The node has no id on the server any more."""
        if node.id is not None and self.by_id.get(node.id) is node:
            del self.by_id[node.id]
        node.id = None

    def put(self, parent: Node, name: bytes, node: Node) -> None:
        """Give a node its (new) place; whoever had it is dead."""
        self.take(node)
        assert parent.children is not None
        other = parent.children.get(name)
        if other is not None and other is not node:
            self.kill(other)
        parent.children[name] = node
        node.parent, node.name = parent, name

    def take(self, node: Node) -> None:
        """Take a node out of its place."""
        parent = node.parent
        if parent is not None and parent.children is not None and parent.children.get(node.name) is node:
            del parent.children[node.name]

    def kill(self, node: Node) -> None:
        """There is no such file or folder any more; open handles still have it."""
        self.take(node)
        for child in list((node.children or {}).values()):
            if child.pending is None:
                self.kill(child)
        node.dead = True
        if node.id is not None and self.by_id.get(node.id) is node:
            del self.by_id[node.id]
        self.drop_unused(node)

    def forget(self, ino: int, count: int) -> None:
        """The kernel gives lookups back."""
        node = self.by_ino.get(ino)
        if node is not None and ino != ROOT:
            node.lookups -= count
            if node.lookups <= 0:
                self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        """A node that is nowhere, and nobody has, is let go."""
        if node.lookups <= 0 and not node.handles and node.pending is None and not self.placed(node):
            if self.by_ino.get(node.ino) is node:
                del self.by_ino[node.ino]
            if node.id is not None and self.by_id.get(node.id) is node:
                del self.by_id[node.id]

    def placed(self, node: Node) -> bool:
        """Whether its folder is loaded and has it."""
        parent = node.parent
        return parent is not None and (parent.children or {}).get(node.name) is node

    def touch(self, folder: Node, name: bytes) -> None:
        """A name was changed here: listings asked for before now don't know it."""
        self.clock += 1
        folder.touched[name] = self.clock

    # -- what the server says

    def apply(
        self, folder: Node, own: Found | None, found: Iterable[tuple[Found, int]], since: int
    ) -> list[Order]:
        """Make a folder what a listing, asked for when the clock said `since`, says; what the kernel has to forget."""
        first = folder.children is None
        before = folder.children if folder.children is not None else {}
        folder.children = dict(before)
        orders: list[Order] = []
        names: set[bytes] = set()
        for each, mtime_ns in found:
            names.add(each.name)
            if folder.touched.get(each.name, 0) <= since:
                orders += self._one(folder, before.get(each.name), each, mtime_ns)
        for name, child in before.items():
            if name not in names and folder.touched.get(name, 0) <= since and child.pending is None:
                if folder.children.get(name) is child:
                    self._vanished(folder, child)
                orders.append((folder.ino, name))
        folder.touched = {name: at for name, at in folder.touched.items() if at > since}
        if own is not None:
            folder.listed = folder.etag = own.etag
            folder.permissions = own.permissions
            if folder.mtime_ns // 1_000_000_000 != own.mtime:
                folder.mtime_ns = own.mtime * 1_000_000_000
                orders.append((folder.ino, None))
        return [] if first else orders

    def _vanished(self, folder: Node, child: Node) -> None:
        """It is not in this folder any more. It may be in another one that is listed next: the kernel's node waits."""
        assert folder.children is not None
        del folder.children[child.name]
        if child.is_dir or child.lookups <= 0:
            self._lose(child)
        else:
            child.dead = True

    def _lose(self, node: Node) -> None:
        node.dead = True
        self.drop_unused(node)

    def _one(self, folder: Node, here: Node | None, found: Found, mtime_ns: int) -> list[Order]:
        assert folder.children is not None
        node = self.by_id.get(found.id) if found.id else None
        if here is not None and here.pending is not None and node is not here:
            return []  # what was changed here shows; its upload will find the other one
        orders: list[Order] = []
        if node is None or node.is_dir != found.is_dir:
            node = self.make(found.name, is_dir=found.is_dir, ident=found.id or None)
        if node is not here:
            if here is not None:
                folder.children.pop(found.name, None)
                self._vanished_from(here)
            self.take(node)
            folder.children[found.name] = node
            node.parent, node.name, node.dead = folder, found.name, False
            orders.append((folder.ino, found.name))
        return orders + self.update(node, found, mtime_ns)

    def _vanished_from(self, node: Node) -> None:
        node.dead = True
        self.drop_unused(node)

    def update(self, node: Node, found: Found, mtime_ns: int = 0) -> list[Order]:
        """What the server says of a node; changes made here stay as they are."""
        node.permissions = found.permissions
        if node.pending is not None:
            return []
        if node.is_dir:
            node.etag = found.etag
            if found.mtime != node.mtime_ns // 1_000_000_000:
                node.mtime_ns = mtime_ns or found.mtime * 1_000_000_000
                return [(node.ino, None)]
            return []
        if node.etag == found.etag:
            return []
        node.etag, node.size = found.etag, found.size
        if node.mtime_ns // 1_000_000_000 != found.mtime:
            node.mtime_ns = mtime_ns or found.mtime * 1_000_000_000
        return [(node.ino, None)]

    # -- keeping it small

    def loaded(self, top: Node | None = None) -> Iterator[Node]:
        """The folders below (and with) a node whose children are known."""
        stack = [top or self.root]
        while stack:
            node = stack.pop()
            if node.children is not None:
                yield node
                stack += [child for child in node.children.values() if child.is_dir]

    def shrink(self) -> None:
        """Forget folders nobody uses, when there are too many nodes."""
        if len(self.by_ino) < MOST_NODES:
            return
        for folder in sorted(self.loaded(), key=lambda each: each.listed_at)[:-64]:
            if folder.ino == ROOT or folder.is_space or folder.loading is not None:
                continue
            children = list((folder.children or {}).values())
            if any(c.lookups > 0 or c.handles or c.pending or c.children is not None for c in children):
                continue
            folder.children = None
            for child in children:
                self.drop_unused(child)
            if len(self.by_ino) < MOST_NODES * 3 // 4:
                return
