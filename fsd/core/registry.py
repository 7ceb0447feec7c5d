"""The set of spaces: which directory is which space. The registry decides, never what a directory says of itself.

Spaces under the data root are kept relative to it, so the whole data root may move; adopted ones are absolute and
never move. A space's root is proven by its binding at each use (`Space.root_fd`).
"""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from fsd.core import lease, roots, shadows, trash
from fsd.core.catalogue import SOURCE
from fsd.core.errors import FsdError, NameRefused, StorageUnavailable
from fsd.core.hosts import within
from fsd.core.making import Adoption, Label, Maker, Ownership, check_space_name
from fsd.core.restoring import check_epoch, skip_numbers
from fsd.core.returning import accept, note_filesystem
from fsd.core.space import Space, SpaceRecord
from fsd.core.syscalls import rename_noreplace

__all__ = ["Adoption", "Label", "Ownership", "Registry"]

_log = logging.getLogger(__name__)
_MOVE = "move:"


class Registry(Maker):
    """All spaces of an installation, with its accounts and grants. Thread-safe; see Installation about forks."""

    def set(
        self,
        space_id: str,
        *,
        name: str | None = None,
        label: Label | None = None,
        owner: Ownership | None = None,
        source: str | None = None,
    ) -> SpaceRecord:
        """Change what is given; returns the record as it is then. Names never move directories."""
        self.check_settable(space_id, name=name, label=label)
        record = self.get(space_id)
        changes: dict[str, object] = {}
        if name is not None:
            changes["name"] = name
        if label is not None:
            changes["label"] = label
        if owner is not None:
            changes |= {"uid": owner.uid, "gid": owner.gid}
            changes |= {"file_mode": owner.file_mode, "dir_mode": owner.dir_mode}
        with self.installation.write() as db:
            for column, value in changes.items():
                db.execute(f"UPDATE spaces SET {column} = ? WHERE id = ?", (value, record.id))
            if source is not None:
                db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (SOURCE + record.id, source))
        return self.get(space_id)

    def check_settable(
        self,
        space_id: str,
        *,
        name: str | None = None,
        label: Label | None = None,
        alias: str | None = None,
    ) -> None:
        """What `set` and `set_alias` would refuse is refused here, before anything is changed."""
        record = self.get(space_id)
        if name is not None:
            check_space_name(name)
            if record.type == "project":
                self._check_name_free(name, record.id)
        if label is not None and record.read_only and label != "none":
            raise NameRefused("A read-only space is never labelled.")
        if alias is not None:
            self._settable_alias(record, alias)

    def _settable_alias(self, record: SpaceRecord, alias: str) -> tuple[str, bytes]:
        """The alias as it will be, and the directory that moves along; the record's own if none does."""
        if record.type != "project":
            raise NameRefused("The directory of a personal space has its user's name.")
        alias = self._free_alias(record.name, alias, record.id)
        projects = self.installation.data_root + b"/projects/"
        target = projects + os.fsencode(alias)
        if record.path != projects + os.fsencode(record.alias) or target == record.path:
            return alias, record.path
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, f"{os.fsdecode(target)} exists already.")
        return alias, target

    def set_alias(self, space_id: str, alias: str) -> SpaceRecord:
        """Change the alias of a project; one that was created under the data root moves its directory along.

        A crash in between is finished by `recover`, which each start of the server calls.
        """
        with self.installation.db.exclusive():
            record = self.get(space_id)
            alias, target = self._settable_alias(record, alias)
            if target == record.path:
                self._set_place(record.id, alias, None)
                return self.get(space_id)
            plan = json.dumps({"alias": alias, "from": os.fsdecode(record.path), "to": os.fsdecode(target)})
            self.installation.set_setting(_MOVE + record.id, plan)
            self._finish_move(record.id, plan)
        return self.get(space_id)

    def recover(self) -> None:
        """Before serving: finish what a crash interrupted, and notice what was restored meanwhile. Idempotent."""
        self._finish_moves()
        for record in self.spaces():
            if record.state != "active" or record.read_only or lease.host_of(self.state_dir) is not None:
                continue  # of a space that hosts share, who gets its lease looks
            try:
                if accept(record, self.installation):
                    record = self.get(record.id)
            except OSError as error:
                _log.info("space %s is not looked at: %s", record.id, error)
            space = Space(record, self.state_dir)
            try:
                check_epoch(space, self.installation)
                note_filesystem(space, self.installation)
                if space.index.path.exists():
                    skip_numbers(space)
            except OSError as error:
                _log.info("space %s is not looked at: %s", record.id, error)
            finally:
                space.close()

    def _finish_moves(self) -> None:
        with self.installation.db.exclusive():
            with self.installation.db.read() as db:
                rows = db.execute("SELECT key, value FROM settings WHERE key GLOB 'move:*'").fetchall()
            for key, plan in rows:
                self._finish_move(key.removeprefix(_MOVE), plan)

    def _finish_move(self, space_id: str, text: str) -> None:
        plan = json.loads(text)
        source, target = os.fsencode(plan["from"]), os.fsencode(plan["to"])
        if os.path.lexists(source):
            parent = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
            try:
                rename_noreplace(parent, os.path.basename(source), parent, os.path.basename(target))
                os.fsync(parent)
            finally:
                os.close(parent)
        self._set_place(space_id, plan["alias"], target[len(self.installation.data_root) + 1 :])

    def _set_place(self, space_id: str, alias: str, path: bytes | None) -> None:
        with self.installation.write() as db:
            db.execute("UPDATE spaces SET alias = ? WHERE id = ?", (alias, space_id))
            if path is not None:
                db.execute("UPDATE spaces SET path = ? WHERE id = ?", (path, space_id))
            db.execute("DELETE FROM settings WHERE key = ?", (_MOVE + space_id,))

    def disable(self, space_id: str) -> None:
        """Stop serving the space; nothing on disk changes."""
        self._set_state(self.get(space_id), "disabled")

    def restore(self, space_id: str) -> SpaceRecord:
        """Serve a disabled or deleted space again. Its directory must be the registered one, and still stand alone."""
        with self.installation.db.exclusive():
            record = self._records().get(space_id)
            if record is None:
                raise FileNotFoundError(errno.ENOENT, f"There is no space {space_id}.")
            if record.state == "active":
                return record
            prove(record, self.state_dir)
            others = [other for other in self.spaces() if other.id != record.id]
            place = roots.resolve_directory(record.path)
            roots.check_apart(place, others, self.state_dir, self.installation.data_root)
            if record.type == "project":
                alias = self._free_alias(record.name, record.alias, record.id)
                self._check_name_free(record.name, record.id)
                self._set_place(record.id, alias, None)
            self._set_state(record, "active")
        return self.get(space_id)

    def delete(self, space_id: str, *, purge: bool = False) -> None:
        """Forget a project space. Its files stay, `restore` brings it back; with `purge` they are deleted for good.

        A purge that was interrupted is continued by the next one. An adopted directory itself stays, empty.
        """
        record = self._records().get(space_id)
        if record is None or (record.state == "deleted" and not purge):
            raise FileNotFoundError(errno.ENOENT, f"There is no space {space_id}.")
        if record.type == "personal" and record.owner is not None:
            raise NameRefused(
                f"It is the personal space of '{record.owner}': delete the user, or disable the space."
            )
        if purge and record.read_only:
            raise NameRefused("A read-only space cannot be purged: its files are not ours.")
        if record.state != "deleted":
            self._set_state(record, "deleted")
        if purge:
            self._purge(record)

    def _purge(self, record: SpaceRecord) -> None:
        if os.path.lexists(record.path):
            prove(record, self.state_dir)
            roots.purge_tree(record.path, keep_root=not within(record.path, self.installation.data_root))
        roots.remove_state(self.state_dir, record.hex)
        with self.installation.write() as db:
            db.execute("DELETE FROM spaces WHERE id = ?", (record.id,))
            kept = (f"epoch:{record.id}", f"filesystem:{record.id}", SOURCE + record.id)
            for key in (*kept, trash.mount_setting(record.id), shadows.setting(record.id)):
                db.execute("DELETE FROM settings WHERE key = ?", (key,))

    def _set_state(self, record: SpaceRecord, state: str) -> None:
        with self.installation.write() as db:
            db.execute("UPDATE spaces SET state = ? WHERE id = ?", (state, record.id))

    def replace_key(self, key: bytes) -> list[str]:
        """Take another service key and sign all grants anew; returns a sentence for each space that was not reached."""
        self.installation.replace_key(key)
        missed = []
        for record in self.spaces():
            try:
                self.grants.mend(record)
            except OSError as error:
                missed.append(f"'{record.name}': {error.strerror}")
        return missed


def prove(record: SpaceRecord, state_dir: Path) -> None:
    """StorageUnavailable unless the directory at the registered place is the registered one."""
    space = Space(replace(record, state="active"), state_dir)
    try:
        space.root_fd()
    except FsdError as error:
        raise StorageUnavailable(f"'{record.name}': {error}") from error
    finally:
        space.close()
