"""The journal topic as hosts that follow read it: one more source of hints, beside the one that hears the storage.

What a message says is that entries may differ, by their paths below the space; the disk is looked at, so messages may
come twice, late, in another order, or be lost. Whoever may write the topic can make a host look, nothing else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from watcher.streams.heard import BELOW, ENTRY, Change, Malformed, text
from watcher.streams.kafka import KafkaSource
from watcher.streams.letters import Letters
from watcher.streams.options import Broker
from watcher.streams.places import Prefix

FORMAT = 1
MOST_BYTES = 256 << 10
"""Of paths in one message; brokers take 1 MiB by default, and JSON may write six characters for a byte."""


def messages(host: str, space: str, number: int, paths: Iterable[bytes]) -> Iterator[bytes]:
    """What the host that works on a space tells: these entries changed, up to the journal's `number`."""
    some: list[str] = []
    size = 0
    for path in paths:
        some.append(path.decode("utf-8", "surrogateescape"))
        size += 2 * len(path) + 8
        if size >= MOST_BYTES // 2:
            yield _message(host, space, number, paths=some)
            some, size = [], 0
    if some:
        yield _message(host, space, number, paths=some)


def gap(host: str, space: str, number: int) -> bytes:
    """Anything may have changed: the journal does not reach back to what was told before."""
    return _message(host, space, number, gap=True)


def nothing(host: str, space: str) -> bytes:
    """What no host has to do anything about: to see whether messages get through."""
    return _message(host, space, 0, paths=[])


def _message(host: str, space: str, number: int, **more: object) -> bytes:
    return json.dumps({"fsd": FORMAT, "host": host, "space": space, "number": number, **more}).encode()


class JournalDecoder:
    """What hosts other than `host` tell: changes with paths `/SPACE/…`."""

    def __init__(self, host: str) -> None:
        self._host = host

    def __call__(self, message: dict[str, Any]) -> list[Change]:
        """The changes that a message means. Malformed."""
        if message.get("fsd") != FORMAT:
            raise Malformed("no message of a journal, or of a release that is not known")
        if text(message, "host") == self._host:
            return []
        space = "/" + text(message, "space")
        if "/" in space[1:] or space in ("/", "/.", "/.."):
            raise Malformed("no space")
        if message.get("gap"):
            return [(space, ENTRY | BELOW)]
        paths = message.get("paths")
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise Malformed("no paths")
        return [(f"{space}/{path}", ENTRY) for path in paths]


class JournalSource(KafkaSource):
    """One consumer for all spaces. Their roots are where the messages put them, wherever they are on this host."""

    def __init__(
        self, host: str, letters: Letters, broker: Broker, topic: str, *, bell: threading.Event | None = None
    ) -> None:
        everything = [Prefix(b"/", b"")]
        super().__init__("journal", JournalDecoder(host), everything, letters, broker, [topic], bell=bell)

    def add(
        self,
        space: str,
        root: bytes,
        hidden: tuple[int, int],
        *,
        base: bytes = b"",
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        super().add(space, b"/" + space.encode(), hidden)
