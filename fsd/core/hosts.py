"""What this host's mounts make of directories: which of them are, or lie in, one another, also through bind mounts.

A directory is located by its filesystem and its path *within* that filesystem (proc_pid_mountinfo(5), fields 3 and
4), so two mounts of one subtree are seen as what they are. Device and inode of every ancestor are compared as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Relation = Literal["same", "inside", "contains"]

PSEUDO = frozenset(
    "proc sysfs devtmpfs devpts cgroup cgroup2 securityfs debugfs tracefs configfs pstore bpf mqueue hugetlbfs "
    "efivarfs selinuxfs fusectl binfmt_misc rpc_pipefs nsfs".split()
)
NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs ncpfs afs ceph gpfs lustre glusterfs beegfs fuse.sshfs fuse.glusterfs fuse.ceph-fuse "
    "fuse.rclone fuse.s3fs davfs fuse.davfs2 orangefs ocfs2 gfs2".split()
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo: `root` is the mounted directory within filesystem `dev`, `point` where it shows, `source`
    what was mounted (a device, or whatever the filesystem calls it)."""

    id: int
    dev: str
    root: bytes
    point: bytes
    fstype: str
    source: bytes = b""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a directory is: real path, (device, inode) of it and all its ancestors, and its filesystem regions.

    The first region is the directory itself; the others are what is mounted below it.
    """

    path: bytes
    chain: tuple[tuple[int, int], ...]
    regions: tuple[tuple[str, bytes], ...]
    fstype: str


def mounts() -> list[Mount]:
    """The mounts of this process, in the order of mountinfo. Empty where /proc is missing."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    return [_parse(line) for line in lines]


def _parse(line: bytes) -> Mount:
    fields = line.split(b" ")
    fstype, source = fields[fields.index(b"-") + 1 :][:2]
    root, point = _unescape(fields[3]), _unescape(fields[4])
    return Mount(int(fields[0]), fields[2].decode(), root, point, fstype.decode(), _unescape(source))


def mount_of(path: bytes, table: Iterable[Mount] | None = None) -> Mount | None:
    """The mount that an absolute path without links lies on. Told from the table alone: no storage is asked, so one
    that hangs is named all the same. None where /proc is missing."""
    found = None
    for mount in mounts() if table is None else table:
        if within(path, mount.point) and (found is None or len(mount.point) >= len(found.point)):
            found = mount  # of several at one place, the last one covers the others
    return found


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


def place(path: bytes) -> Place:
    """Locate a directory. Raises FileNotFoundError, NotADirectoryError, PermissionError as open(2) does."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{fd}".encode())
        mount_id = _mount_id(fd)
    finally:
        os.close(fd)
    table = mounts()
    here = next((mount for mount in table if mount.id == mount_id), None)
    if here is None:
        found = os.stat(real)
        own, fstype = (f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}", real), ""
    else:
        own, fstype = (here.dev, _join(here.root, os.path.relpath(real, here.point))), here.fstype
    below = tuple(
        (mount.dev, mount.root) for mount in table if mount.point != real and within(mount.point, real)
    )
    return Place(real, _chain(real), (own, *below), fstype)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        found = re.search(r"^mnt_id:\s*(\d+)", file.read(), re.MULTILINE)
    return int(found[1]) if found else -1


def _chain(path: bytes) -> tuple[tuple[int, int], ...]:
    chain = []
    while True:
        found = os.stat(path)
        chain.append((found.st_dev, found.st_ino))
        if path == b"/":
            return tuple(chain)
        path = os.path.dirname(path)


def _join(root: bytes, relative: bytes) -> bytes:
    return os.path.normpath(root + b"/" + relative).replace(b"//", b"/")


def within(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or lies below it, by name."""
    return path == directory or directory == b"/" or path.startswith(directory.rstrip(b"/") + b"/")


def relation(one: Place, other: Place) -> Relation | None:
    """How directory `one` lies to directory `other`; None when they share nothing."""
    if one.path == other.path or one.chain[0] == other.chain[0] or one.regions[0] == other.regions[0]:
        return "same"
    if within(one.path, other.path) or other.chain[0] in one.chain or _covered(one.regions[0], other.regions):
        return "inside"
    if within(other.path, one.path) or one.chain[0] in other.chain or _covered(other.regions[0], one.regions):
        return "contains"
    return None


def _covered(region: tuple[str, bytes], by: Iterable[tuple[str, bytes]]) -> bool:
    return any(dev == region[0] and within(region[1], root) for dev, root in by)
