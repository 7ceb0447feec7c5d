"""`fsd check`: every invariant of the spaces, and with `--repair` what can be mended without touching users' bytes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from fsd.cli.common import add_json, audit, print_json, printable, progress, registry_of, say
from fsd.core.errors import FINDINGS
from fsd.core.names import to_text
from fsd.core.registry import Registry
from fsd.core.space import SpaceRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("space", nargs="?", help="only this one (default: all)")
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0 when nothing was found or all of it was mended, else 3."""
    registry = registry_of(args)
    if args.space is not None:
        records = [registry.find(args.space)]
    else:
        records = [record for record in registry.spaces() if record.state == "active"]
    found: list[dict[str, Any]] = []
    for record in records:
        for finding in progress(_findings(registry, record, args.repair), None, record.name, " findings"):
            found.append(finding)
            if not args.json:
                _print(finding)
        if args.repair:
            audit(args, "check repair", record.id)
    if args.json:
        print_json(found)
    elif not found:
        say(f"{len(records)} spaces checked, nothing found")
    return FINDINGS if any(not finding["repaired"] for finding in found) else 0


def _print(finding: dict[str, Any]) -> None:
    mark = "repaired" if finding["repaired"] else "repairable" if finding["repairable"] else "found"
    place = f"{finding['space']}:/{finding['path']}"
    say(f"{mark:10} {finding['code']:20} {printable(place)}: {printable(finding['text'])}")


def _findings(registry: Registry, record: SpaceRecord, repair: bool) -> Iterator[dict[str, Any]]:
    from fsd.core.check import check

    try:
        yield from _grants(registry, record, repair)
        for finding in check(registry.open(record.id), repair):
            path = to_text(finding.path)
            yield _as_json(record, finding.code, path, finding.text, finding.repairable, finding.repaired)
    except OSError as error:
        yield _as_json(record, "unavailable", "", str(error.strerror or error), False, False)


def _grants(registry: Registry, record: SpaceRecord, repair: bool) -> Iterator[dict[str, Any]]:
    text = registry.grants.verify(record)
    if text is not None:
        if repair:
            registry.grants.mend(record)
        yield _as_json(record, "grants", "", text, True, repair)


def _as_json(
    record: SpaceRecord, code: str, path: str, text: str, repairable: bool, repaired: bool
) -> dict[str, Any]:
    return {
        "space": record.alias,
        "id": record.id,
        "code": code,
        "path": path,
        "text": text,
        "repairable": repairable,
        "repaired": repaired,
    }
