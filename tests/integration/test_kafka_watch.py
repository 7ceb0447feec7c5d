"""Spaces heard through Kafka alone, on a real broker: what is told is followed, and nothing is lost or doubled."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.kafka.follow import Followed
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
