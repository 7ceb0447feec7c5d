"""`fsd check`: every invariant of the spaces, and with `--repair` what can be mended without touching users' bytes.

Exit codes: 0 nothing was found or all of it was mended, 3 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fsd.cli.common import add_json, audit, note, printable, progress, registry_of, say, settings_of
from fsd.core.errors import FINDINGS
from fsd.core.names import to_text
from fsd.core.registry import Registry
from fsd.core.space import SpaceRecord
from fsd.service import status

if TYPE_CHECKING:
    from fsd.core.check import Finding
    from fsd.core.space import Space
    from fsd.service.config import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("space", nargs="?", help="only this one (default: all, and the registry)")
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print findings as they are found: memory does not grow with their number."""
    registry = registry_of(args)
    if args.repair:
        _be_able_to_finish(settings_of(args))
    records = [each for each in registry.spaces() if each.state == "active"]
    whole = args.space is None
    if not whole:
        records = [registry.find(args.space)]
    out = _Output(as_json=args.json)
    if whole:
        out.take(_of_installation(registry, args.repair), "registry")
    for record in records:
        out.take(_findings(registry, record, args.repair), record.name)
        if args.repair:
            audit(args, "check repair", record.id)
    out.close(len(records))
    return FINDINGS if out.left else 0


def _be_able_to_finish(settings: Settings) -> None:
    """Finishing a cut-off change does what the server would have done, with what it replaced as well."""
    from fsd.core import versions

    versions.use(settings.state, float(settings.versions_keep))


class _Output:
    """Lines for people, or one JSON list, written piece by piece."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._count = 0
        self.left = 0
        """Findings that were not repaired."""

    def take(self, found: Iterator[dict[str, Any]], what: str) -> None:
        """Write these."""
        for finding in progress(found, None, what, " findings"):
            if self._json:
                text = json.dumps(finding, indent=1)
                sys.stdout.write(f"{',' if self._count else '['}\n{text}")
            else:
                _print(finding)
            self._count += 1
            self.left += not finding["repaired"]

    def close(self, spaces: int) -> None:
        """The end of it."""
        if self._json:
            sys.stdout.write("[]\n" if not self._count else "\n]\n")
        elif not self._count:
            say(f"{spaces} {'space' if spaces == 1 else 'spaces'} checked, nothing found")


def _print(finding: dict[str, Any]) -> None:
    mark = "repaired" if finding["repaired"] else "repairable" if finding["repairable"] else "found"
    place = f"{finding['space']}:/{finding['path']}"
    say(f"{mark:10} {finding['code']:20} {printable(place)}: {printable(finding['text'])}")


def _findings(registry: Registry, record: SpaceRecord, repair: bool) -> Iterator[dict[str, Any]]:
    from fsd.core import check

    served = status.read(registry.state_dir / "run").watcher_runs
    grace = check.GRACE_S if served else 0.0

    def peer(space_id: str) -> Space | None:
        try:
            return registry.open(space_id)
        except FileNotFoundError:
            return None

    try:
        for finding in check.check_registered(registry, record, repair, grace_s=grace):
            yield _as_json(record, finding)
        space = registry.open(record.id)
        for finding in check.check(space, repair, served=served, peers=peer):
            yield _as_json(record, finding)
        for text in check.notes(space):
            note(f"{record.name}: {text}")
    except OSError as error:
        text = str(error.strerror or error)
        yield _as_json(record, check.Finding("unavailable", b"", text, False, False))


def _of_installation(registry: Registry, repair: bool) -> Iterator[dict[str, Any]]:
    from fsd.core import check

    for finding in check.check_installation(registry, repair):
        yield _as_json(None, finding)


def _as_json(record: SpaceRecord | None, finding: Finding) -> dict[str, Any]:
    return {
        "space": record.alias if record else "",
        "id": record.id if record else "",
        "code": finding.code,
        "path": to_text(finding.path),
        "text": finding.text,
        "repairable": finding.repairable,
        "repaired": finding.repaired,
    }
