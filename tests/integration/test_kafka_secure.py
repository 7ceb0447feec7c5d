"""Brokers that want to know who reads: SCRAM and client certificates, on Apache Kafka itself."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.support.kafka.broker import Broker, kind_here
from tests.support.kafka.feed import Feed
from tests.support.kafka.follow import Followed
from tests.support.kafka.says import Ceph
from tests.support.serving import Server
from tests.support.waiting import wait_for

MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512")
SECURE = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
ssl.keystore.type=PEM
ssl.keystore.location={base}/broker/both.pem
ssl.truststore.type=PEM
ssl.truststore.location={base}/reader/cert.pem
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


def certificate(base: Path) -> Path:
    """A directory with a key of its own and a certificate that it signed itself: `key.pem`, `cert.pem`, `both.pem`."""
    base.mkdir()
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
    command += ["-days", "2", "-subj", f"/CN={base.name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    (base / "both.pem").write_text(key.read_text() + cert.read_text())
    return base


@dataclass
class Secured:
    """A broker, and what a reader needs."""

    broker: Broker
    feed: Feed
    ca: Path
    reader: Path
    stranger: Path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """It asks each of its two listeners' clients who they are."""
    if kind_here() != "kafka":
        pytest.skip("needs Apache Kafka: the mock broker asks nobody who they are")
    base = tmp_path_factory.mktemp("secured")
    ours, reader, stranger = (certificate(base / name) for name in ("broker", "reader", "stranger"))
    properties = SECURE.format(base=base)
    broker = Broker(base / "kafka", secure=True, properties=properties, scram=MECHANISMS).start()
    feed = Feed(broker.address)
    yield Secured(broker, feed, ours / "cert.pem", reader, stranger)
    feed.close()
    broker.close()


def doctor(followed: Followed) -> str:
    """What it says of the topic; no file is made to be reported, as nobody would."""
    followed.server.settings["FSD_WATCH_SOURCE"] = "poll"
    found = json.loads(followed.server.run("doctor", "--json").stdout)
    followed.server.settings["FSD_WATCH_SOURCE"] = "cephfs"
    return next(f"{each['level']}: {each['found']}" for each in found if each["probe"] == "cephfs")


def follows(followed: Followed) -> None:
    """The watcher reads through this connection."""
    followed.start()
    os.mkdir(followed.root + b"/d")
    followed.send([Ceph(followed.reported).made(b"d")])
    followed.settle()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_scram(secured: Secured, tmp_path: Path, mechanism: str) -> None:
    topic = mechanism.lower()
    secured.feed.create(topic)
    followed = Followed(
        tmp_path / "fsd", secured.feed, topic, brokers=f"127.0.0.1:{secured.broker.secure_port}"
    )
    password = tmp_path / "password"
    password.write_text("wrong\n")
    followed.server.settings |= {
        "FSD_KAFKA_SECURITY": "sasl_ssl",
        "FSD_KAFKA_MECHANISM": mechanism,
        "FSD_KAFKA_USERNAME": "fsd",
        "FSD_KAFKA_PASSWORD_FILE": str(password),
        "FSD_KAFKA_CA": str(secured.ca),
    }
    try:
        assert "does not answer" in doctor(followed)
        password.write_text("secret\n")
        assert doctor(followed).startswith("ok")
        follows(followed)
    finally:
        followed.close()


def test_client_certificates(secured: Secured, tmp_path: Path) -> None:
    secured.feed.create("certified")
    address = f"127.0.0.1:{secured.broker.tls_port}"
    followed = Followed(tmp_path / "fsd", secured.feed, "certified", brokers=address)
    settings = followed.server.settings
    settings |= {"FSD_KAFKA_SECURITY": "ssl", "FSD_KAFKA_CA": str(secured.ca)}
    try:
        assert "does not answer" in doctor(followed)
        for who in (secured.stranger, secured.reader):
            settings |= {"FSD_KAFKA_CERT": str(who / "cert.pem"), "FSD_KAFKA_KEY": str(who / "key.pem")}
            answer = doctor(followed)
            assert answer.startswith("ok") is (who is secured.reader), answer
        settings["FSD_KAFKA_KEY"] = str(secured.stranger / "key.pem")
        assert "the connection cannot be made" in doctor(followed)
        settings["FSD_KAFKA_KEY"] = str(secured.reader / "key.pem")
        follows(followed)
    finally:
        followed.close()


def test_doctor_says_which_right_to_the_journal_topic_is_missing(secured: Secured, tmp_path: Path) -> None:
    """To write it, to read it, to read as the group, to see what it keeps."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    server = Server(tmp_path / "fsd")
    server.settings |= {
        "FSD_KAFKA_BROKERS": f"127.0.0.1:{secured.broker.secure_port}",
        "FSD_KAFKA_SECURITY": "sasl_ssl",
        "FSD_KAFKA_MECHANISM": "SCRAM-SHA-512",
        "FSD_KAFKA_USERNAME": "fsd",
        "FSD_KAFKA_PASSWORD_FILE": str(password),
        "FSD_KAFKA_CA": str(secured.ca),
        "FSD_CLUSTER_SHARED": "true",
        "FSD_CLUSTER_NAME": "one",
        "FSD_CLUSTER_JOURNAL": "changes",
    }
    server.fsd("init")
    secured.feed.create("changes", retention_ms="86400000")
    admin = AdminClient({"bootstrap.servers": secured.broker.address})

    def allow(
        operation: AclOperation,
        kind: ResourceType = ResourceType.TOPIC,
        name: str = "changes",
        who: str = "User:fsd",
    ) -> None:
        acl = AclBinding(
            kind, name, ResourcePatternType.LITERAL, who, "*", operation, AclPermissionType.ALLOW
        )
        for done in admin.create_acls([acl]).values():
            done.result(30)

    def doctor() -> str:
        found = json.loads(server.run("doctor", "--json").stdout)
        return " | ".join(
            f"{each['level']}: {each['found']} {each['todo']}" for each in found if each["probe"] == "journal"
        )

    def says(*parts: str) -> Callable[[], bool]:
        # A broker takes a right up some time after it was given.
        def asked() -> bool:
            told = doctor()
            assert all(part in told for part in parts), told
            return True

        return asked

    wait_for(says("ok: a message was written to changes"), timeout=60, what="all may do all")
    group = f"fsd-{server.state.joinpath('host.id').read_text().strip()}-journal"
    allow(AclOperation.WRITE)
    wait_for(says("may not be read", "--operation Read"), timeout=60, what="it may not read")
    assert "warning: what changes keeps cannot be asked" in doctor()
    allow(AclOperation.READ)
    allow(AclOperation.DESCRIBE_CONFIGS)
    wait_for(says("ok: a message was written", "for 24.0 h"), timeout=60, what="all rights are there")
    allow(AclOperation.READ, ResourceType.GROUP, group, who="User:other")
    wait_for(
        says(f"problem: this user may not read as the group {group}"), timeout=60, what="the group is closed"
    )
