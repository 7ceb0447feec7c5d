"""After a crash: finish or undo what was cut off, and sweep what nobody owns.

Safe at any time and in several processes at once: a change that is under way owns its number (intents.py), and each
abandoned number is taken over by one process only. A failure in one does not keep the others from being settled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsd.core import intents, lease, trash
from fsd.core.moving import finish_moved_out, finish_over
from fsd.core.places import internal
from fsd.core.properties import finish_update
from fsd.core.publish import finish_place, finish_put
from fsd.core.removal import remove_staged
from fsd.core.settling import settle

if TYPE_CHECKING:
    from fsd.core.intents import Intent
    from fsd.core.space import Space

_log = logging.getLogger(__name__)

KINDS = frozenset(("put", "place", "over", "out", "properties"))
"""The kinds of intents that this release knows."""
Peers = Callable[[str], "Space | None"]
"""Opens another space by its id; None if there is none such (any more)."""


def replay(space: Space, peers: Peers | None = None) -> None:
    """Settle every intent that nobody is at work on, then remove staged entries and trash info without one.

    Called at start-up by each process. `peers` is needed to finish moves into other spaces; without it they wait.
    Raises StorageUnavailable when the space isn't there; all other failures are logged and left to the next call.
    """
    if space.record.read_only or space.record.state != "active" or not lease.may_write(space):
        return
    space.root_fd()
    known = intents.of(space)
    since = lease.token(space)
    done = []
    for found in known.pending():
        with known.take_over(found.number) as abandoned:
            intent = known.get(found.number) if abandoned else None
            if intent is not None and _settle(space, intent, peers):
                done.append(intent.number)
    # What was looked at under an earlier lease may have been the half of what another host had begun.
    if done and lease.may_write(space, since):
        known.delete(done)
    _sweep_staging(space, since)
    if lease.may_write(space, since):
        trash.sweep_info(space)


def _settle(space: Space, intent: Intent, peers: Peers | None) -> bool:
    """Finish or undo one change; False if it has to be left."""
    try:
        paths = _finish(space, intent, peers)
        if paths is None:
            return False
        for path in paths:
            settle(space, path)
    except (OSError, ValueError, KeyError) as error:
        _log.error(
            "space %s: %s %x could not be settled: %s", space.record.id, intent.kind, intent.number, error
        )
        return False
    return True


def _finish(space: Space, intent: Intent, peers: Peers | None) -> list[bytes] | None:
    """Dispatch; the paths whose rows may be wrong now, None if it can't be decided yet."""
    match intent.kind:
        case "put":
            return finish_put(space, intent)
        case "place":
            return finish_place(space, intent)
        case "over":
            return finish_over(space, intent)
        case "out":
            return finish_moved_out(space, intent, peers)
        case "properties":
            return finish_update(space, intent)
        case _:
            _log.error(
                "space %s: an intent of the unknown kind '%s' is left alone", space.record.id, intent.kind
            )
            return None


def _sweep_staging(space: Space, since: int) -> None:
    known = intents.of(space)
    with internal(space, "staging") as staging:
        for name in sorted(os.listdir(b"/proc/self/fd/%d" % staging)):
            number = intents.number_of(name)
            if number is None:
                continue
            with known.take_over(number) as abandoned:
                if abandoned and known.get(number) is None and lease.may_write(space, since):
                    try:
                        remove_staged(space, staging, name)
                    except OSError as error:
                        _log.error(
                            "space %s: staged '%s' could not be removed: %s", space.record.id, name, error
                        )
