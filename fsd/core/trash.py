"""The trash of a space: `.fsd/trash/files/<key>` and `.fsd/trash/info/<key>.trashinfo` (freedesktop.org's format).

Deleting is one rename, whatever the size. The info file is written and fsynced first: it is the intent, and without
its entry in `files` it means that nothing was deleted. The bytes here don't count as the space's size.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from fsd.core import intents, lease, ownfiles, quota, spare
from fsd.core.errors import ParentMissing
from fsd.core.groupsync import sync_directory
from fsd.core.index import DIRECTORY, KIND_LETTERS
from fsd.core.names import INTERNAL, join, quote_path, split, to_text, unquote_path
from fsd.core.observe import look
from fsd.core.places import Place, changing, destination, internal, rename_new, require_writable
from fsd.core.removal import remove_staged
from fsd.core.settling import make_known, settle_whole
from fsd.core.syscalls import open_beneath, statx

if TYPE_CHECKING:
    from fsd.core.intents import Ticket
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
SUFFIX: Final = b".trashinfo"
_HEAD: Final = "[Trash Info]"
_NODE: Final = re.compile(r"[0-9a-f]{32}")
_INFO_CAP: Final = 64 << 10
"""Bytes of an info file: a path of PATH_MAX, percent-encoded, needs 12 KiB."""
_PATH_CAP: Final = 4096


def mount_setting(space_id: str) -> str:
    """The registry's setting that is "on" where unlink(2) in a mount goes to the space's trash."""
    return f"mount-trash:{space_id}"


class TrashItem(NamedTuple):
    """One deleted thing. `deleted` in seconds since the epoch; `path` is where it was; sizes in bytes, a directory's
    as it was when it was deleted; `node_id` is 32 hex digits, or None where the info file is lost."""

    key: str
    path: bytes
    deleted: float
    kind: Literal["f", "d", "l", "o"]
    size: int
    mtime_ns: int
    node_id: str | None

    @property
    def name(self) -> bytes:
        """Its last name before it was deleted."""
        return split(self.path)[1]


def write_info(space: Space, name: bytes, path: bytes, node_id: str | None, size: int) -> None:
    """Make the info file of the key `name`, durably. ENOSPC, also without what is kept for this, and others: no info
    file is left."""
    now = time.time()
    lines = [
        _HEAD,
        f"Path={quote_path(path)}",
        f"DeletionDate={datetime.fromtimestamp(now).strftime('%Y-%m-%dT%H:%M:%S')}",
        f"X-Fsd-Deleted={datetime.fromtimestamp(now, UTC).timestamp():.3f}",
        f"X-Fsd-Size={size}",
    ]
    if node_id:
        lines.append(f"X-Fsd-Id={node_id}")
    spare.using(space, lambda: _write_info(space, name, "\n".join(lines) + "\n"))


def _write_info(space: Space, name: bytes, text: str) -> None:
    with internal(space, "trash/info") as info:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name + SUFFIX, flags, 0o600, dir_fd=info)
        try:
            with open(fd, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            sync_directory(info)
        except BaseException:
            os.unlink(name + SUFFIX, dir_fd=info)
            raise


def drop_info(space: Space, name: bytes) -> None:
    """Remove a key's info file, if it is there."""
    with internal(space, "trash/info") as info:
        try:
            os.unlink(name + SUFFIX, dir_fd=info)
        except FileNotFoundError:
            pass


def take_in(space: Space, ticket: Ticket, place: Place, node_id: str | None, size: int) -> None:
    """Move what stands at `place` into the trash under the ticket's key, durably; it vanishes from the tree at once.

    The caller reconciles. On an error nothing was moved and nothing is left behind.
    """
    spare.using(space, lambda: _take_in(space, ticket, place, node_id, size))


def _take_in(space: Space, ticket: Ticket, place: Place, node_id: str | None, size: int) -> None:
    write_info(space, ticket.name, place.path, node_id, size)
    with internal(space, "trash/files") as files:
        try:
            with changing(place):
                rename_new(place.fd, place.name, files, ticket.name)
            sync_directory(place.fd)
            sync_directory(files)
        except BaseException:
            place.require()
            if _stands(files, ticket.name):
                rename_new(files, ticket.name, place.fd, place.name)
            drop_info(space, ticket.name)
            raise


def take_in_staged(space: Space, ticket: Ticket, staged: bytes | None = None) -> None:
    """Move a staged entry of the ticket (`staged`, if it is not under its own name) into the trash; its info file is
    there."""
    with internal(space, "staging") as staging, internal(space, "trash/files") as files:
        lease.require(space)
        rename_new(staging, staged or ticket.name, files, ticket.name)
        sync_directory(files)


def put_back(space: Space, ticket: Ticket, place: Place) -> None:
    """Undo `take_in`, if the place is still free."""
    with internal(space, "trash/files") as files:
        rename_new(files, ticket.name, place.fd, place.name)
    drop_info(space, ticket.name)


def items(space: Space) -> list[TrashItem]:
    """What is in the trash, newest first. An entry without a readable info file is listed under its key."""
    found = []
    with internal(space, "trash/files") as files, internal(space, "trash/info") as info:
        for name in os.listdir(b"/proc/self/fd/%d" % files):
            item = _item(files, info, name)
            if item is not None:
                found.append(item)
    return sorted(found, key=lambda item: (-item.deleted, item.key))


def get(space: Space, key: str) -> TrashItem:
    """One entry; FileNotFoundError if the key leads to nothing."""
    name = _key_name(key)
    with internal(space, "trash/files") as files, internal(space, "trash/info") as info:
        item = _item(files, info, name)
    if item is None:
        raise FileNotFoundError(errno.ENOENT, f"There is no '{key}' in the trash")
    return item


def inside(space: Space, key: str, path: bytes, *, members: bool) -> list[TrashItem]:
    """What lies at `path` below a deleted directory, and, if asked, its members, sorted by name. A directory's size is
    the one that it published last. FileNotFoundError, NotADirectoryError."""
    item = get(space, key)
    with internal(space, "trash/files") as files:
        top = open_beneath(files, _key_name(key), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        with closing_fd(top):
            above, last = split(path)
            with closing_fd(open_beneath(top, above or b".", os.O_RDONLY | os.O_DIRECTORY)) as fd:
                found = [_member(space, item, fd, path, last)] if path else [item]
            if not members or found[0].kind != "d":
                return found
            with closing_fd(open_beneath(top, path or b".", os.O_RDONLY | os.O_DIRECTORY)) as fd:
                for name in sorted(os.listdir(b"/proc/self/fd/%d" % fd)):
                    if name == INTERNAL:
                        continue
                    try:
                        found.append(_member(space, item, fd, join(path, name), name))
                    except FileNotFoundError:
                        continue
    return found


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close a descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def _member(space: Space, item: TrashItem, fd: int, path: bytes, name: bytes) -> TrashItem:
    seen = look(space, fd, name)
    size = seen.assumed if seen.kind == DIRECTORY else seen.size
    kind = cast(Literal["f", "d", "l", "o"], KIND_LETTERS[seen.kind])
    node_id = seen.label.id.hex() if seen.label is not None and seen.label.proven else None
    return TrashItem(item.key, join(item.path, path), item.deleted, kind, size, seen.mtime_ns, node_id)


def restore(
    space: Space,
    key: str,
    to: bytes | None = None,
    *,
    taken: Literal["refuse", "rename"] = "refuse",
) -> bytes:
    """Move an entry back into the tree and return its path there; its id is the one it had.

    `to` None: where it was, and missing directories above are made. A given `to` needs its parent (ParentMissing).
    A taken name is refused (FileExistsError), or ` (2)` and so on is put before the extension. QuotaExceeded if the
    space has no room for it any more.
    """
    require_writable(space)
    item = get(space, key)
    quota.check_limit(space, item.size)
    path = item.path if to is None else to
    if to is None:
        _make_parents(space, split(path)[0])
    name = _key_name(key)
    for wanted in _names(path) if taken == "rename" else (path,):
        try:
            _put_at(space, name, wanted, known_name=item.name)
        except FileExistsError:
            continue
        settle_restored(space, name, wanted)
        return wanted
    raise FileExistsError(errno.EEXIST, f"'{to_text(path)}' exists already")


def remove(space: Space, key: str) -> None:
    """Delete one entry for good. A crash leaves it whole or gone."""
    require_writable(space)
    get(space, key)
    name = _key_name(key)
    with intents.of(space).begin() as ticket, internal(space, "staging") as staging:
        with internal(space, "trash/files") as files:
            try:
                lease.require(space)
                rename_new(files, name, staging, ticket.name)
            except FileNotFoundError:
                lease.require(space)
                return  # somebody else was quicker
        drop_info(space, name)
        remove_staged(space, staging, ticket.name)


def empty(space: Space, before: float | None = None) -> int:
    """Delete everything, or what was deleted before that time (seconds since the epoch); returns how many entries."""
    require_writable(space)
    count = 0
    for item in items(space):
        if before is None or item.deleted < before:
            try:
                remove(space, item.key)
            except FileNotFoundError:
                continue
            count += 1
    return count


def purge(space: Space, retention_s: float, now: float | None = None) -> int:
    """Delete what has been in the trash for longer than `retention_s`; returns how many entries. A space that is not
    to be changed is left alone."""
    if space.record.read_only or space.record.state != "active":
        return 0
    return empty(space, (time.time() if now is None else now) - retention_s)


def sweep_info(space: Space) -> None:
    """Remove info files whose deletion never happened and is not under way."""
    with internal(space, "trash/files") as files, internal(space, "trash/info") as info:
        for entry in os.listdir(b"/proc/self/fd/%d" % info):
            name = entry.removesuffix(SUFFIX)
            number = intents.number_of(name)
            if number is None or name == entry or _stands(files, name):
                continue
            with intents.of(space).take_over(number) as abandoned:
                if abandoned and not intents.of(space).get(number) and not _stands(files, name):
                    drop_info(space, name)


def _key_name(key: str) -> bytes:
    name = os.fsencode(key)
    if b"/" in name or name in (b"", b".", b".."):
        raise FileNotFoundError(errno.ENOENT, f"There is no '{key}' in the trash")
    return name


def _stands(fd: int, name: bytes) -> bool:
    try:
        statx(fd, name)
    except FileNotFoundError:
        return False
    return True


def _item(files: int, info: int, name: bytes) -> TrashItem | None:
    try:
        found = statx(files, name)
    except FileNotFoundError:
        return None
    fields = _read_info(info, name)
    kind: Literal["f", "d", "l", "o"] = "o"
    if stat.S_ISREG(found.mode):
        kind = "f"
    elif stat.S_ISDIR(found.mode):
        kind = "d"
    elif stat.S_ISLNK(found.mode):
        kind = "l"
    size = found.size if kind == "f" else _number(fields.get("X-Fsd-Size"), 0) if kind == "d" else 0
    deleted = _number(fields.get("X-Fsd-Deleted"), _date(fields.get("DeletionDate"), found.ctime_ns / 1e9))
    node_id = fields.get("X-Fsd-Id", "")
    return TrashItem(
        os.fsdecode(name),
        _path(fields.get("Path", "")) or name,
        deleted,
        kind,
        int(size),
        found.mtime_ns,
        node_id if _NODE.fullmatch(node_id) else None,
    )


def _read_info(info: int, name: bytes) -> dict[str, str]:
    """The lines of an info file, whoever wrote it; nothing where it can't be used."""
    try:
        raw = ownfiles.read(info, name + SUFFIX, _INFO_CAP)
    except (FileNotFoundError, PermissionError, ownfiles.Unusable):
        return {}
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return {}
    found: dict[str, str] = {}
    for line in raw.decode("utf-8", "surrogateescape").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found.setdefault(key.strip(), value.strip())  # of several, the specification takes the first
    return found


def _path(text: str) -> bytes:
    """Where it was, from the space's root; nothing for what can't be a path there."""
    path = unquote_path(text).strip(b"/")
    names = path.split(b"/")
    if b"\0" in path or len(path) > _PATH_CAP or any(name in (b"", b".", b"..") for name in names):
        return b""
    return path


def _number(text: str | None, otherwise: float) -> float:
    """A number that a clock or a disk may have come to."""
    try:
        found = float(text) if text is not None else otherwise
    except ValueError:
        return otherwise
    return found if 0 <= found < 1 << 62 else otherwise


def _date(text: str | None, otherwise: float) -> float:
    """DeletionDate, which is in local time, in seconds since the epoch."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return otherwise


def _make_parents(space: Space, path: bytes) -> None:
    from fsd.core.operations import make_directory  # the trash is below the operations in the import order

    if not path:
        return
    try:
        make_directory(space, path)
    except FileExistsError:
        return
    except ParentMissing:
        _make_parents(space, split(path)[0])
        make_directory(space, path)


def _names(path: bytes) -> list[bytes]:
    parent, name = split(path)
    stem, dot, extension = name.rpartition(b".")
    if not stem:
        stem, dot, extension = name, b"", b""
    return [path] + [join(parent, b"%b (%d)%b%b" % (stem, n, dot, extension)) for n in range(2, 1000)]


def _put_at(space: Space, name: bytes, path: bytes, known_name: bytes) -> None:
    with destination(space, path, known_name=known_name) as place, internal(space, "trash/files") as files:
        with changing(place):
            rename_new(files, name, place.fd, place.name)

        def undo() -> None:
            rename_new(place.fd, place.name, files, name)

        try:
            sync_directory(place.fd)
        except OSError:
            if place.may_write():
                undo()
            raise
        make_known(space, place, undo, new=True)


def settle_restored(space: Space, name: bytes, path: bytes) -> None:
    """What came back to `path` stands there, and is known: the rest can wait, so a failure here is no failure of it."""
    try:
        drop_info(space, name)
        settle_whole(space, path)
    except OSError as error:
        _log.info("space %s: left to the next look: %s", space.record.id, error)
