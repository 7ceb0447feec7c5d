"""The registry against the disk: spaces that overlap, unfinished moves, state of spaces that are no more."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import TYPE_CHECKING

from fsd.core import ownfiles, restoring
from fsd.core.checks.finding import Suspect
from fsd.core.hosts import within
from fsd.core.names import INTERNAL
from fsd.core.space import Space, SpaceRecord

if TYPE_CHECKING:
    from fsd.core.registry import Registry

_OF_SPACE = re.compile(r"([0-9a-f]{32})\.(index\.db|state\.db|lock|state-lock|owners|fsd).*")
_LEFT = (
    ("memberships of unknown users or groups",
     "membership WHERE user_id NOT IN (SELECT id FROM users) OR group_id NOT IN (SELECT id FROM groups)"),
    ("epochs of unknown spaces",
     "settings WHERE key GLOB 'epoch:*' AND substr(key, 7) NOT IN (SELECT id FROM spaces)"),
)  # fmt: skip


def suspects(registry: Registry) -> Iterator[Suspect]:
    """What is wrong with the installation as a whole; paths are absolute."""
    damage = list(_damaged(registry))
    if damage:
        yield from damage
        return  # nothing in it is to be believed
    yield from _moves(registry)
    yield from _left(registry)
    yield from _overlaps(registry)
    yield from _owners(registry)
    yield from _state(registry)
    yield from _unregistered(registry)


def of_space(registry: Registry, record: SpaceRecord) -> Iterator[Suspect]:
    """Of one space, what the registry knows and the space does not: its grants, its epoch."""

    def grants() -> object | None:
        return registry.grants.verify(record)

    alarm = grants()
    if alarm is not None:
        yield Suspect("grants", b"", str(alarm), alarm, grants, lambda: registry.grants.mend(record))
    if record.read_only:
        return
    space = Space(record, registry.state_dir)

    def rolled_back() -> object | None:
        try:
            return restoring.went_back(space, registry.installation) or None
        finally:
            space.close()

    def renew() -> None:
        try:
            restoring.check_epoch(space, registry.installation)
        finally:
            space.close()

    if rolled_back() is not None:
        text = "The tree or the state directory went back in time, and nobody has noticed yet."
        yield Suspect("rolled-back", b"", text, True, rolled_back, renew)


def _damaged(registry: Registry) -> Iterator[Suspect]:
    def again() -> object | None:
        with registry.installation.db.read() as db:
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        return None if said == "ok" else said

    said = again()
    if said is not None:
        yield Suspect("registry-damaged", b"", f"SQLite says of fsd.db: {said}. Restore it.", said, again)


def _moves(registry: Registry) -> Iterator[Suspect]:
    def again() -> object | None:
        with registry.installation.db.read() as db:
            return [key for (key,) in db.execute("SELECT key FROM settings WHERE key GLOB 'move:*'")] or None

    keys = again()
    if keys is not None:
        text = "Moving the directory of a space was cut off."
        yield Suspect("registry-move-left", b"", text, keys, again, registry.recover)


def _left(registry: Registry) -> Iterator[Suspect]:
    for what, where in _LEFT:

        def again(where: str = where) -> object | None:
            with registry.installation.db.read() as db:
                return db.execute(f"SELECT count(*) FROM {where}").fetchone()[0] or None

        def mend(where: str = where) -> None:
            with registry.installation.db.write() as db:
                db.execute(f"DELETE FROM {where}")

        count = again()
        if count is not None:
            yield Suspect("registry-leftover", b"", f"{count} {what}.", count, again, mend)


def _overlaps(registry: Registry) -> Iterator[Suspect]:
    """Two spaces on one tree would each change what the other knows."""

    def pairs() -> list[tuple[bytes, bytes]]:
        found, above = [], b""
        for path in sorted(os.path.realpath(r.path) + b"/" for r in registry.spaces() if r.state == "active"):
            if above and within(path.rstrip(b"/"), above.rstrip(b"/")):
                found.append((above.rstrip(b"/"), path.rstrip(b"/")))
            else:
                above = path
        return found

    for pair in pairs():
        text = (
            f"The space at {os.fsdecode(pair[1])} lies inside the one at {os.fsdecode(pair[0])}: disable one."
        )
        yield Suspect("space-nested", pair[1], text, pair, partial(_still, pair, pairs))


def _owners(registry: Registry) -> Iterator[Suspect]:
    def owner_missing(space_id: str) -> object | None:
        found = [r for r in registry.spaces() if r.id == space_id]
        alone = (
            found and found[0].state == "active" and found[0].type == "personal" and found[0].owner is None
        )
        return True if alone else None

    for record in registry.spaces():
        if owner_missing(record.id) is not None:
            text = f"The personal space '{record.name}' has no user: disable it, or make the user again."
            yield Suspect("space-ownerless", record.path, text, True, partial(owner_missing, record.id))


def _state(registry: Registry) -> Iterator[Suspect]:
    """Databases of spaces that the registry does not know."""

    def strangers() -> set[str]:
        known = {record.hex for record in registry.spaces(deleted=True)}
        found = (_OF_SPACE.fullmatch(name) for name in os.listdir(registry.state_dir))
        return {match[1] for match in found if match is not None} - known

    for name in sorted(strangers()):
        text = f"State of a space that is not registered; it can go: rm -r {registry.state_dir}/{name}.*"
        yield Suspect(
            "state-leftover", os.fsencode(registry.state_dir / name), text, name,
            partial(_still, name, strangers),
        )  # fmt: skip


def _unregistered(registry: Registry) -> Iterator[Suspect]:
    """Directories under the data root that say they are spaces, and aren't known as such."""
    for part in (b"users", b"projects"):
        above = registry.installation.data_root + b"/" + part
        try:
            names = sorted(os.listdir(above))
        except OSError:
            continue
        for name in names:
            path = above + b"/" + name

            def again(path: bytes = path) -> object | None:
                known = {record.path for record in registry.spaces(deleted=True)}
                return _claimed(path) if path not in known else None

            claimed = again()
            if claimed is not None:
                text = "The directory carries the identity of a space that is not registered here: "
                text += "'fsd space adopt' takes it in."
                yield Suspect("space-unregistered", path, text, claimed, again)


def _still(one: object, of: Callable[[], Container[object]]) -> object | None:
    return one if one in of() else None


def _claimed(path: bytes) -> str | None:
    try:
        fd = os.open(path + b"/" + INTERNAL, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return str(ownfiles.parse(ownfiles.read(fd, b"space.json", 65536))["id"])
        finally:
            os.close(fd)
    except (OSError, ValueError, KeyError):
        return None
