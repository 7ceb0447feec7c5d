"""GPFS (IBM Storage Scale) clustered watch folder: what its messages say. Pure; see `watcher.streams.heard`.

All values are strings; numbers are accepted too. The event's name counts, with `IN_ISDIR` beside it in the same string
for directories; `mask`, with inotify's numbers, counts where no name is given. Both spellings of the moves are known in
the field.
"""

from __future__ import annotations

import re
from typing import Any

from watcher.streams.heard import BELOW, ENTRY, SOFT, Change, Malformed, Unfamiliar, number, text

_SILENT = 0
_EVENTS: dict[str, int] = {
    "IN_ACCESS": _SILENT,
    "IN_OPEN": _SILENT,
    "IN_CLOSE_NOWRITE": _SILENT,
    "IN_IGNORED": _SILENT,
    "IN_ISDIR": _SILENT,
    "IN_ATTRIB": ENTRY,
    "IN_CLOSE_WRITE": ENTRY,
    "IN_CREATE": ENTRY,
    "IN_DELETE": ENTRY,
    "IN_MODIFY": ENTRY | SOFT,
    "IN_MOVED_FROM": ENTRY,
    "IN_MOVE_FROM": ENTRY,
    "IN_MOVED_TO": ENTRY,
    "IN_MOVE_TO": ENTRY,
    "IN_DELETE_SELF": ENTRY | BELOW,
    "IN_MOVE_SELF": ENTRY | BELOW,
    "IN_UNMOUNT": ENTRY | BELOW,
    "IN_Q_OVERFLOW": ENTRY | BELOW,
}
_DEEP_FOR_DIRECTORIES = frozenset({"IN_CREATE", "IN_MOVED_TO", "IN_MOVE_TO"})
_BITS = {
    0x1: "IN_ACCESS", 0x2: "IN_MODIFY", 0x4: "IN_ATTRIB", 0x8: "IN_CLOSE_WRITE", 0x10: "IN_CLOSE_NOWRITE",
    0x20: "IN_OPEN", 0x40: "IN_MOVED_FROM", 0x80: "IN_MOVED_TO", 0x100: "IN_CREATE", 0x200: "IN_DELETE",
    0x400: "IN_DELETE_SELF", 0x800: "IN_MOVE_SELF", 0x2000: "IN_UNMOUNT", 0x4000: "IN_Q_OVERFLOW",
    0x8000: "IN_IGNORED", 0x40000000: "IN_ISDIR",
}  # fmt: skip
_known: dict[str, tuple[int, str]] = {}
"""By the event's text what it means, and the names in it that are unknown; there are few texts."""


def decode(message: dict[str, Any]) -> list[Change]:
    """The changes that a message means. Malformed, Unfamiliar."""
    path = text(message, "path")
    event = message.get("event")
    if not event or not isinstance(event, str):
        event = _of_mask(message)
    found = _known.get(event)
    if found is None:
        found = _meaning(event)
        if len(_known) < 1000:
            _known[event] = found
    what, unknown = found
    changes = [(path, what)] if what & (ENTRY | BELOW) else []
    if unknown:
        raise Unfamiliar(f"event {unknown}", changes or [(path, ENTRY)])
    return changes


def _meaning(event: str) -> tuple[int, str]:
    names = [name for name in re.split(r"[^A-Z0-9_a-z]+", event) if name]
    unknown = [name for name in names if name not in _EVENTS]
    what = 0
    for name in names:
        what |= _EVENTS.get(name, ENTRY)
    if "IN_ISDIR" in names and _DEEP_FOR_DIRECTORIES.intersection(names):
        what |= BELOW
    if what & SOFT and any(_EVENTS.get(name, 0) & ENTRY and name != "IN_MODIFY" for name in names):
        what &= ~SOFT
    return what, "|".join(unknown)


def _of_mask(message: dict[str, Any]) -> str:
    if "mask" not in message:
        raise Malformed("neither 'event' nor 'mask'")
    value = message["mask"]
    if isinstance(value, str) and not value.lower().startswith("0x"):
        value = "0x" + value
    mask = number(value)
    names = [name for bit, name in _BITS.items() if mask & bit]
    left = mask & ~sum(_BITS)
    return "|".join([*names, *([f"BITS_{left:#x}"] if left or mask < 0 else [])]) or "BITS_0"
