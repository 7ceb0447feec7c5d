"""Hosts that follow hear from the one that works on a space, through a topic: two hosts, a real broker."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fsd.core import tree
from fsd.core.registry import Registry
from tests.support.hosts import Host, network
from tests.support.kafka.broker import Broker, kind_here
from tests.support.kafka.feed import Feed
from tests.support.serving import ADMIN, ADMIN_PASSWORD
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
DIRECTORIES = 300


@dataclass
class Pair:
    """Two hosts over one tree that tells neither of them anything: it is polled, one call a second."""

    hosts: list[Host]
    broker: Broker
    feed: Feed
    record: dict[str, Any]

    def told(self, host: Host) -> dict[str, Any]:
        """What a host's status says of the space."""
        (space,) = [each for each in host.json_any("status")["spaces"] if each["name"] == "p"]
        return dict(space)

    def roles(self) -> tuple[Host, Host]:
        """(who works on it, who follows), once both say so and are quiet."""

        def found() -> tuple[Host, Host] | None:
            told = [self.told(host) for host in self.hosts]
            held = [bool((each.get("lease") or {}).get("held")) for each in told]
            quiet = all(each["state"] == "polling" and not each["dirty"] for each in told)
            reading = all((each.get("journal") or {}).get("reading") for each in told)
            assert sum(held) == 1 and quiet and reading, [
                {key: each.get(key) for key in ("state", "dirty", "lease", "journal", "told")}
                for each in told
            ]
            return self.hosts[held.index(True)], self.hosts[held.index(False)]

        return wait_for(found, timeout=60, what="a host that works and one that follows")

    def rows(self, host: Host) -> dict[bytes, int]:
        """Paths and sizes that the host's own index has, whatever the disk says."""
        space = Registry(host.state).open(self.record["id"])
        try:
            with space.index.read() as db:
                found = db.execute(
                    "SELECT n, parent, name, size FROM node WHERE parent IS NOT NULL"
                ).fetchall()
        finally:
            space.close()
        names = {n: (parent, name) for n, parent, name, _ in found}

        def path(n: int) -> bytes:
            parent, name = names[n]
            return path(parent) + b"/" + name if parent in names else name

        return {path(n): size for n, _, _, size in found}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both serve, and hear each other."""
    if kind_here() != "kafka":
        pytest.skip("needs Apache Kafka (Java and Maven): no other broker takes an address of the test's own")
    base = tmp_path_factory.mktemp("journal")
    shared = base / "shared"
    (shared / "data").mkdir(parents=True)
    with network() as net:
        broker = Broker(base / "broker", host=net.address).start()
        feed = Feed(broker.address)
        feed.create("changes", 3)
        hosts: list[Host] = []
        try:
            for name in ("one", "two"):
                hosts.append(Host(base / name, net, name, shared))
                hosts[-1].settings |= {
                    "FSD_KAFKA_BROKERS": broker.address,
                    "FSD_CLUSTER_JOURNAL": "changes",
                    "FSD_WATCH_SOURCE": "poll",
                    "FSD_WATCH_STATS": "1",
                }
            hosts[0].start()
            hosts[0].fsd("space", "create", "p")
            record = hosts[0].space("p")
            for number in range(DIRECTORIES):
                (Path(record["path"]) / f"d{number}").mkdir()
            hosts[1].like(hosts[0])
            hosts[1].start()
            yield Pair(hosts, broker, feed, record)
        finally:
            for host in hosts:
                host.close()
            feed.close()
            broker.close()


def test_a_host_that_follows_hears_what_the_other_one_did(pair: Pair) -> None:
    holder, other = pair.roles()
    dav = holder.space_dav(pair.record)
    assert dav.request("PUT", b"d250/f", b"12345").status == 201
    wait_for(lambda: pair.rows(other).get(b"d250/f") == 5, timeout=20, what="a file in the other's index")
    assert dav.request("MOVE", b"d250", headers={"Destination": dav.url(b"moved")}).status == 201
    wait_for(lambda: pair.rows(other).get(b"moved/f") == 5, timeout=20, what="a directory that was moved")
    assert dav.request("DELETE", b"moved/f").status == 204
    wait_for(lambda: b"moved/f" not in pair.rows(other), timeout=20, what="a file that was removed")
    assert b"d250" not in pair.rows(other)


def test_clients_of_a_host_that_follows_are_told_live(pair: Pair) -> None:
    holder, other = pair.roles()
    stream = http.client.HTTPConnection(other.address, other.port, timeout=30)
    try:
        who = base64.b64encode(f"{ADMIN}:{ADMIN_PASSWORD}".encode()).decode()
        stream.request("GET", "/events", headers={"Authorization": f"Basic {who}"})
        answer = stream.getresponse()
        assert answer.status == 200
        assert holder.space_dav(pair.record).request("PUT", b"d99/live", b"12345").status == 201
        seen = b""
        while b"live" not in seen:
            line = answer.fp.readline()
            assert line, seen
            seen += line
    finally:
        stream.close()


def test_what_was_done_while_the_broker_was_away_is_told_later(pair: Pair) -> None:
    holder, other = pair.roles()
    dav = holder.space_dav(pair.record)
    pair.feed.forget()
    pair.broker.stop(signal.SIGKILL)
    for number in range(200, 210):
        assert dav.request("PUT", b"d%d/away" % number, b"12345").status == 201
    wait_for(lambda: pair.told(holder)["told"]["error"], timeout=60, what="a complaint")
    assert pair.told(holder)["state"] in ("polling", "sweeping"), "it is only slower without the topic"
    pair.broker.start()
    wanted = {b"d%d/away" % number for number in range(200, 210)}
    wait_for(lambda: wanted <= pair.rows(other).keys(), timeout=60, what="what was done meanwhile")
    wait_for(lambda: not pair.told(holder)["told"]["error"], timeout=40, what="an end of the complaint")


def test_what_is_said_twice_late_or_wrongly_does_no_harm(pair: Pair) -> None:
    holder, other = pair.roles()
    before = pair.rows(other)
    key = pair.record["id"].replace("-", "")
    message = {
        "fsd": 1,
        "host": "another",
        "space": key,
        "number": 7,
        "paths": ["d1", "d2/none", "../d3", "x/y/z"],
    }
    wrong = [b"no json", b'{"fsd": 9}', json.dumps({**message, "paths": [1]}).encode()]
    elsewhere = json.dumps({**message, "space": "f" * 32}).encode()
    pair.feed.send("changes", [json.dumps(message).encode()] * 3 + wrong + [elsewhere], partition=1)

    def heard() -> bool:
        stream = pair.told(other)["journal"]
        return stream["rejected"]["malformed"] >= 3 and not stream["lag"] and not pair.told(other)["dirty"]

    wait_for(heard, timeout=30, what="what is wrong")
    assert pair.rows(other) == before and os.path.isdir(f"{pair.record['path']}/d1")


def test_who_takes_over_tells_the_others(pair: Pair) -> None:
    holder, other = pair.roles()
    holder.stop()
    wait_for(lambda: (pair.told(other).get("lease") or {}).get("held"), timeout=30, what="the other host")
    wait_for(lambda: pair.told(other)["state"] == "polling", timeout=60, what="the end of its sweep")
    holder.start()
    works, follows = pair.roles()
    assert works is other
    assert works.space_dav(pair.record).request("PUT", b"d150/after", b"12345").status == 201
    wait_for(
        lambda: pair.rows(follows).get(b"d150/after") == 5, timeout=20, what="a file in the other's index"
    )
    space = Registry(works.state).open(pair.record["id"])
    try:
        assert tree.lookup(space, b"d150/after").size == 5
    finally:
        space.close()
