"""A thread with an event loop that reads topics and hands records on, in order, with all that happened to them.

It owns the connection. What it hands on is a queue of items (`Records`, `At`, `Gap`); what it is told comes through
`place` and `commit`, from any thread. It never decides what is durable: the offsets that it commits to the broker are
those it is given, and are for people and their tools; where to read on is what the spaces have kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from watcher.streams import offsets, topics
from watcher.streams.loops import quiet
from watcher.streams.offsets import Position
from watcher.streams.options import Broker

log = logging.getLogger(__name__)
# The library logs each attempt; what matters is said here, once.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

Key = tuple[str, int]
"""Topic and partition."""
MAX_HELD = 16 << 20
"""Bytes of records that wait to be taken."""
BATCH = 2000
POLL_MS = 200
LOOK = 1.0
"""Seconds between two looks at where the partitions end; that also tells whether the broker answers."""
ANSWER = 5.0
BACKOFF, BACKOFF_MOST = 0.2, 5.0
SESSION_MS = 6_000
"""After which another member of the group gets the partitions of one that says nothing; brokers admit no less."""


class Records(NamedTuple):
    """Records of one partition, in order: aiokafka's ConsumerRecord."""

    key: Key
    records: Sequence[Any]
    size: int


class At(NamedTuple):
    """From here on records of a partition begin at `offset`; `marks`: which prove positions."""

    key: Key
    offset: int
    marks: Mapping[int, Mapping[str, Position]]
    topic: str = ""
    """Its id."""


class Gap(NamedTuple):
    """Something may be missed in a space (None: in all)."""

    space: str | None
    reason: str


Item = Records | At | Gap


@dataclass(slots=True)
class State:
    """What the thread says of itself; others read it."""

    connected: bool = False
    error: str = ""
    down_since: float = 0.0
    """Monotonic; 0 while it is connected."""
    partitions: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Of those that this process reads: first offset and end."""
    wanted: set[Key] = field(default_factory=set)
    """All partitions of the topics."""
    placed: int = -1
    """The number of the last `place` that was answered."""
    rebalances: int = 0
    gaps: Counter[str] = field(default_factory=Counter)


class Consumer:
    """See the module's text. `bell` is called when there is something to take."""

    def __init__(self, broker: Broker, names: Sequence[str], bell: Callable[[], None]) -> None:
        self.state = State(down_since=time.monotonic())
        self._broker = broker
        self._topics = list(names)
        self._bell = bell
        self._items: deque[Item] = deque()
        self._held = 0
        self._loop = asyncio.new_event_loop()
        quiet(self._loop)
        self._room = asyncio.Event()
        self._again = asyncio.Event()
        self._kept: dict[str, dict[Key, Position]] = {}
        self._number = -1
        self._ids: dict[str, str] = {}
        self._noted: dict[tuple[str, Key], tuple[Position | None, Position]] = {}
        """Where spaces began whose position (the first one) did not do; asked again with the same, that holds."""
        self._commits: dict[Key, int] = {}
        self._committed: dict[Key, int] = {}
        self._placed: set[Key] = set()
        self._stopping = False
        self._kafka: AIOKafkaConsumer | None = None
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)
        self._thread.start()

    # -- for other threads

    def take(self) -> Item | None:
        """The next item, or None."""
        try:
            item = self._items.popleft()
        except IndexError:
            return None
        if isinstance(item, Records):
            self._held -= item.size
            if self._held < MAX_HELD // 2 <= self._held + item.size:
                self._tell(self._room.set)
        return item

    def waiting(self) -> bool:
        """Whether `take` would answer something."""
        return bool(self._items)

    def held(self) -> int:
        """Bytes that wait."""
        return self._held

    def place(self, number: int, kept: dict[str, dict[Key, Position]]) -> None:
        """Begin anew where these spaces need it; `number` is told by `state.placed` when that is done."""

        def do() -> None:
            self._kept, self._number = kept, number
            self._again.set()

        self._tell(do)

    def commit(self, positions: dict[Key, int]) -> None:
        """These are durable: tell the broker when there is time."""
        self._tell(lambda: self._commits.update(positions))

    def close(self) -> None:
        """Leave the group and end the thread."""

        def stop() -> None:
            self._stopping = True
            self._room.set()
            self._again.set()

        self._tell(stop)
        self._thread.join(15)

    def _tell(self, work: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(work)

    # -- the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except Exception:
            log.exception("the Kafka reader failed")
        finally:
            self._loop.close()

    async def _main(self) -> None:
        backoff = BACKOFF
        while not self._stopping:
            kafka = None
            try:
                kafka = self._kafka = self._make()
                await kafka.start()
                backoff = BACKOFF
                await self._read(kafka)
            except (KafkaError, OSError, TimeoutError) as error:
                self._down(error)
            finally:
                self._placed.clear()
                self.state.partitions = {}
                if kafka is not None:
                    with contextlib.suppress(KafkaError, OSError, TimeoutError):
                        await asyncio.wait_for(kafka.stop(), ANSWER)
            if not self._stopping:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ends(), backoff)
                backoff = min(BACKOFF_MOST, 2 * backoff)

    async def _ends(self) -> None:
        while not self._stopping:
            self._again.clear()
            await self._again.wait()

    def _make(self) -> AIOKafkaConsumer:
        kafka = AIOKafkaConsumer(
            group_id=self._broker.group,
            # A static member (KIP-345): who is started again within the session time takes its own place.
            group_instance_id=self._broker.member or None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=POLL_MS,
            max_partition_fetch_bytes=4 << 20,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=SESSION_MS // 4,
            metadata_max_age_ms=30_000,
            request_timeout_ms=15_000,
            **self._broker.arguments(),
        )
        kafka.subscribe(self._topics, listener=_Listener(self))
        return kafka

    def _down(self, error: BaseException) -> None:
        state = self.state
        state.error = str(error) or type(error).__name__
        if state.connected or not state.down_since:
            log.warning("Kafka at %s: %s", ",".join(self._broker.brokers), state.error)
            state.connected, state.down_since = False, time.monotonic()

    def _up(self) -> None:
        state = self.state
        if not state.connected:
            log.info("Kafka at %s answers", ",".join(self._broker.brokers))
        state.connected, state.error, state.down_since = True, "", 0.0

    async def _read(self, kafka: AIOKafkaConsumer) -> None:
        looking = asyncio.create_task(self._look(kafka))
        try:
            while not self._stopping:
                if self._again.is_set():
                    self._again.clear()
                    await self._place(kafka, kafka.assignment())
                await self._have_room()
                await self._fetch(kafka)
                if looking.done():
                    looking.result()
            await self._commit(kafka)
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await looking

    async def _have_room(self) -> None:
        if self._held >= MAX_HELD:
            self._room.clear()
            if self._held >= MAX_HELD:
                await self._room.wait()

    async def _fetch(self, kafka: AIOKafkaConsumer) -> None:
        try:
            found = await kafka.getmany(timeout_ms=POLL_MS, max_records=BATCH)
        except OffsetOutOfRangeError as error:
            await self._out_of_range(kafka, error.args[0])
            return
        except NoOffsetForPartitionError:
            await asyncio.sleep(0.05)  # not placed yet
            return
        for partition, records in found.items():
            key = (partition.topic, partition.partition)
            if key in self._placed and records:
                size = sum(len(record.value or b"") + 200 for record in records)
                self._held += size
                self._put(Records(key, records, size))

    def _put(self, item: Item) -> None:
        self._items.append(item)
        self._bell()

    def _gap(self, space: str | None, reason: str) -> None:
        self.state.gaps[reason] += 1
        self._put(Gap(space, reason))

    async def _out_of_range(self, kafka: AIOKafkaConsumer, wrong: Mapping[TopicPartition, int]) -> None:
        """Retention went past us, or the topic is another one."""
        begins = await self._asked(kafka.beginning_offsets(list(wrong)))
        for partition, offset in wrong.items():
            begin = begins[partition]
            reason = "retention" if offset < begin else "recreated"
            log.warning(
                "%s[%d]: offset %d is not there (%s): all spaces are swept",
                partition.topic, partition.partition, offset, reason,
            )  # fmt: skip
            self._gap(None, reason)
            kafka.seek(partition, begin)
            topic = self._ids.get(partition.topic, "")
            self._put(At((partition.topic, partition.partition), begin, {}, topic))

    async def _place(self, kafka: AIOKafkaConsumer, assigned: Any) -> None:
        """Seek to where the spaces need it."""
        number, kept = self._number, self._kept
        partitions = sorted(assigned)
        if kept and partitions:
            begins = await self._asked(kafka.beginning_offsets(partitions))
            ends = await self._asked(kafka.end_offsets(partitions))
            gaps: dict[str, str] = {}
            self._ids = await self._asked(topics.ids(kafka._client, self._topics))
            for partition in partitions:
                key, topic = (partition.topic, partition.partition), self._ids.get(partition.topic, "")
                has = {space: self._position(space, key, mine.get(key)) for space, mine in kept.items()}
                where = offsets.start(begins[partition], ends[partition], has, topic)
                gaps |= where.gaps
                self._noted |= {
                    (space, key): (kept[space].get(key), Position(where.offset, topic=topic))
                    for space in where.gaps
                }
                self._put(At(key, where.offset, where.marks, topic))
                kafka.seek(partition, where.offset)
                self._placed.add(key)
                self.state.partitions[key] = (begins[partition], ends[partition])
            self._noted = {each: at for each, at in self._noted.items() if each[0] in kept}
            for space, reason in gaps.items():
                self._gap(space, reason)
            self.state.placed = number
            self._bell()

    def _position(self, space: str, key: Key, kept: Position | None) -> Position | None:
        noted = self._noted.get((space, key))
        return noted[1] if noted is not None and noted[0] == kept else kept

    async def _asked(self, question: Any) -> Any:
        return await asyncio.wait_for(question, ANSWER)

    async def _look(self, kafka: AIOKafkaConsumer) -> None:
        """Every second: does the broker answer, where do the partitions end, commit what is durable."""
        while True:
            try:
                self._count(kafka)
                partitions = sorted(kafka.assignment())
                ends = await self._asked(kafka.end_offsets(partitions)) if partitions else {}
                if not partitions:
                    await self._asked(kafka._client.force_metadata_update())
                begins = await self._asked(kafka.beginning_offsets(partitions)) if partitions else {}
                self.state.partitions = {
                    (each.topic, each.partition): (begins[each], ends[each])
                    for each in partitions
                    if (each.topic, each.partition) in self._placed
                }
                self._up()
                self._missing()
                found = await self._asked(topics.ids(kafka._client, self._topics))
                if any(self._ids.get(topic, topic_id) != topic_id for topic, topic_id in found.items()):
                    self._again.set()  # made anew: begin anew
                await self._commit(kafka)
            except (KafkaError, OSError, TimeoutError) as error:
                self._down(error)
            await asyncio.sleep(LOOK)

    def _count(self, kafka: AIOKafkaConsumer) -> None:
        found = {
            (topic, number) for topic in self._topics for number in kafka.partitions_for_topic(topic) or ()
        }
        self.state.wanted = found

    def _missing(self) -> None:
        there = {topic for topic, _ in self.state.wanted}
        missing = [topic for topic in self._topics if topic not in there]
        if missing:
            self.state.error = f"there is no topic {', '.join(missing)}"

    async def _commit(self, kafka: AIOKafkaConsumer) -> None:
        assigned = kafka.assignment()
        wanted = {
            TopicPartition(*key): offset
            for key, offset in self._commits.items()
            if self._committed.get(key) != offset and TopicPartition(*key) in assigned
        }
        if wanted:
            with contextlib.suppress(KafkaError, TimeoutError):
                await self._asked(kafka.commit(wanted))
                self._committed.update(
                    {(each.topic, each.partition): offset for each, offset in wanted.items()}
                )

    async def revoked(self, partitions: Any) -> None:
        """Others may read these from now on."""
        if self._kafka is not None:
            await self._commit(self._kafka)
        self._placed -= {(each.topic, each.partition) for each in partitions}

    async def assigned(self, partitions: Any) -> None:
        """These are ours now: read on where the spaces are, wherever others have read to."""
        self.state.rebalances += 1
        self._placed.clear()
        if self._kafka is not None:
            try:
                await self._place(self._kafka, partitions)
            except (KafkaError, OSError, TimeoutError) as error:
                self._down(error)
                self._again.set()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._consumer.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._consumer.assigned(assigned)
