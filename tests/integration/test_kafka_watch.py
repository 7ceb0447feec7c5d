"""Spaces heard through Kafka alone, on a real broker: what is told is followed, and nothing is lost or doubled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kafka.follow import Followed
from tests.support.kafka.nodes import Nodes
from tests.support.kafka.says import Ceph
from tests.support.kafka.shared import SharedBroker


@pytest.fixture(scope="module")
def followed(broker: SharedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """A running server on a topic of two partitions."""
    made = Followed(tmp_path_factory.mktemp("ceph"), broker.feed, broker.topic(2), partitions=2)
    made.start()
    yield made
    made.close()


def write(root: bytes, path: bytes, data: bytes = b"x") -> None:
    """A file, with the directories above it."""
    os.makedirs(os.path.dirname(root + b"/" + path), exist_ok=True)
    with open(root + b"/" + path, "wb") as file:
        file.write(data)


def test_what_is_told_is_followed(followed: Followed) -> None:
    """Files, trees, moves, removals, names that are no text."""
    ceph, root = Ceph(followed.reported), followed.root
    write(root, b"a/b/f\xff", b"1")
    followed.send([ceph.made(b"a"), ceph.changed(b"a/b/f\xff")])
    followed.settle()
    os.rename(root + b"/a", root + b"/z")
    write(root, b"z/b/g", b"22")
    followed.send([ceph.moved(b"a", b"z"), ceph.changed(b"z/b/g")])
    followed.settle()
    os.unlink(root + b"/z/b/g")
    followed.send([ceph.gone(b"z/b/g")], partition=1)
    followed.settle()
    told = followed.stream()
    assert told["rejected"] == {"malformed": 0, "unfamiliar": 0, "foreign": 0}
    assert told["gaps"] == {"first": len(followed.server.spaces())}


def test_doctor_asks_the_storage_with_a_probe(broker: SharedBroker, tmp_path: Path) -> None:
    """The mapping is right; then it is not, and doctor says what it should be; then nothing is said at all."""
    followed = Followed(tmp_path, broker.feed, broker.topic(), "gpfs-watchfolder")
    followed.server.fsd("space", "set", "tree", "--source", "gpfs-watchfolder")
    followed.server.settings["FSD_WATCH_SOURCE"] = "auto"

    def doctor() -> list[dict[str, str]]:
        done = followed.server.run("doctor", "--json")
        assert done.stdout, done.stderr
        found = json.loads(done.stdout)
        return [each for each in found if each["probe"].startswith("gpfs-watchfolder")]

    nodes = Nodes(followed.root, followed.reported, followed.send)
    topic, space = doctor()
    assert (topic["level"], space["level"]) == ("ok", "ok")
    assert followed.reported in space["found"]
    followed.server.settings["FSD_GPFS_PATHS"] = "/gpfs/fs2=/srv"
    _, space = doctor()
    assert space["level"] == "problem"
    assert f'["{followed.reported}={os.fsdecode(followed.root)}"]' in space["todo"]
    nodes.close()
    followed.server.settings["FSD_GPFS_WATCH_TOPICS"] = "elsewhere"
    (topic,) = doctor()
    assert topic["level"] == "problem"
    assert "shows no topic elsewhere" in topic["found"]
    followed.server.settings["FSD_KAFKA_BROKERS"] = "127.0.0.1:1"
    (topic,) = doctor()
    assert "does not answer" in topic["found"]
    assert os.listdir(followed.root) == [b".fsd"]
    followed.close()
