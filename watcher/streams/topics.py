"""The ids of topics: one that is made anew under its old name has another one (KIP-516, Apache Kafka 2.8 and later).

aiokafka's own metadata request is too old to tell them, so this is version 10 of it, in the library's terms.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import IncompatibleBrokerVersion, NodeNotReadyError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields


class Uuid:
    """16 bytes; a type of the protocol that the library lacks."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """As it is."""
        return value

    @classmethod
    def decode(cls, data: io.BytesIO) -> bytes:
        """The next 16 bytes."""
        return data.read(16)

    @classmethod
    def repr(cls, value: bytes) -> str:
        """For the library's logs."""
        return value.hex()


_TEXT = CompactString("utf-8")
_NUMBERS = CompactArray(Int32)


class _Answer(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(
            ("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields))),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        ("topics", CompactArray(
            ("error_code", Int16), ("name", _TEXT), ("topic_id", Uuid), ("is_internal", Boolean),
            ("partitions", CompactArray(
                ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                ("replicas", _NUMBERS), ("isr", _NUMBERS), ("offline", _NUMBERS), ("tags", TaggedFields))),
            ("operations", Int32), ("tags", TaggedFields))),
        ("operations", Int32),
        ("tags", TaggedFields),
    )  # fmt: skip


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _Answer
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("create", Boolean),
        ("cluster_operations", Boolean),
        ("topic_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Ask(Request[_Question]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[Any]) -> Any:
        topics: list[tuple[bytes, str, dict[int, bytes]]] = [(bytes(16), topic, {}) for topic in self._topics]
        return request_struct_class(topics, False, False, False, {})


async def ids(client: Any, topics: Sequence[str]) -> dict[str, str]:
    """The ids of the topics that are there, "" where the broker has none. KafkaError."""
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError("no broker is known")
    try:
        answer = await client.send(node, _Ask(topics))
    except (IncompatibleBrokerVersion, NotImplementedError):
        return dict.fromkeys(topics, "")
    return {name: uid.hex() if any(uid) else "" for code, name, uid, *_ in answer.topics if code == 0}
