"""Figures of what Kafka tells: messages into the dirty set, and a backlog drained. Apache Kafka itself, one partition.

FSD_BENCH_SHARE=0.1 takes a tenth of the messages and directories.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.core.space import Space
from scripts.benchmarks.table import Row
from tests.support.kafka.broker import Broker
from tests.support.kafka.feed import Feed
from tests.support.kafka.follow import Followed
from tests.support.kafka.says import Ceph
from tests.support.waiting import wait_for
from watcher.drain import Drain
from watcher.keeper import Keeper
from watcher.loop import COLLECT_LOG
from watcher.sources import gpfs_watch
from watcher.streams import options
from watcher.streams.kafka import KafkaSource
from watcher.streams.letters import Letters
from watcher.streams.places import parse_mapping

SHARE = float(os.environ.get("FSD_BENCH_SHARE", "1"))
_MESSAGE = {
    "WF_JSON": "0.0.2", "wd": "1", "cookie": "0", "mask": "0x8", "event": "IN_CLOSE_WRITE", "path": "",
    "clusterName": "c1.example.org", "nodeName": "n1", "nfsClientIp": "", "fsName": "fs1", "inode": "114297",
    "filesetID": "1", "linkCount": "1", "openFlags": "0", "poolName": "system", "fileSize": "5",
    "ownerUserId": "0", "ownerGroupId": "0", "atime": "2026-11-21_02:00:00.000+0000",
    "ctime": "2026-11-21_02:00:00.000+0000", "mtime": "2026-11-21_02:00:00.000+0000",
    "eventTime": "2026-11-21_02:00:00.100+0000", "clientUserId": "0", "clientGroupId": "0", "processId": "1",
    "bytesRead": "0", "bytesWritten": "0",
}  # fmt: skip


def _messages(count: int, directories: int, files: int, crowd: int) -> Iterator[bytes]:
    """`crowd` neighbours are about one directory, as whoever writes there tells."""
    head, tail = json.dumps(_MESSAGE).split('"path": ""')
    picker = random.Random(1)
    directory = 0
    for number in range(count):
        if number % crowd == 0:
            directory = picker.randrange(directories)
        path = f"/gpfs/fs1/t{directory % 100}/d{directory}/f{picker.randrange(files)}"
        yield f'{head}"path": "{path}"{tail}'.encode()


def _tree(space: Space, directories: int, files: int) -> None:
    """Directories with files, known to the index."""
    root = Path(os.fsdecode(space.root))
    for number in range(directories):
        directory = root / f"t{number % 100}/d{number}"
        directory.mkdir(parents=True)
        for file in range(files):
            os.close(os.open(directory / f"f{file}", os.O_WRONLY | os.O_CREAT))
    keeper = Keeper(space, verify_every=1e9)
    keeper.gap = True
    while keeper.gap or keeper.sweeping:
        keeper.sweep(1.0)
        keeper.run(1.0)


def _into_the_set(broker: Broker, space: Space, base: Path, topic: str, count: int) -> float:
    """Messages a second of this process's CPU: reading, decoding, marking, one transaction a batch."""
    source = KafkaSource(
        "gpfs-watchfolder",
        gpfs_watch.decode,
        parse_mapping([f"/gpfs/fs1={os.fsdecode(space.root)}"]),
        Letters(base / "rejected", "bench"),
        options.Broker((broker.address,), topic),
        [topic],
    )
    drain = Drain(space)
    drain.by_path = True
    start = '[0, -1, -1, ""]'
    source.resume("s", {f"kafka:{topic}:0": start})
    source.add("s", space.root, space.fsd_ident)
    wait_for(source.busy, timeout=60, what="the first messages")
    used, done = time.process_time(), 0
    while done < count:
        if not source.busy():
            source.wait(1.0)
        for hint in source.collect(COLLECT_LOG):
            drain.hear(hint)
        drain.reach(source.positions("s"))
        drain.flush()
        drain._arrived.clear()  # handling them is another figure
        told = source.status("s")
        assert told is not None
        assert told.stream is not None
        done = told.stream["messages"]
    rate = count / (time.process_time() - used)
    source.close()
    return rate


def kafka_into_dirty_set(base: Path) -> list[Row]:
    """A full topic is read by one process on one core; nothing is reconciled."""
    count, directories = int(300_000 * SHARE), int(50_000 * SHARE)
    Installation.initialise(base / "state", base / "data")
    registry = Registry(base / "state")
    space = registry.open(registry.create("p").id)
    _tree(space, directories, 1)
    broker = Broker(base / "broker", properties="log.segment.bytes=1073741824\n").start()
    feed = Feed(broker.address)
    rows = []
    for name, crowd, goal in (("20 neighbours for a directory", 20, 20_000), ("all over", 1, None)):
        topic = f"crowd{crowd}"
        feed.create(topic)
        feed.send(topic, _messages(count, directories, 20, crowd))
        rate = _into_the_set(broker, space, base, topic, count)
        what = f"{count:,} watch-folder messages into the dirty set, {directories:,} directories, {name}"
        rows.append(
            Row(
                what,
                f"≥ {goal:,}" if goal else "–",
                f"{rate:,.0f} a second of CPU",
                goal is None or rate >= goal,
            )
        )
    feed.close()
    broker.close()
    space.close()
    registry.installation.close()
    return rows


def kafka_backlog(base: Path) -> list[Row]:
    """A million messages wait while the watcher is down; started, it drains them."""
    count, directories = int(1_000_000 * SHARE), int(50_000 * SHARE)
    broker = Broker(base / "broker", properties="log.segment.bytes=1073741824\n").start()
    feed = Feed(broker.address)
    feed.create("events")
    followed = Followed(base / "fsd", feed, "events", "cephfs")
    root = Path(os.fsdecode(followed.root))
    for number in range(directories):
        (root / f"t{number % 100}/d{number}").mkdir(parents=True)
    followed.start()
    followed.settle(900)
    followed.server.kill()
    ceph, picker = Ceph(followed.reported), random.Random(2)
    for number in range(directories):
        (root / f"t{number % 100}/d{number}/f").write_bytes(b"x")
    batch = 50_000
    for begin in range(0, count, batch):
        some = [picker.randrange(directories) for _ in range(min(batch, count - begin))]
        if begin == 0:
            some = [*range(directories), *some][: max(batch, directories)]
        followed.send([ceph.changed(f"t{each % 100}/d{each}/f") for each in some])
    started = time.monotonic()
    followed.start()
    (watcher,) = followed.server.child("watcher")
    followed.settle(1800)
    took = time.monotonic() - started
    peak = int(next(
        line.split()[1] for line in Path(f"/proc/{watcher}/status").read_text().splitlines() if "VmHWM" in line
    )) / 1024  # fmt: skip
    ticks = sum(map(int, Path(f"/proc/{watcher}/stat").read_text().rpartition(")")[2].split()[11:13]))
    used = ticks / os.sysconf("SC_CLK_TCK")
    passes = followed.told()["passes"]
    handled = passes.get("names", 0) + passes.get("whole", 0)
    followed.server.stop()
    followed.close()
    feed.close()
    broker.stop(signal.SIGKILL)
    broker.close()
    rate = handled / used
    return [
        Row(
            f"backlog of {count:,} messages over {directories:,} directories",
            "≥ 1,000 directories a second, < 300 MiB",
            f"{took:.0f} s, {used:.0f} s CPU, {handled:,} directories reconciled, {rate:,.0f} a second of CPU,"
            f" {peak:.0f} MiB at most",
            rate >= 1000 and peak < 300,
        )
    ]
