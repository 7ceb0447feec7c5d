"""What lies in `.fsd`: modes, staging, trash, properties; nothing there that nobody knows of."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from fsd.core import bequest, index, intents, ownfiles, partials, replay, spare, trash, versions
from fsd.core.checks.finding import JOBS_S, Suspect
from fsd.core.places import internal
from fsd.core.space import INTERNAL_PARTS
from fsd.core.syscalls import open_beneath

if TYPE_CHECKING:
    from fsd.core.replay import Peers
    from fsd.core.space import Space

_KNOWN = {
    b"space.json",
    b"acl.json",
    b"epoch",
    b"trash",
    b"staging",
    b"meta",
    b"versions",
    b"uploads",
    b"shadows",
    b"lease",
    spare.NAME,
}
_PASSING = re.compile(rb"\.?(space\.json|acl\.json|epoch)\.new")
"""Temporary names of files that are written aside; a crash leaves at most one of each."""
_YOUNG_S = 60.0
_META = re.compile(rb"[0-9a-f]{32}\.json(\.new)?")


def suspects(space: Space, peers: Peers | None) -> Iterator[Suspect]:
    """What is wrong with the internal directory. Raises StorageUnavailable without one."""
    if not space.internals_at_home():
        text = "'.fsd' was moved away: the space is read-only. Find it by its inode and move it back: "
        text += f"find ROOT -xdev -inum {space.fsd_ident[1]}"
        yield Suspect("internals-displaced", b"", text, True, lambda: not space.internals_at_home() or None)
        return
    present = set(names_in(space, "."))
    yield from _open_to_others(space)
    yield from _missing(space, present)
    for name in sorted(present - _KNOWN):
        if not _PASSING.fullmatch(name):
            yield _foreign(space, ".", name)
    if not space.record.read_only:
        yield from _staging(space, peers)
        yield from _uploads(space)
        yield from _versions(space)
    yield from _trash(space)
    yield from _meta(space)


@contextmanager
def _inside(space: Space, place: str) -> Iterator[int]:
    """A directory of the internals, not made if it is missing (FileNotFoundError): a check changes nothing."""
    with internal(space, ".") as top:
        fd = open_beneath(top, os.fsencode(place), os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


def names_in(space: Space, place: str) -> list[bytes]:
    """What is in a directory of the internals, in order; nothing if it is missing."""
    try:
        with _inside(space, place) as fd:
            return sorted(os.listdir(b"/proc/self/fd/%d" % fd))
    except FileNotFoundError:
        return []


def _there(space: Space, place: str, name: bytes) -> os.stat_result | None:
    try:
        with _inside(space, place) as fd:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _unlink(space: Space, place: str, name: bytes) -> Callable[[], None]:
    def mend() -> None:
        with _inside(space, place) as fd:
            os.unlink(name, dir_fd=fd)

    return mend


def _foreign(space: Space, place: str, name: bytes) -> Suspect:
    def again() -> object | None:
        return True if _there(space, place, name) is not None else None

    shown = (place.encode() + b"/" if place != "." else b"") + name
    text = "Nothing of fsd's: somebody put it there. Move it out."
    return Suspect("internals-foreign", shown, text, True, again)


def _open_to_others(space: Space) -> Iterator[Suspect]:
    for name, mode in ((b".", 0o700), (b"space.json", 0o600), (b"acl.json", 0o600)):

        def again(name: bytes = name) -> object | None:
            found = _there(space, ".", name)
            return (found.st_mode & 0o077 or None) if found is not None else None

        def mend(name: bytes = name, mode: int = mode) -> None:
            with _inside(space, ".") as fd:
                os.chmod(name, mode, dir_fd=fd)

        loose = again()
        if loose is not None:
            shown = b"" if name == b"." else name
            text = "Others than the service may read it, and it holds the space's secret."
            yield Suspect("internals-open", shown, text, loose, again, mend)


def _missing(space: Space, present: set[bytes]) -> Iterator[Suspect]:
    for part in INTERNAL_PARTS:
        above, _, name = part.rpartition(b"/")
        if above and above not in present:
            continue  # said of the one above

        def again(above: bytes = above, name: bytes = name) -> object | None:
            found = _there(space, os.fsdecode(above) or ".", name)
            return None if found is not None and stat.S_ISDIR(found.st_mode) else True

        def mend(part: bytes = part) -> None:
            os.close(space.open_internal(os.fsdecode(part)))

        if again() is not None:
            text = "A directory of the internals is missing."
            yield Suspect("internals-missing", part, text, True, again, mend)


def _staging(space: Space, peers: Peers | None) -> Iterator[Suspect]:
    for name in names_in(space, "staging"):
        number = intents.number_of(name)
        if number is None:
            if not name.startswith(
                (bequest.PREFIX, bequest.OLD_PREFIX)
            ):  # of a host among several, which looks after it by itself
                yield _foreign(space, "staging", name)
            continue

        def again(name: bytes = name, number: int = number) -> object | None:
            known = intents.of(space)
            with known.take_over(number) as free:
                left = free and known.get(number) is None and _there(space, "staging", name) is not None
            return True if left else None

        if again() is not None:
            text = "Left by a change that was cut off before it could be seen."
            yield Suspect("staging-left", name, text, True, again, lambda: replay.replay(space, peers))


def _uploads(space: Space) -> Iterator[Suspect]:
    """Parts without a row, and rows without their parts: what a crash leaves of an upload in several requests."""
    for name in sorted(_without_row(space)):
        yield Suspect(
            "upload-left", name, "Parts of an upload that is over.", True,
            partial(_among, name, _without_row, space), partial(partials.expire, space),
        )  # fmt: skip
    for ident, upload in _without_parts(space).items():
        yield Suspect(
            "upload-left", ident, "An upload whose parts are gone; it holds a reservation.", True,
            partial(_among, ident, _without_parts, space), partial(partials.drop, space, upload),
        )  # fmt: skip


def _among(name: bytes, of: Callable[[Space], Container[bytes]], space: Space) -> object | None:
    return True if name in of(space) else None


def _without_row(space: Space) -> set[bytes]:
    # Rows are read after the names, and young directories are left alone: a directory is made before its row.
    names, before = names_in(space, "uploads"), time.time() - _YOUNG_S
    known = {os.fsencode(upload.id) for upload in partials.every(space)}
    found = ((name, _there(space, "uploads", name)) for name in names if name not in known)
    return {name for name, there in found if there is not None and there.st_mtime < before}


def _without_parts(space: Space) -> dict[bytes, partials.Partial]:
    uploads = {os.fsencode(upload.id): upload for upload in partials.every(space)}
    there = set(names_in(space, "uploads"))
    return {ident: upload for ident, upload in uploads.items() if ident not in there}


def _versions(space: Space) -> Iterator[Suspect]:
    """Those of files that are nowhere any more, and that the jobs have not deleted in their time."""
    before = time.time() - JOBS_S
    if not names_in(space, "versions"):
        return
    for node_id in versions.orphans(space, before):

        def again(node_id: str = node_id) -> object | None:
            return True if versions.is_orphan(space, node_id, before) else None

        text = "Versions of a file that has long been neither in the tree nor in the trash."
        mend = partial(versions.drop_all, space, node_id)
        yield Suspect("versions-left", os.fsencode(node_id), text, True, again, mend)


def _trash(space: Space) -> Iterator[Suspect]:
    files = set(names_in(space, "trash/files"))
    infos = names_in(space, "trash/info")
    with_info = {name.removesuffix(trash.SUFFIX) for name in infos}
    for name in sorted(files - with_info):

        def unknown(name: bytes = name) -> object | None:
            kept = _there(space, "trash/files", name) is not None
            return True if kept and _there(space, "trash/info", name + trash.SUFFIX) is None else None

        text = (
            "A deleted entry has no .trashinfo, so where it was is not known. It can be restored by its key."
        )
        yield Suspect("trash-without-info", name, text, True, unknown)
    for entry in infos:
        name = entry.removesuffix(trash.SUFFIX)
        if name not in files:
            yield _info_left(space, entry, name)
        elif not _is_readable(space, entry):
            text = "The .trashinfo of a deleted entry is damaged. It can be restored by its key."
            yield Suspect(
                "trash-info-damaged", name, text, True,
                partial(_is_damaged, _is_readable, space, entry),
            )  # fmt: skip


def _info_left(space: Space, entry: bytes, name: bytes) -> Suspect:
    number = intents.number_of(name)

    def again() -> object | None:
        if _there(space, "trash/info", entry) is None or _there(space, "trash/files", name) is not None:
            return None
        if number is None:
            return True
        with intents.of(space).take_over(number) as free:
            return True if free and intents.of(space).get(number) is None else None

    text = "A .trashinfo of nothing: what was to be deleted never was, or it was restored by hand."
    return Suspect("trash-info-left", name, text, True, again, _unlink(space, "trash/info", entry))


def _is_readable(space: Space, entry: bytes) -> bool:
    with _inside(space, "trash/info") as info:
        try:
            lines = ownfiles.read(info, entry, 65536).splitlines()
        except FileNotFoundError:
            return True
        except ownfiles.Unusable:
            return False
    return bool(lines) and lines[0] == b"[Trash Info]" and any(line.startswith(b"Path=") for line in lines)


def _meta(space: Space) -> Iterator[Suspect]:
    """Overflow files of dead properties: one of a living node, or of one that is in the trash."""
    for name in names_in(space, "meta"):
        if not _META.fullmatch(name):
            yield _foreign(space, "meta", name)
        elif name.endswith(b".new") or _is_unused(space, name):

            def again(name: bytes = name) -> object | None:
                found = _there(space, "meta", name)
                left = found is not None and (name.endswith(b".new") or _is_unused(space, name))
                return found.st_ino if left and found is not None else None

            fact = again()
            if fact is not None:
                text = "Properties of a node that is nowhere."
                yield Suspect("meta-left", name, text, fact, again, _unlink(space, "meta", name))
        elif not _is_json(space, name):
            text = (
                "The overflow file of a node's properties is damaged: restore it from a backup, or delete it."
            )
            yield Suspect("meta-damaged", name, text, True, partial(_is_damaged, _is_json, space, name))


def _is_unused(space: Space, name: bytes) -> bool:
    node_id = bytes.fromhex(name[:32].decode())
    with space.index.read() as db:
        (complete,) = db.execute("SELECT complete FROM head").fetchone()
        if not complete or index.by_id(db, node_id) is not None:
            return False
    # Of something that is in the trash, at any depth, there is a tombstone.
    return space.state.tombstone(node_id) is None or not names_in(space, "trash/files")


def _is_damaged(sound: Callable[[Space, bytes], bool], space: Space, name: bytes) -> object | None:
    return None if sound(space, name) else True


def _is_json(space: Space, name: bytes) -> bool:
    with _inside(space, "meta") as meta:
        try:
            return isinstance(ownfiles.parse(ownfiles.read(meta, name, 16 << 20))["properties"], dict)
        except FileNotFoundError:
            return True
        except (ownfiles.Unusable, ValueError, KeyError):
            return False
