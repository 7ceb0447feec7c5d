"""From the paths that a storage reports to places in our spaces. Pure.

A mapping says where a reported path is here: `/gpfs/fs1=/srv/gpfs` or, for paths without a leading slash, `=/mnt/ceph`.
The longest reported prefix counts. What carries none of the prefixes is refused, and said: it most likely means that
the mapping is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from watcher.streams.heard import to_bytes

MAX_KNOWN = 65_536
INTERNAL = b".fsd"
REPLACED = "\N{REPLACEMENT CHARACTER}"


class Foreign(ValueError):
    """A path that no prefix of the mapping fits."""


class Prefix(NamedTuple):
    """`reported` is what the storage calls the directory `local`. No slash at the end, but for a reported `/`."""

    reported: bytes
    local: bytes


class Place(NamedTuple):
    """A directory of a space."""

    space: str
    dir: bytes


def parse_mapping(words: Sequence[str]) -> list[Prefix]:
    """The mapping as the settings have it. ValueError says what is wrong."""
    found = []
    for word in words:
        reported, equals, local = word.rpartition("=")
        if not equals or not local.startswith("/"):
            raise ValueError(f"{word!r} is no mapping such as /gpfs/fs1=/srv/files")
        found.append(Prefix(_clean(reported), to_bytes(local).rstrip(b"/")))
    return sorted(found, key=lambda prefix: -len(prefix.reported))


def _clean(reported: str) -> bytes:
    path = to_bytes(reported)
    return path.rstrip(b"/") or path[:1]


class Places:
    """Where paths are. `known` directories are remembered, as messages come in crowds."""

    def __init__(self, mapping: Sequence[Prefix]) -> None:
        self._mapping = mapping
        self._roots: dict[bytes, tuple[str, bytes] | None] = {}
        self._known: dict[str, Place | None] = {}

    def add(self, space: str, root: bytes, base: bytes, without: frozenset[bytes]) -> None:
        """A space's root, or a filesystem `base` inside it; `without`: what others hear."""
        self._roots[root] = (space, base)
        for other in without:
            self._roots.setdefault(other, None)
        self._known.clear()

    def remove(self, space: str) -> None:
        """Forget a space; unknown ones are fine."""
        self._roots = {
            root: found for root, found in self._roots.items() if found is not None and found[0] != space
        }
        self._known.clear()

    def spaces(self) -> set[str]:
        """Those that were added."""
        return {found[0] for found in self._roots.values() if found is not None}

    def directory(self, path: str) -> Place | None:
        """The place of a reported directory; None outside of all spaces, and inside what is hidden. Foreign."""
        try:
            return self._known[path]
        except KeyError:
            place = self._find(path)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[path] = place
            return place

    def _find(self, path: str) -> Place | None:
        local = self.local(to_bytes(path))
        root = local
        while root not in self._roots:
            if root in (b"/", b""):
                return None
            root = root.rpartition(b"/")[0] or b"/"
        found = self._roots[root]
        if found is None:
            return None
        space, base = found
        below = local[len(root) :].lstrip(b"/")
        place = b"/".join(part for part in (base, below) if part)
        return None if place.split(b"/", 1)[0] == INTERNAL else Place(space, place)

    def local(self, reported: bytes) -> bytes:
        """The absolute path here. Foreign."""
        parts = [part for part in reported.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise Foreign(f"a path with '..': {reported!r}")
        clean = (b"/" if reported.startswith(b"/") else b"") + b"/".join(parts)
        for prefix, local in self._mapping:
            if _carries(clean, prefix):
                rest = clean[len(prefix) :].strip(b"/")
                return local + b"/" + rest if rest else local or b"/"
        raise Foreign(f"no prefix of the mapping fits {reported!r}")

    def inside(self, path: str) -> list[str]:
        """The spaces whose roots lie at or below a reported path. Foreign."""
        local = self.local(to_bytes(path))
        return sorted(
            {
                found[0]
                for root, found in self._roots.items()
                if found is not None and (root == local or root.startswith(local.rstrip(b"/") + b"/"))
            }
        )


def _carries(path: bytes, prefix: bytes) -> bool:
    if not prefix:
        return not path.startswith(b"/")
    return path == prefix or path.startswith(prefix.rstrip(b"/") + b"/")


def undamaged(path: str) -> str:
    """The part of a path above the first name with a replacement character: a producer that writes those no longer
    knows the name."""
    names = path.split("/")
    damaged = next(number for number, name in enumerate(names) if REPLACED in name)
    return "/".join(names[:damaged])


def name_of(path: str) -> tuple[str, bytes]:
    """The directory of a path, as text, and the name in it."""
    head, _, name = path.rstrip("/").rpartition("/")
    return head, to_bytes(name)
