"""Every invariant of a space, as functions that compare disk, rows, sums and leftovers and yield findings. Read-only
unless asked; with `repair` what can be mended is, by the same means that keep it right every day.

`check` never changes users' bytes: repairing means reconciling, recounting, labelling, and dropping rows and
leftovers. Each code is documented in docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from fsd.core.checks import internals, registry, rows, state, tree
from fsd.core.checks.finding import Finding, Judge, Suspect
from fsd.core.errors import DatabaseDamaged, StorageUnavailable

if TYPE_CHECKING:
    from fsd.core.registry import Registry
    from fsd.core.replay import Peers
    from fsd.core.space import Space, SpaceRecord

__all__ = ["GRACE_S", "Finding", "check", "check_installation", "check_registered", "notes"]

GRACE_S = 2.0
"""How long a contradiction has to last beside a running server. Seconds."""


def check(
    space: Space,
    repair: bool = False,
    *,
    served: bool = False,
    grace_s: float | None = None,
    peers: Peers | None = None,
) -> Iterator[Finding]:
    """Check a whole space, in bounded memory; with `repair`, mend what can be mended and say so.

    `served`: a server runs, so what changes in `grace_s` is alive, and what waits for long is a finding; else what
    waits is work for the next start, and `repair` does it first. `peers` opens other spaces (see `replay`).
    """
    judge = Judge(repair=repair, grace_s=(GRACE_S if served else 0.0) if grace_s is None else grace_s)
    try:
        space.root_fd()
        _ = space.secret
        for finding in judge.findings(rows.damaged(space)):
            yield finding
            if not finding.repaired:
                return  # nothing in it is to be believed
        if repair and not served:
            rows.catch_up(space)
        yield from judge.findings(_suspects(space, served, peers))
        if repair and not served:
            rows.catch_up(space)
    except StorageUnavailable as error:
        yield Finding("storage-unavailable", b"", str(error), False, False)
    except DatabaseDamaged as error:
        yield Finding("state-damaged", b"", str(error), False, False)


def _suspects(space: Space, served: bool, peers: Peers | None) -> Iterator[Suspect]:
    if not space.internals_at_home():
        return chain(internals.suspects(space, peers), rows.suspects(space, served=served))
    return chain(
        internals.suspects(space, peers),
        state.suspects(space, served=served, peers=peers),
        rows.suspects(space, served=served),
        tree.suspects(space),
    )


def check_registered(
    known: Registry, record: SpaceRecord, repair: bool = False, *, grace_s: float = 0.0
) -> Iterator[Finding]:
    """Check what the registry knows of a space against the space."""
    try:
        yield from Judge(repair=repair, grace_s=grace_s).findings(registry.of_space(known, record))
    except StorageUnavailable:
        return  # `check` says so


def check_installation(known: Registry, repair: bool = False, *, grace_s: float = 0.0) -> Iterator[Finding]:
    """Check the registry itself, and the state and data directories against it."""
    yield from Judge(repair=repair, grace_s=grace_s).findings(registry.suspects(known))


def notes(space: Space) -> Iterator[str]:
    """What is no finding and worth a sentence."""
    with space.index.read() as db:
        count, size = db.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM node WHERE kind=0 AND nlink>1"
        ).fetchone()
    if count:
        yield f"{count} names lead to files with several names; their {size} bytes count at each name."
