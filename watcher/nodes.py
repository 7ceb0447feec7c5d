"""The watched directories as objects that hang on their parents, so that renaming one re-hangs one object.

Pure: no system calls. One thread owns a forest. About 300 bytes a directory: slots, and a dict of children
only where there are children.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


class Node:
    """A watched directory. One that hangs nowhere (below no Root) still tells whose count it is in, by
    `Loose`."""

    __slots__ = ("binding", "kids", "name", "parent", "wd")

    def __init__(self, parent: Node | None, name: bytes, wd: int) -> None:
        self.parent = parent
        self.name = name
        self.wd = wd
        self.binding = b""
        """Of the directory that is watched (see `fsd.core.ids`), once something was heard of it."""
        self.kids: dict[bytes, Node] | None = None


class Loose(Node):
    """Parent of what was taken off the tree of `root` and may be hung up again or dropped; it does not know
    them."""

    __slots__ = ("root",)

    def __init__(self, root: Root) -> None:
        super().__init__(None, b"", -1)
        self.root = root


class Root(Node):
    """The top of a watched tree: the root of a space, or a filesystem inside it. `space` is its key, `path`
    the absolute path, `base` the path below the space's root, `hidden` the (device, inode) of the directory
    that is never watched, `without` the absolute paths of filesystems inside that others hear."""

    __slots__ = (
        "announced",
        "base",
        "errors",
        "hidden",
        "loose",
        "lost",
        "path",
        "space",
        "starved",
        "waiting",
        "watched",
        "without",
    )

    def __init__(
        self,
        space: str,
        path: bytes,
        hidden: tuple[int, int],
        wd: int,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        super().__init__(None, b"", wd)
        self.space = space
        self.path = path
        self.base = base
        self.hidden = hidden
        self.without = without
        self.loose = Loose(self)
        self.announced = False
        """The walk is over and its GAP was said."""
        self.lost = False
        """The root itself is gone from where it was."""
        self.waiting = 0
        """Directories still to be listed."""
        self.watched = 0
        self.starved: dict[Node, int] = {}
        """Nodes that have children without a watch, and how many."""
        self.errors: Counter[str] = Counter()
        """Why, by the name of the errno."""


def place(node: Node) -> tuple[Root, bytes] | None:
    """The root a node hangs on and its path below it; None if it hangs nowhere."""
    parts: list[bytes] = []
    here = node
    while here.parent is not None:
        parts.append(here.name)
        here = here.parent
    if not isinstance(here, Root):
        return None
    parts.reverse()
    return here, b"/".join(parts)


def absolute(root: Root, path: bytes) -> bytes:
    """The absolute path of `path` in the space."""
    if not path:
        return root.path
    return root.path + path if root.path.endswith(b"/") else root.path + b"/" + path


def in_space(root: Root, path: bytes) -> bytes:
    """The path below the space's root of `path` below this one."""
    return b"/".join(part for part in (root.base, path) if part)


def hang(node: Node, parent: Node, name: bytes) -> Node | None:
    """Hang `node` below `parent`; answers the other node that hung there (now loose), if any.

    The caller made sure that `parent` is not below `node`.
    """
    unhang(node)
    if parent.kids is None:
        parent.kids = {}
    other = parent.kids.get(name)
    if other is not None:
        home = owner(other)
        other.parent = home.loose if home is not None else None
    parent.kids[name] = node
    node.parent = parent
    node.name = name
    return other


def unhang(node: Node) -> None:
    """Take `node`, with all below it, off its parent."""
    parent = node.parent
    if parent is None:
        return
    home = owner(node)
    node.parent = home.loose if home is not None else None
    if parent.kids is not None and parent.kids.get(node.name) is node:
        del parent.kids[node.name]
        if not parent.kids:
            parent.kids = None


def owner(node: Node) -> Root | None:
    """The root in whose count a node is, hung or loose."""
    here = node
    while here.parent is not None:
        here = here.parent
    if isinstance(here, Loose):
        return here.root
    return here if isinstance(here, Root) else None


def is_above(node: Node, other: Node) -> bool:
    """True if `other` is `node` or hangs below it."""
    here: Node | None = other
    while here is not None:
        if here is node:
            return True
        here = here.parent
    return False


def below(node: Node) -> Iterator[Node]:
    """`node` and everything below it. The tree must not change meanwhile, except that a node already answered
    may lose its children."""
    stack = [node]
    while stack:
        here = stack.pop()
        if here.kids is not None:
            stack.extend(here.kids.values())
        yield here
