"""Server-sent events: who listens hears of every change in the spaces that they may see, whoever made it.

The journal is the source, so changes made straight on disk and by other processes are told like our own. A change is
a hint: what it names may differ by the time it is read, so clients ask for the listing. Every event carries its time
as id; a client that comes back with ``Last-Event-ID`` hears what it missed, or that it was too much (``many``).
"""

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from dav.discovery import ownclouds
from dav.http.errors import HttpError
from dav.http.target import request_path
from dav.view import View, Views
from dav.webdav.call import Reply
from fsd.core import journal
from fsd.core.accounts import User
from fsd.core.announced import settle
from fsd.core.journal import Numbered
from fsd.core.names import to_text
from fsd.core.space import Space

log = logging.getLogger(__name__)

PATH = "/events"
OWNCLOUD_PATHS = tuple(f"/ocs/{v}.php/apps/notifications/api/v1/notifications/sse" for v in ("v1", "v2"))
"""The same for ownCloud's web client, in its words."""
_PAUSE = 0.05
_IDLE = 3600.0
_MOST = 500
"""Changes of a space that are told one by one; more at once are told as ``many``."""
_OVERLAP = 2.0
"""Seconds that are told again to a client that comes back: clocks and commits are not that exact."""
_QUIET = frozenset({"scanned", "ready", "left"})
_HELLO = b"retry: 3000\n: hello\n\n"


_Write = Callable[[Space, list[Numbered]], bytes]


class Stream(Protocol):
    """A listener's connection."""

    ended: bool

    def send(self, data: bytes) -> None: ...

    def end(self) -> None: ...


class Listening(Reply):
    """The reply to somebody who wants to listen: ``begin`` gets the connection when its head is sent."""

    def __init__(self, hub: "Hub", user: User, only: str | None, last: float | None) -> None:
        headers = [
            ("Content-Type", "text/event-stream; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("X-Accel-Buffering", "no"),
            ("Connection", "close"),
        ]
        super().__init__(200, headers, [_HELLO])
        self._hub, self.user, self.only, self.last = hub, user, only, last
        self.write: _Write = _events
        self.start: dict[str, int] = {}
        """The newest change of each space when it was asked for: all after it are told."""

    def begin(self, stream: Stream) -> None:
        """From now on events go to this stream."""
        self._hub.add(_Listener(self, stream))


class _Listener:
    __slots__ = ("last", "only", "spaces", "start", "stream", "user", "write")

    def __init__(self, asked: Listening, stream: Stream) -> None:
        self.user, self.only, self.last, self.stream = asked.user, asked.only, asked.last, stream
        self.start, self.write = asked.start, asked.write
        self.spaces: frozenset[str] = frozenset()


class _Told:
    """A space somebody listens to: up to where it was told, and what the index said then."""

    __slots__ = ("number", "space", "token")

    def __init__(self, space: Space, number: int) -> None:
        self.space = space
        self.number = number
        self.token: object = None


class Hub:
    """All listeners of a process.  ``tick`` is called by the thread that writes to them."""

    def __init__(self, views: Views, per_user: int) -> None:
        self._views = views
        self._per_user = per_user
        self._guard = threading.Lock()
        self._listeners: list[_Listener] = []
        self._fresh: list[_Listener] = []
        self._told: dict[str, _Told] = {}
        self._generation: int | None = None

    def reply(self, environ: dict[str, Any], user: User, view: View) -> Reply:
        """The answer to ``GET /events``.  429 for a user with too many, 501 where nothing can be kept open."""
        if environ["REQUEST_METHOD"] != "GET":
            raise HttpError(405, "Events are listened to with GET.", headers=(("Allow", "GET"),))
        if "fsd.streams" not in environ:
            raise HttpError(501, "Events need a server that was started without --http stock.")
        with self._guard:
            listeners = (*self._listeners, *self._fresh)
        held = sum(each.user.id == user.id and not each.stream.ended for each in listeners)
        if 0 < self._per_user <= held:
            raise HttpError(429, "You listen in too many places already.", headers=(("Retry-After", "60"),))
        space = environ["QUERY_STRING"].partition("space=")[2].partition("&")[0].replace("%24", "$")
        asked = Listening(self, user, space or None, _moment(environ.get("HTTP_LAST_EVENT_ID", "")))
        if request_path(environ["REQUEST_URI"]) != PATH:
            asked.write = ownclouds.events
        for record, _ in view.visible(user):
            if asked.only in (None, record.id):
                with suppress(OSError):  # a space that is away has no events until it is back
                    asked.start[record.id] = journal.last(view.space(record))
        return asked

    def add(self, listener: _Listener) -> None:
        with self._guard:
            self._fresh.append(listener)

    def tick(self, now: float) -> float:
        """Tell what happened since the last call; seconds until it wants to be called again."""
        with self._guard:
            fresh, self._fresh = self._fresh, []
            self._listeners = [each for each in self._listeners if not each.stream.ended] + fresh
        if not self._listeners:
            self._told.clear()
            return _IDLE
        try:
            view = self._views.current()
            if view.generation != self._generation:
                self._generation = view.generation
                self._see(view, self._listeners)
            elif fresh:
                self._see(view, fresh)
            self._follow(view)
            for listener in fresh:
                if not listener.stream.ended:
                    self._catch_up(listener)
            for told in self._told.values():
                self._tell(told)
        except OSError as error:
            log.info("events wait: %s", error)
            return 1.0
        return _PAUSE

    def _see(self, view: View, listeners: list[_Listener]) -> None:
        """Work out again what they may see; who may not log in any more is disconnected."""
        for each in listeners:
            user = view.user(each.user.name)
            if user is None or user.disabled or (user.id, user.epoch) != (each.user.id, each.user.epoch):
                each.stream.end()
                each.spaces = frozenset()
                continue
            seen = (record.id for record, _ in view.visible(user))
            each.spaces = frozenset(ident for ident in seen if each.only in (None, ident))

    def _follow(self, view: View) -> None:
        """Begin with spaces that somebody listens to, and end with the others."""
        wanted = frozenset().union(*(each.spaces for each in self._listeners))
        for ident in self._told.keys() - wanted:
            del self._told[ident]
        for ident in wanted - self._told.keys():
            try:
                space = view.space(view.record(ident))
                self._told[ident] = _Told(space, journal.last(space))
            except OSError as error:
                log.debug("space %s has no events now: %s", ident, error)

    def _tell(self, told: _Told) -> None:
        space = told.space
        ident = space.record.id
        try:
            settle(space)  # what a mount announced
            token = space.index.answers().setdefault("events", object())
            if token is told.token:
                return
            found = journal.since(space, told.number, _MOST + 1)
            told.token = token
            if not found:
                return
            told.number = journal.last(space) if len(found) > _MOST else found[-1].number
        except OSError as error:
            log.debug("space %s has no events now: %s", ident, error)
            return
        made: dict[_Write, bytes] = {}
        for each in self._listeners:
            if ident in each.spaces and not each.stream.ended:
                data = made.get(each.write)
                if data is None:
                    data = made[each.write] = each.write(space, found)
                if data:
                    each.stream.send(data)

    def _catch_up(self, listener: _Listener) -> None:
        """What happened since the client asked, or, for one that comes back, since it was told the last time."""
        for ident in listener.spaces & self._told.keys():
            told = self._told[ident]
            start = listener.start.get(ident, told.number)
            if listener.last is not None:
                start = min(start, max(0, told.number - 2 * _MOST))
            try:
                found = journal.since(told.space, start, 2 * _MOST)
            except OSError:
                continue
            since = listener.last - _OVERLAP if listener.last is not None else 0.0
            missed = [each for each in found if each.at >= since and each.number <= told.number]
            data = listener.write(told.space, missed)
            if data:
                listener.stream.send(data)


def _moment(text: str) -> float | None:
    """The time in an event's id."""
    try:
        return float(text) if text and len(text) < 32 else None
    except ValueError:
        return None


def _events(space: Space, changes: list[Numbered]) -> bytes:
    if len(changes) > _MOST:
        return _many(space, changes[-1].at)
    return b"".join(_event(space, each) for each in changes if each.kind not in _QUIET)


def _event(space: Space, change: Numbered) -> bytes:
    ident = space.record.id
    told = {
        "space": ident,
        "kind": change.kind,
        "id": f"{ident}!{change.node.hex()}",
        "parent": f"{ident}!{change.parent.hex()}",
        "name": to_text(change.name),
        "folder": change.node_kind == 1,
    }
    return f"id: {change.at:.3f}\nevent: change\ndata: {json.dumps(told)}\n\n".encode()


def _many(space: Space, at: float) -> bytes:
    told = json.dumps({"space": space.record.id, "kind": "many"})
    return f"id: {at:.3f}\nevent: change\ndata: {told}\n\n".encode()
