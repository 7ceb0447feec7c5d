"""CephFS change notifications: what the messages of both known producers say. Pure; see `watcher.streams.heard`.

Their numbers are not inotify's, although their documentation calls them so; which table is meant is a setting. A bit
that the table doesn't know is said, and the path is looked at in any case.

A *removed snapshot* carries DELETE on a directory that is alive: messages with a snapshot's name mean nothing to us.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, NamedTuple

from watcher.streams.heard import BELOW, ENTRY, SOFT, Change, Malformed, Unfamiliar, number

MAX_SESSIONS = 10_000


class Table(NamedTuple):
    """The bits of one producer."""

    entry: int
    """ATTRIB, CLOSE_WRITE, CREATE, DELETE, the moves"""
    create: int
    modify: int
    itself: int
    """DELETE_SELF, MOVE_SELF"""
    directory: int
    known: int


CEPH = Table(
    0x2 | 0x4 | 0x10 | 0x20 | 0x200 | 0x400 | 0x1000 | 0x2000,
    0x10 | 0x400,
    0x80,
    0x40 | 0x100,
    0x10000,
    0x1FFFF,
)
INOTIFY = Table(
    0x4 | 0x8 | 0x100 | 0x200 | 0x40 | 0x80,
    0x100 | 0x80,
    0x2,
    0x400 | 0x800,
    0x1000000 | 0x40000000,
    0xC100EFFF,
)
TABLES: dict[str, Table] = {"ceph": CEPH, "inotify": INOTIFY}
_PAIRS = (
    ("src_path", "src_mask", "dest_path", "dest_mask"),
    ("target_path", "target_mask", "link_path", "link_mask"),
)


class CephDecoder:
    """A decoder that also follows the sequence numbers; `jumps` counts those that are missing.

    Later builds of the one producer that has them count before they filter, so jumps are normal there: a number to
    look at, not an alarm.
    """

    def __init__(self, table: Literal["ceph", "inotify"] = "ceph") -> None:
        self.jumps = 0
        self._table = TABLES[table]
        self._last: OrderedDict[tuple[object, object], int] = OrderedDict()

    def __call__(self, message: dict[str, Any]) -> list[Change]:
        """The changes that a message means. Malformed, Unfamiliar."""
        if "seq_id" in message:
            self._follow(message)
        if "snapshot_name" in message:
            return []
        changes: list[Change] = []
        unknown = 0
        for pair in _PAIRS:
            if pair[0] in message or pair[2] in message:
                unknown |= self._pair(message, pair, changes)
        path = message.get("path")
        if path and not changes:
            mask = number(message.get("mask"))
            what = self._meaning(mask)
            unknown = mask & ~self._table.known
            if what or unknown:
                changes.append((_text(path), what or ENTRY))
        elif not path and not changes and not unknown:
            raise Malformed("no path")
        if unknown:
            raise Unfamiliar(f"bits {unknown:#x}", changes)
        return changes

    def _pair(self, message: dict[str, Any], names: tuple[str, str, str, str], changes: list[Change]) -> int:
        """Both ends of a move or a link, either of which may be outside of what is told; answers unknown bits."""
        first, first_mask, second, second_mask = names
        common = number(message.get("mask") or 0)
        masks = [number(message.get(key) or 0) for key in (first_mask, second_mask)]
        # Not every producer says that what moved is a directory, so each counts as one; for a file that costs a look.
        deep = first == "src_path"
        if path := message.get(first):
            changes.append((_text(path), ENTRY))
        if path := message.get(second):
            changes.append((_text(path), ENTRY | BELOW if deep else ENTRY))
        if not changes:
            raise Malformed("a move or link without a path")
        return (common | masks[0] | masks[1]) & ~self._table.known

    def _meaning(self, mask: int) -> int:
        table = self._table
        if mask & table.itself:
            return ENTRY | BELOW
        if mask & table.entry:
            return ENTRY | BELOW if mask & table.create and mask & table.directory else ENTRY
        return ENTRY | SOFT if mask & table.modify else 0

    def _follow(self, message: dict[str, Any]) -> None:
        key = message.get("mds_id"), message.get("session_id")
        if type(key[0]) is not int or type(key[1]) is not str:
            key = str(key[0]), str(key[1])
        now = message["seq_id"]
        if type(now) is not int:
            now = number(now)
        last = self._last.get(key)
        if last is not None and now > last + 1:
            self.jumps += now - last - 1
        if last is None or now > last:
            self._last[key] = now
            self._last.move_to_end(key)
            if len(self._last) > MAX_SESSIONS:
                self._last.popitem(last=False)


def _text(path: object) -> str:
    if not isinstance(path, str):
        raise Malformed("a path that is no string")
    return path
