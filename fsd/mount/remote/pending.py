"""A change that is not on the server yet, and what its copy is called when somebody else was faster."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import trio

from fsd.core.names import NAME_MAX
from fsd.mount.remote.ledger import Row

if TYPE_CHECKING:
    from fsd.mount.remote.contents import Content
    from fsd.mount.remote.nodes import Node


class Pending:
    """One file that was made or changed here. `base`: the etag that is replaced, None for what is new. `version` rises
    with each write: an upload is whole if it did not meanwhile."""

    __slots__ = (
        "attempt", "base", "by_id", "content", "dropped", "due", "error", "folder", "forced", "n", "name", "node",
        "queued", "size", "status", "tries", "upload", "uploading", "version",
    )  # fmt: skip

    def __init__(
        self, n: int, node: Node, content: Content, folder: str, name: bytes, base: str | None
    ) -> None:
        self.n, self.node, self.content = n, node, content
        self.folder, self.name, self.base = folder, name, base
        self.upload: str | None = None
        self.version = 0
        self.size = 0
        self.due = float("inf")
        self.queued = float("inf")
        self.uploading = self.dropped = self.forced = self.by_id = False
        self.error: OSError | None = None
        self.status = 0
        self.tries = 0
        self.attempt = trio.Event()
        """Set at the end of each attempt, and replaced."""

    def row(self) -> Row:
        """As the ledger has it."""
        path = os.fsdecode(self.node.path()) if self.node.parent is not None else os.fsdecode(self.name)
        return Row(
            self.n, self.node.id, self.folder, self.name, self.base, self.node.mtime_ns or None,
            path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), self.upload,
        )  # fmt: skip


def conflict_name(name: bytes, user: str, now: float) -> bytes:
    """`report (conflicted copy alice 2026-11-21 101500).txt`, as sync clients do it; at most 255 bytes."""
    stem, dot, suffix = name.rpartition(b".")
    if not stem or len(suffix) > 32:
        stem, dot, suffix = name, b"", b""
    moment = time.strftime("%Y-%m-%d %H%M%S", time.localtime(now))
    who = f"{user} " if user else ""
    mark = f" (conflicted copy {who}{moment})".replace("/", "_").encode("utf-8", "surrogateescape")
    room = NAME_MAX - len(mark) - len(dot) - len(suffix)
    return stem[:room].decode("utf-8", "ignore").encode() + mark + dot + suffix
