"""Messages of cluster storages, composed from what was done to the tree: the documented shapes.

CephFS's bits are written down here anew, from its sources, not taken from fsd.
"""

from __future__ import annotations

import json
from itertools import count

ATTRIB, CLOSE_WRITE, CREATE, DELETE, MODIFY, MOVE_SELF = 0x2, 0x4, 0x10, 0x20, 0x80, 0x100
MOVED_FROM, MOVED_TO, OPEN, DIRECTORY = 0x200, 0x400, 0x800, 0x10000


def _text(path: bytes | str) -> str:
    return path if isinstance(path, str) else path.decode("utf-8", "surrogateescape")


class Ceph:
    """The messages of one MDS, below a path inside the filesystem."""

    def __init__(self, base: str, mds: int = 0) -> None:
        self._base = base
        self._mds = mds
        self._numbers = count(1)

    def _envelope(self) -> dict[str, object]:
        return {
            "timestamp": "2026-11-21 02:00:00.123456789Z",
            "mds_id": self._mds,
            "session_id": "2f7b6a52-6f1c-4f5e-9d63-1a3a9b8d8e10",
            "seq_id": next(self._numbers),
        }

    def _say(self, **more: object) -> bytes:
        return json.dumps({**self._envelope(), **more}).encode()

    def at(self, path: bytes | str) -> str:
        """The path as it is reported."""
        return f"{self._base}/{_text(path)}" if path else self._base

    def changed(self, path: bytes | str, mask: int = CLOSE_WRITE) -> bytes:
        """The plain shape."""
        return self._say(mask=mask, path=self.at(path))

    def made(self, path: bytes | str) -> bytes:
        """A directory was made."""
        return self._say(mask=CREATE | DIRECTORY, path=self.at(path))

    def gone(self, path: bytes | str) -> bytes:
        """Something was removed."""
        return self._say(mask=DELETE, path=self.at(path))

    def moved(self, old: bytes | str, new: bytes | str) -> bytes:
        """A rename, in the early form."""
        return self._say(
            src_mask=MOVED_FROM, dest_mask=MOVED_TO, src_path=self.at(old), dest_path=self.at(new)
        )
