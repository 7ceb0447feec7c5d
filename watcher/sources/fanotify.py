"""Hints from fanotify(7): one group and one mark for a whole filesystem, whatever the size of the trees on
it.

Records name the directory by its handle, which leads to where it is *now*, however late the record is read;
equal ones are merged by the kernel, so their order says nothing and is not used. What happens outside of the
spaces is heard as well and costs a look at a dictionary.

A directory that comes into a space from elsewhere is told as a subtree: nobody heard what was done to it out
there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection

from fsd.core.names import join, split
from watcher.hint import Hint, Kind
from watcher.sources import fanotify_abi as abi
from watcher.sources.base import SourceStatus
from watcher.sources.handles import Handles, Known, Spot
from watcher.sources.queue import MAX_BYTES, Queue, raise_queue_limit

log = logging.getLogger(__name__)

_Rename = tuple[bytes, bytes, bytes, bytes, bool]
"""A renamed directory: old parent, old name, new parent, new name, by a process of this server."""
_NAMELESS = ord("#")
MAX_RENAMES = 5_000
"""Of directories in one batch; more end in a gap."""


class FanotifySource:
    """See `watcher.sources.base.Source`. All spaces of one instance are on one filesystem."""

    name = "fanotify"

    def __init__(
        self,
        *,
        own: Callable[[], Collection[int]] = lambda: (),
        bell: threading.Event | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`own` answers the processes of this server. OSError as `fanotify_abi.open_group`."""
        raise_queue_limit(self.name)
        self.group = abi.open_group()
        self._own = own
        self.queue = Queue(self.group, self.name, bell=bell, max_bytes=max_bytes, urgent=self._urgent)
        self.handles = Handles()
        self.events = 0
        """Events looked at."""
        self._spots: dict[str, list[Spot]] = {}
        self._overflows: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._hard: dict[bytes, set[bytes]] = {}
        self._soft: dict[bytes, set[bytes]] = {}
        self._meta: dict[bytes, set[bytes]] = {}
        self._renames: list[_Rename] = []
        self._passed_over = False
        """In this batch something was taken to be outside."""
        self._hints: list[Hint] = []
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
        """OSError also where the mark is refused, or handles can't be used. Other filesystems are never
        heard, so
        `without` has nothing to say here."""
        abi.mark_filesystem(self.group, root)
        spots = self._spots.setdefault(space, [])
        for old in [spot for spot in spots if spot.base == base]:
            spots.remove(old)
            self.handles.remove(old)
        try:
            spots.append(self.handles.add(space, root, hidden, base))
        finally:
            if not spots:
                del self._spots[space]
        self._hints.append(Hint(space, Kind.GAP, heard=time.monotonic()))
        self.queue.wake()

    def remove(self, space: str) -> None:
        for spot in self._spots.pop(space, ()):
            self.handles.remove(spot)

    def spaces(self) -> set[str]:
        return set(self._spots)

    def busy(self) -> bool:
        return self.queue.held() > 0 or bool(self._hints)

    def wait(self, timeout: float) -> None:
        self.queue.wait(timeout)

    def wake(self) -> None:
        self.queue.wake()

    def close(self) -> None:
        self.queue.close()
        os.close(self.group)
        for space in list(self._spots):
            self.remove(space)

    def status(self, space: str) -> SourceStatus | None:
        if space not in self._spots:
            return None
        held = self.queue.held()
        return SourceStatus(self.name, True, 0, 0, self._overflows[space], held, dict(self._errors))

    def lost(self, space: str) -> bool:
        """True if a root was moved, removed or replaced."""
        return any(not self.handles.is_home(spot) for spot in self._spots.get(space, ()))

    def collect(self, budget: float) -> list[Hint]:
        self._heard = time.monotonic()
        deadline = self._heard + budget
        own = frozenset(self._own())
        while (chunk := self.queue.take()) is not None:
            self._apply(chunk, own)
            if time.monotonic() > deadline:
                break
        if self.queue.lost:
            self.queue.lost = False
            self._overflow()
        self._flush()
        hints, self._hints = self._hints, []
        return hints

    # -- events

    def _urgent(self, chunk: bytes) -> bool:
        """Whether anybody else than the server's own processes, which tell the index themselves, did any of this. In
        the reading thread."""
        own, unpack, pos = self._own(), abi.URGENCY.unpack_from, 0
        while pos < len(chunk):
            length, mask, pid = unpack(chunk, pos)
            if pid not in own or mask & abi.OVERFLOW:
                return True
            pos += length
        return False

    def _apply(self, chunk: bytes, own: frozenset[int]) -> None:
        """Sort the events of one read. The loop is the cost of a busy filesystem: two microseconds an
        event."""
        hard, soft, meta, remembered = self._hard, self._soft, self._meta, self.handles.remembered
        unpack, at, end, pos, count = abi.HEAD.unpack_from, abi.HANDLE_AT, len(chunk), 0, 0
        special, named, nameless = abi.RENAME | abi.OVERFLOW, abi.CREATE | abi.DELETE, _NAMELESS
        if chunk[4] != abi.VERSION:
            self._gap()  # a kernel of another age: its records can't be read
            return
        chunk += bytes(
            abi.HEAD.size - abi.METADATA
        )  # an overflow is told by a record without the second part
        while pos < end:
            length, _, _, _, mask, _, pid, _, _, _, _, handle_bytes = unpack(chunk, pos)
            count += 1
            if mask & special:
                self._special(chunk[pos : pos + length], mask, pid in own)
                pos += length
                continue
            name_at = pos + at + 8 + handle_bytes
            if pid in own:
                if chunk[name_at] == nameless and not mask & named:
                    # A file without a name that is being written (the kernel calls it `#` and its number). Of one
                    # that really has such a name the process that changed it tells the index itself.
                    pos += length
                    continue
                into = meta
            else:
                into = meta if mask == abi.ATTRIB else soft if mask == abi.MODIFY else hard
            handle = chunk[pos + at : name_at]
            names = into.get(handle)
            if names is None:
                known = remembered(handle)
                if known is not None and known.spot is None:
                    pos += length
                    self._passed_over = True
                    continue
                names = into[handle] = set()
            pos += length
            names.add(chunk[name_at:pos].rstrip(b"\0"))
        self.events += count

    def _special(self, record: bytes, mask: int, own: bool) -> None:
        if mask & abi.OVERFLOW:
            self._overflow()
            return
        ends: dict[int, tuple[bytes, bytes]] = {}
        pos = abi.METADATA
        while pos < len(record):
            kind, _, length, _, handle_bytes = abi.INFO.unpack_from(record, pos)
            name_at = pos + abi.INFO_HANDLE_AT + 8 + handle_bytes
            handle = record[pos + abi.INFO_HANDLE_AT : name_at]
            pos += length
            ends[kind] = handle, record[name_at:pos].rstrip(b"\0")
        for handle, name in ends.values():
            (self._meta if own else self._hard).setdefault(handle, set()).add(name)
        if mask & abi.ONDIR and len(ends) == 2:
            if len(self._renames) < MAX_RENAMES:
                self._renames.append((*ends[abi.OLD_NAME], *ends[abi.NEW_NAME], own))
            else:
                self._gap()

    def _overflow(self) -> None:
        log.warning("fanotify queue overflowed: %d spaces are swept again", len(self._spots))
        for space in self._spots:
            self._overflows[space] += 1
        self._gap()

    def _gap(self) -> None:
        """Whatever the spaces hold may differ. Many at once are one gap."""
        self.handles.moved_all()
        self._renames.clear()
        said = {hint.space for hint in self._hints if hint.kind is Kind.GAP}
        self._hints += [
            Hint(space, Kind.GAP, heard=self._heard) for space in self._spots if space not in said
        ]

    # -- hints

    def _flush(self) -> None:
        renames, self._renames = self._renames, []
        # All together first: after that, each parent is asked for once, however many were renamed in it.
        for handle in {handle for rename in renames for handle in (rename[0], rename[2])}:
            known = self._find(handle)
            if known is not None and known.spot is not None:
                self.handles.moved(known.spot)
        for rename in renames:
            self._renamed(*rename)
        for into, soft, meta in (
            (self._hard, False, False),
            (self._meta, False, True),
            (self._soft, True, False),
        ):
            for handle, names in into.items():
                known = self._find(handle)
                if known is not None and known.spot is not None:
                    self._say(known, names, soft=soft, meta=meta)
            into.clear()
        self._passed_over = False

    def _say(self, known: Known, names: set[bytes], *, soft: bool, meta: bool) -> None:
        assert known.spot is not None
        space, path = known.spot.space, known.path
        if b"." in names:
            # The directory's own attributes: an entry of the one above it.
            names.discard(b".")
            if path != known.spot.base:
                parent, name = split(path)
                self._hints.append(
                    Hint(space, Kind.ENTRIES, parent, frozenset({name}), heard=self._heard, meta=meta)
                )
        if names:
            self._hints.append(
                Hint(space, Kind.ENTRIES, path, frozenset(names), b"", soft, self._heard, meta, known.binding)
            )

    def _find(self, handle: bytes) -> Known | None:
        """The directory, None if it is gone: then something above it was told of as well."""
        try:
            return self.handles.find(handle)
        except OSError as error:
            kind = type(error).__name__ if error.errno is None else os.strerror(error.errno)
            self._errors[kind] += 1
            log.warning("a directory that changed cannot be told by its handle, spaces are swept: %s", error)
            self._gap()
            return None

    def _renamed(self, old: bytes, old_name: bytes, new: bytes, new_name: bytes, own: bool) -> None:
        """A directory has another place. Its entries are told of with the others'; here, what was below it.

        Where its parents are now says enough: if they have moved since, their own records follow.
        """
        before, after = self._find(old), self._find(new)
        left = before.spot if before is not None else None
        if after is None or after.spot is None:
            return
        space, path = after.spot.space, join(after.path, new_name)
        if before is not None and left is not None and left.space == space:
            peer = join(before.path, old_name)
            self._hints.append(Hint(space, Kind.MOVED, path, peer=peer, heard=self._heard))
            return
        self.handles.came_in()
        if not own or self._passed_over:
            # The server's own come out of its trash or staging, where nobody else writes; but a record from
            # just after that may have been merged into one from before, and passed over.
            self._hints.append(Hint(space, Kind.SUBTREE, path, heard=self._heard))


def usable() -> OSError | None:
    """Why fanotify cannot be used by this process at all; None if it can."""
    try:
        os.close(abi.open_group())
    except OSError as error:
        return error
    return None
