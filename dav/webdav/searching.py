"""What a search asks for: plain words, or the few forms of Microsoft's KQL that clients send."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dav.http.errors import HttpError
from dav.routes import Place, Virtual
from dav.webdav.call import Call
from fsd.core import find, marks

_MOST = 1000
_USUAL = 200
_TERM = re.compile(r'\s*(?:(\w+):)?(?:"([^"]*)"|([^\s"()]+)|([()]))')


@dataclass(frozen=True, slots=True)
class Query:
    """A part of a name (or a pattern with `*` and `?`), tags, whether favourites; in which space, None: in all."""

    name: str
    tags: frozenset[str]
    favorite: bool
    scope: str | None

    def admits(self, space_id: str) -> bool:
        return self.scope is None or self.scope.partition("!")[0] == space_id

    def paths(self, place: Place, user_id: str, limit: int) -> Iterator[bytes]:
        """What fits, below a place."""
        if limit <= 0:
            return
        if not self.tags and not self.favorite:
            yield from find.by_name(place.space, self.name, place.path, limit)
            return

        wanted = marks.filter_of(user_id, self.favorite, self.tags)
        for path in marks.marked(place.space, place.path, wanted):
            if path and self._named(path):
                yield path
                limit -= 1
                if not limit:
                    return

    def _named(self, path: bytes) -> bool:
        return find.matcher(self.name)(path.rpartition(b"/")[2])


def parse(pattern: str | None) -> Query:
    """The query of a pattern. 400 for what can't be looked for: never an answer to another question."""
    name, scope, favorite = "", None, False
    tags: set[str] = set()
    text = (pattern or "").strip()
    at = 0
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None:
            raise HttpError(400, "The search pattern is not understood.")
        at = match.end()
        key, value = (match[1] or "").lower(), match[2] if match[2] is not None else match[3]
        if match[4] or (not key and value == "AND"):
            continue
        if not key and value in ("OR", "NOT"):
            raise HttpError(400, f"{value} is not understood in a search.")
        if key in ("", "name"):
            name = f"{name} {value}".strip()
        elif key in ("tag", "tags"):
            tags.add(value)
        elif key == "scope":
            scope = value
        elif key == "is" and value == "favorite":
            favorite = True
        else:
            raise HttpError(400, f"'{key}' can't be searched for; names, tags and favourites can.")
    if not (name or tags or favorite):
        raise HttpError(400, "The search has no pattern.")
    return Query(name, frozenset(tags), favorite, scope)


def limit_of(text: str | None) -> int:
    """How many are wanted. 400 for what is no number."""
    if text is None:
        return _USUAL
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HttpError(400, "The limit must be a number.")
    return min(int(text), _MOST) or _MOST


def spaces_below(call: Call, target: Virtual) -> list[Place]:
    """The roots of the spaces that a collection above them leads to."""
    found: dict[str, Place] = {}
    for path in _leading(call, target):
        place = call.router.resolve(call.user, path)
        if isinstance(place, Place):
            found.setdefault(place.record.id, place)
    return list(found.values())


def _leading(call: Call, target: Virtual) -> list[str]:
    records = [child.record for child in target.children if child.record is not None]
    if records:
        return [f"/dav/spaces/{record.id}" for record in records]
    return [f"/dav/spaces/{record.id}" for record, _ in call.router.view.visible(call.user)]
