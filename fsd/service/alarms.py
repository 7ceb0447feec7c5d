"""What is wrong with a space itself, beside being up to date: its grants, its internals, its place in time.

Collected by the jobs process for `fsd status`, /healthz and /metrics; without a server `fsd status` looks itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsd.core import lease, likeness, restoring
from fsd.core.errors import StorageUnavailable
from fsd.core.space import Space, SpaceRecord

if TYPE_CHECKING:
    from fsd.core.registry import Registry

KINDS = ("storage", "displaced", "grants", "rolled-back", "restored", "shared", "registry")


def of(registry: Registry, record: SpaceRecord) -> dict[str, str]:
    """The alarms of one space, by kind, a sentence each. May take as long as its storage."""
    space = Space(record, registry.state_dir)
    try:
        return _of(registry, space)
    except StorageUnavailable as error:
        return {"storage": f"Space {record.name} is unavailable: {error}"}
    finally:
        space.close()


def _of(registry: Registry, space: Space) -> dict[str, str]:
    record, found = space.record, {}
    space.root_fd()
    if not space.internals_at_home():
        found["displaced"] = f"Space {record.name} is read-only: its directory .fsd is not where it belongs."
    grants = registry.grants.verify(record)
    if grants is not None:
        found["grants"] = grants
    other = lease.kept_by_others(space)
    if other is not None:
        found["shared"] = (
            f"Space {record.name}: the host {other} works on it, too; set cluster.shared on this one, or stop it."
        )
    if (stale := likeness.differs(registry.installation, space)) is not None:
        found["registry"] = f"Space {record.name}: {stale}"
    if record.read_only or not lease.may_write(space):
        return found  # the epoch is the matter of the host that works on it
    if restoring.went_back(space, registry.installation):
        found["rolled-back"] = (
            f"Space {record.name}: its tree or its state went back in time; it is looked at anew."
        )
    elif space.state.fingerprint():
        with space.index.read() as db:
            (complete,) = db.execute("SELECT complete FROM head").fetchone()
        if not complete:
            found["restored"] = f"Space {record.name} was restored and is not verified yet."
    return found
