"""`fsd doctor`: is this host fit? What is not comes with what to do."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING

from fsd.cli.common import add_json, note, print_json, printable, say, settings_of
from fsd.core.errors import FINDINGS, UserError

if TYPE_CHECKING:
    from fsd.service.config import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 3 when there is a problem; warnings alone are 0."""
    from fsd.core.registry import Registry
    from fsd.service import probes

    settings = _settings(args)
    found = list(probes.host(settings))
    if (settings.state / "fsd.db").exists():
        registry = Registry(settings.state)
        for record in registry.spaces():
            if record.state == "active":
                found += probes.space(registry, record, settings.disk_reserve, settings.watch_polled)
    if args.json:
        print_json([dataclasses.asdict(advice) for advice in found])
    else:
        for advice in found:
            say(f"{advice.level:8} {printable(advice.probe)}: {printable(advice.found)}")
            if advice.todo:
                say(f"         -> {printable(advice.todo)}")
    return FINDINGS if any(advice.level == "problem" for advice in found) else 0


def _settings(args: argparse.Namespace) -> Settings:
    try:
        return settings_of(args)
    except UserError:
        if args.data or args.config or "FSD_DATA" in os.environ or "FSD_CONFIG" in os.environ:
            raise
    note("No data root was named; this is about the machine and the current directory.")
    args.data = "."
    return settings_of(args)
