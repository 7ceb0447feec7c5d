"""`fsd doctor`: is this host fit? What is not comes with what to do."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from fsd.cli.common import add_json, note, positive, print_json, printable, say, settings_of
from fsd.core.errors import FINDINGS, FsdError, UserError

if TYPE_CHECKING:
    from fsd.core.registry import Registry
    from fsd.core.space import SpaceRecord
    from fsd.service.advice import Advice
    from fsd.service.config import Settings

ANSWER_S = 20.0
"""Longer than all probes of a space take on storage that answers. Seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_json(parser)
    parser.add_argument(
        "--timeout",
        type=positive,
        default=ANSWER_S,
        metavar="SECONDS",
        help="how long a storage may take to answer",
    )


def run(args: argparse.Namespace) -> int:
    """Exit 3 when there is a problem; warnings alone are 0."""
    from fsd.core.registry import Registry
    from fsd.service import probes

    settings = _settings(args)
    found = _in_time(
        args.timeout, "data root", os.fsencode(settings.data), lambda: list(probes.host(settings))
    )
    if (settings.state / "fsd.db").exists():
        try:
            registry = Registry(settings.state)
            records = [record for record in registry.spaces() if record.state == "active"]
        except OSError as error:
            found.append(_closed(error))
        else:
            found += _spaces(args, settings, registry, records)
    if args.json:
        print_json([dataclasses.asdict(advice) for advice in found])
    else:
        for advice in found:
            say(f"{advice.level:8} {printable(advice.probe)}: {printable(advice.found)}")
            if advice.todo:
                say(f"         -> {printable(advice.todo)}")
    return FINDINGS if any(advice.level == "problem" for advice in found) else 0


def _closed(error: OSError) -> Advice:
    """The registry can't be opened: what is wrong with it is what is asked here."""
    from fsd.service.advice import problem

    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the registry"
    said = str(error) if isinstance(error, FsdError) else f"{where} can't be opened: {error.strerror}"
    return problem("registry", said, "mend it first: nothing can be said about the spaces, or served")


def _spaces(
    args: argparse.Namespace, settings: Settings, registry: Registry, records: list[SpaceRecord]
) -> list[Advice]:
    found: list[Advice] = []
    for record in records:
        ask = partial(_space, registry, record, settings.disk_reserve, settings.watch_polled)
        found += _in_time(args.timeout, f"space '{record.name}'", record.path, ask)
    if settings.gpfs_audit_logs or settings.kafka_brokers or settings.cluster_journal:
        from watcher.streams import probe

        found += list(probe.probe(settings, records))
    return found


def _space(registry: Registry, record: SpaceRecord, reserve: int, polled: Collection[str]) -> list[Advice]:
    from fsd.core import lease, likeness
    from fsd.service import probes
    from fsd.service.advice import problem

    found = list(probes.space(registry, record, reserve, polled))
    if lease.host_of(registry.state_dir) is not None and not record.read_only:
        stale = likeness.differs(registry.installation, registry.open(record.id))
        if stale is not None:
            what, _, todo = stale.partition(": ")
            found.append(problem(f"space '{record.name}'", what, todo))
    return found


def _in_time(seconds: float, what: str, path: bytes, ask: Callable[[], list[Advice]]) -> list[Advice]:
    """Storage that hangs is a finding, and keeps nobody from the others."""
    from fsd.service import guarded
    from fsd.service.advice import problem

    try:
        return guarded.within(seconds, ask)
    except guarded.Hung as error:
        todo = f"see 'dmesg' and 'findmnt -T {shlex.quote(os.fsdecode(path))}'; 'umount -f' frees who waits"
        return [problem(what, f"its storage hangs: {error}", todo)]


def _settings(args: argparse.Namespace) -> Settings:
    try:
        return settings_of(args)
    except UserError:
        if args.data or args.config or "FSD_DATA" in os.environ or "FSD_CONFIG" in os.environ:
            raise
    note("No data root was named; this is about the machine and the current directory.")
    args.data = "."
    return settings_of(args)
