"""Changes on their way to the server: written down first, sent a moment after the last close, several at a time, oldest
first, asked again for as long as it takes.

A change names what it replaces (If-Match) or that nothing is there (If-None-Match: *); `overtaken` is asked when
somebody was faster. What the server refuses stays here, is told by `--status`, and is tried again.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import logging
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from fsd.mount import loop
from fsd.mount.loop import away
from fsd.mount.remote import sending
from fsd.mount.remote.client import Answer
from fsd.mount.remote.dav import Dav, address
from fsd.mount.remote.errors import Offline, Refused
from fsd.mount.remote.overtaken import Overtaken
from fsd.mount.remote.pending import Pending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fsd.mount.remote.contents import Contents
    from fsd.mount.remote.ledger import Ledger
    from fsd.mount.remote.nodes import Node
    from fsd.mount.remote.progress import Progress
    from fsd.mount.remote.sync import Sync

_log = logging.getLogger(__name__)

AT_ONCE = 6
_LOOK_S, _MUCH = 0.02, 300.0
"""Seconds of a look at what programs do; requests of theirs a second that are much."""
MOST_WAITING = 50_000
"""Files; a program that makes more waits until some are sent."""
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_NOT_YET = 5
"""So often a server may say that it does not know yet before a person is told."""


class Uploader:
    """All pending changes of a mount."""

    def __init__(
        self, sync: Sync, dav: Dav, contents: Contents, ledger: Ledger, progress: Progress, *,
        delay: float, user: str,
    ) -> None:  # fmt: skip
        self._sync, self._dav, self._contents, self._ledger = sync, dav, contents, ledger
        self._progress, self._delay = progress, delay
        self.waiting: dict[int, Pending] = {}
        self._overtaken = Overtaken(sync, dav, contents, ledger, user)
        self.conflicts = self._overtaken.conflicts
        self.bytes = 0
        self._homeless: dict[str, list[Pending]] = {}
        self._heap: list[tuple[float, int, Pending]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(ledger.last_number() + 1)
        self._wake = trio.Event()
        self._sent = trio.Event()
        self._sent_one = trio.Event()
        self._slots = trio.Semaphore(AT_ONCE)

    # -- what was left by an earlier mount

    def restore(self) -> int:
        """Take up what an earlier mount could not send; how many changes."""
        known = set()
        for row in self._ledger.pending():
            content = self._contents.new(row.n)
            try:
                found = content.path.stat()
            except FileNotFoundError:
                self._ledger.drop(row.n)  # nothing was written into it yet
                continue
            known.add(str(row.n))
            node = self._sync.tree.make(row.name, is_dir=False, ident=row.id)
            node.size, node.etag, node.permissions = found.st_size, row.base or "", "RDNVW"
            node.mtime_ns = row.mtime_ns or found.st_mtime_ns
            change = Pending(row.n, node, content, row.parent, row.name, row.base)
            change.upload = row.upload
            node.pending, node.content, content.size = change, content, found.st_size
            self.waiting[row.n] = change
            self._homeless.setdefault(row.parent, []).append(change)
            self._count(change, found.st_size)
            self._queue(change, 0.0)
        for path in self._contents.left_over(known):
            path.unlink()
        return len(known)

    def adopt(self, folder: Node) -> None:
        """A folder was listed: what waits for it shows there."""
        for change in self._homeless.pop(folder.id or "", []):
            if change.node.pending is change and not self._sync.tree.placed(change.node):
                self._sync.tree.put(folder, change.name, change.node)

    # -- what handlers say

    async def admit(self) -> None:
        """Before more is written: wait until not too much is waiting. ENOSPC while nothing can be sent."""
        while self.bytes > self._contents.limit or len(self.waiting) >= MOST_WAITING:
            if self._dav.client.away is not None:
                raise OSError(errno.ENOSPC, "too much is waiting for the server")
            for change in list(self.waiting.values())[:AT_ONCE]:
                if not change.node.writers:
                    self._queue(change, 0.0)
            if all(change.node.writers for change in self.waiting.values()):
                return
            if self._sent.is_set():
                self._sent = trio.Event()
            with trio.move_on_after(5):
                await self._sent.wait()

    def create(self, folder: Node, name: bytes, node: Node) -> Pending:
        """A new file: durable against the end of this process when it returns."""
        n = next(self._numbers)
        content = self._contents.new(n)
        self._contents.open(content)
        change = Pending(n, node, content, folder.id or "", name, None)
        node.pending = change
        try:
            self._ledger.put(change.row())
        except OSError:
            node.pending = None
            self._contents.discard(content)
            self._contents.close(content)
            raise
        node.content = content
        self.waiting[n] = change
        return change

    def change(self, node: Node) -> Pending:
        """An existing file is about to be changed; all its bytes are here (or none are wanted)."""
        if node.pending is not None:
            return self.written(node.pending)
        assert node.content is not None and node.parent is not None
        n = next(self._numbers)
        change = Pending(n, node, node.content, node.parent.id or "", node.name, node.etag)
        self._ledger.put(change.row())
        self._contents.take(node.content, n)
        node.pending = change
        self.waiting[n] = change
        return self.written(change)

    def written(self, change: Pending) -> Pending:
        """It changed once more: an upload that runs or was begun has old bytes."""
        change.version += 1
        if change.upload is not None and not change.uploading:
            change.upload = None
        return change

    def closed(self, node: Node) -> None:
        """Nobody writes any more."""
        change = node.pending
        if change is not None:
            self._count(change, node.size)
            self._ledger.put(change.row())
            self._queue(change, time.monotonic() + self._delay)

    def moved(self, node: Node, folder: Node, name: bytes) -> None:
        """The file has another place."""
        change = node.pending
        if change is not None:
            change.folder, change.name = folder.id or "", name
            self._ledger.put(change.row())

    def replaces(self, node: Node, over: Node) -> None:
        """A file the server does not know took the place of one it does: that one is what the upload replaces."""
        change = node.pending
        assert change is not None
        if over.id is not None:
            change.base = over.pending.base if over.pending is not None else over.etag
            ident = over.id
            self._sync.tree.unname(over)
            self._sync.tree.name_it(node, ident)
        self.drop(over)

    def drop(self, node: Node) -> None:
        """The file was deleted."""
        change, node.pending = node.pending, None
        if change is not None:
            change.dropped = True
            self._ledger.drop(change.n)
            self._contents.discard(change.content)
            self._finished(change)

    @asynccontextmanager
    async def still(self, *nodes: Node | None) -> AsyncIterator[None]:
        """Within, no upload of these is on its way, and none begins: what is awaited meanwhile would be overtaken."""
        held = [node for node in nodes if node is not None]
        for node in held:
            node.held += 1
        try:
            with away():
                for node in held:
                    await self._settled(node)
            yield
        finally:
            for node in held:
                node.held -= 1
                if not node.held and node.pending is not None and node.pending.due < float("inf"):
                    self._queue(node.pending, node.pending.due)

    async def _settled(self, node: Node) -> None:
        while node.pending is not None and node.pending.uploading:
            await node.pending.attempt.wait()

    async def flush(self, node: Node) -> None:
        """fsync: what was written up to now is on the server when this returns. Offline, Refused: it is not, but stays
        here and will be."""
        change = node.pending
        if change is None:
            return
        os.fsync(self._contents.open(change.content))
        self._contents.close(change.content)
        wanted = change.version
        await self._settled(node)
        while node.pending is change and not change.dropped:
            if self._dav.client.away is not None:
                raise Offline(self._dav.client.away)
            change.forced = True
            self._queue(change, 0.0)
            await change.attempt.wait()
            if node.pending is change and change.error is not None:
                raise change.error
            if change.version >= wanted and change.error is None:
                return

    # -- sending

    def _count(self, change: Pending, size: int) -> None:
        self.bytes += size - change.size
        change.size = size

    def _queue(self, change: Pending, due: float) -> None:
        change.due = due
        heapq.heappush(self._heap, (due, next(self._order), change))
        self._wake.set()

    def retry_all(self) -> None:
        """The server is back."""
        for change in list(self.waiting.values()):
            if not change.node.writers or change.forced:
                self._queue(change, min(change.due, time.monotonic()))

    def retry_now(self) -> None:
        """Everything that was not refused is due."""
        for change in self.waiting.values():
            if not change.node.writers and change.error is None and change.due > time.monotonic():
                self._queue(change, 0.0)

    async def run(self) -> None:
        """Send what is due, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                change = self._next()
                if change is None:
                    self._wake = trio.Event()
                    pause = self._heap[0][0] - time.monotonic() if self._heap else 3600.0
                    if self._dav.client.away is not None:
                        pause = 3600.0
                    with trio.move_on_after(max(0.01, pause)):
                        await self._wake.wait()
                    continue
                await self._turn(change)
                await self._slots.acquire()
                if not self._may_go(change):
                    self._slots.release()
                    continue
                change.uploading = True
                nursery.start_soon(self._send_one, change)

    async def _turn(self, change: Pending) -> None:
        """Programs at work go first: as long as they ask for much, changes go one by one, unless somebody waits for
        this one, or much is waiting already."""
        while not (change.forced or change.dropped or self.bytes > self._contents.limit // 2):
            if self._slots.value == AT_ONCE:
                return
            before, since = loop.turns(), time.monotonic()
            with trio.move_on_after(_LOOK_S):
                await self._sent_one.wait()
            if loop.turns() - before <= _MUCH * (time.monotonic() - since):
                return

    def _next(self) -> Pending | None:
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now and self._dav.client.away is None:
            due, _, change = heapq.heappop(self._heap)
            if change.due == due and self._may_go(change) and (not change.node.writers or change.forced):
                return change
        return None

    def _may_go(self, change: Pending) -> bool:
        """Not what is sent by now (it may have been queued more than once) or dropped, nor what somebody holds."""
        return self.waiting.get(change.n) is change and not change.uploading and not change.node.held

    async def _send_one(self, change: Pending) -> None:
        change.error = None
        try:
            await self._attempt(change)
            change.tries = 0
        except OSError as error:
            self._failed(change, error)
        except Exception as error:
            _log.exception("upload failed")
            self._failed(change, OSError(errno.EIO, str(error)))
        finally:
            change.uploading = change.forced = False
            self._sent_one.set()
            self._sent_one = trio.Event()
            ended, change.attempt = change.attempt, trio.Event()
            ended.set()
            self._slots.release()
            self._sent.set()
            self._progress.changes += 1

    def _failed(self, change: Pending, error: OSError) -> None:
        change.error = error
        status = error.status if isinstance(error, Refused) else 0
        if isinstance(error, Offline):
            self._queue(change, time.monotonic())
            return
        if status == 503 and change.tries < _NOT_YET:
            _log.info("%r is not uploaded yet: %s", change.name, error.strerror)
        elif status != change.status or change.tries in (0, _NOT_YET):
            _log.warning("%r is not uploaded, and stays here: %s", change.name, error.strerror)
        change.status = status
        self._queue(change, time.monotonic() + _PAUSES[min(change.tries, len(_PAUSES) - 1)])
        change.tries += 1

    async def _attempt(self, change: Pending) -> None:
        """Send it; what somebody else did meanwhile is found out, and it is sent as what it then is."""
        for _ in range(4):
            folder, name = change.node.parent, change.name
            if folder is not None:
                self._sync.busy(folder, name)
            echoes = None
            try:
                version = change.version
                answer, size = await self._send(change)
                if change.base is not None:
                    echoes = answer.headers.get("oc-fileid", "")
                self._succeeded(change, answer.headers.get("oc-fileid", ""), answer.etag, size, version)
                return
            except Refused as error:
                if error.status not in (404, 409, 412):
                    raise
                mine = await self._overtaken.resolve(change)
                if mine is not None:
                    self._succeeded(change, mine.id, mine.etag, mine.size, change.version)
                    return
            finally:
                if folder is not None:
                    self._sync.done(folder, name, echoes=echoes)
        raise OSError(errno.EBUSY, "others change the same file all the time")

    async def _send(self, change: Pending) -> tuple[Answer, int]:
        fd = self._contents.open(change.content)
        number = None
        try:
            size = os.fstat(fd).st_size
            mtime_ns = change.node.mtime_ns
            if size > sending.LARGE:
                number = self._progress.begin("upload", os.fsdecode(change.name), size)

            def told(count: int) -> None:
                self._progress.more(number, count)

            if size <= sending.LARGE or change.by_id:
                ident = change.node.id if change.by_id else None
                path = address(ident) if ident else address(change.folder, change.name)
                answer = await sending.put(self._dav, path, fd, size, change.base, mtime_ns, told)
            else:
                upload = sending.Resumable(self._dav, change.upload, lambda at: self._began(change, at))
                answer = await upload.send(change.folder, change.name, fd, size, change.base, mtime_ns, told)
            return answer, size
        finally:
            self._progress.end(number)
            self._contents.close(change.content)

    def _began(self, change: Pending, place: str | None) -> None:
        change.upload = place
        if not change.dropped:
            self._ledger.put(change.row())

    def _succeeded(self, change: Pending, ident: str, etag: str, size: int, version: int) -> None:
        node = change.node
        if change.dropped:
            return
        if not ident or not etag:
            raise OSError(errno.EPROTO, "the server does not say what it stored")
        if change.base is not None and node.id is not None:
            self._contents.superseded(node.id, change.base)
        if node.id != ident:
            self._sync.tree.name_it(node, ident)
        node.etag, change.upload, change.by_id = etag, None, False
        if change.version != version:
            change.base = etag
            self._ledger.put(change.row())
            if not node.writers:
                self._queue(change, time.monotonic() + self._delay)
            return
        self._ledger.drop(change.n)
        self._contents.give(change.content, ident, etag, size)
        node.pending = None
        node.pages = etag
        if not node.handles:
            node.content = None
        if node.parent is not None:
            self._sync.tree.touch(node.parent, node.name)
            self._sync.changed(node.parent)
        elif (folder := self._sync.tree.by_id.get(change.folder)) is not None:
            folder.stale = True  # a listing on its way may be from before
        self._progress.done["upload"] += 1
        self._finished(change)
        self._sync.tree.drop_unused(node)

    def _finished(self, change: Pending) -> None:
        self.waiting.pop(change.n, None)
        self.bytes -= change.size
        change.size = 0
