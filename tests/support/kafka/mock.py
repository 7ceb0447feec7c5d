"""librdkafka's mock cluster as a process: `python -m tests.support.kafka.mock`. Says its port, and runs until killed.

A test double, for machines without Java: the real protocol over TCP, but no data beyond the process, no admin calls, no
retention, and topics that are there, with four partitions, as soon as somebody asks for them.
"""

from __future__ import annotations

import signal

from confluent_kafka import Producer


def main() -> None:
    """Run until a signal ends the process."""
    cluster = Producer({"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 1})
    (member,) = cluster.list_topics(timeout=10).brokers.values()
    print(f"Kafka Server started, mock, port {member.port}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
