"""The broker that tests of clusters stand on does what they rely on."""

from __future__ import annotations

from tests.support.kafka.shared import SharedBroker


def test_topics_messages_retention(broker: SharedBroker) -> None:
    """Messages go to the partition they were meant for, and expire when a test wants it."""
    topic = broker.topic(2)
    assert broker.feed.send(topic, [b"1", b"2"], partition=1) == 1
    assert broker.feed.ends(topic) == {0: 0, 1: 2}
    broker.feed.expire(topic, {1: 1})
    broker.feed.delete(topic)
