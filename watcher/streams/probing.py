"""What the probes of `fsd doctor` share: a connection to the brokers, and which topics these show."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from fsd.service.advice import Advice, problem
from watcher.streams.make import broker

if TYPE_CHECKING:
    from fsd.service.config import Settings

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
ANSWER = 10.0
"""Seconds in which a broker has to answer."""


class Unfit(Exception):
    """Nothing more can be asked; `advice` says why."""

    def __init__(self, advice: Advice) -> None:
        super().__init__(advice.found)
        self.advice = advice


def where(settings: Settings) -> str:
    """The brokers, for sentences."""
    return ",".join(settings.kafka_brokers)


@asynccontextmanager
async def connected(settings: Settings, name: str) -> AsyncIterator[Any]:
    """A consumer of no group. Unfit, under this `name`, if there is no way to the brokers."""
    try:
        arguments = replace(broker(settings), group="").arguments()
        kafka = AIOKafkaConsumer(
            group_id=None, auto_offset_reset="latest", request_timeout_ms=5000, **arguments
        )
    except (OSError, ValueError) as error:
        todo = "see the settings under kafka."
        raise Unfit(problem(name, f"the connection cannot be made: {error}", todo)) from error
    try:
        await asyncio.wait_for(kafka.start(), ANSWER)
    except (KafkaError, OSError, TimeoutError) as error:
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            await kafka.stop()
        todo = "is it up, is kafka.brokers right, and do kafka.security, user and certificates fit?"
        said = str(error) or type(error).__name__
        raise Unfit(problem(name, f"Kafka at {where(settings)} does not answer: {said}", todo)) from error
    try:
        yield kafka
    finally:
        await kafka.stop()


async def partitions(settings: Settings, name: str, kafka: Any, topics: Sequence[str]) -> dict[str, set[int]]:
    """The partitions of the topics. Unfit if the brokers show one of them not."""
    cluster = await kafka._client.fetch_all_metadata()
    missing = [topic for topic in topics if topic not in cluster.topics()]
    if missing:
        todo = "make it, give this user the right to read it, or correct the name of the topic"
        raise Unfit(problem(name, f"Kafka at {where(settings)} shows no topic {', '.join(missing)}", todo))
    return {topic: cluster.partitions_for_topic(topic) or set() for topic in topics}
