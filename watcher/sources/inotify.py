"""Hints from inotify(7): one instance, one watch for each directory of all spaces.

A new directory is watched first and listed then, so that nothing made in it meanwhile is missed. A watch
follows the inode: renaming a directory re-hangs one node object. What the walk saw may be newer than the
events still queued; that heals by itself, because each later change has its own event, and a directory that
is renamed while walked nodes are younger than the queue is walked again.

Paths are used, not descriptors (twice as fast). A directory swapped for a symbolic link during a walk can so
be looked through for a moment; the swap's own event takes those watches away again, and hints from there are
harmless.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from struct import Struct

from inotify_simple import INotify, flags

from watcher.hint import Hint, Kind
from watcher.nodes import Node, Root, absolute, hang, in_space, is_above, place, unhang
from watcher.sources.base import SourceStatus
from watcher.sources.queue import MAX_BYTES, Queue, raise_queue_limit
from watcher.sources.walk import Walker

log = logging.getLogger(__name__)

_HEAD = Struct("iIII")
_MODIFY = int(flags.MODIFY)
_ATTRIB = int(flags.ATTRIB)
_ISDIR = int(flags.ISDIR)
_NEW = int(flags.CREATE | flags.MOVED_TO)
_MOVED_FROM = int(flags.MOVED_FROM)
_MOVED_TO = int(flags.MOVED_TO)
_SELF = int(flags.IGNORED | flags.UNMOUNT | flags.DELETE_SELF | flags.MOVE_SELF)
_SPECIAL = _SELF | _ISDIR
_OVERFLOW = int(flags.Q_OVERFLOW)

RETRY_EVERY = 30.0
"""Seconds between attempts to watch what could not be watched."""
LATE = 1.0
"""Seconds to wait for the events that say where a directory went."""
POLL_EVERY = 5.0
"""Seconds between looks at what cannot be watched; each directory's own cost paces it further."""


class InotifySource:
    """See `watcher.sources.base.Source`."""

    name = "inotify"

    def __init__(
        self, *, max_watches: int = 0, max_bytes: int = MAX_BYTES, bell: threading.Event | None = None
    ) -> None:
        """`max_watches` 0: as many as the kernel allows. OSError (EMFILE) if no more instances are
        allowed."""
        raise_queue_limit(self.name)
        self.inotify = INotify(nonblocking=True)
        self.queue = Queue(self.inotify.fileno(), self.name, bell=bell, max_bytes=max_bytes)
        self.walker = Walker(self.inotify, max_watches)
        self.events = 0
        """Events looked at."""
        self._roots: dict[tuple[str, bytes], Root] = {}
        self._overflows: Counter[str] = Counter()
        self._hard: dict[Node, set[bytes]] = {}
        self._soft: dict[Node, set[bytes]] = {}
        self._meta: dict[Node, set[bytes]] = {}
        self._hints: list[Hint] = []
        self._leaving: dict[int, tuple[Node, Root, bytes]] = {}
        self._whole: list[Node] = []
        self._late: dict[Node, float] = {}
        """Since when something was heard in directories that are not where the forest has them."""
        self._next_retry = self._next_poll = 0.0
        self._heard = 0.0

    def add(
        self,
        space: str,
        root: bytes,
        hidden: tuple[int, int],
        *,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        old = self._roots.pop((space, base), None)
        if old is not None:
            self.walker.drop(old)
        self._roots[space, base] = self.walker.add_root(space, root, hidden, base, without)

    def remove(self, space: str) -> None:
        for key in [key for key in self._roots if key[0] == space]:
            self.walker.drop(self._roots.pop(key))

    def spaces(self) -> set[str]:
        return {space for space, _ in self._roots}

    def _of(self, space: str) -> list[Root]:
        return [root for key, root in self._roots.items() if key[0] == space]

    def busy(self) -> bool:
        return self.queue.held() > 0 or self.walker.busy()

    def wait(self, timeout: float) -> None:
        self.queue.wait(timeout)

    def wake(self) -> None:
        self.queue.wake()

    def close(self) -> None:
        self.queue.close()
        self.inotify.close()

    def status(self, space: str) -> SourceStatus | None:
        roots = self._of(space)
        if not roots:
            return None
        return SourceStatus(
            self.name,
            all(root.announced for root in roots),
            sum(root.watched for root in roots),
            sum(sum(root.starved.values()) for root in roots),
            self._overflows[space],
            self.queue.held(),
            dict(sum((root.errors for root in roots), Counter[str]())),
        )

    def unwatched(self, space: str) -> list[bytes]:
        return [in_space(root, path) for root in self._of(space) for path in self.walker.unwatched(root)]

    def lost(self, space: str) -> bool:
        """True if a root itself is no longer watched (moved, removed, unmounted): `add` the space again."""
        return any(root.lost for root in self._of(space))

    def collect(self, budget: float) -> list[Hint]:
        now = self._heard = time.monotonic()
        deadline = now + budget
        while (chunk := self.queue.take()) is not None:
            self._apply(chunk)
            if time.monotonic() > deadline:
                break
        if self.queue.lost:
            self.queue.lost = False
            self._overflow()
        self._flush()
        self._walk(deadline)
        self._timers(now)
        hints, self._hints = self._hints, []
        return hints

    # -- events

    def _apply(self, chunk: bytes) -> None:
        """Sort the events of one read. The loop is the cost of a busy tree: about a microsecond an event."""
        nodes, hard, soft, meta = self.walker.nodes, self._hard, self._soft, self._meta
        unpack, end, pos, count = _HEAD.unpack_from, len(chunk), 0, 0
        while pos < end:
            wd, mask, cookie, length = unpack(chunk, pos)
            pos += 16 + length
            count += 1
            node = nodes.get(wd)
            if node is None:
                if mask & _OVERFLOW:
                    self._overflow()
                continue
            name = chunk[pos - length : pos].rstrip(b"\0")
            if mask & _SPECIAL:
                self._directory_event(node, mask, cookie, name)
                continue
            into = soft if mask == _MODIFY else meta if mask == _ATTRIB else hard
            names = into.get(node)
            if names is None:
                into[node] = {name}
            else:
                names.add(name)
        self.events += count

    def _directory_event(self, node: Node, mask: int, cookie: int, name: bytes) -> None:
        if mask & _SELF:
            self._self_event(node, mask)
            return
        if not name:
            return  # the directory's own attributes: its parent's event says so too
        self._hard.setdefault(node, set()).add(name)
        kid = node.kids.get(name) if node.kids is not None else None
        if mask & _MOVED_FROM:
            if kid is not None:
                self._leave(kid, cookie)
        elif mask & _MOVED_TO and cookie in self._leaving:
            self._arrive(node, name, cookie)
        elif mask & _NEW or (kid is None and mask & _ATTRIB):
            # ATTRIB: it may have become readable. What is new is told; of the rest the parent's hint is
            # enough.
            self.walker.discover(node, name, tell=True)
        elif mask & int(flags.DELETE) and kid is not None:
            # IN_IGNORED follows on its own watch; the name may be taken again before that is read.
            unhang(kid)

    def _self_event(self, node: Node, mask: int) -> None:
        if isinstance(node, Root):
            node.lost = True
            if mask & int(flags.IGNORED):
                self.walker.drop(node)
            return
        spot = place(node)
        if mask & int(flags.MOVE_SELF):
            self._moved_self(node)
        elif mask & int(flags.UNMOUNT) and spot is not None and node.parent is not None:
            self._hard.setdefault(node.parent, set()).add(node.name)
            self._say(spot[0], Kind.SUBTREE, spot[1])
        if mask & int(flags.IGNORED):
            self.walker.forget(node)

    def _moved_self(self, node: Node) -> None:
        """The last of a rename's events. A node that nobody took in has left; one that hangs is where it
        hangs."""
        spot = place(node)
        for cookie, (leaving, _, _) in list(self._leaving.items()):
            if leaving is node and spot is None:
                del self._leaving[cookie]
                self.walker.drop(node)
                return
        if spot is None or self.walker.is_at(node, absolute(*spot)):
            return
        # Its old or new parent is not watched, or it moved again: a later event says where, or it is told
        # here.
        parent = node.parent
        self.walker.drop(node)
        if parent is not None and (above := place(parent)) is not None:
            self._say(above[0], Kind.DIRECTORY, above[1])
            self.walker.queue(parent, deep=False)

    def _leave(self, kid: Node, cookie: int) -> None:
        spot = place(kid)
        unhang(kid)
        if spot is None:
            self.walker.drop(kid)
            return
        if len(self._leaving) > 10_000:  # only events lost between the halves of renames get here
            self._overflow()
        self._leaving[cookie] = (kid, *spot)

    def _arrive(self, parent: Node, name: bytes, cookie: int) -> None:
        kid, old_root, old_path = self._leaving.pop(cookie)
        spot = place(parent)
        if place(kid) is not None:
            self.walker.discover(parent, name, tell=True)  # found elsewhere meanwhile, so it was not this one
            return
        if spot is None or is_above(kid, parent):
            self.walker.drop(kid)
            return
        root = spot[0]
        replaced = hang(kid, parent, name)
        if replaced is not None:
            self.walker.drop(replaced)
        if root is not old_root:
            self.walker.change_root(kid, old_root, root)
        else:
            new_path = spot[1] + b"/" + name if spot[1] else name
            self._say(root, Kind.MOVED, new_path, peer=old_path)
        if self.walker.young:
            # The object may be of a directory that took the old name before this event was read.
            if self.walker.is_at(kid, absolute(*place(kid) or (root, b""))):
                self.walker.queue(kid, deep=True)
            else:
                self.walker.discover(parent, name, tell=True)

    def _overflow(self) -> None:
        """Events were lost: walk everything again, then say GAP."""
        log.warning("inotify queue overflowed: every space is walked and swept again")
        self._drop_left()
        for (space, _), root in self._roots.items():
            self._overflows[space] += 1
            self.walker.restart(root)

    # -- hints

    def _say(self, root: Root, kind: Kind, path: bytes, *, peer: bytes = b"") -> None:
        path, peer = in_space(root, path), in_space(root, peer) if peer else b""
        self._hints.append(Hint(root.space, kind, path, frozenset(), peer, False, self._heard))

    def _flush(self) -> None:
        for into, soft, meta in (
            (self._hard, False, False),
            (self._meta, False, True),
            (self._soft, True, False),
        ):
            late: dict[Node, set[bytes]] = {}
            for node, names in into.items():
                spot = place(node)
                if spot is None:
                    continue
                if not node.binding and not self._bind(node, absolute(*spot)):
                    late[node] = names
                    continue
                hint = Hint(
                    spot[0].space, Kind.ENTRIES, in_space(*spot), frozenset(names), b"", soft, self._heard, meta,
                    node.binding,
                )  # fmt: skip
                self._hints.append(hint)
            into.clear()
            into.update(late)

    def _tell_whole(self) -> None:
        """Directories that are newly watched: what was made in them before is told by nothing else."""
        late = []
        for node in self._whole:
            spot = place(node)
            if spot is None:
                continue
            if node.binding or self._bind(node, absolute(*spot)):
                hint = Hint(
                    spot[0].space, Kind.DIRECTORY, in_space(*spot), heard=self._heard, binding=node.binding
                )
                self._hints.append(hint)
            else:
                late.append(node)
        self._whole = late
        if not (late or self._hard or self._soft or self._meta):
            self._late.clear()

    def _bind(self, node: Node, full: bytes) -> bool:
        """Make sure which directory is meant: the path that the forest has may be that of another one already. False:
        ask again when more events were read, as those of the rename are on their way."""
        if self.walker.bind(node, full):
            return True
        since = self._late.setdefault(node, self._heard)
        return self._heard - since > LATE

    def _walk(self, deadline: float) -> None:
        self._whole += self.walker.step(deadline, self.queue.held)
        self._tell_whole()
        if (self.walker.young or self._leaving) and not self.walker.busy() and self.queue.idle():
            self.walker.young = False
            self._drop_left()
        for root in self._roots.values():
            if not root.announced and not root.waiting and not root.lost:
                root.announced = True
                self._hints.append(Hint(root.space, Kind.GAP, heard=self._heard))

    def _drop_left(self) -> None:
        """No second half can come any more: what hangs nowhere has left."""
        leaving, self._leaving = self._leaving, {}
        for node, _, _ in leaving.values():
            if place(node) is None:
                self.walker.drop(node)

    def _timers(self, now: float) -> None:
        if now >= self._next_retry:
            self._next_retry = now + RETRY_EVERY
            for root in self._roots.values():
                self.walker.retry(root)
        if now >= self._next_poll:
            self._next_poll = now + POLL_EVERY
            for root in self._roots.values():
                for path in self.walker.unwatched(root):
                    self._say(root, Kind.SUBTREE, path)


def unavailable(error: OSError) -> bool:
    """True if this error of the constructor means that inotify cannot be used at all here."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOSYS, errno.ENOMEM, errno.EPERM)


def watch_limit() -> int:
    """fs.inotify.max_user_watches, 0 if it cannot be read."""
    try:
        fd = os.open("/proc/sys/fs/inotify/max_user_watches", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)
