"""Response elements that are made once and kept for as long as they are true.

Kept with a snapshot of the directory, which asks the disk about each entry again at every use. When something
changed, only the elements of entries that changed are made anew. What depends on more than the entry (locks that are
held, free space, dead properties) is never kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
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
    open: list[int]
    """Of which entries there may be more to tell one day."""


Make = Callable[[list[Entry]], Iterable[tuple[bytes, bool]]]
"""Elements of some entries, in their order, and whether that is all there is to tell of them."""
News = Callable[[list[Entry]], list[bool]]
"""Of which of some entries, whose elements did not tell all, there is more to tell now."""


class Listings:
    """The response elements of the most recently listed directories.  Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._count = 0
        self._guard = threading.Lock()

    def elements(
        self, place: Place, key: Hashable, make: Make, news: News
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
                more = _completed(kept, make, news)
                if more is kept:
                    self._touch(key)
                else:
                    self._keep(key, more)
                return own, more.elements
        if longlisting.is_large(space, path):
            self._drop(key)
            return None
        own, entries, taken = snapshot.take(space, path)
        new = _made(entries, kept, make)
        if taken is not None and len(entries) <= longlisting.LARGE:
            self._keep(key, _Kept(taken, *new))
        else:
            self._drop(key)
        return own, new[0]

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


def _made(entries: list[Entry], kept: _Kept | None, make: Make) -> tuple[list[bytes], list[int]]:
    """The elements of entries, and which of them are open; those that are kept, and final, are not made again."""
    known: dict[Entry, bytes] = {}
    if kept is not None:
        known = dict(zip(kept.snapshot.entries, kept.elements, strict=True))
        for index in kept.open:
            del known[kept.snapshot.entries[index]]
    fresh = iter(make([entry for entry in entries if entry not in known]))
    elements, unsettled = [], []
    for index, entry in enumerate(entries):
        element = known.get(entry)
        if element is None:
            element, final = next(fresh)
            if not final:
                unsettled.append(index)
        elements.append(element)
    return elements, unsettled


def _completed(kept: _Kept, make: Make, news: News) -> _Kept:
    """The same, with what there is to tell by now."""
    waiting = [kept.snapshot.entries[index] for index in kept.open]
    if not waiting or not any(told := news(waiting)):
        return kept
    elements = list(kept.elements)
    due = [index for index, more in zip(kept.open, told, strict=True) if more]
    unsettled = [index for index, more in zip(kept.open, told, strict=True) if not more]
    made = make([kept.snapshot.entries[index] for index in due])
    for index, (element, final) in zip(due, made, strict=True):
        elements[index] = element
        if not final:
            unsettled.append(index)
    return _Kept(kept.snapshot, elements, unsettled)
