"""A server whose spaces are heard through Kafka alone, and waiting until it is where the disk is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsd.core.registry import Registry
from fsd.core.space import Space
from fsd.service import status
from tests.support.kafka.feed import Feed
from tests.support.serving import Server
from tests.support.waiting import wait_for
from tests.support.worlds import differences


class WatcherOnly(Server):
    """A server without HTTP: it is ready when its watcher has said so."""

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"fsd serve ended with {self.process.returncode}:\n{self.log()[-3000:]}")
        return status.read(self.state / "run").watcher_runs


class Followed:
    """The watcher of a Server (its own process), one space, one topic."""

    def __init__(
        self,
        base: Path,
        feed: Feed,
        topic: str,
        kind: str = "cephfs",
        *,
        brokers: str = "",
        partitions: int = 1,
    ) -> None:
        self.feed, self.topic, self.kind, self.partitions = feed, topic, kind, partitions
        self.server = WatcherOnly(base, options=("--only", "watcher"))
        key = {
            "cephfs": "CEPHFS_TOPICS",
            "gpfs-watchfolder": "GPFS_WATCH_TOPICS",
            "gpfs-audit": "GPFS_AUDIT_TOPICS",
        }
        self.server.settings |= {
            "FSD_KAFKA_BROKERS": brokers or feed.address,
            "FSD_KAFKA_GROUP": f"group-{topic}",
            f"FSD_{key[kind]}": topic,
            "FSD_CEPHFS_PATHS": f"/={self.server.data}",
            "FSD_GPFS_PATHS": f"/gpfs/fs1={self.server.data}",
            "FSD_WATCH_SOURCE": kind,
        }
        self.server.fsd("init")
        self.server.fsd("space", "create", "tree")
        record = self.server.space("tree")
        self.root = os.fsencode(record["path"])
        self.reported = ("" if kind == "cephfs" else "/gpfs/fs1") + record["path"][
            len(str(self.server.data)) :
        ]
        self._id = record["id"]
        self._space: Space | None = None
        self._sent = dict.fromkeys(range(partitions), -1)

    @property
    def space(self) -> Space:
        """The same space, opened by the test."""
        if self._space is None:
            self._space = Registry(self.server.state).open(self._id)
        return self._space

    def start(self) -> Followed:
        """Start the server and wait until it reads."""
        self.server.start(60)
        wait_for(self.reads, what="a watcher that reads the topic", timeout=60)
        return self

    def told(self) -> dict[str, Any]:
        """What `fsd status --json` says of the space, from its file."""
        found = status.read(self.server.state / "run")
        return dict(found.spaces.get(self.space.record.hex, {})) if found.watcher_runs else {}

    def stream(self) -> dict[str, Any]:
        """The log's part of it."""
        return self.told().get("stream") or {}

    def reads(self) -> bool:
        """Whether it reads all partitions."""
        return bool(self.stream().get("reading"))

    def send(self, messages: Iterable[bytes], partition: int = 0) -> None:
        """Append messages; `settle` waits for them."""
        last = self.feed.send(self.topic, messages, partition=partition)
        self._sent[partition] = max(last, self._sent[partition])

    def forget_sent(self) -> None:
        """The topic is another one now."""
        self._sent = dict.fromkeys(range(self.partitions), -1)

    def settle(self, timeout: float = 60) -> None:
        """Wait until everything sent was read and handled, and the rows are what the disk is."""

        def done() -> bool:
            told = self.told()
            at = {
                name: each["offset"]
                for name, each in (told.get("stream") or {}).get("partitions", {}).items()
            }
            for partition, last in self._sent.items():
                place = at.get(f"{self.topic}[{partition}]")
                assert last < 0 or (place is not None and place > last), f"read to {at}, sent {self._sent}"
            assert told.get("state") == "watching", f"{told}; {self.server.log()[-2000:]}"
            assert not told.get("dirty"), told
            wrong = differences(self.space)
            assert not wrong, wrong[:10]
            return True

        wait_for(done, timeout=timeout, what="rows like the disk", every=0.1)

    def close(self) -> None:
        """Stop the server."""
        if self._space is not None:
            self._space.close()
        self.server.close()
