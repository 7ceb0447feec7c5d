"""`fsd doctor` on logs: does the broker answer, are the topics there, and is what the storage reports what we serve?

The last is asked with a probe: a file is made in a space's root and removed again, and what the topics say of it is
compared with where it is.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition

from fsd.core import hosts
from fsd.service.advice import Advice, ok, problem, warning
from watcher.ears import Kind, log_kinds
from watcher.sources import cephfs, gpfs_audit, gpfs_watch
from watcher.streams.heard import Decoder, Malformed, Unfamiliar, parse, to_bytes
from watcher.streams.make import mapping
from watcher.streams.places import Foreign, Places
from watcher.streams.probe_journal import journal
from watcher.streams.probing import Unfit, connected, partitions, where

if TYPE_CHECKING:
    from fsd.core.space import SpaceRecord
    from fsd.service.config import Settings

HEAR = 10.0
"""Seconds that a storage may take to report the probe."""


def probe(settings: Settings, records: Sequence[SpaceRecord], *, hear: float = HEAR) -> Iterator[Advice]:
    """All findings about the logs that are configured. UserError if the settings don't fit together."""
    heard: tuple[tuple[Kind, tuple[str, ...], str, tuple[str, ...], Decoder], ...] = (
        (
            "gpfs-watchfolder",
            settings.gpfs_watch_topics,
            "gpfs.paths",
            settings.gpfs_paths,
            gpfs_watch.decode,
        ),
        ("gpfs-audit", settings.gpfs_audit_topics, "gpfs.paths", settings.gpfs_paths, gpfs_audit.decode),
        (
            "cephfs",
            settings.cephfs_topics,
            "cephfs.paths",
            settings.cephfs_paths,
            cephfs.CephDecoder("inotify" if settings.cephfs_mask_table == "inotify" else "ceph"),
        ),
    )
    for kind, topics, key, words, decode in heard:
        if topics:
            places = Places(mapping(key, words))
            mine = [record for record in records if _kind(settings, record) == kind]
            yield from asyncio.run(_topics(settings, kind, topics, key, places, decode, mine, hear))
    if settings.gpfs_audit_logs is not None:
        yield _directory(settings)
    if settings.cluster_journal:
        yield from asyncio.run(journal(settings, hear))


def _directory(settings: Settings) -> Advice:
    from watcher.streams import tail

    directory = settings.gpfs_audit_logs
    assert directory is not None
    try:
        found = tail.look(directory)
    except OSError as error:
        todo = "mount it here, and let the service read it; it is DEVICE/.audit_log by default"
        return problem("gpfs-audit", f"{directory} cannot be read ({error.strerror})", todo)
    if not found:
        return warning("gpfs-audit", f"no audit log lies in {directory}", "see 'mmaudit all list'")
    latest = max(log.changed for log in found.values())
    return ok("gpfs-audit", f"{len(found)} files, last written {max(0.0, time.time() - latest):.0f} s ago")


def _kind(settings: Settings, record: SpaceRecord) -> Kind | None:
    """Which log a space is heard by."""
    wish = record.source if record.source != "auto" else settings.watch_source
    if wish != "auto":
        return next((kind for kind in log_kinds("") if kind == wish), None)
    mount = hosts.mount_of(record.path)
    return next(iter(log_kinds(mount.fstype)), None) if mount is not None else None


async def _topics(
    settings: Settings,
    kind: str,
    topics: Sequence[str],
    key: str,
    places: Places,
    decode: Decoder,
    records: Iterable[SpaceRecord],
    hear: float,
) -> list[Advice]:
    try:
        async with connected(settings, kind) as kafka:
            numbers = await partitions(settings, kind, kafka, topics)
            text = ", ".join(f"{topic} (partitions: {len(parts)})" for topic, parts in numbers.items())
            advice = [ok(kind, f"Kafka at {where(settings)} has {text}")]
            kafka.assign([TopicPartition(topic, number) for topic in topics for number in numbers[topic]])
            for record in records:
                advice.append(await _file(kafka, kind, key, places, decode, record, hear))
            return advice
    except Unfit as unfit:
        return [unfit.advice]


async def _file(
    kafka: Any, kind: str, key: str, places: Places, decode: Decoder, record: SpaceRecord, hear: float
) -> Advice:
    """Make a file and hear what is said of it."""
    name = f"{kind}: space '{record.name}'"
    probe_name = f".fsd-doctor-{secrets.token_hex(8)}"
    path = os.path.join(record.path, probe_name.encode())
    await kafka.seek_to_end()
    for partition in kafka.assignment():
        await kafka.position(partition)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return warning(name, f"no probe file can be made ({error.strerror})", "its mapping was not checked")
    began = time.monotonic()
    try:
        reported = await asyncio.wait_for(_said(kafka, decode, probe_name), hear)
    except TimeoutError:
        todo = "is the storage's notification on for this directory, and does it send to this topic?"
        return problem(name, f"nothing was said of a new file in its root within {hear:.0f} s", todo)
    finally:
        os.unlink(path)
    took = (time.monotonic() - began) * 1000
    try:
        local = places.local(to_bytes(reported))
    except Foreign:
        local = b""
    if local == path:
        return ok(
            name, f"a new file in it was reported after {took:.0f} ms, as {reported}, which is mapped rightly"
        )
    directory = reported.rpartition("/")[0]
    here = os.fsdecode(record.path)
    shown = os.fsdecode(local) if local else "nowhere"
    todo = f'set {key} = ["{directory}={here}"], or the same for directories above both'
    return problem(
        name, f"a new file in it was reported as {reported}, which the mapping leads to {shown}", todo
    )


async def _said(kafka: Any, decode: Decoder, name: str) -> str:
    """The path under which a file with this name is reported."""
    while True:
        for records in (await kafka.getmany(timeout_ms=200)).values():
            for record in records:
                try:
                    changes = decode(parse(record.value))
                except Unfamiliar as error:
                    changes = error.changes
                except Malformed:
                    continue
                for path, _ in changes:
                    if path.endswith("/" + name) or path == name:
                        return path
