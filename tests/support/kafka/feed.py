"""Sending to a broker, and changing its topics, from synchronous tests: an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from tests.support.waiting import wait_for

T = TypeVar("T")
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class Feed:
    """Calls block until the broker has answered."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="feed", daemon=True)
        self._thread.start()
        self._producer: AIOKafkaProducer | None = None

    def _do(self, work: Coroutine[Any, Any, T], timeout: float = 60) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def send(self, topic: str, values: Iterable[bytes], *, partition: int = 0) -> int:
        """Append messages to a partition, in order; the offset of the last one, -1 if there were none."""
        return self._do(self._send(topic, list(values), partition))

    async def _send(self, topic: str, values: list[bytes], partition: int) -> int:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self.address, linger_ms=5, max_batch_size=1 << 20
            )
            await self._producer.start()
        last = None
        for value in values:
            last = await self._producer.send(topic, value, partition=partition)
        return (await last).offset if last is not None else -1

    def forget(self) -> None:
        """Drop the connection; the next `send` makes a new one."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._do(producer.stop())

    # -- topics

    async def _admin(self, work: Any) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            return await work(admin)
        finally:
            await admin.close()

    def create(self, topic: str, partitions: int = 1, **config: str) -> None:
        """Make a topic; underscores in the names of `config` stand for dots."""
        settings = {name.replace("_", "."): value for name, value in config.items()}
        new = NewTopic(topic, partitions, 1, topic_configs=settings)
        answer = self._do(self._admin(lambda admin: admin.create_topics([new])))
        wrong = [error for _, code, *error in answer.topic_errors if code]
        if wrong:
            raise RuntimeError(f"topic {topic}: {wrong}")
        wait_for(lambda: len(self.ends(topic)) == partitions, what=f"topic {topic}")

    def delete(self, topic: str) -> None:
        """Delete a topic with all its messages."""
        self.forget()
        self._do(self._admin(lambda admin: admin.delete_topics([topic])))
        wait_for(
            lambda: topic not in self._do(self._admin(lambda admin: admin.list_topics())),
            what=f"the end of topic {topic}",
        )

    def expire(self, topic: str, before: Mapping[int, int]) -> None:
        """As retention does: everything before an offset is gone, by partition."""
        wanted = {
            TopicPartition(topic, number): RecordsToDelete(before_offset=at) for number, at in before.items()
        }
        self._do(self._admin(lambda admin: admin.delete_records(wanted)))

    def committed(self, group: str) -> dict[int, int]:
        """The offsets that a group has committed, by partition (of any topic)."""
        found = self._do(self._admin(lambda admin: admin.list_consumer_group_offsets(group)))
        return {place.partition: at.offset for place, at in found.items()}

    # -- reading

    def ends(self, topic: str) -> dict[int, int]:
        """The next offset of each partition."""
        return self._do(self._ends(topic))

    async def _ends(self, topic: str) -> dict[int, int]:
        told = await self._admin(lambda admin: admin.describe_topics([topic]))
        places = [TopicPartition(topic, each["partition"]) for each in told[0]["partitions"]]
        consumer = AIOKafkaConsumer(bootstrap_servers=self.address, group_id=None)
        await consumer.start()
        try:
            found = await consumer.end_offsets(places)
            return {place.partition: at for place, at in found.items()}
        finally:
            await consumer.stop()

    def close(self) -> None:
        """Drop the connection and end the thread."""
        self.forget()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
