"""The directories that become spaces: may this one, does it already carry an identity, and how one is removed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fsd.core import hosts, ownfiles
from fsd.core.errors import FsdError, NameRefused
from fsd.core.grants import ACL_NAME, Acl, decode, read_acl
from fsd.core.installation import write_file
from fsd.core.names import INTERNAL
from fsd.core.space import SpaceRecord

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Identity:
    """What a directory's `.fsd` says it is: `acl` is None when there is no readable one, `ours` if we signed it."""

    space_id: str
    secret: bytes
    acl: Acl | None
    ours: bool


def resolve_directory(path: bytes) -> hosts.Place:
    """Locate a directory that is to become a space. One clear sentence for what is no directory, or no plain one."""
    try:
        place = hosts.place(path)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"There is no directory {os.fsdecode(path)}.") from None
    except NotADirectoryError:
        raise NotADirectoryError(errno.ENOTDIR, f"{os.fsdecode(path)} is not a directory.") from None
    if not os.access(place.path, os.R_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, f"The service may not read {os.fsdecode(place.path)}.")
    if place.fstype in hosts.PSEUDO or place.path == b"/":
        raise NameRefused(
            f"{os.fsdecode(place.path)} cannot be a space: it is not a directory of plain files."
        )
    return place


def check_apart(place: hosts.Place, spaces: Iterable[SpaceRecord], state_dir: Path, data_root: bytes) -> None:
    """NameRefused if the directory is, contains or lies in a space or the state directory, also by a bind mount."""
    shown = os.fsdecode(place.path)
    for label, other in (("state directory", os.fsencode(state_dir)), ("data root", data_root)):
        found = hosts.relation(place, hosts.place(other))
        if found == "same" or found == "contains" or (found == "inside" and label == "state directory"):
            raise NameRefused(f"{shown} {_PHRASE[found]} the {label} {os.fsdecode(other)}.")
    if place.path in (data_root + b"/users", data_root + b"/projects"):
        raise NameRefused(f"{shown} holds the spaces of this server and cannot be one itself.")
    for record in spaces:
        try:
            found = hosts.relation(place, hosts.place(record.path))
        except OSError:  # its storage is away: what is left is the name
            found = "inside" if hosts.within(place.path, record.path) else None
            found = "contains" if hosts.within(record.path, place.path) else found
        if found is not None:
            raise NameRefused(
                f"{shown} {_PHRASE[found]} the space '{record.name}' at {os.fsdecode(record.path)}."
            )


_PHRASE = {"same": "is", "inside": "lies inside", "contains": "contains"}


def make_directory(path: bytes) -> None:
    """Make a directory and what is missing above it, durably; one that is there already is fine."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        try:
            os.mkdir(each, 0o755 if each is not missing[0] else 0o750)
        except FileExistsError:
            if not os.path.isdir(each):
                raise
        parent = os.open(os.path.dirname(each), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def is_unused(path: bytes) -> bool:
    """Whether a directory holds nothing of anybody: it is empty, but for what an interrupted creation left."""
    if os.path.islink(path) or not os.path.isdir(path) or set(os.listdir(path)) - {INTERNAL}:
        return False
    for part in (b"trash/files", b"versions"):
        inner = os.path.join(path, INTERNAL, part)
        if os.path.lexists(inner) and (os.path.islink(inner) or os.listdir(inner)):
            return False
    return True


def read_identity(root: bytes, key: bytes) -> Identity | None:
    """What the directory carries in `.fsd`, None when it was never a space. FsdError when that can't be read."""
    try:
        fd = os.open(root + b"/" + INTERNAL, _DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NameRefused(
                "The directory has an entry '.fsd' that is not a directory; rename it first."
            ) from None
        raise
    try:
        return _identity(fd, key)
    finally:
        os.close(fd)


def _identity(fd: int, key: bytes) -> Identity | None:
    try:
        data = ownfiles.parse(ownfiles.read(fd, "space.json", 65536))
        space_id, secret = str(data["id"]), bytes.fromhex(data["secret"])
        storage, _, rest = space_id.partition("$")
        if len(bytes.fromhex(storage)) != 4 or len(bytes.fromhex(rest)) != 16 or len(secret) != 32:
            raise ValueError("ill-formed id")
    except FileNotFoundError:
        return None
    except (ownfiles.Unusable, ValueError, KeyError, TypeError) as error:
        raise FsdError(
            f"The directory's '.fsd/space.json' is damaged ({error}); --as-copy makes it a new space."
        ) from None
    acl, ours = None, False
    try:
        raw = read_acl(fd)
        if raw is not None:
            acl = decode(raw, None)
            decode(raw, key)
            ours = acl.space == space_id
    except FsdError:
        pass
    return Identity(space_id, secret, acl, ours)


def reidentify(root: bytes, space_id: str, secret: bytes) -> None:
    """Make a copied `.fsd`, if there is one, that of another space. Its trash stays; the original's grants do not."""
    try:
        fd = os.open(root + b"/" + INTERNAL, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        document = json.dumps({"id": space_id, "secret": secret.hex()})
        write_file(fd, "space.json", document.encode())
        try:
            os.unlink(ACL_NAME, dir_fd=fd)
        except FileNotFoundError:
            pass
    finally:
        os.close(fd)


def write_acl(internals: bytes, text: str) -> None:
    """Put acl.json into an internal directory, atomically and durably."""
    fd = os.open(internals, _DIRECTORY)
    try:
        write_file(fd, ACL_NAME, text.encode())
    finally:
        os.close(fd)


def takes_xattrs(internals: bytes) -> bool:
    """Whether the filesystem keeps user.* attributes; tried on the internal directory, so that nobody's ctime moves."""
    name = "user.fsd.probe." + secrets.token_hex(4)
    try:
        os.setxattr(internals, name, b"1")
        os.removexattr(internals, name)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSPC, errno.EPERM, errno.EACCES, errno.EROFS):
            return False
        raise
    return True


def purge_tree(root: bytes, *, keep_root: bool) -> None:
    """Delete a space's whole tree for good. Refuses when something is mounted below. Can be run again after a crash."""
    below = [
        mount.point for mount in hosts.mounts() if mount.point != root and hosts.within(mount.point, root)
    ]
    if below:
        raise FsdError(f"{os.fsdecode(below[0])} is mounted inside the space; unmount it before a purge.")
    if not shutil.rmtree.avoids_symlink_attacks:
        raise FsdError("This system cannot delete a tree safely.")
    if not keep_root:
        shutil.rmtree(root)
        return
    with os.scandir(root) as entries:
        names = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for path, is_directory in names:
        if is_directory:
            shutil.rmtree(path)
        else:
            os.unlink(path)


def remove_state(state_dir: Path, space_hex: str) -> None:
    """Remove all that the state directory has of a space."""
    for path in sorted(state_dir.glob(f"{space_hex}.*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
