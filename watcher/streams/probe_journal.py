"""`fsd doctor` on the journal topic: is it there, does it keep what the hosts need, may this one write and read it?

The last is asked with a probe: a message of this host's about a space that is nobody's, which every host passes over,
is sent as the host that works on a space sends, and has to come back.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    for_code,
)

from fsd.core import lease
from fsd.service.advice import Advice, ok, problem, warning
from watcher.streams import peers
from watcher.streams.make import broker, journal_broker
from watcher.streams.probing import ANSWER, Unfit, connected, partitions, where

if TYPE_CHECKING:
    from fsd.service.config import Settings

NAME = "journal"
SHORT_MS = 600_000
"""A topic that keeps less hardly outlasts a restart, after which each follower sweeps."""
_WANTED = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes")


async def journal(settings: Settings, hear: float) -> list[Advice]:
    """All findings about `cluster.journal`. `hear`: seconds in which the probe has to come back."""
    if not (settings.kafka_brokers and settings.cluster_shared):
        todo = "set them, or take 'cluster.journal' out"
        return [problem(NAME, "'cluster.journal' needs 'cluster.shared' and 'kafka.brokers'", todo)]
    topic = settings.cluster_journal
    try:
        async with connected(settings, NAME) as kafka:
            numbers = (await partitions(settings, NAME, kafka, [topic]))[topic]
            found = [ok(NAME, f"Kafka at {where(settings)} has {topic} (partitions: {len(numbers)})")]
            found += await _admin(settings, topic)
            kafka.assign([TopicPartition(topic, number) for number in sorted(numbers)])
            found.append(await _said(settings, kafka, topic, hear))
            return found
    except Unfit as unfit:
        return [unfit.advice]
    except (KafkaError, OSError, TimeoutError) as error:
        return [problem(NAME, f"{topic} cannot be asked: {_text(error)}", "see the broker's log")]


async def _admin(settings: Settings, topic: str) -> list[Advice]:
    admin = AIOKafkaAdminClient(request_timeout_ms=5000, **broker(settings).arguments())
    await asyncio.wait_for(admin.start(), ANSWER)
    try:
        return [*await _kept(admin, topic), *await _group(admin, journal_broker(settings).group)]
    finally:
        await admin.close()


async def _kept(admin: Any, topic: str) -> list[Advice]:
    """Does the topic keep messages for as long as hosts may be away, all of them?"""
    asked = ConfigResource(ConfigResourceType.TOPIC, topic)
    try:
        (answer,) = await asyncio.wait_for(admin.describe_configs([asked]), ANSWER)
        ((code, _, _, _, entries),) = answer.resources
        if code:
            raise for_code(code)(topic)
    except (KafkaError, TimeoutError) as error:
        todo = f"see that it has cleanup.policy=delete, or let this user: --operation DescribeConfigs --topic {topic}"
        return [warning(NAME, f"what {topic} keeps cannot be asked: {_text(error)}", todo)]
    values = {entry[0]: entry[1] for entry in entries if entry[0] in _WANTED}
    return _judge(topic, values)


def _judge(topic: str, values: dict[str, str]) -> list[Advice]:
    """What is to be said of a topic's settings."""
    found: list[Advice] = []
    change = f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config"
    if "compact" in values.get("cleanup.policy", "delete"):
        what = f"{topic} is compacted: a host that was away misses all but the newest message of each space"
        found.append(problem(NAME, what, f"{change} cleanup.policy=delete"))
    kept = int(values.get("retention.ms", "-1"))
    if kept < 0 and int(values.get("retention.bytes", "-1")) < 0:
        found.append(
            warning(NAME, f"{topic} keeps everything and grows for ever", f"{change} retention.ms=86400000")
        )
    elif 0 <= kept < SHORT_MS:
        what = f"{topic} keeps messages for {kept / 1000:g} s: a host that is away for longer has to sweep its spaces"
        found.append(warning(NAME, what, f"{change} retention.ms=86400000"))
    if (most := int(values.get("max.message.bytes", "1048588"))) < 2 * peers.MOST_BYTES:
        what = (
            f"{topic} takes messages of {most} bytes at most; of many changes at once fsd sends larger ones"
        )
        found.append(problem(NAME, what, f"{change} max.message.bytes=1048588"))
    if not found:
        text = "without end" if kept < 0 else f"for {kept / 3600_000:.1f} h"
        found.append(ok(NAME, f"{topic} keeps all messages {text}"))
    return found


async def _group(admin: Any, group: str) -> list[Advice]:
    """May this host read as the group that its watcher will be?"""
    try:
        await asyncio.wait_for(admin.list_consumer_group_offsets(group), ANSWER)
    except GroupAuthorizationFailedError:
        todo = f"kafka-acls.sh --add --operation Read --resource-pattern-type prefixed --group {group}"
        return [problem(NAME, f"this user may not read as the group {group}", todo)]
    except (KafkaError, TimeoutError) as error:
        return [
            warning(NAME, f"the group {group} cannot be asked for: {_text(error)}", "see the broker's log")
        ]
    return []


async def _said(settings: Settings, kafka: Any, topic: str, hear: float) -> Advice:
    """Send a message as the holder of a space does, and hear it."""
    for place in kafka.assignment():
        await kafka.seek_to_end(place)
        await kafka.position(place)
    space = f"doctor-{secrets.token_hex(8)}"
    message = peers.nothing(lease.host_id(settings.state), space)
    began = time.monotonic()
    try:
        await asyncio.wait_for(_send(settings, topic, space, message), ANSWER)
    except TopicAuthorizationFailedError:
        todo = f"kafka-acls.sh --add --operation Write --topic {topic}, for the user of this host"
        return problem(NAME, f"{topic} may not be written by this host", todo)
    except (KafkaError, OSError, TimeoutError) as error:
        todo = "are as many replicas in sync as min.insync.replicas wants?"
        return problem(NAME, f"nothing can be written to {topic}: {_text(error)}", todo)
    try:
        await asyncio.wait_for(_hear(kafka, space), hear)
    except TopicAuthorizationFailedError:
        todo = f"kafka-acls.sh --add --operation Read --topic {topic}, for the user of this host"
        return problem(NAME, f"{topic} may not be read by this host", todo)
    except (KafkaError, TimeoutError) as error:
        todo = "see the broker's log"
        return problem(NAME, f"what was written to {topic} was not heard: {_text(error)}", todo)
    took = (time.monotonic() - began) * 1000
    return ok(NAME, f"a message was written to {topic} and heard after {took:.0f} ms")


async def _send(settings: Settings, topic: str, key: str, message: bytes) -> None:
    producer = AIOKafkaProducer(
        acks="all", enable_idempotence=True, request_timeout_ms=5000, **broker(settings).arguments()
    )
    await producer.start()
    try:
        await producer.send_and_wait(topic, message, key=key.encode())
    finally:
        with suppress(KafkaError, OSError, TimeoutError):
            await asyncio.wait_for(producer.stop(), ANSWER)


async def _hear(kafka: Any, space: str) -> None:
    while True:
        for records in (await kafka.getmany(timeout_ms=200)).values():
            for record in records:
                with suppress(ValueError, TypeError):
                    said = json.loads(record.value)
                    if isinstance(said, dict) and said.get("space") == space:
                        return


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
