"""GPFS (IBM Storage Scale) file audit logging: what its records say. Pure; see `watcher.streams.heard`.

What is made or renamed counts for what lies below it as well, unless `permissions`, the octal mode, says that it is no
directory.
"""

from __future__ import annotations

import stat
from typing import Any

from watcher.streams.heard import BELOW, ENTRY, Change, Unfamiliar, text

_EVENTS: dict[str, int] = {
    "OPEN": 0,
    "ACCESS_DENIED": 0,
    "CREATE": ENTRY | BELOW,
    "CLOSE": ENTRY,
    "CLOSEWRITE": ENTRY,
    "RENAME": ENTRY | BELOW,
    "UNLINK": ENTRY,
    "DESTROY": ENTRY,
    "RMDIR": ENTRY,
    "XATTRCHANGE": ENTRY,
    "ACLCHANGE": ENTRY,
    "GPFSATTRCHANGE": ENTRY,
}


def decode(message: dict[str, Any]) -> list[Change]:
    """The changes that a record means. Malformed, Unfamiliar."""
    path = text(message, "path")
    event = text(message, "event").upper()
    what = _EVENTS.get(event)
    if what and what & BELOW and _is_no_directory(message.get("permissions")):
        what = ENTRY
    changes = [(path, ENTRY if what is None else what)] if what != 0 else []
    old = message.get("oldPath")
    if event == "RENAME" and isinstance(old, str) and old:
        changes.append((old, ENTRY))
    if what is None:
        raise Unfamiliar(f"event {event}", changes)
    return changes


def _is_no_directory(permissions: object) -> bool:
    try:
        kind = stat.S_IFMT(int(str(permissions), 8))
    except ValueError:
        return False
    return kind not in (0, stat.S_IFDIR)
