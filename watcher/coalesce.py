"""Hints of one space become a set of waiting directories. Pure: no clock, no disk.

Bounded by two caps: a directory with more than `max_names` waiting names waits as a whole, and more than
`max_dirs` waiting directories become one gap, which a sweep of the space answers. Nothing is dropped
silently.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace

from watcher.hint import Hint, Kind

MAX_NAMES = 2_000
"""By name costs about 30 us a name; a whole pass over a directory of this size costs the same."""
MAX_DIRS = 20_000


@dataclass(slots=True)
class Waiting:
    """One directory that waits for a reconcile. `names` None: the whole directory. `binding`: which one is
    meant."""

    names: set[bytes] | None
    soft: bool
    deep: bool
    first: float
    last: float
    binding: bytes = b""

    def merge(self, other: Waiting, max_names: int) -> None:
        """Take over what `other` asks for."""
        if self.names is not None:
            if other.names is None:
                self.names = None
            else:
                self.names |= other.names
                if len(self.names) > max_names:
                    self.names = None
        self.soft = self.soft and other.soft
        self.deep = self.deep or other.deep
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)

    def copy(self) -> Waiting:
        """The same, with names of its own."""
        return replace(self, names=None if self.names is None else set(self.names))


class Coalescer:
    """The waiting directories of one space."""

    def __init__(self, max_names: int = MAX_NAMES, max_dirs: int = MAX_DIRS) -> None:
        self._max_names = max_names
        self._max_dirs = max_dirs
        self.waiting: dict[bytes, Waiting] = {}
        self.elsewhere: dict[bytes, tuple[bytes, Waiting]] = {}
        """By binding (path, item): heard of at a path that another one has too, as one of them has moved
        since."""
        self.gap = False
        """Set when only a sweep can answer; whoever starts it clears the flag."""
        self._moves: list[tuple[bytes, bytes]] = []
        self._sorted: list[bytes] | None = None
        """The waiting paths in order, from the first move of a batch on."""
        self.collapsed = 0
        """How often the cap on directories was reached."""

    def add(self, hint: Hint) -> bool:
        """Take in one hint. True if the directory `hint.dir` waits now and did not before, or waits
        harder."""
        match hint.kind:
            case Kind.GAP:
                self._collapse()
                return False
            case Kind.MOVED:
                self._moves.append((hint.peer, hint.dir))
                self._move(hint.peer, hint.dir)
                if len(self._moves) > self._max_dirs:
                    self.collapsed += 1
                    self._collapse()
                return False
            case Kind.ENTRIES:
                names: set[bytes] | None = set(hint.names)
            case Kind.DIRECTORY | Kind.SUBTREE:
                names = None
        deep = hint.kind is Kind.SUBTREE
        return self.put(hint.dir, Waiting(names, hint.soft, deep, hint.heard, hint.heard, hint.binding))

    def put(self, path: bytes, item: Waiting) -> bool:
        """Add `item`; see `add` for the answer."""
        have = self.waiting.get(path)
        if have is not None and item.binding and have.binding not in (b"", item.binding):
            self._put_elsewhere(path, item)
            return False
        if have is not None:
            have.binding = have.binding or item.binding
            was_soft = have.soft
            have.merge(item, self._max_names)
            return was_soft and not have.soft
        if len(self.waiting) >= self._max_dirs:
            self.collapsed += 1
            self._collapse()
            return False
        if item.names is not None and len(item.names) > self._max_names:
            item.names = None
        self.waiting[path] = item
        if self._sorted is not None:
            insort(self._sorted, path)
        return True

    def _put_elsewhere(self, path: bytes, item: Waiting) -> None:
        _, held = self.elsewhere.setdefault(item.binding, (path, item))
        if held is not item:
            held.merge(item, self._max_names)
        if len(self.elsewhere) > self._max_dirs:
            self.collapsed += 1
            self._collapse()

    def moves(self) -> list[tuple[bytes, bytes]]:
        """The moved directories heard of since the last call: (old path, new path), in order."""
        moves, self._moves = self._moves, []
        return moves

    def moves_heard(self) -> bool:
        """Whether `moves` would answer any."""
        return bool(self._moves)

    def take_over(self, later: Coalescer) -> None:
        """Add what another one gathered after this one."""
        self.gap |= later.gap
        for old, new in later._moves:
            self._moves.append((old, new))
            self._move(old, new)
        for path, item in later.waiting.items():
            self.put(path, item)
        for path, item in later.elsewhere.values():
            self._put_elsewhere(path, item)

    def _collapse(self) -> None:
        self.gap = True
        self.waiting, self.elsewhere, self._sorted = {}, {}, None
        self._moves.clear()

    def _move(self, old: bytes, new: bytes) -> None:
        """What waits at or below `old` waits at or below `new`; the old places stay, as a vanished directory
        costs nothing and the old path may have been taken again meanwhile."""
        if not self.waiting:
            return
        if self._sorted is None:
            self._sorted = sorted(self.waiting)
        for path in below(self._sorted, old):
            self.put(new + path[len(old) :], self.waiting[path].copy())
            if not self.waiting:
                return


def below(paths: Sequence[bytes], top: bytes) -> list[bytes]:
    """Of sorted paths those at or below `top`."""
    start, end = bisect_left(paths, top + b"/"), bisect_left(paths, top + b"0")  # "0" comes after "/"
    here = bisect_left(paths, top)
    own = [top] if here < len(paths) and paths[here] == top else []
    return own + list(paths[start:end])
