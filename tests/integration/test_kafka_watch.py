"""Spaces heard through Kafka alone, on a real broker: what is told is followed, and nothing is lost or doubled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsd.core.registry import Registry
from fsd.service import status
from tests.support.kafka.follow import Followed, WatcherOnly
from tests.support.kafka.nodes import Nodes
from tests.support.kafka.says import Ceph
from tests.support.kafka.shared import SharedBroker
from tests.support.serving import Server
from tests.support.waiting import wait_for
from tests.support.worlds import differences


@pytest.fixture(scope="module")
def followed(broker: SharedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """A running server on a topic of two partitions."""
    made = Followed(tmp_path_factory.mktemp("ceph"), broker.feed, broker.topic(2), partitions=2)
    made.start()
    yield made
    made.close()


def real(broker: SharedBroker) -> None:
    """Skip where only the mock could be had."""
    if broker.kind != "kafka":
        pytest.skip(
            "needs Apache Kafka: the mock broker has no settings of topics, and another idea of groups"
        )


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


def test_two_kinds_and_several_topics_at_once(broker: SharedBroker, tmp_path: Path) -> None:
    """One space is heard by CephFS through two topics, another one by GPFS; neither puts the other out of its group."""
    real(broker)
    feed, ceph_topics, gpfs_topic = broker.feed, [broker.topic(), broker.topic()], broker.topic()
    server = WatcherOnly(tmp_path, options=("--only", "watcher"))
    server.settings |= {
        "FSD_KAFKA_BROKERS": feed.address,
        "FSD_KAFKA_GROUP": f"group-{gpfs_topic}",
        "FSD_CEPHFS_TOPICS": ",".join(ceph_topics),
        "FSD_CEPHFS_PATHS": f"/={server.data}",
        "FSD_GPFS_WATCH_TOPICS": gpfs_topic,
        "FSD_GPFS_PATHS": f"/gpfs/fs1={server.data}",
    }
    server.fsd("init")
    spaces = {}
    for name, kind in (("one", "cephfs"), ("two", "gpfs-watchfolder")):
        server.fsd("space", "create", name)
        server.fsd("space", "set", name, "--source", kind)
        spaces[name] = server.space(name)
    roots = {name: Path(record["path"]) for name, record in spaces.items()}

    def told(name: str) -> dict[str, Any]:
        found = status.read(server.state / "run")
        return dict(found.spaces.get(spaces[name]["id"].partition("$")[2], {})) if found.watcher_runs else {}

    def both(**wanted: int) -> bool:
        """Both read, and have read so far; what they hold was handled."""
        for name in spaces:
            stream = told(name).get("stream") or {}
            assert stream.get("reading") and not stream["error"] and not stream["others"], told(name)
            assert not told(name).get("dirty"), told(name)
            assert sum(each["offset"] for each in stream["partitions"].values()) == wanted[name], stream
        return True

    try:
        server.start(60)
        wait_for(lambda: both(one=0, two=0), timeout=60, what="both are read")
        began = {name: told(name)["stream"]["rebalances"] for name in spaces}
        ceph = Ceph("/" + str(roots["one"].relative_to(server.data)))
        watch = Nodes(os.fsencode(roots["two"]), "/gpfs/fs1/" + str(roots["two"].relative_to(server.data)),
                      lambda messages: feed.send(gpfs_topic, messages))  # fmt: skip
        for turn in range(3):
            write(os.fsencode(roots["one"]), b"f%d" % turn)
            feed.send(ceph_topics[turn % 2], [ceph.changed(b"f%d" % turn)])
            write(os.fsencode(roots["two"]), b"g%d" % turn)
            wait_for(lambda: sum(feed.ends(gpfs_topic).values()) > 2 * turn, what="GPFS has said so")
        watch.close()
        said = sum(feed.ends(gpfs_topic).values())
        wait_for(lambda: both(one=3, two=said), timeout=60, what="both have heard it")
        for name in spaces:
            assert differences(Registry(server.state).open(spaces[name]["id"])) == []
            assert told(name)["stream"]["rebalances"] == began[name], "nobody was put out"
    finally:
        server.close()


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


def test_doctor_asks_the_journal_topic_with_a_message(broker: SharedBroker, tmp_path: Path) -> None:
    """A good topic; then ones that lose messages, or keep them for ever; none; no broker; half of the settings."""
    real(broker)
    feed = broker.feed
    server = Server(tmp_path)
    server.settings |= {
        "FSD_KAFKA_BROKERS": feed.address,
        "FSD_CLUSTER_SHARED": "true",
        "FSD_CLUSTER_NAME": "one",
        "FSD_CLUSTER_ADDRESS": "http://127.0.0.1:1",
    }
    server.fsd("init")

    def doctor(topic: str) -> list[tuple[str, str, str]]:
        server.settings["FSD_CLUSTER_JOURNAL"] = topic
        done = server.run("doctor", "--json")
        assert done.stdout, done.stderr
        found = [each for each in json.loads(done.stdout) if each["probe"] == "journal"]
        return [(each["level"], each["found"], each["todo"]) for each in found]

    good = broker.topic(3, retention_ms="86400000")
    (there, keeps, heard) = doctor(good)
    assert there[:2] == ("ok", f"Kafka at {feed.address} has {good} (partitions: 3)")
    assert keeps[:2] == ("ok", f"{good} keeps all messages for 24.0 h")
    assert heard[0] == "ok" and heard[1].startswith(f"a message was written to {good} and heard after ")
    assert sum(feed.ends(good).values()) == 1
    for config, level, said in (
        ({"cleanup_policy": "compact"}, "problem", "is compacted"),
        ({"retention_ms": "60000"}, "warning", "for 60 s"),
        ({"retention_ms": "-1"}, "warning", "grows for ever"),
        ({"max_message_bytes": "100000"}, "problem", "100000 bytes"),
    ):
        answers = doctor(broker.topic(**config))
        assert [each[0] for each in answers] == ["ok", level, "ok"], answers
        assert said in answers[1][1] and "kafka-configs.sh" in answers[1][2]
    ((level, found, _),) = doctor("elsewhere")
    assert (level, "shows no topic elsewhere" in found) == ("problem", True)
    server.settings["FSD_KAFKA_BROKERS"] = "127.0.0.1:1"
    ((level, found, _),) = doctor(good)
    assert (level, "does not answer" in found) == ("problem", True)
    server.settings["FSD_KAFKA_BROKERS"] = ""
    ((level, found, _),) = doctor(good)
    assert (level, "needs" in found) == ("problem", True)
