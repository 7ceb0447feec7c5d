"""Bringing bytes here: what a reader asks for and is not here yet, a little ahead of who reads on, and the small
siblings of small files that are read one after the other.

Each block is fetched once, however many ask for it at the same time. The version is named by its etag: if the server
has another one by now, the reader gets ESTALE, never a mixture.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING

import trio

from fsd.mount.remote.contents import BLOCK, Content, Contents
from fsd.mount.remote.errors import Offline, Refused
from fsd.mount.remote.progress import Progress

if TYPE_CHECKING:
    from fsd.mount.remote.dav import Dav
    from fsd.mount.remote.nodes import Node

_log = logging.getLogger(__name__)

WHOLE = 1 << 20
"""Files up to this size come as a whole."""
MOST_AHEAD = 16 << 20
SMALL = 128 << 10
"""Siblings up to this size are brought along."""
SIBLINGS = 48
_AT_ONCE = 6
_SOON = 2.0
"""Seconds between two misses in a folder that count as reading it through."""


class Fetcher:
    """All downloads of a mount."""

    def __init__(self, dav: Dav, contents: Contents, progress: Progress) -> None:
        self._dav, self._contents, self._progress = dav, contents, progress
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self.nursery: trio.Nursery | None = None
        self._missed_at: dict[int, float] = {}

    # -- what is asked for

    async def ensure(self, content: Content, offset: int, count: int) -> None:
        """Bytes of a version are here when this returns. Offline, Refused, OSError of the cache's disk."""
        if content.complete:
            return
        if content.size <= WHOLE:
            offset, count = 0, content.size
        while missing := content.missing(offset, count):
            coming = [block for block in missing if block in content.wanted]
            fresh = [block for block in missing if block not in content.wanted]
            if fresh:
                await self._fetch(content, _first_run(fresh))
            else:
                await content.wanted[coming[0]].wait()

    async def whole(self, content: Content) -> None:
        """All bytes."""
        await self.ensure(content, 0, content.size)

    def read_on(self, content: Content, offset: int, count: int) -> None:
        """A part was read: who reads on finds the next one here."""
        if content.complete or self.nursery is None:
            return
        if offset != content.next:
            content.ahead = 0
        elif offset + count + content.ahead // 2 >= content.next:
            content.ahead = min(max(content.ahead * 2, 4 * BLOCK), MOST_AHEAD)
        content.next = offset + count
        if content.ahead and content.next < content.size:
            fresh = [b for b in content.missing(content.next, content.ahead) if b not in content.wanted]
            if len(fresh) * BLOCK * 2 >= content.ahead or (
                fresh and fresh[0] * BLOCK <= content.next + BLOCK
            ):
                self.nursery.start_soon(self._quietly, content, _first_run(fresh))

    async def _quietly(self, content: Content, blocks: range) -> None:
        """Nobody waits for it: who needs it asks again and hears what is wrong."""
        if any(block in content.wanted for block in blocks):
            return
        try:
            await self._fetch(content, blocks)
        except OSError as error:
            _log.debug("not fetched ahead: %s", error)

    async def _fetch(self, content: Content, blocks: range) -> None:
        event = trio.Event()
        for block in blocks:
            content.wanted[block] = event
        try:
            await self._transfer(content, blocks)
        except Refused as error:
            if error.status in (404, 412, 416):
                raise OSError(errno.ESTALE, "the file was changed or deleted on the server") from None
            raise
        finally:
            for block in blocks:
                content.wanted.pop(block, None)
            event.set()

    async def _transfer(self, content: Content, blocks: range) -> None:
        start = blocks.start * BLOCK
        count = min(blocks.stop * BLOCK, content.size) - start
        fd = self._contents.open(content)
        told = self._progress.begin("download", content.id, count) if count > WHOLE else None
        try:
            async with self._dav.get(content.id, content.etag, start, count, content.size) as got:
                at = start
                async for chunk in got.chunks:
                    self._write(fd, chunk, at)
                    before, at = at, at + len(chunk)
                    for block in range(before // BLOCK, at // BLOCK):
                        self._contents.got(content, block)
                    self._progress.more(told, len(chunk))
            if at != start + count:
                raise Offline("the connection broke")
            if at % BLOCK:
                self._contents.got(content, at // BLOCK)
        finally:
            self._progress.end(told)
            self._contents.close(content)

    def _write(self, fd: int, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            try:
                done = os.pwrite(fd, view, at)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._contents.evict(all_of_it=True):
                    raise
                continue
            view, at = view[done:], at + done

    async def directly(self, content: Content, offset: int, count: int) -> bytes:
        """Bytes past a cache whose disk is full."""
        count = min(count, content.size - offset)
        if count <= 0:
            return b""
        async with self._dav.get(content.id, content.etag, offset, count, content.size) as got:
            return b"".join([chunk async for chunk in got.chunks])

    # -- siblings

    def missed(self, node: Node) -> None:
        """A small file was opened and is not here. The second one in a folder brings the next ones along."""
        folder, now = node.parent, time.monotonic()
        if folder is None or folder.children is None or self.nursery is None or node.size > SMALL:
            return
        before = self._missed_at.get(folder.ino, 0.0)
        if len(self._missed_at) > 1000:
            self._missed_at.clear()
        self._missed_at[folder.ino] = now
        if now - before < _SOON:
            self._bring(folder, node)

    def _bring(self, folder: Node, node: Node) -> None:
        """The next small files of the folder, in its order, that are not here."""
        assert self.nursery is not None and folder.children is not None
        names = iter(folder.children.items())
        for _, child in names:
            if child is node:
                break
        brought = 0
        for _, child in names:
            if child.is_dir or child.pending or child.id is None or not 0 < child.size <= SMALL:
                continue
            if not self._contents.is_here(child.id, child.etag):
                content = self._contents.cached(child.id, child.etag, child.size)
                if not content.wanted:
                    content.wanted[-1] = trio.Event()
                    self.nursery.start_soon(self._sibling, content)
                    brought += 1
            if brought >= SIBLINGS or self._contents.bytes > self._contents.limit // 2:
                return

    async def _sibling(self, content: Content) -> None:
        try:
            async with self._limiter:
                if not content.complete and 0 not in content.wanted:
                    await self._fetch(content, range(-(-content.size // BLOCK)))
        except OSError as error:
            _log.debug("not brought along: %s", error)
        finally:
            event = content.wanted.pop(-1, None)
            if event is not None:
                event.set()


def _first_run(blocks: list[int]) -> range:
    """The first blocks that follow each other."""
    end = blocks[0]
    for block in blocks:
        if block != end:
            break
        end += 1
    return range(blocks[0], end)
