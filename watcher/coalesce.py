"""Hints of one space become a set of waiting directories. Pure: no clock, no disk.

Bounded by two caps: a directory with more than `max_names` waiting names waits as a whole, and more than `max_dirs`
waiting directories become one gap, which a sweep of the space answers. Nothing is dropped silently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from watcher.hint import Hint, Kind

MAX_NAMES = 2_000
"""By name costs about 30 us a name; a whole pass over a directory of this size costs the same."""
MAX_DIRS = 20_000


@dataclass(slots=True)
class Waiting:
    """One directory that waits for a reconcile. `names` None: the whole directory."""

    names: set[bytes] | None
    soft: bool
    deep: bool
    first: float
    last: float

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
        self.gap = False
        """Set when only a sweep can answer; whoever starts it clears the flag."""
        self._moves: list[tuple[bytes, bytes]] = []
        self.collapsed = 0
        """How often the cap on directories was reached."""

    def add(self, hint: Hint) -> bool:
        """Take in one hint. True if the directory `hint.dir` waits now and did not before, or waits harder."""
        match hint.kind:
            case Kind.GAP:
                self._collapse()
                return False
            case Kind.MOVED:
                self._moves.append((hint.peer, hint.dir))
                self._move(hint.peer, hint.dir)
                if len(self._moves) > self._max_dirs:
                    self._collapse()
                return False
            case Kind.ENTRIES:
                names: set[bytes] | None = set(hint.names)
            case Kind.DIRECTORY | Kind.SUBTREE:
                names = None
        return self.put(
            hint.dir, Waiting(names, hint.soft, hint.kind is Kind.SUBTREE, hint.heard, hint.heard)
        )

    def put(self, path: bytes, item: Waiting) -> bool:
        """Add `item`; see `add` for the answer."""
        have = self.waiting.get(path)
        if have is not None:
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
        return True

    def moves(self) -> list[tuple[bytes, bytes]]:
        """The moved directories heard of since the last call: (old path, new path), in order."""
        moves, self._moves = self._moves, []
        return moves

    def oldest(self) -> float | None:
        """When the longest waiting directory was first heard of."""
        return min((item.first for item in self.waiting.values()), default=None)

    def _collapse(self) -> None:
        self.gap = True
        self.waiting.clear()
        self._moves.clear()

    def _move(self, old: bytes, new: bytes) -> None:
        """What waits at or below `old` waits at or below `new`; the old places stay, as a vanished directory costs
        nothing and the old path may have been taken again meanwhile."""
        if not self.waiting:
            return
        prefix = old + b"/"
        moved = [path for path in self.waiting if path == old or path.startswith(prefix)]
        for path in moved:
            self.put(new + path[len(old) :], self.waiting[path].copy())
            if not self.waiting:
                return
