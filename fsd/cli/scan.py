"""`fsd scan`: compare a tree with its index now. Works beside a running server and without one.

What was verified stays verified: interrupted, the next call goes on. Exit codes: 0 done, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from fsd.cli.common import add_json, confirm, human, note, print_json, printable, registry_of, say
from fsd.core import dirty, regiving, relabel, tree
from fsd.core.errors import StorageUnavailable, UserError
from fsd.core.reconcile import reconcile_item
from fsd.core.registry import Registry
from fsd.core.space import Space
from fsd.core.sweep import Progress, Sweep
from watcher.keeper import verified

_STEP = 0.2
_SHOWN = 20
_LABELS = 500
_LINE_EVERY = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "space", metavar="SPACE", nargs="?", help="its id, alias or name; all spaces if left out"
    )
    parser.add_argument("--progress", action="store_true", help="show how far it is")
    parser.add_argument(
        "--restart", action="store_true", help="begin anew even if an earlier scan was interrupted"
    )
    parser.add_argument(
        "--relabel",
        action="store_true",
        help="then give entries without a label the ids of what was deleted at their places (after a restore without "
        "extended attributes); asks first",
    )
    parser.add_argument("--yes", action="store_true", help="don't ask")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Scan the space, or all that are active."""
    registry = registry_of(args)
    results = [scan(space, args) for space in spaces_of(registry, args.space)]
    if args.relabel:
        for space, result in zip(spaces_of(registry, args.space), results, strict=True):
            result["relabelled"] = relabel_lost(space, args)
    if args.json:
        print_json(results)
    return 0


def relabel_lost(space: Space, args: argparse.Namespace) -> int:
    """What the person agrees to gets the id that stood in its place before; how many."""
    found = regiving.lost(space)
    name = printable(space.record.name)
    if not found:
        if not args.json:
            say(f"{name}: nothing stands in the place of something that was deleted")
        return 0
    for item in found[:_SHOWN]:
        note(f"  {printable(os.fsdecode(item.path))}")
    if len(found) > _SHOWN:
        note(f"  and {len(found) - _SHOWN} more")
    confirm(
        f"{name}: give these {len(found)} entries the ids of what was deleted in their places?", yes=args.yes
    )
    given = regiving.give_back(space, found)
    while relabel.label_due(space) >= _LABELS:
        pass
    if not args.json:
        say(f"{name}: {given} entries have their earlier ids")
    return given


def spaces_of(registry: Registry, text: str | None) -> list[Space]:
    """The open spaces an argument means; UserError if there is none such."""
    if text is None:
        records = [record for record in registry.spaces() if record.state == "active"]
    else:
        try:
            records = [registry.find(text)]
        except OSError as error:
            raise UserError(error.strerror or str(error)) from None
    try:
        return [registry.open(record.id) for record in records]
    except OSError as error:
        raise UserError(error.strerror or str(error)) from None


def scan(space: Space, args: argparse.Namespace) -> dict[str, Any]:
    """One space; the summary that `--json` prints."""
    sweep = Sweep(space)
    began = time.monotonic()
    name = printable(space.record.name)
    try:
        progress = sweep.progress()
        resumed = not progress.finished and progress.done_dirs > 0 and not args.restart
        if not resumed:
            sweep.begin()
        else:
            sweep.resume()
            if not args.json:
                say(f"{name}: an earlier scan goes on ({progress.done_dirs} directories are done)")
        with _shown(name, args.progress) as meter:
            while meter.untouched or not (progress.finished and verified(space).current):
                serve_hints(space)
                progress = sweep.step(_STEP)
                meter.show(progress)
    except StorageUnavailable as error:
        raise UserError(f"{name}: {error}") from None
    except KeyboardInterrupt:
        note(f"{name}: interrupted; the next scan goes on from here.")
        raise
    seconds = time.monotonic() - began
    size = tree.usage(space)
    if not args.json:
        say(f"{name}: {progress.total_dirs} directories verified in {seconds:.1f} s, {human(size)}")
    return {
        "id": space.record.id,
        "name": space.record.name,
        "directories": progress.total_dirs,
        "bytes": size,
        "seconds": round(seconds, 3),
        "resumed": resumed,
    }


def serve_hints(space: Space) -> None:
    """Handle what a watcher heard and did not come to, as far as it can be handled."""
    for item in dirty.pending(space, 1000, sweep=False):
        try:
            reconcile_item(space, item)
        except StorageUnavailable:
            raise
        except OSError as error:
            note(f"{printable(space.record.name)}: {printable(os.fsdecode(item.path or b''))}: {error}")
            dirty.done(space, [item])


class Meter(Protocol):
    """Shows how far a scan is."""

    untouched: bool

    def show(self, progress: Progress) -> None:
        """Take in the newest numbers."""


class _Silent:
    untouched = True

    def show(self, progress: Progress) -> None:
        self.untouched = False


class _Lines(_Silent):
    """Plain lines, for pipes and logs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = time.monotonic() + _LINE_EVERY

    def show(self, progress: Progress) -> None:
        self.untouched = False
        if progress.finished or time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY
            if progress.phase == "directories":
                print(
                    f"{self._name}: looked at {progress.looked} of {progress.total_dirs} directories",
                    flush=True,
                )
            else:
                print(f"{self._name}: {progress.done_dirs} of {progress.total_dirs} directories", flush=True)


class _Bar(_Silent):
    def __init__(self, name: str) -> None:
        from tqdm import tqdm

        self.bar = tqdm(desc=name, unit="dir", dynamic_ncols=True)

    def show(self, progress: Progress) -> None:
        self.untouched = False
        self.bar.total = progress.total_dirs
        looking = progress.phase == "directories"
        self.bar.set_postfix_str(f"looked at {progress.looked}" if looking else "", refresh=False)
        self.bar.update(progress.done_dirs - self.bar.n)


@contextmanager
def _shown(name: str, wanted: bool) -> Iterator[Meter]:
    if not wanted:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(name)
    else:
        shown = _Bar(name)
        try:
            yield shown
        finally:
            shown.bar.close()
