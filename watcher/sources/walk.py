"""Puts watches on directories: the part of the inotify source that lists, adds and removes.

Everything belongs to one thread. Listing goes in slices, so that events are looked at between them;
directories that events announced come before the background walk of a large tree.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from inotify_simple import INotify, flags

from fsd.core import ids
from fsd.core.names import join
from fsd.core.syscalls import statx
from watcher.nodes import Node, Root, absolute, below, hang, is_above, owner, place, unhang

log = logging.getLogger(__name__)

MASK = int(
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.CLOSE_WRITE
    | flags.MODIFY
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.DONT_FOLLOW
    | flags.EXCL_UNLINK
)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
_CHECK_EVERY = 32


class _Job(NamedTuple):
    """List one watched directory. `tell`: newly found ones are announced; `deep`: known ones are listed as
    well."""

    root: Root
    node: Node
    tell: bool
    deep: bool


class Walker:
    """The watched forest and what still has to be listed."""

    def __init__(self, inotify: INotify, max_watches: int = 0) -> None:
        self._inotify = inotify
        self._max = max_watches if max_watches > 0 else 1 << 62
        self.nodes: dict[int, Node] = {}
        self.young = False
        """Something was looked at on disk since the event queue was last seen empty, so the forest may be
        ahead of the events still queued, or have missed what moved away before it was looked for."""
        self._soon: deque[_Job] = deque()
        self._later: deque[_Job] = deque()
        self._news: list[Node] = []

    # -- roots

    def add_root(
        self,
        space: str,
        path: bytes,
        hidden: tuple[int, int],
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> Root:
        """Watch a root and queue its walk. OSError if that one watch is impossible."""
        wd = self._inotify.add_watch(path, MASK)
        if wd in self.nodes:
            raise FileExistsError(
                errno.EEXIST, "the directory is watched already, as part of another space", path
            )
        root = Root(space, path, hidden, wd, base, without)
        root.watched = 1
        self.nodes[wd] = root
        self.restart(root)
        return root

    def restart(self, root: Root) -> None:
        """List the whole tree again in the background; the end of that is not announced yet."""
        root.announced = False
        root.waiting += 1
        self._later.append(_Job(root, root, tell=False, deep=True))

    def retry(self, root: Root) -> None:
        """Try again to watch what could not be watched."""
        for node in list(root.starved):
            self.queue(node, deep=False)

    def unwatched(self, root: Root) -> list[bytes]:
        """Directories right below watched ones that have no watch themselves."""
        found: list[bytes] = []
        for node in list(root.starved):
            spot = place(node)
            if spot is None:
                root.starved.pop(node, None)
                continue
            try:
                names = self._subdirectories(root, absolute(*spot))
            except OSError:
                continue
            kids = node.kids or {}
            found += [join(spot[1], name) for name in names if name not in kids]
        return found

    # -- single nodes

    def discover(self, parent: Node, name: bytes, *, tell: bool) -> None:
        """A directory `name` appeared in `parent`: watch it now, list it soon."""
        spot = place(parent)
        if spot is None:
            return
        root, path = spot
        full = absolute(root, path + b"/" + name if path else name)
        self.young = True
        try:
            info = os.lstat(full)
        except OSError:
            return
        if (info.st_dev, info.st_ino) != root.hidden and full not in root.without:
            self._watch(root, parent, name, full, tell=tell, deep=False)

    def is_at(self, node: Node, full: bytes) -> bool:
        """True if the node's own inode is at this absolute path."""
        try:
            wd: int = self._inotify.add_watch(full, MASK)
            if wd not in self.nodes:
                self._inotify.rm_watch(wd)
        except OSError:
            return False
        return wd == node.wd

    def bind(self, node: Node, full: bytes) -> bool:
        """Find out which directory a node watches: whatever its place is called later, this stays. False if it is not
        at this absolute path, or not any more."""
        try:
            fd = os.open(full, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if self.is_at(node, b"/proc/self/fd/%d/." % fd):
                node.binding = ids.node_binding(fd, b"", statx(fd, b""))
        except OSError:
            return False
        finally:
            os.close(fd)
        return bool(node.binding)

    def queue(self, node: Node, *, deep: bool) -> None:
        """List a watched directory (again) and announce what is found new; `deep`: with all that is below
        it."""
        spot = place(node)
        if spot is not None:
            spot[0].waiting += 1
            self._soon.append(_Job(spot[0], node, tell=True, deep=deep))

    def forget(self, node: Node) -> None:
        """The kernel took the watch away."""
        home = owner(node)
        if self.nodes.pop(node.wd, None) is node and home is not None:
            home.watched -= 1
            home.starved.pop(node, None)
        unhang(node)

    def drop(self, node: Node) -> None:
        """Take the watches off `node` and all below it."""
        home = owner(node)
        unhang(node)
        for here in below(node):
            if self.nodes.get(here.wd) is not here:
                continue
            del self.nodes[here.wd]
            if home is not None:
                home.watched -= 1
                home.starved.pop(here, None)
            try:
                self._inotify.rm_watch(here.wd)
            except OSError:
                pass  # EINVAL: the kernel was quicker
        node.kids = None

    def change_root(self, node: Node, old: Root, new: Root) -> None:
        """`node` was moved to another space: only the counts have to follow."""
        for here in below(node):
            old.watched -= 1
            new.watched += 1
            if here in old.starved:
                new.starved[here] = old.starved.pop(here)

    # -- walking

    def busy(self) -> bool:
        """True if something is still to be listed."""
        return bool(self._soon or self._later)

    def step(self, deadline: float, events_waiting: Callable[[], int]) -> list[Node]:
        """List until the deadline; what events announced first, the rest only while no events wait.

        Answers the directories that are newly watched and whose entries nobody has been told of.
        """
        count = 0
        while self._soon or self._later:
            job = self._soon.popleft() if self._soon else self._later.popleft()
            job.root.waiting -= 1
            self._list(*job)
            count += 1
            if count % _CHECK_EVERY == 0 and (
                time.monotonic() > deadline or (not self._soon and events_waiting())
            ):
                break
        news, self._news = self._news, []
        return news

    def _list(self, root: Root, node: Node, tell: bool, deep: bool) -> None:
        spot = place(node)
        if spot is None or spot[0] is not root or root.lost:
            return
        self.young = True
        full = absolute(root, spot[1])
        root.starved.pop(node, None)
        try:
            names = self._subdirectories(root, full)
        except OSError as error:
            if error.errno not in _GONE:
                self._starve(root, node, error)
            return
        for name in set(node.kids or ()) - names:
            if node.kids is not None and name in node.kids:
                self.drop(node.kids[name])
        prefix = full if full.endswith(b"/") else full + b"/"
        for name in names:
            if prefix + name not in root.without:
                self._watch(root, node, name, prefix + name, tell=tell, deep=deep)

    @staticmethod
    def _subdirectories(root: Root, full: bytes) -> set[bytes]:
        """Names of the directories in an absolute path, without the hidden one."""
        hidden = root.hidden[1]
        with os.scandir(full) as entries:
            return {
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and (entry.inode() != hidden or _identity(entry) != root.hidden)
            }

    def _watch(self, root: Root, parent: Node, name: bytes, full: bytes, *, tell: bool, deep: bool) -> None:
        kid = parent.kids.get(name) if parent.kids is not None else None
        try:
            if kid is None and len(self.nodes) >= self._max:
                raise OSError(errno.ENOSPC, "as many watches as the setting watch.max allows")
            wd: int = self._inotify.add_watch(full, MASK)
        except OSError as error:
            if kid is not None:
                self.drop(kid)
            if error.errno not in _GONE:
                self._starve(root, parent, error)
            return
        if kid is None or kid.wd != wd:
            if kid is not None:
                self.drop(kid)
            node = self._node_for(root, parent, wd, full)
            if node is None:
                return
            hang(node, parent, name)
            if tell:
                self._news.append(node)
        elif deep:
            node = kid
        else:
            return
        root.waiting += 1
        (self._soon if tell else self._later).append(_Job(root, node, tell, deep))

    def _node_for(self, root: Root, parent: Node, wd: int, full: bytes) -> Node | None:
        """The object for a watch found below `parent`; None if the directory may not hang there.

        A known one was moved here, or is visible twice (a bind mount inside the space): its watch speaks for
        the first place, and the second is shown there, not entered.
        """
        node = self.nodes.get(wd)
        if node is None:
            node = self.nodes[wd] = Node(None, b"", wd)
            root.watched += 1
            return node
        spot = place(node)
        if spot is not None and absolute(*spot) != full and self.is_at(node, absolute(*spot)):
            return None
        if isinstance(node, Root) or is_above(node, parent):
            # Moves that are still in the queue turned this around: tried again when they are read.
            self._starve(root, parent, OSError(errno.EXDEV, "the directory is above itself"))
            return None
        if node.parent is not None and spot is not None:
            self.queue(node.parent, deep=False)  # something else is, or was, at the old place
        home = owner(node)
        if home is not None and home is not root:
            self.change_root(node, home, root)
        return node

    def _starve(self, root: Root, node: Node, error: OSError) -> None:
        """`node` or a child of it cannot be listed or watched: it is polled instead."""
        root.starved[node] = root.starved.get(node, 0) + 1
        kind = errno.errorcode.get(error.errno or 0, "unknown")
        if root.errors[kind] == 0:
            log.warning("a directory of %r cannot be watched and is polled instead: %s", root.path, error)
        root.errors[kind] += 1


def _identity(entry: os.DirEntry[bytes]) -> tuple[int, int]:
    try:
        info = entry.stat(follow_symlinks=False)
    except OSError:
        return (0, 0)
    return (info.st_dev, info.st_ino)
