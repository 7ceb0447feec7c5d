"""REPORT (RFC 3253, section 3.6): sync-collection (RFC 6578), and ownCloud's filter-files and search-files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from dav.http.errors import HttpError
from dav.routes import Place
from dav.webdav import searching
from dav.webdav.call import Call, Reply
from dav.webdav.properties import Scope
from dav.webdav.propfind import Plan, plan_of, prepared, response, wants_minimal
from dav.webdav.xml import DAV, MULTISTATUS, OC, XML_TYPE, elements, href, parse, read_body
from fsd.core import marks, synced, tree
from fsd.core.synced import TokenExpired, TooMany
from fsd.core.tree import Entry

if TYPE_CHECKING:
    from lxml import etree

_END = b"</d:multistatus>"
_GONE = "<d:status>HTTP/1.1 404 Not Found</d:status></d:response>"
_BLOCK = 64 << 10


def handle(call: Call) -> Reply:
    """The report that the body asks for; 403 with `supported-report` for one that is not there."""
    root = parse(read_body(call.environ))
    handler = _REPORTS.get(str(root.tag))
    if handler is None:
        raise HttpError(403, "This report is not available here.", "supported-report")
    return handler(call, root)


def _multistatus(pieces: Iterable[bytes]) -> Reply:
    return Reply(207, [XML_TYPE, ("DAV", "1, 2, 3")], _blocks(pieces))


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """In pieces of some size; one that can't be finished is cut off, never closed."""
    held, size = [MULTISTATUS], len(MULTISTATUS)
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _BLOCK:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join((*held, _END))


# -- sync-collection -------------------------------------------------------------------------------------------------


def _sync(call: Call, root: etree._Element) -> Reply:
    if not isinstance(call.target, Place):
        raise HttpError(403, "Only what is inside a space can be followed.", "supported-report")
    if call.environ.get("HTTP_DEPTH", "0").strip() != "0":
        raise HttpError(400, "sync-collection takes only Depth 0; sync-level says how deep.")
    place = call.target
    own = tree.lookup(place.space, place.path)
    if own.kind != "d":
        raise HttpError(403, "Only collections can be followed.", "supported-report")
    level = (root.findtext(f"{DAV}sync-level") or "").strip()
    if level not in ("1", "infinite"):
        raise HttpError(400, "sync-level must be 1 or infinite.")
    token = (root.findtext(f"{DAV}sync-token") or "").strip()
    plan, limit = plan_of(root.find(f"{DAV}prop")), _limit(root)
    answer = _Sync(call, place, plan, deep=level == "infinite", limit=limit)
    try:
        return _multistatus(answer.since(token) if token else answer.all())
    except TokenExpired:
        raise HttpError(403, "This sync token has expired; begin anew.", "valid-sync-token") from None
    except TooMany:
        raise _too_many() from None


def _too_many() -> HttpError:
    return HttpError(507, "More changed at once than was asked for.", "number-of-matches-within-limits")


def _limit(root: etree._Element) -> int | None:
    text = root.findtext(f"{DAV}limit/{DAV}nresults")
    if text is None:
        return None
    text = text.strip()
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise HttpError(400, "nresults must be a positive number.")
    return int(text)


class _Sync:
    """One sync-collection. What fails before the first byte is an error's answer."""

    def __init__(self, call: Call, place: Place, plan: Plan, *, deep: bool, limit: int | None) -> None:
        self._call, self._place, self._plan = call, place, plan
        self._deep, self._limit = deep, limit
        self._minimal = wants_minimal(call.environ)
        self._scope = Scope(place, call.user.id)

    def all(self) -> Iterator[bytes]:
        """Everything, as it is. The token is older than the look, so no change falls between the two."""
        place = self._place
        token = synced.token(place.space, deep=self._deep)
        assert token is not None
        _, first = tree.listing(place.space, place.path)
        if self._limit is not None and (self._deep or len(first) > self._limit):
            raise _too_many()
        return self._whole(first, token)

    def _whole(self, first: list[Entry], token: str) -> Iterator[bytes]:
        waiting = self._folders(first)
        yield from self._told(first)
        while waiting:
            try:
                _, entries = tree.listing(self._place.space, waiting.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone since: whoever comes with the token hears of it
            yield from self._told(entries)
            waiting += self._folders(entries)
        yield _token(token)

    def _folders(self, entries: list[Entry]) -> list[bytes]:
        return [entry.path for entry in entries if entry.kind == "d"] if self._deep else []

    def since(self, token: str) -> Iterator[bytes]:
        """What may differ since a token. TokenExpired, TooMany, NotYetKnown."""
        place = self._place
        news = synced.since(place.space, place.path, token, deep=self._deep, limit=self._limit)
        return self._news(news)

    def _news(self, news: synced.News) -> Iterator[bytes]:
        there: list[Entry] = []
        for path, folder in news.places.items():
            try:
                there.append(tree.lookup(self._place.space, path))
            except (FileNotFoundError, NotADirectoryError):
                slash = "/" if folder else ""
                yield f"<d:response>{href(self._place.href_of(path) + slash)}{_GONE}".encode()
        yield from self._told(there)
        if news.more:
            error = "<d:error><d:number-of-matches-within-limits/></d:error>"
            status = f"<d:status>HTTP/1.1 507 Insufficient Storage</d:status>{error}"
            yield f"<d:response>{href(self._place.href + '/')}{status}</d:response>".encode()
        yield _token(news.token)

    def _told(self, entries: list[Entry]) -> Iterator[bytes]:
        try:
            for entry in prepared(entries, self._scope, self._plan):
                path = escape(self._place.href_of(entry.path))
                yield response(path, entry, self._scope, self._plan, self._minimal)
        finally:
            self._scope.close()


def _token(text: str) -> bytes:
    return f"<d:sync-token>{text}</d:sync-token>".encode()


# -- filter-files and search-files -----------------------------------------------------------------------------------


def _filter(call: Call, root: etree._Element) -> Reply:
    """What somebody marked: their favourites, or what has all of the tags that are asked for."""
    rules = root.find(f"{OC}filter-rules")
    if rules is None:
        raise HttpError(400, "The filter-rules are missing.")
    favorite, tags = False, set()
    for rule in elements(rules):
        text = str(rule.xpath("string()")).strip()
        if rule.tag == f"{OC}favorite" and text in ("1", "true", "yes"):
            favorite = True
        elif rule.tag in (f"{OC}tag", f"{OC}systemtag") and text:
            tags.add(text)
        else:
            raise HttpError(400, "Only favourites and tags can be filtered by.")
    if not favorite and not tags:
        raise HttpError(400, "Nothing is asked for.")
    wanted = marks.filter_of(call.user.id, favorite, tags)
    found = [
        (place, path)
        for place in _places(call)
        for path in marks.marked(place.space, place.path, wanted)
        if path or place.path
    ]
    return _multistatus(_entries(call, found, plan_of(root.find(f"{DAV}prop"))))


def _search(call: Call, root: etree._Element) -> Reply:
    """By name, in a space or in all of them; sorted by path in each space."""
    search = root.find(f"{OC}search")
    query = searching.parse(search.findtext(f"{OC}pattern") if search is not None else None)
    limit = searching.limit_of(search.findtext(f"{OC}limit") if search is not None else None)
    places = [place for place in _places(call) if query.admits(place.record.id)]
    found: list[tuple[Place, bytes]] = []
    for place in places:
        found += [(place, path) for path in query.paths(place, call.user.id, limit - len(found))]
    return _multistatus(_entries(call, found, plan_of(root.find(f"{DAV}prop"))))


def _places(call: Call) -> list[Place]:
    """Where to look: at and below the target, or in every space below a virtual one."""
    target = call.target
    if isinstance(target, Place):
        tree.lookup(target.space, target.path)
        return [target]
    return searching.spaces_below(call, target)


def _entries(call: Call, found: list[tuple[Place, bytes]], plan: Plan) -> Iterator[bytes]:
    minimal = wants_minimal(call.environ)
    for place, group in itertools.groupby(found, lambda pair: pair[0]):
        scope = Scope(place, call.user.id)
        try:
            for each in prepared(_looked_up(place, (path for _, path in group)), scope, plan):
                yield response(escape(place.href_of(each.path)), each, scope, plan, minimal)
        finally:
            scope.close()


def _looked_up(place: Place, paths: Iterable[bytes]) -> Iterator[Entry]:
    for path in paths:
        try:
            yield tree.lookup(place.space, path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has gone meanwhile


_REPORTS: dict[str, Callable[[Call, etree._Element], Reply]] = {
    f"{DAV}sync-collection": _sync,
    f"{OC}filter-files": _filter,
    f"{OC}search-files": _search,
}
