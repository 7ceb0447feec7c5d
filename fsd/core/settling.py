"""The last step of each change: the index learns of it before the caller answers, or the change is taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsd.core.names import split
from fsd.core.reconcile import reconcile, reconcile_moved

if TYPE_CHECKING:
    from fsd.core.places import Place
    from fsd.core.space import Space

_log = logging.getLogger(__name__)


def make_known(space: Space, place: Place, undo: Callable[[], None] | None = None) -> None:
    """Reconcile a name, and all below it that is new: etags and sizes up to the root are right when this returns.

    If that can't be committed (a full state disk) `undo` takes the change back, and the error is raised.
    """
    try:
        settle(space, place.path)
    except OSError as error:
        if undo is not None:
            take_back(space, [place.path], undo, error)
        raise


def make_move_known(space: Space, src: bytes, dst: bytes, undo: Callable[[], None] | None = None) -> None:
    """The same after a rename within the space."""
    try:
        reconcile_moved(space, src, dst)
    except OSError as error:
        if undo is not None:
            take_back(space, [src, dst], undo, error)
        raise


def settle(space: Space, path: bytes) -> None:
    """Reconcile the entry at `path`, and the directories below it that were not known."""
    parent, name = split(path)
    waiting = reconcile(space, parent, [name], explicit=True).new_dirs
    while waiting:
        waiting += reconcile(space, waiting.pop(), None, explicit=True).new_dirs


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
        undo()
    except OSError as second:
        _log.error(
            "space %s: a change could neither be recorded (%s) nor undone: %s", space.record.id, error, second
        )
    settle_quietly(space, *paths)
