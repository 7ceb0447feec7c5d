"""Putting a finished thing at a user's path, whole or not at all, without overwriting what nobody has seen.

Something new gets its name by a call that fails when the name is taken. A replacement is staged in `.fsd/staging`
and swapped with what stands there (renameat2(2), RENAME_EXCHANGE); then what came out is looked at, and if it is not
what was to be replaced, the swap is undone. Between the first step and the last an intent stands in the state
database; the functions that finish or undo one after a crash are here too, beside the ones they belong to.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import intents, lease, trash, versions
from fsd.core.absent import is_absent
from fsd.core.errors import FsdError, PreconditionFailed
from fsd.core.groupsync import sync_directory
from fsd.core.places import Place, binding_at, changing, internal, open_destination, rename_new
from fsd.core.removal import remove_staged
from fsd.core.syscalls import link_fd, rename_exchange, statx
from fsd.core.tree import lookup

if TYPE_CHECKING:
    from fsd.core.intents import Body, Intent, Ticket
    from fsd.core.space import Space
    from fsd.core.syscalls import Statx
    from fsd.core.tree import Entry

_log = logging.getLogger(__name__)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_OLD = b".old"
_TRIES = 5


class Changed(Exception):
    """What stands at the place is not what the step expected: look again and start over."""


class Seen(NamedTuple):
    """The file to be replaced, as it was when the preconditions were checked."""

    entry: Entry
    binding: bytes
    found: Statx


def swap_in(ticket: Ticket, fd: int, place: Place, old: Seen, staging: int) -> bytes:
    """Replace the file at `place` with the nameless file `fd`; the old one is staged then, under the name returned.

    Raises Changed, with the tree as it was, if another file or other content came out. Durable when it returns.
    """
    new = binding_at(fd, b"")
    assert new is not None
    if binding_at(staging, ticket.name) is None:
        with changing(place):
            link_fd(fd, staging, ticket.name)
    body: Body = {
        "path": place.path.hex(), "new": new.hex(), "old": old.binding.hex(), "id": old.entry.id,
        "size": old.found.size, "mtime_ns": old.found.mtime_ns,
    }  # fmt: skip
    ticket.record("put", body)
    if place.seen() != old.found:
        raise Changed
    try:
        with changing(place):
            rename_exchange(staging, ticket.name, place.fd, place.name)
    except FileNotFoundError as error:
        raise Changed from error
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        displaced = _swap_by_link(ticket, place, staging, body)
    else:
        displaced = ticket.name
        if not _is_same(staging, displaced, body):
            _swap_back(place, displaced, staging, new)
            raise Changed
    sync_directory(place.fd)
    return displaced


def swap_out(ticket: Ticket, place: Place, old: Seen, staging: int) -> None:
    """Undo `swap_in`, wherever it got to."""
    new = place.binding()
    for displaced in (ticket.name, ticket.name + _OLD):
        if new is not None and _is_same(staging, displaced, {"old": old.binding.hex()}):
            _swap_back(place, displaced, staging, new)
            sync_directory(place.fd)


def retire(space: Space, body_id: object, staging: int, name: bytes, etag: str | None = None) -> None:
    """A replaced file has done its duty; it becomes a version of its successor, in which its id lives on, and so do the
    properties that are kept by id. An intent of an earlier release knows no id: the file is dropped. `etag`: what its
    checksums are known by."""
    lease.require(space)
    if isinstance(body_id, str):
        versions.keep(space, body_id, staging, name, etag)
    else:
        os.unlink(name, dir_fd=staging)


def _swap_by_link(ticket: Ticket, place: Place, staging: int, body: Body) -> bytes:
    """No exchange here: keep the old by a second name, look at it, then rename over it. The name of the old.

    Who replaces the file between the two calls loses their version; writes into the same file are kept. The ticket's
    own name is not used for the old: some clients of network filesystems forget for a moment a name that came back.
    """
    old = ticket.name + _OLD
    try:
        os.link(place.name, old, src_dir_fd=place.fd, dst_dir_fd=staging, follow_symlinks=False)
    except (FileNotFoundError, PermissionError) as error:
        found = place.seen()
        if found is None or stat.S_ISDIR(found.mode):
            raise Changed from error
        raise
    try:
        if not _is_same(staging, old, body):
            raise Changed
        place.require()
        os.rename(ticket.name, place.name, src_dir_fd=staging, dst_dir_fd=place.fd)
    except BaseException as error:
        os.unlink(old, dir_fd=staging)
        if isinstance(error, IsADirectoryError):
            raise Changed from error
        raise
    return old


def _is_same(staging: int, name: bytes, body: Body) -> bool:
    """Whether the staged file is the one, and has the content, that was to be replaced."""
    if binding_at(staging, name) != bytes.fromhex(str(body["old"])):
        return False
    if "size" not in body:
        return True
    found = statx(staging, name)
    return (found.size, found.mtime_ns) == (body["size"], body["mtime_ns"])


def _swap_back(place: Place, name: bytes, staging: int, new: bytes) -> None:
    try:
        rename_exchange(staging, name, place.fd, place.name)
    except FileNotFoundError:
        rename_new(staging, name, place.fd, place.name)
        return
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        os.rename(name, place.name, src_dir_fd=staging, dst_dir_fd=place.fd)
        return
    if binding_at(staging, name) != new:
        # A third writer put theirs there in the meantime; it was swapped out with ours and must not get lost.
        _salvage(place.space, staging, name, place.path)


def _salvage(space: Space, staging: int, name: bytes, path: bytes) -> None:
    """Put a staged thing that is somebody's into the trash."""
    _log.error("space %s: two writers met at one name; one file is in the trash", space.record.id)
    with intents.of(space).begin() as ticket, internal(space, "trash/files") as files:
        trash.write_info(space, ticket.name, path, None, 0)
        rename_new(staging, name, files, ticket.name)
        sync_directory(files)


def finish_put(space: Space, intent: Intent) -> list[bytes]:
    """After a crash in a replacement: undo it if it had not happened, finish it if it had. The paths to look at."""
    body, name = intent.body, intents.staged_name(intent.number)
    path = bytes.fromhex(str(body["path"]))
    with internal(space, "staging") as staging:
        here = binding_at(staging, name)
        if here == bytes.fromhex(str(body["new"])):
            with suppress(FileNotFoundError):
                os.unlink(name + _OLD, dir_fd=staging)  # a second name of what stands in the tree still
            os.unlink(name, dir_fd=staging)
            return [path]
        if here is None:
            if binding_at(staging, name + _OLD) is not None or not is_absent(space, staging, name + _OLD, 2):
                retire(space, body.get("id"), staging, name + _OLD)
            return [path]
        if _is_same(staging, name, body):
            retire(space, body.get("id"), staging, name)
            return [path]
        try:
            place = open_destination(space, path, known_name=path.rpartition(b"/")[2])
        except FsdError:
            _salvage(space, staging, name, path)
            return [path]
        try:
            new = bytes.fromhex(str(body["new"]))
            if place.binding() in (new, None):
                _swap_back(place, name, staging, new)
                if binding_at(staging, name) == new:
                    os.unlink(name, dir_fd=staging)
                sync_directory(place.fd)
            else:
                _salvage(space, staging, name, path)
        finally:
            place.close()
    return [path]


def put_staged(ticket: Ticket, place: Place, staging: int, *, overwrite: bool, only: bool = False) -> bool:
    """Give the ticket's staged thing its place; what stood there goes into the trash. True if nothing did.

    `only`: the staged thing is the only one there is (moved here, not built), so after a crash it is put in place
    and never dropped. Raises PreconditionFailed if the place is taken and `overwrite` is False. Durable; on an error
    `take_out` brings back what was.
    """
    space = place.space
    new = binding_at(staging, ticket.name)
    assert new is not None
    for _ in range(_TRIES):
        try:
            with changing(place):
                rename_new(staging, ticket.name, place.fd, place.name)
            sync_directory(place.fd)
            return True
        except FileExistsError:
            pass
        if not overwrite:
            raise PreconditionFailed(f"'{place.text}' exists already.")
        try:
            old = lookup(space, place.path)
        except FileNotFoundError:
            continue
        trash.write_info(space, ticket.name, place.path, old.id, old.size)
        ticket.record("place", {"path": place.path.hex(), "new": new.hex(), "only": only, "overwrite": True})
        displaced = _exchange_staged(ticket, place, staging)
        if displaced is not None:
            trash.take_in_staged(space, ticket, displaced)
            sync_directory(place.fd)
            return False
    # Taken by the descriptor, free by the path: the directory is not where it was, or the name changes all the time.
    raise PreconditionFailed(f"'{place.text}' is being changed by somebody else.")


def take_out(ticket: Ticket, place: Place, staging: int, new: bytes) -> None:
    """Undo `put_staged`, wherever it got to: the thing `new` is staged again, and what it replaced is back.

    If somebody else has changed the place since, theirs is left there.
    """
    with internal(place.space, "trash/files") as files:
        if binding_at(staging, ticket.name) != new:
            if place.binding() != new:
                return
            aside = ticket.name + _OLD
            if binding_at(staging, ticket.name) is not None:
                swap_names(staging, ticket.name, place)
            elif binding_at(staging, aside) is not None:
                rename_new(place.fd, place.name, staging, ticket.name)
                rename_new(staging, aside, place.fd, place.name)
            elif binding_at(files, ticket.name) is not None:
                swap_names(files, ticket.name, place)
                rename_new(files, ticket.name, staging, ticket.name)
            else:
                rename_new(place.fd, place.name, staging, ticket.name)
        trash.drop_info(place.space, ticket.name)


def _exchange_staged(ticket: Ticket, place: Place, staging: int) -> bytes | None:
    """Swap; the staged name of what stood there, None if there is nothing to swap with any more."""
    try:
        with changing(place):
            rename_exchange(staging, ticket.name, place.fd, place.name)
        return ticket.name
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
    # No exchange here: for a moment the name is free. After a crash in it, the intent puts the new one there.
    aside = ticket.name + _OLD
    try:
        rename_new(place.fd, place.name, staging, aside)
    except FileNotFoundError:
        return None
    rename_new(staging, ticket.name, place.fd, place.name)
    return aside


def swap_names(fd: int, name: bytes, place: Place) -> None:
    """Swap the internal entry `name` of the directory `fd` with what stands at `place`; for taking something back.

    Where the filesystem has no exchange there are moments in which one of the two has the name `name` + `.old`.
    """
    try:
        rename_exchange(fd, name, place.fd, place.name)
        return
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
    rename_new(fd, name, fd, name + _OLD)
    rename_new(place.fd, place.name, fd, name)
    rename_new(fd, name + _OLD, place.fd, place.name)


def finish_place(space: Space, intent: Intent) -> list[bytes]:
    """After a crash in `put_staged`, or before it when what is staged is the only one there is."""
    body, name = intent.body, intents.staged_name(intent.number)
    path, new = bytes.fromhex(str(body["path"])), bytes.fromhex(str(body["new"]))
    ticket = intents.of(space).ticket(intent.number)
    with internal(space, "staging") as staging:
        aside = binding_at(staging, name + _OLD) is not None
        here = binding_at(staging, name)
        if here == new:
            if body["only"] or aside:
                _put_or_salvage(ticket, space, path, staging, bool(body["overwrite"]))
            else:
                remove_staged(space, staging, name)
        elif here is not None:
            trash.take_in_staged(space, ticket)
        if aside:
            rename_new(staging, name + _OLD, staging, name)
            trash.take_in_staged(space, ticket)
    return [path]


def _put_or_salvage(ticket: Ticket, space: Space, path: bytes, staging: int, overwrite: bool) -> None:
    try:
        place = open_destination(space, path, known_name=path.rpartition(b"/")[2])
    except FsdError:
        _salvage(space, staging, ticket.name, path)
        return
    try:
        put_staged(ticket, place, staging, overwrite=overwrite, only=True)
    except FsdError:
        _salvage(space, staging, ticket.name, path)
    finally:
        place.close()


def is_file(found: Statx) -> bool:
    """Whether this is a regular file."""
    return stat.S_ISREG(found.mode)
