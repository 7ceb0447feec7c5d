"""Response elements that are made once and kept for as long as they are true.

Kept with a snapshot of the directory, which asks the disk about each entry again at every use. When something
changed, only the elements of entries that changed are made anew. What depends on more than the entry (locks that are
held, free space, dead properties) is never kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from dav.routes import Place
from fsd.core import longlisting, snapshot, tree
from fsd.core.snapshot import Snapshot
from fsd.core.tree import Entry

_MOST = 12_000
"""Entries of all directories that are kept: about 20 MiB."""


@dataclass(frozen=True, slots=True)
class _Kept:
    snapshot: Snapshot
    elements: list[bytes]


class Listings:
    """The response elements of the most recently listed directories.  Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._count = 0
        self._guard = threading.Lock()

    def elements(
        self, place: Place, key: Hashable, make: Callable[[Entry], bytes]
    ) -> tuple[Entry, list[bytes]] | None:
        """The directory's own entry, and one element for each of its entries, sorted by name; None for a large
        directory, which is not kept.

        ``make`` depends on the entry, the place and ``key`` alone.  Errors as ``tree.listing``.
        """
        space, path = place.space, place.path
        key = (place.record.id, place.href, path, key)
        kept = self._kept.get(key)
        if kept is not None:
            # Before the entries, so that a change in between shows in the next etag.
            own = tree.lookup(space, path)
            if own.kind == "d" and kept.snapshot.holds(space):
                self._touch(key)
                return own, kept.elements
        if longlisting.is_large(space, path):
            self._drop(key)
            return None
        own, entries, taken = snapshot.take(space, path)
        known = dict(zip(kept.snapshot.entries, kept.elements, strict=True)) if kept is not None else {}
        elements = [known.get(entry) or make(entry) for entry in entries]
        if taken is not None and len(entries) <= longlisting.LARGE:
            self._keep(key, _Kept(taken, elements))
        else:
            self._drop(key)
        return own, elements

    def _touch(self, key: Hashable) -> None:
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)

    def _keep(self, key: Hashable, kept: _Kept) -> None:
        with self._guard:
            self._forget(key)
            self._kept[key] = kept
            self._count += len(kept.elements) + 1
            while self._count > _MOST:
                self._forget(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        with self._guard:
            self._forget(key)

    def _forget(self, key: Hashable) -> None:
        old = self._kept.pop(key, None)
        if old is not None:
            self._count -= len(old.elements) + 1
