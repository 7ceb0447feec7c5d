"""The last step of each change: the index learns of it before the caller answers, or the change is taken back."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from fsd.core import ids, index, lease
from fsd.core.errors import ParentMissing
from fsd.core.names import join, split
from fsd.core.reconcile import Outcome, reconcile, reconcile_moved
from fsd.core.syscalls import statx

if TYPE_CHECKING:
    from fsd.core.index import NodeRow
    from fsd.core.places import Place
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
_MOVES = 4


def make_known(
    space: Space, place: Place, undo: Callable[[], None] | None = None, *, new: bool = False
) -> NodeRow | None:
    """Reconcile a name, and all below it that is new: etags and sizes up to the root are right when this returns.

    Returns the row of the name, if it is known. If the change can't be committed (a full state disk) `undo` takes it
    back, and the error is raised. So it is if something `new` went into a directory that was moved away meanwhile,
    perhaps into the trash: ParentMissing.
    """
    try:
        outcome = settle(space, place.path)
        if outcome.ident == place.ident:
            # It was at its path when it was compared; moved after that, it takes the row along.
            return outcome.rows.get(place.name)
        follow(place)
        if new and not place.is_at(place.parent):
            raise ParentMissing(f"The directory of '{place.text}' was moved or deleted meanwhile.")
        return None
    except OSError as error:
        if undo is not None:
            take_back(space, [place.path], undo, error)
        raise


def follow(place: Place) -> None:
    """If the directory was moved while a name in it was changed, make the name known where the directory is now."""
    here = ids.node_binding(place.fd, b"", statx(place.fd, b""))
    for _ in range(_MOVES):
        with place.space.index.read() as db:
            rows = index.by_binding(db, place.space.key, here)
            path = index.path_of(db, rows[0].n) if rows else None
        if path is None or (path == place.parent and place.is_at(path)):
            return  # where it was; or out of the tree, and its rows with it
        reconcile(place.space, path, [place.name], explicit=True)
        if place.is_at(path):
            return


def make_move_known(space: Space, src: Place, dst: Place, undo: Callable[[], None] | None = None) -> None:
    """The same after a rename within the space."""
    try:
        reconcile_moved(space, src.path, dst.path)
        follow(src)
        follow(dst)
        if not dst.is_at(dst.parent):
            raise ParentMissing(f"The directory of '{dst.text}' was moved or deleted meanwhile.")
    except OSError as error:
        if undo is not None:
            take_back(space, [src.path, dst.path], undo, error)
        raise


def settle(space: Space, path: bytes) -> Outcome:
    """Reconcile the entry at `path`, and the directories below it that were not known; what the entry's own gave."""
    parent, name = split(path)
    outcome = reconcile(space, parent, [name], explicit=True)
    waiting = list(outcome.new_dirs)
    while waiting:
        waiting += reconcile(space, waiting.pop(), None, explicit=True).new_dirs
    return outcome


def settle_whole(space: Space, path: bytes) -> None:
    """Reconcile all directories at and below `path`, known ones too: what came back may have changed while away."""
    waiting = [path]
    while waiting:
        here = waiting.pop()
        try:
            fd = space.open_dir(here)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                continue
            raise
        with closing(os.scandir(fd)) as entries:
            waiting += [join(here, os.fsencode(e.name)) for e in entries if e.is_dir(follow_symlinks=False)]
        os.close(fd)
        reconcile(space, here, None, explicit=True)


def settle_quietly(space: Space, *paths: bytes) -> None:
    """The same on the way out of an error: what fails is left to the watcher and the next reader."""
    for path in paths:
        try:
            settle(space, path)
        except OSError as error:
            _log.info("space %s: left to the next look: %s", space.record.id, error)


def take_back(space: Space, paths: list[bytes], undo: Callable[[], None], error: OSError) -> None:
    """Undo a change that could not be made known, because of `error`."""
    try:
        lease.require(space)
        undo()
    except FileNotFoundError:
        # Somebody has taken it away, or the directory with it: there is nothing to take back any more.
        _log.info("space %s: nothing was left of a change that could not be recorded", space.record.id)
    except OSError as second:
        _log.error(
            "space %s: a change could neither be recorded (%s) nor undone: %s", space.record.id, error, second
        )
    settle_quietly(space, *paths)
