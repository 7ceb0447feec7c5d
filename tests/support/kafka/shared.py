"""One broker for the whole test run, also where its workers are several processes: whoever needs it first starts it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.kafka.broker import kind_here
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from tests.support.kafka.feed import Feed


@dataclass(frozen=True)
class SharedBroker:
    """A broker that other tests use as well: never stop it, and use topics and groups of your own."""

    kind: str
    """`kafka`: Apache Kafka; `mock`: the test double inside librdkafka, without admin calls or data that stay."""
    port: int
    feed: Feed

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    def topic(self, partitions: int = 1, **config: str) -> str:
        """A new topic of this test alone."""
        name = f"t-{uuid.uuid4().hex[:12]}"
        if self.kind == "kafka":
            self.feed.create(name, partitions, **config)
        else:
            self.feed.ends(name)
        return name


@pytest.fixture(scope="session")
def _broker_port(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    kind_here()
    base, owner = tmp_path_factory.getbasetemp(), os.getpid()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base, owner = base.parent, os.getppid()
    home = base / "shared-broker"
    home.mkdir(exist_ok=True)
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "address").exists():
            _start(home, owner)
    kind, port, _ = (home / "address").read_text().split()
    return kind, int(port)


def _start(home: Path, owner: int) -> None:
    with open(home / "keeper.log", "wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.support.kafka.broker", str(home), str(owner)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def there() -> bool:
        if keeper.poll() is not None:
            raise RuntimeError(f"no broker:\n{(home / 'keeper.log').read_text()}")
        return (home / "address").exists()

    wait_for(there, timeout=100, what="the shared broker")


@pytest.fixture(scope="module")
def broker(_broker_port: tuple[str, int]) -> Iterator[SharedBroker]:
    """The broker that all tests share, and a way to send to it."""
    from tests.support.kafka.feed import Feed

    kind, port = _broker_port
    feed = Feed(f"127.0.0.1:{port}")
    yield SharedBroker(kind, port, feed)
    feed.close()
