"""Messages become hints: one for each directory and batch, as a crowd of messages names few directories. Pure."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from watcher.hint import Hint, Kind
from watcher.streams.heard import BELOW, SOFT, Change, Decoder, Malformed, Unfamiliar, parse
from watcher.streams.places import REPLACED, Foreign, Place, Places, name_of, undamaged


class Rejected(NamedTuple):
    """A message that was not understood, or not wholly."""

    kind: str
    """`malformed`, `unfamiliar` or `foreign`"""
    reason: str


class Gatherer:
    """Collects what messages say until `take`."""

    def __init__(self, decode: Decoder, places: Places) -> None:
        self.counts: Counter[str] = Counter()
        """`messages`; `elsewhere`: changes outside of all spaces."""
        self._decode = decode
        self._places = places
        self._names: dict[Place, set[bytes]] = {}
        self._soft: dict[Place, set[bytes]] = {}
        self._trees: set[Place] = set()
        self._gaps: set[str] = set()

    def hear(self, raw: bytes | None) -> Rejected | None:
        """Take in one message; answers what was wrong with it, if anything. Never raises for what it says."""
        self.counts["messages"] += 1
        rejected = None
        try:
            changes = self._decode(parse(raw))
        except Malformed as error:
            return Rejected("malformed", str(error))
        except Unfamiliar as error:
            rejected, changes = Rejected("unfamiliar", str(error)), error.changes
        for change in changes:
            try:
                self._note(change)
            except Foreign as error:
                rejected = Rejected("foreign", str(error))
            except Malformed as error:
                rejected = Rejected("malformed", str(error))
        return rejected

    def _note(self, change: Change) -> None:
        path, what = change
        if REPLACED in path:
            self._below(undamaged(path))
            return
        head, name = name_of(path)
        if what & BELOW:
            self._gaps.update(self._places.inside(path))
            self._below(path)
        try:
            place = self._places.directory(head or ("/" if path.startswith("/") else ""))
        except Foreign:
            # The root of what is mapped, as such: its own entry is in nobody's space.
            self._places.directory(path)
            return
        if place is None:
            self.counts["elsewhere"] += 1
        elif name:
            held = self._soft if what & SOFT else self._names
            try:
                held[place].add(name)
            except KeyError:
                held[place] = {name}

    def _below(self, path: str) -> None:
        place = self._places.directory(path.rstrip("/") or path[:1])
        if place is not None:
            self._trees.add(place)

    def take(self, heard: float) -> list[Hint]:
        """The hints since the last call; `heard`: monotonic time."""
        hints = [Hint(space, Kind.GAP, heard=heard) for space in sorted(self._gaps)]
        for soft, held in ((False, self._names), (True, self._soft)):
            hints += [
                Hint(space, Kind.ENTRIES, directory, frozenset(names), soft=soft, heard=heard)
                for (space, directory), names in held.items()
            ]
        hints += [
            Hint(space, Kind.SUBTREE, directory, heard=heard)
            for space, directory in self._trees
            if space not in self._gaps
        ]
        self._names, self._soft, self._trees, self._gaps = {}, {}, set(), set()
        return hints
