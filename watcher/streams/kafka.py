"""A source that reads Kafka topics. See `watcher.sources.base.Source` and `watcher.streams.base`.

Each space keeps its own positions, in its index: one that was away or is new begins where it needs to, and the others
hear some messages twice, which is harmless. To the broker goes the least of all positions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from watcher.hint import Hint
from watcher.sources.base import SourceStatus
from watcher.streams import offsets
from watcher.streams.base import LogSource
from watcher.streams.consumer import At, Consumer, Gap, Key, Records
from watcher.streams.heard import Decoder
from watcher.streams.letters import Letters
from watcher.streams.offsets import Position
from watcher.streams.options import Broker
from watcher.streams.places import Prefix

SLICE = 200
"""Records between two looks at the clock."""
MOST = 8000
"""Records for one batch of hints: fewer directories than wait at most at once."""


class KafkaSource(LogSource):
    """One consumer for all spaces of a kind."""

    def __init__(
        self,
        name: str,
        decode: Decoder,
        mapping: list[Prefix],
        letters: Letters,
        broker: Broker,
        topics: Sequence[str],
        *,
        bell: threading.Event | None = None,
    ) -> None:
        super().__init__(name, decode, mapping, letters, bell=bell)
        self.topics = tuple(topics)
        self._consumer = Consumer(broker, topics, self.bell.set)
        self._number = 0
        self._record: Records | None = None
        self._place_in_record = 0
        self._reached: dict[Key, Position] = {}
        self._kept: dict[str, dict[Key, Position]] = {}
        self._marks: dict[Key, dict[int, Mapping[str, Position]]] = {}
        self._ids: dict[Key, str] = {}
        self._heard: dict[Key, int] = {}
        """The farthest that was heard: what comes again is rejected without being counted again."""
        self._last_message = 0.0
        self._moved = False

    def add(
        self,
        space: str,
        root: bytes,
        hidden: tuple[int, int],
        *,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        super().add(space, root, hidden, base=base, without=without)
        if space not in self._kept:
            stored = self._stored[space]
            self._kept[space] = {
                key: position
                for name, text in stored.items()
                if (key := _key(name)) is not None and (position := offsets.parse(text)) is not None
            }
        self._begin()

    def remove(self, space: str) -> None:
        super().remove(space)
        self._kept.pop(space, None)

    def _begin(self) -> None:
        self._number += 1
        self._consumer.place(
            self._number, {space: dict(positions) for space, positions in self._kept.items()}
        )

    # -- reading

    def busy(self) -> bool:
        return self._record is not None or self._consumer.waiting() or bool(self._hints)

    def collect(self, budget: float) -> list[Hint]:
        now = time.monotonic()
        deadline, most = now + budget, MOST
        self._moved = False
        while most > 0 and time.monotonic() < deadline:
            if self._record is None and not self._next(now):
                break
            most -= self._some()
        return self._gathered(now)

    def _next(self, now: float) -> bool:
        """Take items until there are records; False if there are none."""
        while (item := self._consumer.take()) is not None:
            match item:
                case Records():
                    self._record, self._place_in_record = item, 0
                    return True
                case Gap(space, reason):
                    if space is None or space in self._kept:
                        self._gap(space, reason, now)
                case At(key, offset, marks, topic):
                    if self._ids.get(key) != topic:
                        self._heard.pop(key, None)
                    self._ids[key] = topic
                    self._marks[key] = dict(marks)
                    self._reached.pop(key, None)
                    if offset not in marks:
                        self._reached[key] = Position(offset, topic=topic)
                        self._moved = True
        return False

    def _some(self) -> int:
        """Hear a few of the records."""
        item = self._record
        assert item is not None
        first = self._place_in_record
        records = item.records[first : first + SLICE]
        marks = self._marks.get(item.key)
        for record in records:
            if marks:
                self._prove(item.key, record.offset, record.timestamp, record.value)
            rejected = self._gatherer.hear(record.value)
            if rejected is not None and record.offset >= self._heard.get(item.key, 0):
                where = f"{item.key[0]}[{item.key[1]}]@{record.offset}"
                self._reject(rejected, record.value, where)
        last = records[-1]
        self._heard[item.key] = max(last.offset + 1, self._heard.get(item.key, 0))
        topic = self._ids.get(item.key, "")
        self._reached[item.key] = offsets.after(last.offset, last.timestamp, last.value, topic)
        self._last_message = max(self._last_message, last.timestamp / 1000)
        self._moved = True
        self._place_in_record += len(records)
        if self._place_in_record >= len(item.records):
            self._record = None
        return len(records)

    def _prove(self, key: Key, offset: int, timestamp: int, value: bytes | None) -> None:
        """Is the record before a space's position the one that it has seen there? One that is missing proves
        nothing."""
        marks = self._marks[key]
        for at in [each for each in marks if each <= offset]:
            for space, position in marks.pop(at).items():
                if (at != offset or not position.fits(timestamp, value)) and space in self._kept:
                    self._gap(space, "recreated", time.monotonic())

    # -- positions

    def positions(self, space: str) -> dict[str, str]:
        """How far everything was heard, by log; nothing if that is no farther than before this `collect`."""
        if not self._moved:
            return {}
        return {_name(key): position.text() for key, position in self._reached.items()}

    def kept(self, space: str, stored: Mapping[str, str]) -> None:
        """These positions of a space are durable, with all that was heard up to them."""
        mine = self._kept.get(space)
        if mine is not None:
            for name, text in stored.items():
                if (key := _key(name)) is not None and (position := offsets.parse(text)) is not None:
                    mine[key] = position

    def commit(self) -> None:
        """Tell the broker the least of what all spaces have kept."""
        least: dict[Key, int] = {}
        for key in self._reached:
            offsets_of = [mine[key].offset for mine in self._kept.values() if key in mine]
            if offsets_of and len(offsets_of) == len(self._kept):
                least[key] = min(offsets_of)
        if least:
            self._consumer.commit(least)

    # -- status

    def status(self, space: str) -> SourceStatus | None:
        if space not in self._places.spaces():
            return None
        state = self._consumer.state
        partitions = {}
        for (topic, number), (begin, end) in sorted(state.partitions.items()):
            at = self._reached.get((topic, number))
            place = at.offset if at is not None else None
            lag = max(0, end - place) if place is not None else max(0, end - begin)
            partitions[f"{topic}[{number}]"] = {"offset": place, "end": end, "lag": lag}
        lag = sum(each["lag"] or 0 for each in partitions.values())
        reading = state.connected and state.placed >= self._number
        whole = bool(state.wanted) and state.wanted <= state.partitions.keys()
        stream = {
            "topics": list(self.topics),
            "connected": state.connected,
            "reading": reading and whole,
            "error": state.error,
            "down_for": round(time.monotonic() - state.down_since, 1) if state.down_since else 0.0,
            "partitions": partitions,
            "others": sorted(
                f"{topic}[{number}]" for topic, number in state.wanted - state.partitions.keys()
            ),
            "lag": lag,
            "last_message": self._last_message or None,
            "rebalances": state.rebalances,
        }
        ready = state.placed >= self._number or bool(self._reached)
        return self._status(space, ready=ready, backlog=self._consumer.held(), stream=stream)

    def close(self) -> None:
        self.commit()
        self._consumer.close()


def _name(key: Key) -> str:
    return f"kafka:{key[0]}:{key[1]}"


def _key(name: str) -> Key | None:
    kind, _, rest = name.partition(":")
    topic, _, number = rest.rpartition(":")
    return (topic, int(number)) if kind == "kafka" and number.isdigit() else None
