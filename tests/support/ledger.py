"""Who is who, and what each etag stood for: an oracle of identities. It imports nothing of fsd.

It is told what stood on disk and which ids and etags were said, again and again, and remembers. Nodes are told apart by
the kernel's handles. What it holds to be wrong:

* two names with one id;
* a living node whose id changed, unless its id stays with the name it had (a file that was saved over its old name, a
  tree that was restored over one that was renamed away), or it took over the id that its place had, or one whose
  node is gone and that it claims by its label;
* an id that went to another node without reason: not at the place, not by the label that this node carries;
* an etag that stands for another content than it once did.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.oracle import OnDisk

_LABEL = re.compile(rb"1:([0-9a-f]{32}):[0-9a-f]{16}:\d+")


@dataclass(frozen=True)
class Said:
    """What is said of one path."""

    id: str
    etag: str


@dataclass(frozen=True)
class _Owner:
    """Who had an id when it was last seen."""

    node: bytes
    path: bytes


class Ledger:
    """Everything that was ever seen of one space."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self._owners: dict[str, _Owner] = {}
        self._ids: dict[bytes, str] = {}
        self._meaning: dict[tuple[str, str], str] = {}

    def learn(self, disk: Mapping[bytes, OnDisk], said: Mapping[bytes, Said]) -> list[str]:
        """Record what is there now; what is wrong with it, in words."""
        wrong = self._identities(disk, said)
        for path, entry in disk.items():
            wrong += self._etag(path, entry, disk, said)
        return wrong

    def _identities(self, disk: Mapping[bytes, OnDisk], said: Mapping[bytes, Said]) -> list[str]:
        wrong: list[str] = []
        alive = {entry.node for entry in disk.values()}
        owners: dict[str, _Owner] = {}
        for path, entry in disk.items():
            node_id = said[path].id
            if node_id in owners:
                wrong.append(f"one id for {owners[node_id].path!r} and {path!r}")
            owners[node_id] = _Owner(entry.node, path)
        for path, entry in disk.items():
            if entry.kind != "d" and entry.nlink > 1:
                continue
            node_id = said[path].id
            before, owner = self._ids.get(entry.node), self._owners.get(node_id)
            claims = self._claim(path) == node_id
            if before is not None and before != node_id:
                place = self._owners[before].path
                heir = owners.get(before)
                # Saved over it: without labels only the place tells so.
                saved = owner is not None and owner.path == path
                if not (claims or saved or (heir is not None and heir.path == place)):
                    wrong.append(f"{path!r} was {before} and is {node_id} now")
            if owner is not None and owner.node != entry.node:
                if owner.node in alive and owner.path != path:
                    wrong.append(f"{path!r} took {node_id} from a living node")
                elif owner.path != path and not claims:
                    wrong.append(f"{path!r} has {node_id}, which was {owner.path!r}, and nothing says why")
        self._owners.update(owners)
        self._ids = {
            entry.node: said[path].id for path, entry in disk.items() if entry.kind == "d" or entry.nlink == 1
        }
        return wrong

    def _claim(self, path: bytes) -> str | None:
        try:
            raw = os.getxattr(os.path.join(self.root, path), "user.fsd.id", follow_symlinks=False)
        except OSError:
            return None
        found = _LABEL.fullmatch(raw)
        return found[1].decode() if found else None

    def _etag(
        self, path: bytes, entry: OnDisk, disk: Mapping[bytes, OnDisk], said: Mapping[bytes, Said]
    ) -> list[str]:
        if entry.kind == "f":
            with open(os.path.join(self.root, path), "rb") as file:
                meaning = "file " + hashlib.sha1(file.read()).hexdigest()
        elif entry.kind == "d":
            prefix = path + b"/" if path else b""
            below = sorted(
                (name[len(prefix) :], item.kind, item.size, said[name].id)
                for name, item in disk.items()
                if name != path and name.startswith(prefix)
            )
            meaning = "directory " + hashlib.sha1(repr(below).encode()).hexdigest()
        else:
            return []
        key = (said[path].id, said[path].etag)
        known = self._meaning.setdefault(key, meaning)
        return [] if known == meaning else [f"{path!r}: its etag stood for another content before"]

    def forget_places(self) -> None:
        """Something happened that changes ids by right (ids that nothing on disk carries were lost)."""
        self._owners.clear()
        self._ids.clear()
