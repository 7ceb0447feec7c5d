"""Versions: what a file held before fsd replaced it. `.fsd/versions/<first two digits>/<id>/<key>`.

Replacing a file already sets the old one aside; here it is kept by one rename, so no byte is copied, whatever its size.
Only where somebody else could still write into it (another name, an open descriptor) a reflink or a copy is kept
instead. The key is the time of the replacement in nanoseconds since the epoch. Versions don't count as the space's
size; they are thinned with age, and bounded. They belong to the id: they follow renames within the space, and end with
the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import copying, index, lease, trash
from fsd.core.absent import is_absent
from fsd.core.places import internal, rename_new
from fsd.core.syscalls import read_lease

if TYPE_CHECKING:
    from fsd.core.space import Space

_STEPS = ((10, 2), (60, 10), (3600, 60), (86_400, 3600), (30 * 86_400, 86_400))
"""(age, distance) in seconds: of versions younger than `age`, one for each `distance` is kept; of older ones, one a
week."""
_WEEK = 7 * 86_400
_ORPHAN_S = 86_400.0
"""How long versions of a file that is neither in the tree nor in the trash are left alone. Seconds."""
_kept: dict[Path, float] = {}


class Version(NamedTuple):
    """One former content. `replaced` in nanoseconds since the epoch; `size` in bytes."""

    key: str
    size: int
    mtime_ns: int
    replaced: int


def use(state_dir: Path, keep_s: float) -> None:
    """Tell this process how long an installation's versions are kept, in seconds; 0, or not told: none are made."""
    _kept[state_dir] = keep_s


def keep(space: Space, node_id: str, staging: int, name: bytes, etag: str | None = None) -> None:
    """A staged file has been replaced by its successor `node_id`: make it a version of that, or drop it.

    Idempotent: nothing happens if it is gone from the staging directory. An empty file is no version of anything.
    """
    try:
        found = os.stat(name, dir_fd=staging, follow_symlinks=False)
    except FileNotFoundError:
        if is_absent(space, staging, name, 2):
            return
        found = os.stat(name, dir_fd=staging, follow_symlinks=False)
    if not _kept.get(space.state_dir) or found.st_size == 0:
        os.unlink(name, dir_fd=staging)
        return
    with _directory(space, node_id, make=True) as into:
        if found.st_nlink == 1 and _alone(staging, name):
            key = _rename(staging, name, into)
            if etag is not None:
                space.sums.note(etag_of(node_id, key), node_id, space.sums.one(etag))
        else:
            _copy(staging, name, into)
            os.unlink(name, dir_fd=staging)


def adopt(space: Space, node_id: str, directory: int, name: bytes, etag: str) -> None:
    """Make a file of the service's own, with the content that `etag` stood for, a version; drop it if none are kept, or
    this one is kept already because it was replaced by the service."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    same = (found.st_size, found.st_mtime_ns)
    kept = _kept.get(space.state_dir)
    if not kept or any((each.size, each.mtime_ns) == same for each in items(space, node_id)):
        os.unlink(name, dir_fd=directory)
        return
    with _directory(space, node_id, make=True) as into:
        key = _rename(directory, name, into)
    space.sums.note(etag_of(node_id, key), node_id, space.sums.one(etag))


def etag_of(node_id: str, key: str) -> str:
    """A version's own etag, unquoted: it stands for one content, as a file's does."""
    return hashlib.blake2b(f"{node_id}\0{key}".encode(), digest_size=16).hexdigest()


def items(space: Space, node_id: str) -> list[Version]:
    """The versions of a file, newest first."""
    try:
        with _directory(space, node_id) as fd:
            found = [_version(fd, name) for name in _names(fd)]
    except FileNotFoundError:
        return []
    return sorted((each for each in found if each is not None), key=lambda version: -version.replaced)


def open_version(space: Space, node_id: str, key: str) -> tuple[int, Version]:
    """(descriptor for reading, the version); the caller closes it. FileNotFoundError."""
    name = _key_name(key)
    with _directory(space, node_id) as fd:
        version = _version(fd, name)
        if version is None:
            raise FileNotFoundError(errno.ENOENT, "There is no such version (any more)")
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), version


def remove(space: Space, node_id: str, key: str) -> None:
    """Delete one version. FileNotFoundError."""
    with _directory(space, node_id) as fd:
        lease.require(space)
        os.unlink(_key_name(key), dir_fd=fd)


def usage(space: Space) -> int:
    """Bytes of all versions of a space; looks at each of them."""
    return sum(version.size for node_id in _ids(space) for version in items(space, node_id))


def any_of(space: Space, node_id: str) -> bool:
    """Whether a file has versions."""
    return bool(items(space, node_id))


def superfluous(versions: list[Version], now_s: float, keep_s: float) -> list[Version]:
    """Those that age has made too many; `versions` newest first. Pure."""
    dropped = []
    last: float | None = None
    for version in versions:
        at = version.replaced / 1e9
        age = now_s - at
        distance = next((step for limit, step in _STEPS if age < limit), _WEEK)
        if age > keep_s or (last is not None and last - at < distance):
            dropped.append(version)
        else:
            last = at
    return dropped


def thin(space: Space, keep_s: float, limit: int | None = None, now_s: float | None = None) -> int:
    """Delete what is too old, too many, beyond `limit` bytes (oldest first), or of files that are gone for good.

    Returns how many went. Looks at every version of the space.
    """
    now_s = time.time() if now_s is None else now_s
    trashed = _trashed(space)
    left: list[tuple[Version, str]] = []
    gone = 0
    for node_id in _ids(space):
        found = items(space, node_id)
        drop = superfluous(found, now_s, keep_s)
        if found and _is_orphan(space, node_id, found[0], trashed, now_s):
            drop = found
        gone += _drop(space, node_id, drop)
        left += [(version, node_id) for version in found if version not in drop]
    if limit is not None:
        total = sum(version.size for version, _ in left)
        for version, node_id in sorted(left, key=lambda pair: pair[0].replaced):
            if total <= limit:
                break
            gone += _drop(space, node_id, [version])
            total -= version.size
    return gone


def _drop(space: Space, node_id: str, versions: list[Version]) -> int:
    for version in versions:
        with suppress(FileNotFoundError):
            remove(space, node_id, version.key)
    with internal(space, "versions") as above, suppress(OSError):
        lease.require(space)
        os.rmdir(_place(node_id), dir_fd=above)  # only when it is empty
    return len(versions)


def orphans(space: Space, now_s: float) -> Iterator[str]:
    """Ids that have versions, and whose file has been neither in the tree nor in the trash for a day."""
    trashed = _trashed(space)
    for node_id in _ids(space):
        found = items(space, node_id)
        if found and _is_orphan(space, node_id, found[0], trashed, now_s):
            yield node_id


def is_orphan(space: Space, node_id: str, now_s: float) -> bool:
    """Whether `orphans` would tell this id."""
    found = items(space, node_id)
    return bool(found) and _is_orphan(space, node_id, found[0], _trashed(space), now_s)


def drop_all(space: Space, node_id: str) -> None:
    """Delete every version of a file."""
    _drop(space, node_id, items(space, node_id))


def _trashed(space: Space) -> set[str | None]:
    return {item.node_id for item in trash.items(space)}


def _is_orphan(space: Space, node_id: str, newest: Version, trashed: set[str | None], now_s: float) -> bool:
    """The day begins when the file was found gone; what is below a deleted folder is as much in the trash as that."""
    gone = ident = bytes.fromhex(node_id)
    with space.index.read() as db:
        (complete,) = db.execute("SELECT complete FROM head").fetchone()
        if not complete or index.by_id(db, ident) is not None:
            return False
    since, seen = newest.replaced / 1e9, {gone}
    while gone.hex() not in trashed:
        stone = space.state.tombstone(gone)
        if stone is None:
            return now_s - since >= _ORPHAN_S
        since, gone = max(since, stone.at), stone.parent
        if gone in seen:
            return now_s - since >= _ORPHAN_S
        seen.add(gone)
    return False


def _alone(staging: int, name: bytes) -> bool:
    """Whether nobody has the file open for writing: a descriptor would go on writing into the version."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=staging)
    except PermissionError:
        return True
    try:
        return read_lease(fd) is not False
    finally:
        os.close(fd)


def _rename(staging: int, name: bytes, into: int) -> str:
    moment = time.time_ns()
    while True:
        try:
            rename_new(staging, name, into, b"%d" % moment)
            return str(moment)
        except FileExistsError:
            moment += 1


def _copy(staging: int, name: bytes, into: int) -> None:
    """A copy appears whole or not at all: it is made under a name that is no key."""
    temporary = b"." + name
    src = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=staging)
    try:
        found = os.fstat(src)
        dst = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=into)
        try:
            copying.copy_data(src, dst)
            os.utime(dst, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(dst)
    finally:
        os.close(src)
    _rename(into, temporary, into)


def _place(node_id: str) -> bytes:
    return f"{node_id[:2]}/{node_id}".encode()


@contextmanager
def _directory(space: Space, node_id: str, *, make: bool = False) -> Iterator[int]:
    if len(node_id) != 32 or not set(node_id) <= set("0123456789abcdef"):
        raise FileNotFoundError(errno.ENOENT, "No such id")
    if make:
        with internal(space, f"versions/{_place(node_id).decode()}") as fd:
            yield fd
        return
    with internal(space, "versions") as above:
        fd = os.open(_place(node_id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)


def _ids(space: Space) -> Iterator[str]:
    with internal(space, "versions") as above:
        for first in sorted(os.listdir(b"/proc/self/fd/%d" % above)):
            try:
                fd = os.open(first, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            except OSError:
                continue
            try:
                names = os.listdir(b"/proc/self/fd/%d" % fd)
            finally:
                os.close(fd)
            yield from (os.fsdecode(name) for name in sorted(names) if len(name) == 32)


def _names(fd: int) -> list[bytes]:
    return [name for name in os.listdir(b"/proc/self/fd/%d" % fd) if name.isdigit()]


def _version(fd: int, name: bytes) -> Version | None:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Version(name.decode(), found.st_size, found.st_mtime_ns, int(name))


def _key_name(key: str) -> bytes:
    if not (key.isascii() and key.isdigit() and len(key) <= 20):
        raise FileNotFoundError(errno.ENOENT, "There is no such version (any more)")
    return key.encode()
