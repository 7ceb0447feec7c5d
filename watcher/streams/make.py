"""The sources that read logs, as the settings wish them."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fsd.core import lease
from fsd.core.errors import USAGE, UserError
from watcher.ears import Kind, MakeLog
from watcher.sources import cephfs, gpfs_audit, gpfs_watch
from watcher.sources.base import LogReader
from watcher.streams.heard import Decoder
from watcher.streams.letters import Letters
from watcher.streams.options import Broker
from watcher.streams.places import Prefix, parse_mapping

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.service.config import Settings
    from watcher.streams.publisher import Publisher


def broker(settings: Settings, kind: str = "") -> Broker:
    """How the brokers are reached; by a source of a `kind`, under a name of its own.

    Of several hosts each is a group of its own: the ones that only follow a space need to hear of it as well, and who
    takes it over has heard everything.
    """
    group = settings.kafka_group
    if settings.cluster_shared:
        group += f"-{lease.host_id(settings.state)}"
    return Broker(
        settings.kafka_brokers,
        group,
        settings.kafka_security,
        settings.kafka_mechanism,
        settings.kafka_username,
        settings.kafka_password,
        settings.kafka_ca,
        settings.kafka_cert,
        settings.kafka_key,
        member(settings, kind),
    )


def member(settings: Settings, kind: str) -> str:
    """A name in the group for one source of this host and state directory. Members of one group under one name would
    take each other's place."""
    mark = hashlib.blake2b(f"{socket.gethostname()} {settings.state}".encode(), digest_size=6)
    return "-".join(filter(None, ("fsd", socket.gethostname(), mark.hexdigest(), kind)))


def mapping(key: str, words: Sequence[str]) -> list[Prefix]:
    """The mapping of paths. UserError if it is wrong or empty."""
    if not words:
        raise UserError(f"'{key}' is missing: where are the paths that the storage reports?", USAGE)
    try:
        return parse_mapping(words)
    except ValueError as error:
        raise UserError(f"'{key}': {error}.", USAGE) from None


def logs(settings: Settings) -> dict[Kind, MakeLog]:
    """By kind how to make each source that is configured. UserError if the settings don't fit together."""
    found: dict[Kind, MakeLog] = {}
    decoders: tuple[tuple[Kind, tuple[str, ...], str, tuple[str, ...], Callable[[], Decoder]], ...] = (
        (
            "gpfs-watchfolder",
            settings.gpfs_watch_topics,
            "gpfs.paths",
            settings.gpfs_paths,
            lambda: gpfs_watch.decode,
        ),
        (
            "gpfs-audit",
            settings.gpfs_audit_topics,
            "gpfs.paths",
            settings.gpfs_paths,
            lambda: gpfs_audit.decode,
        ),
        (
            "cephfs",
            settings.cephfs_topics,
            "cephfs.paths",
            settings.cephfs_paths,
            lambda: cephfs.CephDecoder("inotify" if settings.cephfs_mask_table == "inotify" else "ceph"),
        ),
    )
    for kind, topics, key, words, decoder in decoders:
        if topics:
            if not settings.kafka_brokers:
                raise UserError(f"'kafka.brokers' is missing: who has the topic {topics[0]}?", USAGE)
            found[kind] = partial(_kafka, settings, kind, topics, mapping(key, words), decoder)
    if settings.cluster_journal:
        if not (settings.kafka_brokers and settings.cluster_shared):
            raise UserError("'cluster.journal' needs 'cluster.shared' and 'kafka.brokers'.", USAGE)
        found["journal"] = partial(_journal, settings)
    if settings.gpfs_audit_logs is not None:
        if settings.gpfs_audit_topics:
            raise UserError("'gpfs.audit_logs' and 'gpfs.audit_topics' exclude each other.", USAGE)
        found["gpfs-audit"] = partial(_files, settings, mapping("gpfs.paths", settings.gpfs_paths))
    return found


def letters(settings: Settings, kind: str) -> Letters:
    """Where messages that are not understood are kept."""
    return Letters(settings.state / "rejected", kind)


def _kafka(
    settings: Settings,
    kind: Kind,
    topics: Sequence[str],
    prefixes: list[Prefix],
    decoder: Callable[[], Decoder],
    bell: threading.Event,
) -> LogReader:
    from watcher.streams.kafka import KafkaSource  # only who reads Kafka loads it

    return KafkaSource(
        kind, decoder(), prefixes, letters(settings, kind), broker(settings, kind), topics, bell=bell
    )


def _journal(settings: Settings, bell: threading.Event) -> LogReader:
    from watcher.streams.peers import JournalSource

    host, kept = lease.host_id(settings.state), letters(settings, "journal")
    return JournalSource(host, kept, journal_broker(settings), settings.cluster_journal, bell=bell)


def journal_broker(settings: Settings) -> Broker:
    """How the journal topic is read: by a group of its own."""
    whose = broker(settings, "journal")
    return replace(whose, group=f"{whose.group}-journal")


def publish(settings: Settings) -> Callable[[Callable[[], Mapping[str, Space]]], Publisher] | None:
    """How to make what tells other hosts of changes; None if it is not configured."""
    if not settings.cluster_journal:
        return None

    def make(spaces: Callable[[], Mapping[str, Space]]) -> Publisher:
        from watcher.streams.publisher import Publisher

        return Publisher(broker(settings), settings.cluster_journal, lease.host_id(settings.state), spaces)

    return make


def _files(settings: Settings, prefixes: list[Prefix], bell: threading.Event) -> LogReader:
    from watcher.streams.audit import AuditSource

    assert settings.gpfs_audit_logs is not None
    kept = letters(settings, "gpfs-audit")
    return AuditSource("gpfs-audit", gpfs_audit.decode, prefixes, kept, settings.gpfs_audit_logs, bell=bell)
