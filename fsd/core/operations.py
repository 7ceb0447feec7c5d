"""The changes of a tree that fsd makes itself, besides writing content. All go the same way: the place is opened
beneath the root, one step makes the change visible whole, it is made durable, and the index learns of it before the
caller answers. On an error nothing has changed; a kill at any moment leaves the old state or the new one, or an
intent that `replay` settles.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from contextlib import closing
from typing import TYPE_CHECKING

from fsd.core import copying, hashing, intents, labels, moving, properties, quota, trash
from fsd.core.building import build
from fsd.core.content import Upload, set_owner
from fsd.core.errors import Forbidden, PreconditionFailed
from fsd.core.groupsync import sync_directory
from fsd.core.places import (
    Place,
    changing,
    destination,
    internal,
    open_source,
    refuse_mounts_below,
    rename_new,
    require_writable,
    source,
)
from fsd.core.publish import put_staged, take_out
from fsd.core.removal import remove_staged
from fsd.core.replay import replay
from fsd.core.settling import make_known, make_move_known, settle_quietly
from fsd.core.tree import Entry, lookup

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.core.sums import Sum

__all__ = ["copy", "delete", "make_directory", "move", "replay", "set_mtime"]


def make_directory(space: Space, path: bytes) -> Entry:
    """Make one directory with the space's owner and mode. FileExistsError (405), ParentMissing (409)."""
    require_writable(space)
    with destination(space, path) as place:
        record = space.record
        place.require()
        os.mkdir(place.name, 0o777 if record.dir_mode is None else record.dir_mode, dir_fd=place.fd)

        def undo() -> None:
            os.rmdir(place.name, dir_fd=place.fd)

        try:
            _dress_directory(place)
            sync_directory(place.fd)
        except OSError:
            if place.may_write():
                undo()
            raise
        make_known(space, place, undo, new=True)
    return lookup(space, path)


def _dress_directory(place: Place) -> None:
    record = place.space.record
    fd = os.open(place.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
    try:
        place.require()
        set_owner(fd, record.uid, record.gid, place.fd)
        if record.dir_mode is not None and copying.get_attribute(fd, "system.posix_acl_access") is None:
            # The setgid bit was inherited from the directory above and stays.
            place.require()
            os.fchmod(fd, record.dir_mode | (os.fstat(fd).st_mode & stat.S_ISGID))
        place.require()
        labels.write_label(place.space, fd, *labels.new_label(place.space, fd))
    finally:
        os.close(fd)


def delete(space: Space, path: bytes, *, if_match: Collection[str] | None = None) -> None:
    """Move into the space's trash: one rename, whatever is below. A mount point, or one below, is Forbidden."""
    require_writable(space)
    with intents.of(space).alone(path), source(space, path) as place:
        entry = lookup(space, path)
        _check_etag(entry, if_match)
        if entry.kind == "d":
            refuse_mounts_below(place)
        with intents.of(space).begin() as ticket:
            trash.take_in(space, ticket, place, entry.id, entry.size)
            make_known(space, place, lambda: trash.put_back(space, ticket, place))
    moving.drop_locks(space, path)


def move(
    src_space: Space,
    src: bytes,
    dst_space: Space,
    dst: bytes,
    *,
    overwrite: bool,
    if_match: Collection[str] | None = None,
) -> bool:
    """Move or rename; what stood at `dst` goes into the trash. True if nothing did.

    `if_match`: etags that `src` may have. FileNotFoundError (src), ParentMissing (dst), PreconditionFailed (taken and
    not `overwrite`, or another etag), Forbidden (into itself, a mount point), AcrossMounts. Ids stay within a space.
    """
    require_writable(src_space)
    require_writable(dst_space)
    if src_space.record.id != dst_space.record.id:
        with intents.alone_in_both(src_space, src, dst_space, dst):
            entry = _source_entry(src_space, src, if_match)
            return moving.across(src_space, src, dst_space, dst, overwrite=overwrite, entry=entry)
    _refuse_nesting(src, dst, "moved")
    with intents.of(src_space).alone(src, dst), source(src_space, src) as here:
        entry = _source_entry(src_space, src, if_match)
        with destination(src_space, dst, known_name=here.name) as there:
            if entry.kind == "d":
                refuse_mounts_below(here)
            created = _rename(here, there, overwrite)
    moving.drop_locks(src_space, src, *(() if created else (dst,)))
    return created


def _rename(here: Place, there: Place, overwrite: bool) -> bool:
    space = here.space
    try:
        with changing(here):
            rename_new(here.fd, here.name, there.fd, there.name)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Forbidden(f"'{here.text}' can't be moved into itself.") from error
        raise
    else:

        def undo() -> None:
            rename_new(there.fd, there.name, here.fd, here.name)

        try:
            sync_directory(there.fd)
            sync_directory(here.fd)
        except OSError:
            if there.may_write():
                undo()
            raise
        make_move_known(space, here, there, undo)
        return True
    if not overwrite:
        raise PreconditionFailed(f"'{there.text}' exists already.")
    _replace(here, there)
    return False


def _replace(here: Place, there: Place) -> None:
    old = lookup(here.space, there.path)
    if old.kind == "d":
        refuse_mounts_below(there)
    if here.binding() == there.binding():
        # Two names of one file: rename(2) would do nothing at all.
        here.require()
        os.unlink(here.name, dir_fd=here.fd)
        sync_directory(here.fd)
        make_move_known(here.space, here, there)
        return
    moving.over(here, there, old)


def copy(
    src_space: Space,
    src: bytes,
    dst_space: Space,
    dst: bytes,
    *,
    overwrite: bool,
    depth_infinity: bool = True,
    if_match: Collection[str] | None = None,
) -> bool:
    """Copy content, dead properties and times; the copy has an id of its own. True if nothing stood at `dst`.
    `if_match`: etags that `src` may have; PreconditionFailed if what would be copied has another one.

    A file over a file is a replacement like a PUT (the old id stays with the path). Everything else is built aside
    and appears whole, and what stood there goes into the trash. `depth_infinity` False: a directory without members.
    """
    require_writable(dst_space)
    entry = lookup(src_space, src)
    _check_etag(entry, if_match)
    if src_space.record.id == dst_space.record.id:
        _refuse_nesting(src, dst, "copied")
    with destination(dst_space, dst, known_name=entry.name) as there:
        taken = there.seen()
        if taken is not None and not overwrite:
            raise PreconditionFailed(f"'{there.text}' exists already.")
        if entry.kind == "f" and (taken is None or stat.S_ISREG(taken.mode)):
            return _copy_file(
                src_space, entry, dst_space, dst, must_not_exist=not overwrite, unchanged=if_match is not None
            )
        if taken is not None and stat.S_ISDIR(taken.mode):
            refuse_mounts_below(there)
        quota.check(dst_space, entry.size if depth_infinity else 0)
        created = _copy_aside(_open_any(src_space, src), there, overwrite, depth_infinity)
    if not created:
        moving.drop_locks(dst_space, dst)
    return created


def _copy_file(
    src_space: Space, entry: Entry, dst_space: Space, dst: bytes, *, must_not_exist: bool, unchanged: bool
) -> bool:
    with source(src_space, entry.path) as here:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(here.name, flags, dir_fd=here.fd)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Forbidden(f"'{here.text}' is being changed by somebody else.")
        if unchanged and not _is_of(entry, found):
            # What is open may have been labelled meanwhile only.
            now = lookup(src_space, entry.path)
            if now.etag != entry.etag or not _is_of(now, os.fstat(fd)):
                raise PreconditionFailed(f"'{here.text}' has changed.")
        overflow = properties.overflow_of(src_space, fd)
        with Upload(
            dst_space, dst, length=found.st_size, mtime_ns=found.st_mtime_ns, must_not_exist=must_not_exist
        ) as upload:
            upload.fill_from(fd, _sum_of(src_space, entry, found))
            new, created = upload.commit()
        if overflow:
            properties.store_overflow(dst_space, new.id, overflow)
        return created
    finally:
        os.close(fd)


def _sum_of(space: Space, entry: Entry, found: os.stat_result) -> Sum | None:
    """The checksums of an open file, if it is what the entry describes and nobody is writing it."""
    return hashing.known(space, entry) if _is_of(entry, found) and not entry.writing else None


def _is_of(entry: Entry, found: os.stat_result) -> bool:
    return (found.st_ino, found.st_ctime_ns, found.st_size) == (entry.ino, entry.ctime_ns, entry.size)


def _copy_aside(here: Place, there: Place, overwrite: bool, deep: bool) -> bool:
    space = there.space
    with closing(here), intents.of(space).begin() as ticket, internal(space, "staging") as staging:
        new = b""
        try:
            new = build(here, space, staging, ticket.name, into=there.fd, deep=deep)
            with intents.of(space).alone(there.path):
                created = put_staged(ticket, there, staging, overwrite=overwrite)
                make_known(space, there, new=True)
        except BaseException:
            there.require()  # else what is staged is for whoever has the lease next
            if new:
                take_out(ticket, there, staging, new)
            remove_staged(space, staging, ticket.name)
            ticket.finish()
            settle_quietly(space, there.path)
            raise
        ticket.finish()
    if deep and here.space is space:
        hashing.inherit_below(space, here.path, there.path)
    return created


def _open_any(space: Space, path: bytes) -> Place:
    """The place of a source; of the root, its own directory under the name '.'."""
    if not path:
        return Place(space, b"", os.dup(space.root_fd()), b".")
    return open_source(space, path)


def set_mtime(space: Space, path: bytes, mtime_ns: int) -> None:
    """Set the modification time, durably; the etag of a file changes with it. Links themselves, never their target."""
    require_writable(space)
    with source(space, path) as place:
        ns = (place_atime(place), mtime_ns)
        place.require()
        os.utime(place.name, ns=ns, dir_fd=place.fd, follow_symlinks=False)
        _sync_node(place)
        make_known(space, place)


def place_atime(place: Place) -> int:
    """The access time, which stays as it is."""
    return os.stat(place.name, dir_fd=place.fd, follow_symlinks=False).st_atime_ns


def _sync_node(place: Place) -> None:
    found = place.seen()
    if found is None or not (stat.S_ISREG(found.mode) or stat.S_ISDIR(found.mode)):
        sync_directory(place.fd)
        return
    try:
        fd = os.open(place.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
    except PermissionError:
        return  # it can't be opened, so it can't be synced; the time is set all the same
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _source_entry(space: Space, path: bytes, if_match: Collection[str] | None) -> Entry:
    if not path:
        raise Forbidden("The root of a space can't be moved.")
    entry = lookup(space, path)
    _check_etag(entry, if_match)
    return entry


def _check_etag(entry: Entry, if_match: Collection[str] | None) -> None:
    if if_match is not None and "*" not in if_match and entry.etag not in if_match:
        raise PreconditionFailed("This is not the version that was meant: it has changed.")


def _refuse_nesting(src: bytes, dst: bytes, verb: str) -> None:
    if src == dst:
        raise Forbidden(f"Something can't be {verb} onto itself.")
    if not src or dst.startswith(src + b"/"):
        raise Forbidden(f"A directory can't be {verb} into itself.")
    if src.startswith(dst + b"/"):
        raise Forbidden(f"Something can't be {verb} over a directory that holds it.")
