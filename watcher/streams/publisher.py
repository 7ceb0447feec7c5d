"""The journal topic as the host that works on a space writes it: which entries changed, numbered as in the journal.

A thread reads the journal behind the last number that a broker has acknowledged, which stands in the space's index,
and sends what is there. So nothing waits in memory, a crash or a broker that is away makes it say things twice or
later, and a journal that does not reach back so far is a gap, said as such. Nothing waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from fsd.core import index, journal, lease, positions
from watcher.streams import peers
from watcher.streams.loops import quiet
from watcher.streams.options import Broker

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.journal import Numbered
    from fsd.core.space import Space

log = logging.getLogger(__name__)
_NAME = "journal topic"
_SILENT = frozenset({"scanned", "ready"})
"""What a host that follows finds by itself when it comes to know a directory, and what is no difference on disk."""
BATCH = 500
EVERY = 0.05
"""Seconds between two looks; a space in which nothing was committed costs two system calls."""
KEEP_EVERY = 1.0
BACKOFF, BACKOFF_MOST = 0.2, 5.0
ANSWER = 10.0
END = 5.0


class Publisher:
    """`spaces`: those that are open now, by their keys; asked from this thread."""

    def __init__(
        self, broker: Broker, topic: str, host: str, spaces: Callable[[], Mapping[str, Space]]
    ) -> None:
        self.error = ""
        """Why nothing can be told now."""
        self._broker, self._topic, self._host, self._spaces = broker, topic, host, spaces
        self._told: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        self._next_keep: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal topic", daemon=True)
        self._thread.start()

    def told(self, key: str) -> dict[str, Any]:
        """For `status`. `number`: the last change of the space that a broker has acknowledged, 0 if none is ours."""
        return {"topic": self._topic, "number": self._told.get(key, 0), "error": self.error}

    def close(self) -> None:
        """End the thread; what was not said is said by the next start."""
        self._ending.set()
        self._thread.join(END)

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        quiet(asyncio.get_running_loop())
        backoff = BACKOFF
        while not self._ending.is_set():
            producer = None
            try:
                producer = AIOKafkaProducer(
                    acks="all", enable_idempotence=True, linger_ms=2, request_timeout_ms=15_000,
                    **self._broker.arguments(),
                )  # fmt: skip
                await producer.start()
                backoff = BACKOFF
                await self._tell(producer)
            except (KafkaError, OSError, TimeoutError) as error:
                self._down(error)
            finally:
                if producer is not None:
                    with contextlib.suppress(KafkaError, OSError, TimeoutError):
                        await asyncio.wait_for(producer.stop(), END)
            await self._rest(backoff)
            backoff = min(BACKOFF_MOST, 2 * backoff)

    def _down(self, error: BaseException) -> None:
        if not self.error:
            log.warning("the journal topic %s: %s", self._topic, str(error) or type(error).__name__)
        self.error = str(error) or type(error).__name__

    async def _tell(self, producer: AIOKafkaProducer) -> None:
        while True:
            for key, space in self._spaces().items():
                try:
                    await self._tell_of(producer, key, space)
                    self._keep(key, space)
                except (KafkaError, TimeoutError):
                    raise
                except Exception as error:
                    # Its index can't be read now, or it is being closed; its neighbours are not affected.
                    log.info("space %s: its changes are not told now: %s", space.record.id, error)
            self.error = ""
            if await self._rest(EVERY):
                return

    async def _rest(self, seconds: float) -> bool:
        """Whether it is the end."""
        until = time.monotonic() + seconds
        while not self._ending.is_set() and time.monotonic() < until:
            await asyncio.sleep(EVERY)
        return self._ending.is_set()

    async def _tell_of(self, producer: AIOKafkaProducer, key: str, space: Space) -> None:
        if not lease.may_write(space):
            self._told.pop(key, None)
            return
        answers = space.index.answers()
        if _NAME in answers:
            return
        number = self._told.get(key)
        if number is None:
            number = self._kept[key] = int(positions.reached(space, _NAME).get(_NAME) or -1)
        while not self._ending.is_set() and lease.may_write(space):
            with space.index.read() as db:
                floor, last = journal.floor(db), db.execute("SELECT number-1 FROM head").fetchone()[0]
            if number < floor or number > last:
                await self._send(producer, key, peers.gap(self._host, key, last))
                number = self._told[key] = last
                continue
            changes = journal.since(space, number, BATCH)
            if not changes:
                break
            number = changes[-1].number
            for message in peers.messages(self._host, key, number, _paths(space, changes)):
                await self._send(producer, key, message)
            self._told[key] = number
        self._told[key] = number
        answers[_NAME] = True

    async def _send(self, producer: AIOKafkaProducer, key: str, message: bytes) -> None:
        """Until a broker has it. An idempotent producer would try for ever: TimeoutError."""
        sent = producer.send_and_wait(self._topic, message, key=key.encode())
        await asyncio.wait_for(sent, ANSWER)

    def _keep(self, key: str, space: Space) -> None:
        """Once a second, how far it is: what came later would be said again after a crash."""
        now, number = time.monotonic(), self._told.get(key)
        if number is None or self._kept.get(key) == number or now < self._next_keep.get(key, 0.0):
            return
        self._next_keep[key] = now + KEEP_EVERY
        with space.index.write() as db:
            positions.keep(db, {_NAME: str(number)})
        self._kept[key] = number


def _paths(space: Space, changes: list[Numbered]) -> list[bytes]:
    """Where the changed entries are now, each once. One below a directory that is gone is told by that one."""
    known: dict[bytes, bytes | None] = {}
    found: dict[bytes, None] = {}
    with space.index.read() as db:
        for change in changes:
            if change.kind in _SILENT or not change.name:
                continue
            if change.parent not in known:
                known[change.parent] = _directory(db, change.parent)
            parent = known[change.parent]
            if parent is not None:
                found[parent + b"/" + change.name if parent else change.name] = None
    return list(found)


def _directory(db: sqlite3.Connection, node_id: bytes) -> bytes | None:
    row = index.by_id(db, node_id)
    return index.path_of(db, row.n) if row is not None else None
