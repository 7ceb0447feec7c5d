"""Hearing of changes: the server's events as long as they come, questions where they don't, and whether it is back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import trio

from fsd.mount.remote.client import Client
from fsd.mount.remote.errors import Offline, Refused
from fsd.mount.remote.sync import Sync

_log = logging.getLogger(__name__)

QUIET = 60.0
"""Seconds without even a ping after which a stream counts as broken."""
_AGAIN = (0.2, 0.5, 1.0, 2.0, 5.0)
SPACES_EVERY = 20.0
_LONGEST = 1 << 20


class Parser:
    """Server-sent events (HTML Living Standard, section 9.2) out of pieces of text; only their data matter."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The events that are complete; what is no JSON object is passed over."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _LONGEST:
            self._rest = b""
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                try:
                    event = json.loads(data)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event


class Listener:
    """Follows one server. `back` is called each time it can be reached again."""

    def __init__(self, client: Client, sync: Sync, back: Callable[[], object]) -> None:
        self._client, self._sync, self._back = client, sync, back
        self._gone = trio.Event()
        self._listening = trio.CancelScope()
        client.on_change = self.gone

    async def run(self) -> None:
        """Listen, for ever."""
        tries = 0
        while True:
            with trio.CancelScope() as self._listening:
                try:
                    await self._listen()
                    tries = 0
                except (Offline, Refused) as error:
                    _log.debug("no events: %s", error)
            self._sync.live = False
            await trio.sleep(_AGAIN[min(tries, len(_AGAIN) - 1)])
            tries += 1

    async def probe(self) -> None:
        """Ask a server that is away until it is there again, for ever."""
        while True:
            tries = 0
            while self._client.away is None:
                self._gone = trio.Event()
                await self._gone.wait()
            # A stream that still seems to be open may be as dead as the request that failed.
            self._listening.cancel()
            while not await self._answers():
                await trio.sleep(_AGAIN[min(tries, len(_AGAIN) - 1)])
                tries += 1
            self._back()

    async def _answers(self) -> bool:
        try:
            async with self._client.stream("GET", "/status.php", probing=True) as got:
                async for _ in got.chunks:
                    pass
        except Offline:
            return False
        return True

    def gone(self) -> None:
        """The client says whether the server is there."""
        self._gone.set()

    async def _listen(self) -> None:
        headers = [("Accept", "text/event-stream")]
        async with self._client.stream("GET", "/events", headers, quiet_seconds=QUIET) as got:
            if got.status != 200:
                raise Refused(got.status, "it has no events for us")
            parser = Parser()
            # What happened before the stream began is found by etags.
            self._sync.suspect()
            self._sync.live = True
            async for chunk in got.chunks:
                for event in parser.feed(chunk):
                    self._sync.heard(event)

    async def spaces(self) -> None:
        """Look for new and lost spaces, and for changed rights, for ever."""
        while True:
            await trio.sleep(SPACES_EVERY)
            if self._client.away is None:
                self._sync.tree.root.stale = True
                try:
                    await self._sync.load(self._sync.tree.root)
                except OSError as error:
                    _log.debug("the spaces are not known: %s", error)
