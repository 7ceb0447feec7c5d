"""A hint: something below a directory may differ from its rows. It carries no action: reconcile looks at the
disk.

That makes lost order, repeats, merged events and echoes of our own writes harmless. A source gives one hint
for a directory and a batch, not one for each event: at 200,000 events a second the object alone would be the
cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How much may differ."""

    ENTRIES = "entries"
    """only the entries `names` of the directory `dir`"""
    DIRECTORY = "directory"
    """any entry of `dir`"""
    SUBTREE = "subtree"
    """anything in `dir` and below it"""
    MOVED = "moved"
    """the directory `peer` is now `dir`: what was waiting under the old path waits under the new one"""
    GAP = "gap"
    """anything in the space: events were lost"""


@dataclass(frozen=True, slots=True)
class Hint:
    """`space` is the key the source was given; paths are relative to the space's root, which is `b""`.

    `soft` marks entries of which only stores were heard (IN_MODIFY): they may wait longer for the writer to
    finish.
    `meta` marks entries of which only changed attributes were heard, or only what a process of this server
    did: most of these are echoes, and the rows know already.
    `heard` is the monotonic time at which the batch was read. `binding` says which directory is meant, where
    the source knows (see `fsd.core.ids`): its place may be another one by now.
    """

    space: str
    kind: Kind
    dir: bytes = b""
    names: frozenset[bytes] = frozenset()
    peer: bytes = b""
    soft: bool = False
    heard: float = 0.0
    meta: bool = False
    binding: bytes = b""
