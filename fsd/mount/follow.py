"""The registry as a mount sees it: which spaces, whose rights, how much room; again whenever it changes."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import trio

from fsd.core import trash
from fsd.core.errors import StorageUnavailable
from fsd.core.space import Space, SpaceRecord
from fsd.mount.exports import Export
from fsd.mount.rights import Askers

if TYPE_CHECKING:
    from fsd.core.registry import Registry

_log = logging.getLogger(__name__)
FOLLOW_EVERY = 0.05
"""Seconds between two looks at the registry's number: one indexed read."""


class Follower:
    """Owns the exports of a mount."""

    def __init__(
        self, registry: Registry, space: str | None, user: str | None, others: bool, read_only: bool
    ) -> None:
        self.exports: dict[bytes, Export] = {}
        """By the name that a mount of several spaces shows."""
        self._registry = registry
        self._space, self._user, self._read_only = space, user, read_only
        self._askers = Askers(registry, user, others=others)
        self._by_id: dict[str, Export] = {}
        self._generation = -1

    @property
    def only(self) -> Export:
        """The space of a mount of one."""
        (export,) = self._by_id.values()
        return export

    def all(self) -> list[Export]:
        """All spaces there ever were in this mount."""
        return list(self._by_id.values())

    def forget(self) -> None:
        """Look at everything again."""
        self._generation = -1

    async def watch(self) -> AsyncIterator[tuple[dict[bytes, Export], list[Export]]]:
        """The exports each time something changed, and those whose rights or state are other ones."""
        while True:
            await trio.sleep(FOLLOW_EVERY)
            try:
                if self._registry.generation() != self._generation:
                    before = {ident: _state(export) for ident, export in self._by_id.items()}
                    self.update()
                    after = self._by_id.items()
                    yield self.exports, [e for ident, e in after if before.get(ident) != _state(e)]
            except OSError as error:
                _log.warning("the registry cannot be read: %s", error)
                await trio.sleep(1.0)

    def update(self) -> dict[bytes, Export]:
        """Read the registry. At the first time, what can't be mounted is an error; later it is gone for a while."""
        first = not self._by_id and self._space is not None
        generation = self._registry.generation()
        if self._space is not None:
            records = [self._record(first)]
        else:
            records = [record for record in self._registry.spaces() if record.state == "active"]
        found: dict[str, Export] = {}
        for record in records:
            if record is None:
                continue
            try:
                found[record.id] = self._export(record)
            except OSError as error:
                if first:
                    raise
                _log.warning("space %s is not mounted: %s", record.id, error)
        for ident, export in self._by_id.items():
            export.gone = ident not in found
        self._by_id.update(found)
        self.exports = self._named(list(found.values()))
        self._generation = generation
        return self.exports

    def _record(self, first: bool) -> SpaceRecord | None:
        if first:
            record = self._registry.find(self._space or "")
            if record.state != "active":
                raise StorageUnavailable(f"The space '{record.name}' is disabled.")
            self._space = record.id
            return record
        try:
            record = self._registry.get(self._space or "")
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return record if record.state == "active" else None

    def _export(self, record: SpaceRecord) -> Export:
        export = self._by_id.get(record.id)
        if export is None or export.space.record.path != record.path:
            space = Space(record, self._registry.state_dir)
            space.root_fd()
            export = Export(space, read_only=self._read_only)
        export.space.record = record
        export.gone = False
        export.rights = self._askers.rights(record)
        limit = self._registry.grants.quota(record)
        if limit != export.limit:
            export.limit = limit
            export.forget_room()
            export.forget_storage()
        export.trash = self._registry.installation.setting(trash.mount_setting(record.id)) == "on"
        return export

    def _named(self, exports: list[Export]) -> dict[bytes, Export]:
        """By the names that /dav/home has for the same spaces; those of the mount's user, if it has one."""
        named: dict[bytes, Export] = {}
        for export in sorted(exports, key=lambda each: (each.space.record.created, each.space.record.id)):
            if self._user is not None and export.rights.everybody is None:
                continue
            record = export.space.record
            name = record.name.replace("/", "_").encode("utf-8", "surrogateescape")
            if name in (b"", b".", b"..") or name in named:
                name += f" ({record.hex[:8]})".encode()
            named[name] = export
        return named

    def close(self) -> None:
        """Settle and close all spaces."""
        for export in self._by_id.values():
            try:
                export.close()
            except OSError as error:
                _log.warning("space %s was not settled: %s", export.space.record.id, error)


def _state(export: Export) -> tuple[object, ...]:
    return export.gone, export.rights
