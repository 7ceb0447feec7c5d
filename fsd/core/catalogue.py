"""What spaces there are: reading the registry, and opening spaces. `fsd.core.registry` adds what changes it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsd.core.accounts import Accounts, User, fold
from fsd.core.errors import NameRefused, SpaceDisabled
from fsd.core.grants import Grants
from fsd.core.installation import Installation
from fsd.core.space import Space, SpaceRecord

_COLUMNS = (
    "s.id, s.name, s.alias, s.type, s.path, u.name, s.label, s.read_only, s.state, "
    "s.uid, s.gid, s.file_mode, s.dir_mode, s.root_binding, s.created, coalesce(w.value, 'auto')"
)
SOURCE = "source:"
"""Key of the setting that says how a space's changes are heard."""


class Catalogue:
    """All spaces of an installation, with its accounts and grants. Thread-safe; see Installation about forks."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.installation = Installation(state_dir)
        self.accounts = Accounts(state_dir, self.installation)
        self.grants = Grants(self.installation)
        self._cache: tuple[int, dict[str, SpaceRecord]] = (-1, {})
        self._opened: dict[str, Space] = {}
        self._opening = threading.Lock()

    # ---- reading

    def generation(self) -> int:
        """Another number after any change by any process; reading it is cheap enough for every request."""
        return self.installation.generation()

    def spaces(self, *, deleted: bool = False) -> list[SpaceRecord]:
        """The registered spaces by type and alias: active and disabled ones, with `deleted` those as well."""
        found = [record for record in self._records().values() if deleted or record.state != "deleted"]
        return sorted(found, key=lambda record: (record.type, record.alias))

    def get(self, space_id: str) -> SpaceRecord:
        """The record of a space that isn't deleted; FileNotFoundError for others."""
        record = self._records().get(space_id)
        if record is None or record.state == "deleted":
            raise FileNotFoundError(errno.ENOENT, f"There is no space {space_id}.")
        return record

    def find(self, text: str, *, deleted: bool = False) -> SpaceRecord:
        """The space a person means: by id, `type/alias`, alias or name. FileNotFoundError, NameRefused if ambiguous."""
        records = self.spaces(deleted=deleted)
        tests: tuple[Callable[[SpaceRecord], bool], ...] = (
            lambda record: text in (record.id, record.hex),
            lambda record: fold(text) == fold(f"{record.type}/{record.alias}"),
            lambda record: fold(text) == fold(record.alias),
            lambda record: text == record.name,
            lambda record: fold(text) == fold(record.name),
        )
        for test in tests:
            found = [record for record in records if test(record)]
            if len(found) > 1:
                choices = ", ".join(f"{record.type}/{record.alias} ({record.id})" for record in found)
                raise NameRefused(f"'{text}' is more than one space: {choices}.")
            if found:
                return found[0]
        raise FileNotFoundError(errno.ENOENT, f"There is no space '{text}'.")

    def personal(self, user: User) -> SpaceRecord | None:
        """The personal space of a user, None for those who have none."""
        for record in self.spaces():
            if record.type == "personal" and record.owner == user.name:
                return record
        return None

    def open(self, space_id: str) -> Space:
        """The open space, kept per process. Raises FileNotFoundError, or SpaceDisabled when it isn't served."""
        record = self.get(space_id)
        if record.state != "active":
            raise SpaceDisabled(f"The space '{record.name}' is disabled.")
        space = self._opened.get(space_id)
        if space is not None and space.record == record:
            return space
        with self._opening:
            space = self._opened.get(space_id)
            if space is None or _storage(space.record) != _storage(record):
                # A space that moved is a new Space; the old one is left to the requests that still use it.
                space = self._opened[space_id] = Space(record, self.state_dir)
            space.record = record
            return space

    def _records(self) -> dict[str, SpaceRecord]:
        generation = self.generation()
        if self._cache[0] != generation:
            data_root = self.installation.data_root
            with self.installation.db.read() as db:
                rows = db.execute(
                    f"SELECT {_COLUMNS} FROM spaces s LEFT JOIN users u ON u.id = s.owner_id"
                    f" LEFT JOIN settings w ON w.key = '{SOURCE}' || s.id"
                ).fetchall()
            self._cache = (generation, {row[0]: _record(row, data_root) for row in rows})
        return self._cache[1]


def _storage(record: SpaceRecord) -> tuple[bytes, str, bool]:
    return record.path, record.root_binding, record.read_only


def _record(row: tuple[Any, ...], data_root: bytes) -> SpaceRecord:
    ident, name, alias, kind, path, owner, label, read_only, state, *rest = row
    whole = path if path.startswith(b"/") else data_root + b"/" + path
    space_hex = ident.partition("$")[2]
    return SpaceRecord(
        ident, space_hex, name, alias, kind, whole, owner, label, bool(read_only), state, *rest
    )
