"""The bytes of files on this machine: cached ones, keyed by id and etag, and changed ones that are not uploaded yet.

Cached bytes come in blocks, as they are read, and go when there is no room: the least recently used ones first. Changed
ones are never given up. A file that is open keeps its bytes whatever the server has by then.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from fsd.mount.remote.ledger import Kept

if TYPE_CHECKING:
    import trio

    from fsd.mount.remote.ledger import Ledger

_log = logging.getLogger(__name__)

BLOCK = 1 << 18
_MARGIN = 0.9
"""How full the cache is after what is least used was thrown away."""


class Content:
    """One version of a file's bytes. `have`: a byte for each block, None: all are here. `n`: the number of the pending
    change, 0 for cached ones."""

    __slots__ = (
        "ahead",
        "etag",
        "fd",
        "have",
        "id",
        "key",
        "n",
        "next",
        "path",
        "size",
        "used",
        "users",
        "wanted",
    )

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.id = self.etag = ""
        self.size = 0
        self.have: bytearray | None = None
        self.n = 0
        self.fd = -1
        self.users = 0
        self.used = 0.0
        self.wanted: dict[int, trio.Event] = {}
        """Blocks that are on their way."""
        self.next = self.ahead = 0
        """Where a reader who reads on would read next, and how much is fetched ahead of them."""

    @property
    def complete(self) -> bool:
        return self.have is None

    def missing(self, offset: int, count: int) -> list[int]:
        """Blocks of a part that are not here."""
        if self.have is None:
            return []
        end = min(offset + count, self.size)
        return [at for at in range(offset // BLOCK, -(-end // BLOCK)) if not self.have[at]]

    def arrived(self, block: int) -> None:
        """A block is here."""
        if self.have is not None:
            self.have[block] = 1
            if 0 not in self.have:
                self.have = None

    def room(self) -> int:
        """Bytes it takes on the disk, about."""
        return self.size if self.have is None else min(self.size, sum(self.have) * BLOCK)


class Contents:
    """All bytes in a cache directory. OSError of its disk; ENOSPC only after everything that can go is gone."""

    def __init__(self, place: Path, ledger: Ledger, limit: int) -> None:
        self._place, self._ledger, self.limit = place, ledger, limit
        self._kept: OrderedDict[str, Content] = OrderedDict()
        self._unsaved: set[str] = set()
        self.bytes = 0
        """Of cached ones."""
        for name in ("content", "pending"):
            (place / name).mkdir(mode=0o700, exist_ok=True)
        self._load()

    def _load(self) -> None:
        lost = []
        known = set()
        for row in self._ledger.contents():
            content = Content(self._place / "content" / row.key, row.key)
            if not content.path.exists():
                lost.append(row.key)
                continue
            content.id, content.etag, content.size, content.used = row.id, row.etag, row.size, row.used
            content.have = None if row.have is None else bytearray(row.have)
            self._kept[row.key] = content
            self.bytes += content.room()
            known.add(row.key)
        self._ledger.forget(lost)
        for path in (self._place / "content").iterdir():
            if path.name not in known:
                path.unlink()  # bytes that came after the ledger was written the last time: nobody knows how many
        self.evict()

    # -- cached

    def cached(self, ident: str, etag: str, size: int) -> Content:
        """The bytes of a version of a file: those that are here, or none of them yet."""
        key = hashlib.blake2b(f"{ident}\0{etag}".encode(), digest_size=16).hexdigest()
        content = self._kept.get(key)
        if content is None:
            content = Content(self._place / "content" / key, key)
            content.id, content.etag, content.size = ident, etag, size
            content.have = bytearray(-(-size // BLOCK)) or None
            self._kept[key] = content
        else:
            self._kept.move_to_end(key)
        content.used = time.time()
        return content

    def is_here(self, ident: str, etag: str) -> bool:
        """Whether all bytes of that version are here."""
        content = self._kept.get(hashlib.blake2b(f"{ident}\0{etag}".encode(), digest_size=16).hexdigest())
        return content is not None and content.complete

    def open(self, content: Content) -> int:
        """A descriptor of the bytes, until `close`; one more user."""
        if content.fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            content.fd = os.open(content.path, flags, 0o600)
        content.users += 1
        return content.fd

    def close(self, content: Content) -> None:
        """One user less; nobody's bytes that no name leads to are gone with the last."""
        content.users -= 1
        if content.users <= 0 and content.fd >= 0:
            os.close(content.fd)
            content.fd = -1
            if not content.n and self._kept.get(content.key) is not content:
                content.path.unlink(missing_ok=True)

    def got(self, content: Content, block: int) -> None:
        """A block was written."""
        before = content.room()
        content.arrived(block)
        if self._kept.get(content.key) is content:
            self.bytes += content.room() - before
            self._unsaved.add(content.key)
            if self.bytes > self.limit:
                self.evict()

    def evict(self, *, all_of_it: bool = False) -> int:
        """Throw away what was used least until there is room; how many bytes that were."""
        goal = 0 if all_of_it else int(self.limit * _MARGIN)
        if self.bytes <= goal or (self.bytes <= self.limit and not all_of_it):
            return 0
        before, gone = self.bytes, []
        for key, content in list(self._kept.items()):
            if self.bytes <= goal:
                break
            if content.users <= 0 and not content.wanted:
                gone.append(key)
                self._discard(content)
        self._ledger.forget(gone)
        return before - self.bytes

    def _discard(self, content: Content) -> None:
        del self._kept[content.key]
        self._unsaved.discard(content.key)
        self.bytes -= content.room()
        if content.users <= 0:
            content.path.unlink(missing_ok=True)

    def superseded(self, ident: str, etag: str) -> None:
        """That version is not the file's any more: whoever has it open keeps it, nobody else will ask for it."""
        key = hashlib.blake2b(f"{ident}\0{etag}".encode(), digest_size=16).hexdigest()
        content = self._kept.get(key)
        if content is not None:
            self._discard(content)
            self._ledger.forget([key])

    # -- changed

    def new(self, n: int) -> Content:
        """The bytes of pending change `n`: those it had, or none."""
        content = Content(self._place / "pending" / str(n), "")
        content.n = n
        return content

    def take(self, content: Content, n: int) -> None:
        """Cached bytes, all of them here, become those of a pending change. The ledger knows the change already."""
        if self._kept.get(content.key) is content:
            del self._kept[content.key]
            self._unsaved.discard(content.key)
            self.bytes -= content.room()
        path = self._place / "pending" / str(n)
        if content.path.exists():
            content.path.rename(path)
        content.path, content.key, content.n = path, "", n
        content.have = None

    def give(self, content: Content, ident: str, etag: str, size: int) -> None:
        """The bytes of a pending change are the server's now: cached ones, from here on."""
        key = hashlib.blake2b(f"{ident}\0{etag}".encode(), digest_size=16).hexdigest()
        path = self._place / "content" / key
        old = self._kept.pop(key, None)
        if old is not None:
            self.bytes -= old.room()
        content.path.rename(path)
        content.path, content.key, content.n = path, key, 0
        content.id, content.etag, content.size, content.have = ident, etag, size, None
        content.used = time.time()
        self._kept[key] = content
        self.bytes += content.room()
        self._unsaved.add(key)
        if self.bytes > self.limit:
            self.evict()

    def rekey(self, content: Content, etag: str) -> None:
        """The same bytes have another etag now."""
        if content.n or self._kept.get(content.key) is not content:
            return
        self._ledger.forget([content.key])
        self.bytes -= content.room()
        del self._kept[content.key]
        self._unsaved.discard(content.key)
        ident, size, have = content.id, content.size, content.have
        if content.path.exists():
            self.give(content, ident, etag, size)
            self.bytes -= content.room()
            content.have = have
            self.bytes += content.room()

    def discard(self, content: Content) -> None:
        """A pending change was taken back: its bytes go with the last user."""
        content.n = 0
        if content.users <= 0:
            content.path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write down what is here."""
        kept = []
        for key in self._unsaved:
            content = self._kept.get(key)
            if content is not None:
                have = None if content.have is None else bytes(content.have)
                kept.append(Kept(key, content.id, content.etag, content.size, have, content.used))
        self._unsaved.clear()
        with self._ledger.batch():
            self._ledger.keep(kept)

    def left_over(self, known: set[str]) -> list[Path]:
        """Bytes of changes that no row leads to: they were uploaded, or nobody was ever told of them."""
        return [path for path in (self._place / "pending").iterdir() if path.name not in known]
