"""Moving over something, and moving between spaces: the changes of a tree that take more than one rename.

Within a space a file that is replaced by a move is first linked into the trash, then renamed over: both names are
whole at every moment. Everything else goes through the staging directory of the destination (publish.py).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fsd.core import copying, ids, intents, lease, properties, quota, trash
from fsd.core.building import build
from fsd.core.errors import Forbidden, FsdError, PreconditionFailed, StorageUnavailable
from fsd.core.groupsync import sync_directory
from fsd.core.locks import LockTable
from fsd.core.places import (
    Place,
    binding_at,
    changing,
    destination,
    internal,
    refuse_mounts_below,
    rename_new,
    require_writable,
    source,
)
from fsd.core.publish import put_staged, swap_names, take_out
from fsd.core.removal import remove_staged
from fsd.core.settling import make_known, make_move_known, settle_quietly
from fsd.core.syscalls import rename_exchange
from fsd.core.tree import lookup

if TYPE_CHECKING:
    from fsd.core.intents import Intent, Ticket
    from fsd.core.replay import Peers
    from fsd.core.space import Space
    from fsd.core.tree import Entry

_log = logging.getLogger(__name__)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


def over(src: Place, dst: Place, old: Entry) -> None:
    """Rename `src` over `dst` within a space; what stood at `dst` goes into the trash. Durable and made known."""
    space = src.space
    with intents.of(space).begin() as ticket:
        moved, replaced = src.seen(), dst.seen()
        new, displaced = src.binding(), dst.binding()
        if moved is None or replaced is None or new is None or displaced is None:
            raise PreconditionFailed(f"'{dst.text}' is being changed by somebody else.")
        trash.write_info(space, ticket.name, dst.path, old.id, old.size)
        try:
            body: intents.Body = {
                "src": src.path.hex(), "dst": dst.path.hex(), "new": new.hex(), "old": displaced.hex(),
            }  # fmt: skip
            ticket.record("over", body)
            plain = not stat.S_ISDIR(moved.mode) and not stat.S_ISDIR(replaced.mode)
            if lease.host_of(space.state_dir) is not None:
                # A host that stood still before a rename(2) would drop what the next one has put there meanwhile; an
                # exchange drops nothing. Where there is none, the name would be free for a moment, for every client.
                plain = plain and not _can_exchange(space)
            if not (plain and _link_and_rename(src, dst, ticket)):
                _exchange_and_trash(src, dst, ticket, new, displaced)
            sync_directory(dst.fd)
            sync_directory(src.fd)
            make_move_known(space, src, dst)
        except BaseException:
            dst.require()  # else what was begun is for whoever has the lease next
            _undo_over(src, dst, ticket, new, displaced)
            raise
        if stat.S_ISREG(moved.mode) and stat.S_ISREG(replaced.mode):
            _dress_like_replaced(dst, ticket, new)
        ticket.finish()


def _can_exchange(space: Space) -> bool:
    """Whether the space's filesystem exchanges names: with names that are not there it says ENOENT then."""
    with internal(space, "staging") as staging:
        try:
            rename_exchange(staging, b"-", staging, b"--")
        except FileNotFoundError:
            return True
        except OSError:
            return False
    return True


def _dress_like_replaced(dst: Place, ticket: Ticket, new: bytes) -> None:
    """A file that takes another's place takes over who may use it: owner, mode, ACL, foreign attributes. Its own
    properties stay. The move has happened: what can't be kept is logged, and a crash leaves the moved file's own."""
    space = dst.space
    try:
        with internal(space, "trash/files") as files:
            like = os.stat(ticket.name, dir_fd=files, follow_symlinks=False)
            fd = os.open(dst.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dst.fd)
            try:
                if binding_at(fd, b"") == new:
                    dst.require()
                    model = b"/proc/self/fd/%d/%b" % (files, ticket.name)
                    lasting = copying.lasting_attributes(model, copying.user_attributes(fd))
                    copying.set_user_attributes(fd, lasting)
                    copying.dress_like(fd, model, like, user=False)
            finally:
                os.close(fd)
        make_known(space, dst)
    except OSError as error:
        _log.info("space %s: a moved file keeps its own permissions: %s", space.record.id, error)


def _link_and_rename(src: Place, dst: Place, ticket: Ticket) -> bool:
    """False where the filesystem has no hard links for this."""
    with internal(src.space, "trash/files") as files:
        try:
            with changing(dst):
                os.link(dst.name, ticket.name, src_dir_fd=dst.fd, dst_dir_fd=files, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        sync_directory(files)
    with changing(src):
        os.rename(src.name, dst.name, src_dir_fd=src.fd, dst_dir_fd=dst.fd)
    return True


def _exchange_and_trash(src: Place, dst: Place, ticket: Ticket, new: bytes, displaced: bytes) -> None:
    """Swap the two names; what came to `src` goes into the trash, if it is what was to be replaced."""
    try:
        with changing(dst):
            rename_exchange(src.fd, src.name, dst.fd, dst.name)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        # No exchange on this filesystem: the old one first, then the new one to the free name.
        with internal(src.space, "trash/files") as files:
            rename_new(dst.fd, dst.name, files, ticket.name)
        rename_new(src.fd, src.name, dst.fd, dst.name)
        return
    if src.binding() != displaced:
        if dst.binding() == new:
            src.require()
            rename_exchange(src.fd, src.name, dst.fd, dst.name)
        raise PreconditionFailed(f"'{dst.text}' is being changed by somebody else.")
    with internal(src.space, "trash/files") as files:
        src.require()
        rename_new(src.fd, src.name, files, ticket.name)
        sync_directory(files)


def _undo_over(src: Place, dst: Place, ticket: Ticket, new: bytes, displaced: bytes) -> None:
    """Take back what an error left; what can't be is left to `replay`, which has the intent."""
    try:
        with internal(src.space, "trash/files") as files:
            if dst.binding() == new and binding_at(files, ticket.name) == displaced and src.binding() is None:
                swap_names(files, ticket.name, dst)
                rename_new(files, ticket.name, src.fd, src.name)
        intent = intents.of(src.space).get(ticket.number)
        if intent is not None:
            finish_over(src.space, intent)
            ticket.finish()
        else:
            trash.drop_info(src.space, ticket.name)
    except OSError as error:
        _log.error("space %s: a move is left to the next replay: %s", src.space.record.id, error)
    settle_quietly(src.space, dst.path, src.path)


def finish_over(space: Space, intent: Intent) -> list[bytes]:
    """After a crash in `over`: take it back, unless what was replaced is in the trash already."""
    body, name = intent.body, intents.staged_name(intent.number)
    paths = [bytes.fromhex(str(body[key])) for key in ("dst", "src")]
    new, old = bytes.fromhex(str(body["new"])), bytes.fromhex(str(body["old"]))
    with internal(space, "trash/files") as files, internal(space, "trash/info") as info:
        if binding_at(info, name + trash.SUFFIX) is None:
            return paths  # finished, and since then restored or deleted from the trash
        at_dst, at_src = _standing(space, paths[0]), _standing(space, paths[1])
        kept = binding_at(files, name)
        if kept == old and at_dst == old:
            os.unlink(name, dir_fd=files)  # linked, not yet replaced
            kept = None
        elif kept is None and at_dst == new and at_src == old:
            with source(space, paths[1]) as here, source(space, paths[0]) as there:
                rename_exchange(here.fd, here.name, there.fd, there.name)
        elif kept == new and at_dst == old and at_src is None:
            with destination(space, paths[1], known_name=paths[1].rpartition(b"/")[2]) as place:
                rename_new(files, name, place.fd, place.name)  # cut off while it was being taken back
            kept = None
        elif kept == old and at_dst is None and at_src == new:
            with destination(space, paths[0], known_name=paths[0].rpartition(b"/")[2]) as place:
                rename_new(files, name, place.fd, place.name)
            kept = None
        if kept is None:
            trash.drop_info(space, name)
    return paths


def _standing(space: Space, path: bytes) -> bytes | None:
    try:
        with source(space, path) as place:
            return place.binding()
    except FileNotFoundError:
        return None


def out_of_trash(space: Space, key: str, path: bytes) -> bool:
    """Move an entry of the trash to `path`; what stands there goes into the trash in its turn. True if nothing did.

    One exchange where the filesystem has it; after a crash either the one or the other stands there, and the other is
    in the trash. FileNotFoundError without the entry, ParentMissing, QuotaExceeded, Forbidden: nothing was changed.
    """
    require_writable(space)
    item = trash.get(space, key)
    name = os.fsencode(key)
    with (
        intents.of(space).alone(path),
        destination(space, path, known_name=item.name) as there,
        internal(space, "trash/files") as files,
        internal(space, "staging") as staging,
        intents.of(space).begin() as ticket,
    ):
        taken = there.seen()
        if taken is not None and stat.S_ISDIR(taken.mode):
            refuse_mounts_below(there)
        quota.check_limit(space, item.size - (lookup(space, path).size if taken is not None else 0))
        binding = binding_at(files, name)
        if binding is None:
            raise FileNotFoundError(errno.ENOENT, f"There is no '{key}' in the trash")
        body: intents.Body = {"path": path.hex(), "new": binding.hex(), "only": True, "overwrite": True}
        ticket.record("place", body)
        there.require()
        rename_new(files, name, staging, ticket.name)
        try:
            created = put_staged(ticket, there, staging, overwrite=True, only=True)
            make_known(space, there, new=True)
        except BaseException:
            there.require()  # else what was begun is for whoever has the lease next
            take_out(ticket, there, staging, binding)
            rename_new(staging, ticket.name, files, name)
            settle_quietly(space, path)
            raise
        finally:
            if binding_at(staging, ticket.name) is None:
                ticket.finish()
    trash.settle_restored(space, name, path)
    if not created:
        drop_locks(space, path)
    return created


def across(
    src_space: Space, src: bytes, dst_space: Space, dst: bytes, *, overwrite: bool, entry: Entry
) -> bool:
    """Move between spaces. True if nothing stood at `dst`; what did goes into the destination's trash.

    On one filesystem the thing itself moves; else it is copied, checked, put in place, and the source goes into the
    source's trash. A crash leaves it whole in one of the two (or, copied, in both until `replay`).
    """
    require_writable(src_space)
    require_writable(dst_space)
    with (
        source(src_space, src) as here,
        destination(dst_space, dst, known_name=src.rpartition(b"/")[2]) as there,
    ):
        taken = there.seen()
        if taken is not None and not overwrite:
            raise PreconditionFailed(f"'{there.text}' exists already.")
        quota.check_limit(dst_space, entry.size)
        if entry.kind == "d":
            refuse_mounts_below(here)
        if taken is not None and stat.S_ISDIR(taken.mode):
            refuse_mounts_below(there)
        binding = here.binding()
        if binding is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), src)
        try:
            created = _carry(here, there, binding, overwrite)
        except OSError as error:
            if error.errno != errno.EXDEV or isinstance(error, FsdError):
                raise
            created = _carry_copy(here, there, binding, entry, overwrite)
    drop_locks(src_space, src)
    if not created:
        drop_locks(dst_space, dst)
    return created


def drop_locks(space: Space, *paths: bytes) -> None:
    """Locks of what was moved or deleted end with it. The change itself has happened: a failure here is logged."""
    for path in paths:
        try:
            LockTable(space).drop(path)
        except OSError as error:
            _log.error(
                "space %s: the locks below a moved path could not be dropped: %s", space.record.id, error
            )


def _carry(here: Place, there: Place, binding: bytes, overwrite: bool) -> bool:
    """One filesystem: into the destination's staging, then in place. The destination's intent rolls it forward."""
    out, into = intents.of(here.space), intents.of(there.space)
    with into.begin() as ticket, out.begin() as leaving, internal(there.space, "staging") as staging:
        body: intents.Body = {
            "path": there.path.hex(), "new": binding.hex(), "only": True, "overwrite": overwrite,
        }  # fmt: skip
        try:
            ticket.record("place", body)
            leaving.record("out", {"src": here.path.hex(), "old": binding.hex(), "copied": False})
            _carry_properties(here, there.space)
            with _busy_explained(here):
                here.require()
                there.require()
                rename_new(here.fd, here.name, staging, ticket.name)
            created = put_staged(ticket, there, staging, overwrite=overwrite, only=True)
            sync_directory(here.fd)
            make_known(there.space, there, new=True)
            make_known(here.space, here)
        except BaseException:
            there.require()
            here.require()
            if here.binding() is None:
                take_out(ticket, there, staging, binding)
                rename_new(staging, ticket.name, here.fd, here.name)
                settle_quietly(there.space, there.path)
                settle_quietly(here.space, here.path)
            raise
        finally:
            if binding_at(staging, ticket.name) is None:
                ticket.finish()
                leaving.finish()
    return created


def _carry_copy(here: Place, there: Place, binding: bytes, entry: Entry, overwrite: bool) -> bool:
    """Two filesystems: copy aside, put in place, trash the source; the source's intent says where the copy went."""
    quota.check(there.space, entry.size)
    out, into = intents.of(here.space), intents.of(there.space)
    with into.begin() as ticket, out.begin() as leaving, internal(there.space, "staging") as staging:
        copy = b""
        try:
            copy = build(here, there.space, staging, ticket.name, into=there.fd, keep=True)
            leaving.record("out", _leaving(here, there, binding, copy))
            created = put_staged(ticket, there, staging, overwrite=overwrite)
            make_known(there.space, there, new=True)
            _trash_source(here, leaving, binding, entry)
            make_known(here.space, here)
        except BaseException:
            there.require()
            here.require()
            _undo_copy(here, there, ticket, leaving, staging, copy)
            raise
        ticket.finish()
        leaving.finish()
    return created


def _undo_copy(here: Place, there: Place, ticket: Ticket, leaving: Ticket, staging: int, copy: bytes) -> None:
    """Reported as failed, so it must not be finished later either: the source first, then the copy goes."""
    with internal(here.space, "trash/files") as files:
        if binding_at(files, leaving.name) is not None:
            trash.put_back(here.space, leaving, here)
    intents.of(here.space).delete([leaving.number])
    if copy:
        take_out(ticket, there, staging, copy)
    remove_staged(there.space, staging, ticket.name)
    ticket.finish()
    settle_quietly(there.space, there.path)
    settle_quietly(here.space, here.path)


def _carry_properties(here: Place, space: Space) -> None:
    """What doesn't fit attributes is kept by id, and the moved nodes get other ids in the other space."""
    for binding, _, overflow in properties.overflows_below(here):
        properties.store_overflow(space, ids.derived_id(space.key, binding).hex(), overflow)


@contextmanager
def _busy_explained(place: Place) -> Iterator[None]:
    """EBUSY is a mount point; EXDEV is left to the caller, who has another way then."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Forbidden(f"'{place.text}' is a mount point.") from error
        raise


def _leaving(here: Place, there: Place, binding: bytes, copy: bytes) -> intents.Body:
    found = here.seen()
    return {
        "src": here.path.hex(), "old": binding.hex(), "copied": True, "copy": copy.hex(),
        "space": there.space.record.id, "dst": there.path.hex(), "ctime_ns": found.ctime_ns if found else 0,
    }  # fmt: skip


def _trash_source(here: Place, leaving: Ticket, binding: bytes, entry: Entry) -> None:
    if here.binding() != binding:
        raise PreconditionFailed(f"'{here.text}' was replaced while it was being moved; both are kept.")
    trash.take_in(here.space, leaving, here, entry.id, entry.size)


def finish_moved_out(space: Space, intent: Intent, peers: Peers | None) -> list[bytes] | None:
    """After a crash in a move to another space: the source goes if, and only if, its copy stands at its place."""
    body = intent.body
    src = bytes.fromhex(str(body["src"]))
    if not body["copied"]:
        return [src]
    if peers is None:
        return None
    copy = bytes.fromhex(str(body["copy"]))
    try:
        other = peers(str(body["space"]))
        arrived = other is not None and _standing(other, bytes.fromhex(str(body["dst"]))) == copy
    except StorageUnavailable:
        return None
    except OSError:
        arrived = False  # the other space is no more: what can't be proven to have arrived stays here
    if not arrived or _standing(space, src) != bytes.fromhex(str(body["old"])):
        return [src]
    with source(space, src) as here:
        found = here.seen()
        if found is not None and found.ctime_ns == body["ctime_ns"]:
            entry = lookup(space, src)
            trash.take_in(space, intents.of(space).ticket(intent.number), here, entry.id, entry.size)
    return [src]
