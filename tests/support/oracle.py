"""What is true, by walking the disk: an oracle of its own that imports nothing of fsd.

`walk` says what a space's directory contains, `crawl` what the server says, `compare` where they differ.
`changed_ancestors` says which directories' etags must differ between two crawls. Identity is judged by the
kernel's file handles, never by fsd's attributes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat as stat_
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.support.davclient import Dav, HttpError, Resource

INTERNAL = b".fsd"


@dataclass(frozen=True)
class OnDisk:
    """One name on disk. `size` is st_size of a regular file, the tree size of a directory, 0 of anything
    else."""

    path: bytes
    kind: str  # f d l o
    size: int
    mtime: int
    node: bytes
    nlink: int


_libc = ctypes.CDLL(None, use_errno=True)
_HANDLE_ROOM = 128


def handle(path: bytes) -> bytes:
    """The kernel's handle of a node (name_to_handle_at(2)): an inode number that is reused has another one."""
    buffer = ctypes.create_string_buffer(_HANDLE_ROOM.to_bytes(4, "little"), 8 + _HANDLE_ROOM)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(-100, path, buffer, ctypes.byref(mount), 0):
        number = ctypes.get_errno()
        if number == errno.EOPNOTSUPP:  # nothing better is known there
            return os.lstat(path).st_ino.to_bytes(8, "little")
        raise OSError(number, os.strerror(number), path)
    return bytes(buffer.raw[4 : 8 + int.from_bytes(buffer.raw[:4], "little")])


def _kind(mode: int) -> str:
    if stat_.S_ISREG(mode):
        return "f"
    if stat_.S_ISDIR(mode):
        return "d"
    return "l" if stat_.S_ISLNK(mode) else "o"


def walk(root: bytes) -> dict[bytes, OnDisk]:
    """Every name below `root` (itself as b""), `.fsd` at the root left out."""
    found: dict[bytes, OnDisk] = {}
    _walk_directory(root, b"", found)
    return found


def _walk_directory(root: bytes, path: bytes, found: dict[bytes, OnDisk]) -> int:
    here = os.path.join(root, path) if path else root
    status = os.lstat(here)
    total = 0
    for name in os.listdir(here):
        below = path + b"/" + name if path else name
        entry = os.lstat(os.path.join(here, name))
        if name == INTERNAL and (not path or entry.st_mode & 0o170777 == 0o040700):
            continue
        kind = _kind(entry.st_mode)
        if kind == "d":
            total += _walk_directory(root, below, found)
            continue
        size = entry.st_size if kind == "f" else 0
        total += size
        found[below] = OnDisk(
            below, kind, size, int(entry.st_mtime), handle(os.path.join(here, name)), entry.st_nlink
        )
    found[path] = OnDisk(path, "d", total, int(status.st_mtime), handle(here), status.st_nlink)
    return total


def crawl(dav: Dav, path: bytes = b"") -> dict[bytes, Resource]:
    """Everything the server lists below `path`, Depth 1 per directory; the first response must be the
    directory itself."""
    found: dict[bytes, Resource] = {}
    queue = [path]
    while queue:
        directory = queue.pop()
        listed = dav.propfind(directory, 1)
        assert listed and listed[0].path == directory, f"the first response of {directory!r} is {listed[:1]}"
        if not found:
            found[directory] = listed[0]
        for child in listed[1:]:
            assert child.path.rpartition(b"/")[0] == directory, f"{child.path!r} listed below {directory!r}"
            assert child.path not in found, f"{child.path!r} is listed twice"
            found[child.path] = child
            if child.is_dir:
                queue.append(child.path)
    return found


def compare(disk: Mapping[bytes, OnDisk], served: Mapping[bytes, Resource]) -> list[str]:
    """Every difference between disk and server, in words; none when they agree."""
    wrong = [f"missing from the listing: {path!r}" for path in disk.keys() - served.keys()]
    wrong += [f"listed but not on disk: {path!r}" for path in served.keys() - disk.keys()]
    for path in disk.keys() & served.keys():
        entry, resource = disk[path], served[path]
        if (entry.kind == "d") != resource.is_dir:
            wrong.append(f"{path!r} is a {entry.kind} on disk, is_dir={resource.is_dir} in the listing")
        if entry.size != resource.size:
            wrong.append(f"{path!r}: {entry.size} bytes on disk, oc:size {resource.size}")
        if entry.kind == "f" and resource.length != entry.size:
            wrong.append(f"{path!r}: {entry.size} bytes on disk, getcontentlength {resource.length}")
        if resource.mtime != entry.mtime:
            wrong.append(f"{path!r}: mtime {entry.mtime} on disk, {resource.mtime} in the listing")
    owners: dict[str, bytes] = {}
    for path, resource in served.items():
        if (other := owners.setdefault(resource.id, path)) != path:
            wrong.append(f"one id at two names: {other!r} and {path!r}")
    return wrong


@dataclass(frozen=True)
class Snapshot:
    """Disk and server at one moment at which they agreed."""

    disk: Mapping[bytes, OnDisk]
    served: Mapping[bytes, Resource]

    @property
    def ids(self) -> dict[str, bytes]:
        """Path by id."""
        return {resource.id: path for path, resource in self.served.items()}


def snapshot(root: bytes, dav: Dav) -> Snapshot:
    """Both sides, taken so that nothing changed between; AssertionError if they differ or either side moved
    meanwhile: a listing of directories one by one shows no single moment else."""
    try:
        before = walk(root)
        top = dav.stat(b"")
        served = crawl(dav)
        assert dav.stat(b"").etag == top.etag, "the server learnt of something while it was asked"
        after = walk(root)
    except (OSError, HttpError) as error:
        raise AssertionError(f"while looking: {error}") from error
    assert before == after, "the disk changed while looking"
    wrong = compare(before, served)
    assert not wrong, f"{len(wrong)} differences: " + "; ".join(wrong[:8])
    return Snapshot(before, served)


def unstable_ids(old: Snapshot, new: Snapshot) -> list[str]:
    """Nodes that kept their inode and their place, or moved as a single name, but not their id; in words."""
    wrong = []
    for path in old.disk.keys() & new.disk.keys():
        if old.disk[path].node == new.disk[path].node and old.served[path].id != new.served[path].id:
            wrong.append(f"{path!r} kept its inode but not its id")
    before = {entry.node: path for path, entry in old.disk.items() if entry.nlink == 1 or entry.kind == "d"}
    for path, entry in new.disk.items():
        was = before.get(entry.node)
        if (
            was is None
            or was == path
            or was in new.disk
            or path in old.disk
            or (entry.nlink > 1 and entry.kind != "d")
        ):
            continue
        if old.served[was].id != new.served[path].id:
            wrong.append(f"{was!r} moved to {path!r} and lost its id")
    return wrong


def ancestors(paths: Iterable[bytes]) -> set[bytes]:
    """Every directory above any of the paths, the root (b"") included."""
    above = set()
    for path in paths:
        while path:
            path = path.rpartition(b"/")[0]
            above.add(path)
    return above


def etag_errors(old: Snapshot, new: Snapshot, changed: Iterable[bytes]) -> list[str]:
    """Directories whose etag had to change and did not, or the other way round.

    `changed` holds the paths whose listing entry changed: both names of a move, the file of a write, the
    directory that was made. Directories that a changed path names are free to change or not.
    """
    changed = set(changed)
    must = ancestors(changed)
    wrong = []
    for path in old.disk.keys() & new.disk.keys():
        if old.disk[path].kind != "d" or new.disk[path].kind != "d":
            continue
        same = old.served[path].etag == new.served[path].etag
        if path in must and same:
            wrong.append(f"the etag of {path!r} did not change")
        elif path not in must and path not in changed and not same:
            wrong.append(f"the etag of {path!r} changed for nothing")
    return wrong


def changed_files(old: Snapshot, new: Snapshot) -> list[str]:
    """Files whose etag moved although neither size nor mtime nor inode did, in words (renames excepted by
    their path)."""
    wrong = []
    for path in old.disk.keys() & new.disk.keys():
        before, after = old.disk[path], new.disk[path]
        if (
            before.kind == after.kind == "f"
            and before == after
            and old.served[path].etag != new.served[path].etag
        ):
            wrong.append(f"the etag of {path!r} changed, the file did not")
    return wrong


def settled(
    root: bytes, dav: Dav, *, wait: Callable[..., None], timeout: float = 20.0, what: str = "listing and disk"
) -> Snapshot:
    """The first snapshot at which disk and server agree."""
    taken: list[Snapshot] = []
    wait(lambda: taken.append(snapshot(root, dav)), timeout=timeout, what=what)
    return taken[-1]
