"""Crashes and mishaps around a real broker: afterwards the rows are what the disk is, and `status` says what was."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from fsd.service.metrics import Exporter
from tests.support.histories import OnDisk
from tests.support.kafka.broker import Broker
from tests.support.kafka.feed import Feed
from tests.support.kafka.follow import Followed
from tests.support.kafka.nodes import Nodes
from tests.support.kafka.says import Ceph
from tests.support.seeds import seed_of
from tests.support.waiting import wait_for

SECURE = """
ssl.keystore.type=PEM
ssl.keystore.location={base}/broker.pem
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
    user_fsd="secret";
"""


def certificate(base: Path) -> Path:
    """A self-signed certificate for 127.0.0.1; with its key it is in `broker.pem`."""
    key, cert = base / "key.pem", base / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    (base / "broker.pem").write_text(key.read_text() + cert.read_text())
    return cert


class Place:
    """A broker of these tests alone, with a watcher that follows a topic on it."""

    def __init__(self, base: Path) -> None:
        self.certificate = certificate(base)
        self.broker = Broker(base / "broker", secure=True, properties=SECURE.format(base=base)).start()
        if self.broker.kind != "kafka":
            pytest.skip("needs Apache Kafka: the mock broker has neither retention nor data that stay")
        self.feed = Feed(self.broker.address)
        self.feed.create("events", 2)
        self.followed = Followed(base / "fsd", self.feed, "events", partitions=2).start()
        self.followed.server.allow_log("Kafka at|offset .* is not there|a message that is")
        self.ceph = Ceph(self.followed.reported)
        self.count = 0
        self.change()
        self.followed.settle()

    def change(self, *, told: bool = True, partition: int | None = None) -> bytes:
        """A file in a directory of its own; said on the partitions in turn."""
        self.count += 1
        path = b"d%d/f" % self.count
        os.mkdir(self.followed.root + b"/d%d" % self.count)
        with open(self.followed.root + b"/" + path, "wb") as file:
            file.write(b"x" * self.count)
        if told:
            number = self.count % 2 if partition is None else partition
            self.followed.send([self.ceph.made(b"d%d" % self.count), self.ceph.changed(path)], number)
        return path

    def again(self, how: signal.Signals = signal.SIGKILL) -> None:
        """The server was ended; it comes back."""
        self.end(how)
        self.followed.start()

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server."""
        if how is signal.SIGKILL:
            self.followed.server.kill()
        else:
            self.followed.server.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("faults"))
    yield made
    made.followed.close()
    made.feed.close()
    made.broker.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_told_meanwhile_is_read_on_without_a_sweep(place: Place, how: signal.Signals) -> None:
    """The positions in the index say where to go on; what nobody told stays unknown, as nothing was swept."""
    place.end(how)
    place.change(partition=0)
    place.change(partition=1)
    place.followed.start()
    place.followed.settle()
    assert place.followed.stream()["gaps"] == {}
    assert place.followed.told()["sweep"] is None


def test_our_position_wins_over_the_groups(place: Place) -> None:
    """Somebody sets the group's offsets to the end while the watcher is down."""
    place.end()
    place.change()
    place.change()

    async def skip() -> bool:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=place.broker.address, group_id="group-events", enable_auto_commit=False
        )
        await consumer.start()
        partitions = [TopicPartition("events", number) for number in (0, 1)]
        consumer.assign(partitions)
        try:
            await consumer.commit(await consumer.end_offsets(partitions))
        except KafkaError:
            return False  # who was killed counts as a member for some seconds
        finally:
            await consumer.stop()
        return True

    wait_for(lambda: asyncio.run(skip()), what="no member is left in the group", timeout=30)
    place.followed.start()
    place.followed.settle()
    assert place.followed.stream()["gaps"] == {}


def test_what_is_durable_is_committed(place: Place) -> None:
    """For the tools that show a group's lag."""
    place.change()
    place.followed.settle()
    ends = place.feed.ends("events")
    wait_for(lambda: place.feed.committed("group-events") == ends, what="the group's offsets at the end")


def test_a_broker_that_is_killed_and_comes_back(place: Place) -> None:
    """Its absence is said; what is told afterwards is read where it was left."""
    place.broker.stop()
    wait_for(lambda: place.followed.told().get("state") == "disconnected", timeout=30, what="it is noticed")
    lost = place.change(told=False)
    place.feed.forget()
    place.broker.start()
    place.followed.send([place.ceph.made(os.path.dirname(lost)), place.ceph.changed(lost)])
    place.followed.settle(90)
    assert place.followed.stream()["gaps"] == {}


def test_retention_that_passed_us(place: Place) -> None:
    """What was told is gone from the topic: a sweep finds it."""
    place.end()
    place.change(partition=0)
    place.change(partition=1)
    place.feed.expire("events", place.feed.ends("events"))
    place.followed.start()
    place.followed.settle()
    assert place.followed.stream()["gaps"] == {"retention": len(place.followed.server.spaces())}
    assert place.followed.told()["overflows"] == 1


def test_a_topic_that_was_made_anew_while_we_were_away(place: Place) -> None:
    """Its offsets mean other messages, although all that were kept exist."""
    place.end()
    ends = place.feed.ends("events")
    place.feed.delete("events")
    place.feed.create("events", 2)
    place.followed.forget_sent()
    for number, end in ends.items():
        other = [place.ceph.changed(b"nothing", 0x2)] * (end + 5)
        place.followed.send(other, number)
    place.change(told=False)
    place.followed.start()
    place.followed.settle()
    assert "recreated" in place.followed.stream()["gaps"]


def test_a_topic_that_is_made_anew_while_we_read(place: Place) -> None:
    place.feed.delete("events")
    place.change(told=False)
    place.feed.create("events", 2)
    place.followed.forget_sent()
    place.change()
    place.followed.settle(90)
    assert place.followed.stream()["gaps"].get("recreated", 0) >= 1


def test_another_member_of_the_group(place: Place) -> None:
    """It takes a partition, which is said; when it is gone, what it has read is read by us as well."""

    async def member() -> None:
        consumer = AIOKafkaConsumer(
            "events",
            bootstrap_servers=place.broker.address,
            group_id="group-events",
            auto_offset_reset="latest",
        )
        await consumer.start()
        try:
            while len(consumer.assignment()) != 1:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(
                wait_for, lambda: place.followed.stream().get("others"), timeout=30, what="it is said"
            )
            await asyncio.to_thread(place.change, partition=0)
            await asyncio.to_thread(place.change, partition=1)
            (mine,) = consumer.assignment()
            while await consumer.position(mine) < (await consumer.end_offsets([mine]))[mine]:
                await consumer.getmany(timeout_ms=100)
            await consumer.commit()
        finally:
            await consumer.stop()

    before = place.followed.stream()["rebalances"]
    asyncio.run(member())
    place.followed.settle(90)
    assert place.followed.stream()["rebalances"] >= before + 2


def test_messages_that_cannot_be_read(place: Place) -> None:
    """They stop nothing, are kept aside, and a sweep finds what they would have said."""
    place.change(told=False)
    place.followed.send([b"{", b"\x00\x01", b'{"mask": 4, "path": 7}'])
    place.followed.send([b'{"mask": 1048576, "path": "/users/x"}'])
    place.change()
    place.followed.settle()
    stream = place.followed.stream()
    assert stream["rejected"]["malformed"] == 3
    assert stream["rejected"]["unfamiliar"] == 1
    assert stream["gaps"]["malformed"] >= 1
    kept = Path(stream["rejected_file"]).read_text().splitlines()
    assert len(kept) == 4
    assert "events[0]@" in kept[0]
    shown = place.followed.server.run("status").stdout
    assert "3 messages could not be read, 1 said something unknown" in shown
    assert "events[0] 0 behind" in shown
    assert "malformed" in shown
    collected = Exporter(place.followed.server.state / "run").collect()
    samples = {sample.name: sample for family in collected for sample in family.samples}
    assert samples["fsd_log_reading"].value == 1
    assert samples["fsd_log_lag"].labels["partition"] == "events[1]"


def test_a_broker_that_wants_tls_and_a_password(place: Place, tmp_path: Path) -> None:
    """The watcher follows through it; a wrong password, and a certificate that nobody vouches for, are said."""
    place.feed.create("secret")
    followed = Followed(tmp_path, place.feed, "secret", brokers=f"127.0.0.1:{place.broker.secure_port}")
    password = tmp_path / "password"
    password.write_text("wrong\n")
    followed.server.settings |= {
        "FSD_KAFKA_SECURITY": "sasl_ssl",
        "FSD_KAFKA_MECHANISM": "PLAIN",
        "FSD_KAFKA_USERNAME": "fsd",
        "FSD_KAFKA_PASSWORD_FILE": str(password),
    }

    def doctor() -> str:
        found = json.loads(followed.server.run("doctor", "--json").stdout)
        return next(f"{each['level']}: {each['found']}" for each in found if each["probe"] == "cephfs")

    assert "does not answer" in doctor()
    followed.server.settings["FSD_KAFKA_CA"] = str(place.certificate)
    assert "does not answer" in doctor()
    password.write_text("secret\n")
    followed.server.settings["FSD_WATCH_SOURCE"] = "poll"  # no probe: nobody reports it here
    assert doctor().startswith("ok")
    followed.server.settings["FSD_WATCH_SOURCE"] = "cephfs"
    followed.start()
    os.mkdir(followed.root + b"/d")
    followed.send([Ceph(followed.reported).made(b"d")])
    followed.settle()
    followed.close()


class Unruly:
    """Messages on their way to the topic: doubled, late, on whichever partition, and lost if `lose` says so."""

    def __init__(self, followed: Followed, rng: random.Random, lose: float) -> None:
        self.followed, self._rng, self._lose = followed, rng, lose
        self._late: list[bytes] = []
        self.lost = 0

    def __call__(self, batch: list[bytes]) -> None:
        rng = self._rng
        shares: list[list[bytes]] = [[], []]
        for message in batch:
            if rng.random() < self._lose:
                self.lost += 1
                continue
            if rng.random() < 0.05:
                self._late.append(message)
            shares[rng.randrange(2)].append(message)
            if rng.random() < 0.05:
                shares[rng.randrange(2)].append(message)
            if self._late and rng.random() < 0.05:
                shares[rng.randrange(2)].append(self._late.pop(rng.randrange(len(self._late))))
        for number, share in enumerate(shares):
            self.followed.send(share, number)


@pytest.mark.parametrize("lose", [0.0, 0.1], ids=["none-lost", "some-lost"])
def test_a_history_told_by_gpfs_through_trouble(
    place: Place, tmp_path: Path, lose: float, request: pytest.FixtureRequest
) -> None:
    """A random history of a tree, told by three nodes' watch folders on two partitions, as the only source, while the
    watcher is killed again and again and the broker once. Where messages are lost, the next sweep finds it."""
    seed = seed_of(request.config)
    rounds = 40 if request.config.getoption("--big") else 2 if lose else 3
    print(f"seed {seed}, {rounds} rounds")
    rng = random.Random(seed)
    topic = f"gpfs-{int(lose * 10)}"
    place.feed.create(topic, 2)
    followed = Followed(tmp_path, place.feed, topic, "gpfs-watchfolder", partitions=2)
    followed.server.allow_log("Kafka at|ended")
    if lose:
        followed.server.settings["FSD_WATCH_SWEEP"] = "2"
    followed.start()
    followed.settle()
    told = Unruly(followed, rng, lose)
    nodes = Nodes(followed.root, followed.reported, told, seed=seed)
    player = OnDisk(str(seed), followed.root)
    try:
        for turn in range(rounds):
            for _ in range(50):
                player.step()
            if turn % 2:
                (watcher,) = followed.server.child("watcher")
                os.kill(watcher, signal.SIGKILL)
            elif turn % 20 == 2:
                nodes.pause()
                place.broker.stop()
                place.feed.forget()
                for _ in range(20):
                    player.step()
                place.broker.start()
                nodes.go_on()
        nodes.close()
        followed.settle(90)
        assert nodes.said > 5 * rounds, "nearly nothing was told"
        if lose:
            assert told.lost
        else:
            assert set(followed.stream()["gaps"]) <= {"first"}
    finally:
        nodes.close()
        followed.close()
