"""Where to read a partition on, from what each space has kept. Pure.

A position names the topic by its id, the next offset, and the record before it by its time and a checksum of its value:
so that a topic that was made anew is noticed, whose offsets mean other records. Not every broker has ids.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import NamedTuple


class Position(NamedTuple):
    """The next offset. `time` and `sum` are those of the record before it, -1 where none was seen; `topic` is the
    topic's id, "" where that is not known."""

    offset: int
    time: int = -1
    sum: int = -1
    topic: str = ""

    @property
    def first(self) -> int:
        """The first offset to be read: with the record before it, where that is known."""
        return self.offset - 1 if self.time >= 0 else self.offset

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(self)

    def fits(self, time: int, value: bytes | None) -> bool:
        """Whether the record before it is this one."""
        return (self.time, self.sum) == (time, zlib.crc32(value or b""))


def after(offset: int, time: int, value: bytes | None, topic: str = "") -> Position:
    """The position behind a record."""
    return Position(offset + 1, max(time, 0), zlib.crc32(value or b""), topic)


def parse(text: str) -> Position | None:
    """A stored position; None if it is damaged."""
    try:
        offset, time, checksum, topic = json.loads(text)
        return Position(int(offset), int(time), int(checksum), str(topic))
    except (ValueError, TypeError):
        return None


class Start(NamedTuple):
    """Where to begin; `gaps`: why, by space, something may be missed; `marks`: records that prove positions, by
    offset and space."""

    offset: int
    gaps: dict[str, str]
    marks: dict[int, dict[str, Position]]


def start(begin: int, end: int, kept: Mapping[str, Position | None], topic: str = "") -> Start:
    """`begin` and `end`: the first offset there is and the next one to come; `kept`: what each space has; `topic`:
    the id it has now."""
    gaps: dict[str, str] = {}
    marks: dict[int, dict[str, Position]] = {}
    firsts = []
    for space, position in kept.items():
        if position is None:
            gaps[space] = "first"  # what is there is found by the sweep that begins now
        elif position.offset > end or (topic and position.topic not in ("", topic)):
            gaps[space] = "recreated"
            firsts.append(begin)
        elif position.offset < begin:
            gaps[space] = "retention"
            firsts.append(begin)
        else:
            first = max(begin, position.first)
            firsts.append(first)
            if first < position.offset:
                marks.setdefault(first, {})[space] = position
    return Start(min(firsts, default=end), gaps, marks)
