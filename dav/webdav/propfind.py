"""PROPFIND: a plan made once per request body, then one pass over the entries.

Bodies are interned, since clients send three or four different ones; nothing is parsed twice and no tree of
XML nodes is built for the reply.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from dav.http import limits
from dav.http.errors import HttpError
from dav.routes import Place
from dav.webdav import virtual
from dav.webdav.call import Call, Reply
from dav.webdav.listings import Listings
from dav.webdav.properties import ABSENT, ALLPROP, LIVE, Getter, Scope
from dav.webdav.xml import DAV, MULTISTATUS, OC, XML_TYPE, element, elements, open_tag, parse, read_body
from fsd.core import longlisting, tree
from fsd.core.names import quote_path
from fsd.core.tree import Entry

if TYPE_CHECKING:
    from lxml import etree

_OK = "<d:status>HTTP/1.1 200 OK</d:status></d:propstat>"
_MISSING = "<d:status>HTTP/1.1 404 Not Found</d:status></d:propstat>"
_END = b"</d:multistatus>"
_STREAM_BLOCK = 500


_SUMS = f"{OC}checksums"
_READ_FOR_SUMS = 4 << 20
"""Bytes that one answer may read for checksums that its client can't do without: about 10 ms."""
_NEEDS_SUMS = re.compile(r"mirall/([3-9]|\d\d)|OpenCloud")
_UNSTEADY = frozenset(
    {f"{DAV}quota-available-bytes", f"{OC}data-fingerprint", f"{OC}favorite", f"{DAV}sync-token"}
)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a request asks for.  ``live``: (start tag, end tag, getter, name); ``dead``: names to look up.

    ``steady``: the answer for an entry follows from the entry alone, as long as nothing is locked if ``locks``.
    """

    live: tuple[tuple[str, str, Getter, str], ...]
    dead: tuple[str, ...]
    absent: tuple[str, ...]
    all_dead: bool
    names_only: bool
    steady: bool
    locks: bool
    sums: bool

    def asked(self, values: Mapping[str, str]) -> list[str]:
        """Which properties to tell of something that has exactly `values`: all of them, or the named ones."""
        if self.all_dead:
            return list(values)
        return [*(name for _, _, _, name in self.live), *self.dead, *self.absent]


def _plan(names: tuple[str, ...], all_dead: bool = False, names_only: bool = False) -> Plan:
    live = tuple((*open_tag(name), LIVE[name], name) for name in names if name in LIVE)
    others = [name for name in names if name not in LIVE]
    absent = tuple(name for name in others if name in ABSENT)
    dead = tuple(name for name in others if name not in ABSENT)
    steady = not (dead or all_dead or _UNSTEADY.intersection(names))
    locks, sums = f"{DAV}lockdiscovery" in names, _SUMS in names and not names_only
    return Plan(live, dead, absent, all_dead, names_only, steady, locks, sums)


@lru_cache(maxsize=256)
def make_plan(body: bytes) -> Plan:
    """What a request body asks for. HttpError 400."""
    if not body.strip():
        return _plan(ALLPROP, all_dead=True)
    root = parse(body)
    if root.tag != f"{DAV}propfind":
        raise HttpError(400, "The request body must be a propfind element.")
    kinds = [child for child in elements(root) if child.tag in _KINDS]
    if len(kinds) != 1:
        raise HttpError(400, "A propfind asks for one of prop, allprop and propname.")
    kind = kinds[0]
    if kind.tag == f"{DAV}propname":
        return _plan(tuple(LIVE), all_dead=True, names_only=True)
    if kind.tag == f"{DAV}prop":
        return plan_of(kind)
    include = root.find(f"{DAV}include")
    more = [str(child.tag) for child in elements(include)] if include is not None else []
    return _checked(tuple(dict.fromkeys((*ALLPROP, *more))), all_dead=True)


def plan_of(prop: "etree._Element | None") -> Plan:
    """What a ``prop`` element asks for; the properties of ``allprop`` if there is none."""
    if prop is None:
        return _plan(ALLPROP)
    return _checked(tuple(dict.fromkeys(str(child.tag) for child in elements(prop))))


_KINDS = frozenset({f"{DAV}prop", f"{DAV}allprop", f"{DAV}propname"})


def _checked(names: tuple[str, ...], all_dead: bool = False) -> Plan:
    if len(names) > limits.PROPERTIES:
        raise HttpError(400, f"At most {limits.PROPERTIES} properties can be asked for at once.")
    return _plan(names, all_dead)


def depth_of(environ: dict[str, Any]) -> str:
    """The Depth of a PROPFIND, "0" or "1" (the default). HttpError 400, 403."""
    depth: str = environ.get("HTTP_DEPTH", "1").strip().lower()
    if depth == "infinity":
        raise HttpError(403, "Only Depth 0 and 1 are served.", "propfind-finite-depth")
    if depth not in ("0", "1"):
        raise HttpError(400, "The Depth header must be 0 or 1.")
    return depth


def wants_minimal(environ: dict[str, Any]) -> bool:
    """Whether what is missing need not be told (RFC 8144)."""
    return "return=minimal" in environ.get("HTTP_PREFER", "").replace(" ", "").lower()


def handle(call: Call) -> Reply:
    """PROPFIND with Depth 0 or 1 (absent: 1).  207 with the resource itself first; whole or an error."""
    depth = depth_of(call.environ)
    plan = make_plan(read_body(call.environ))
    minimal = wants_minimal(call.environ)
    headers = [XML_TYPE, ("DAV", "1, 2, 3")]
    if minimal:
        headers.append(("Preference-Applied", "return=minimal"))
    if not isinstance(call.target, Place):
        own = virtual.responses(call, call.target, plan, depth == "1", minimal)
        return Reply(207, headers, [MULTISTATUS + b"".join(own) + b"</d:multistatus>"])
    body = _body(call, call.target, plan, minimal, children=depth == "1")
    if isinstance(body, bytes):
        return Reply(207, [*headers, ("Content-Length", str(len(body)))], [body])
    return Reply(207, headers, body)


def _body(call: Call, place: Place, plan: Plan, minimal: bool, *, children: bool) -> bytes | Iterator[bytes]:
    """The document, whole, or for a large directory in pieces: one that can't be finished is cut off, never closed."""
    scope = Scope(place, call.user.id)
    if plan.sums and (not children or _NEEDS_SUMS.search(call.environ.get("HTTP_USER_AGENT", ""))):
        scope = Scope(place, call.user.id, _READ_FOR_SUMS)
    if not children:
        entry = tree.lookup(place.space, place.path)
        call.check_conditions(entry)
        return b"".join((MULTISTATUS, *_responses(place.href, entry, [], scope, plan, minimal), _END))
    if call.environ["fsd.fast"] and plan.steady and not (plan.locks and scope.locked()):
        kept = _kept(call, place, scope, plan, minimal)
        if kept is not None:
            return kept
    elif not longlisting.is_large(place.space, place.path):
        entry, entries = _listing(place)
        call.check_conditions(entry)
        return b"".join((MULTISTATUS, *_responses(place.href, entry, entries, scope, plan, minimal), _END))
    long = longlisting.read(place.space, place.path)
    call.check_conditions(long.own)
    return _stream(_responses(place.href, long.own, long, scope, plan, minimal))


def _kept(call: Call, place: Place, scope: Scope, plan: Plan, minimal: bool) -> bytes | None:
    base = escape(place.href)

    def make(entries: Iterable[Entry]) -> Iterator[tuple[bytes, bool]]:
        for entry in prepared(entries, scope, plan):
            name = quote_path(entry.name).replace("&", "&amp;")
            final = not plan.sums or scope.final(entry)
            yield response(f"{base}/{name}", entry, scope, plan, minimal), final

    def news(entries: list[Entry]) -> list[bool]:
        scope.find_sums(entries)
        return [scope.final(entry) for entry in entries]

    try:
        found = _listings.elements(place, (plan, minimal, place.writable), make, news)
    except NotADirectoryError:
        found = tree.lookup(place.space, place.path), []
    if found is None:
        return None
    own, elements = found
    call.check_conditions(own)
    if plan.sums:
        scope.find_sums([own])
    return b"".join((MULTISTATUS, response(base, own, scope, plan, minimal), *elements, _END))


_listings = Listings()


def _listing(place: Place) -> tuple[Entry, list[Entry]]:
    try:
        return tree.listing(place.space, place.path)
    except NotADirectoryError:
        return tree.lookup(place.space, place.path), []


def _responses(
    base: str, entry: Entry, children: Iterable[Entry], scope: Scope, plan: Plan, minimal: bool
) -> Iterator[bytes]:
    try:
        base = escape(base)
        for own in prepared([entry], scope, plan):
            yield response(base, own, scope, plan, minimal)
        for child in prepared(children, scope, plan):
            # Of all that means something in XML, a quoted name still has the ampersand.
            name = quote_path(child.name).replace("&", "&amp;")
            yield response(f"{base}/{name}", child, scope, plan, minimal)
    finally:
        scope.close()


def prepared(entries: Iterable[Entry], scope: Scope, plan: Plan) -> Iterator[Entry]:
    """The entries, after what has to be asked for many of them at once."""
    if not plan.sums:
        yield from entries
        return
    left = iter(entries)
    while block := list(itertools.islice(left, _STREAM_BLOCK)):
        scope.find_sums(block)
        yield from block


def _stream(pieces: Iterator[bytes]) -> Iterator[bytes]:
    block = [MULTISTATUS]
    for piece in pieces:
        block.append(piece)
        if len(block) >= _STREAM_BLOCK:
            yield b"".join(block)
            block = []
    block.append(b"</d:multistatus>")
    yield b"".join(block)


def response(path: str, entry: Entry, scope: Scope, plan: Plan, minimal: bool) -> bytes:
    """One response element: one 200 propstat, then one 404 propstat unless ``minimal``.

    ``path`` is the href without its trailing slash, escaped.
    """
    if entry.kind == "d":
        path += "/"
    found: list[str] = []
    missing: list[str] = []
    for start, end, getter, name in plan.live:
        value = getter(scope, entry)
        if value is None:
            missing.append(name)
        elif value and not plan.names_only:
            found.append(f"{start}>{value}{end}")
        else:
            found.append(start + "/>")
    if plan.dead or plan.all_dead:
        _add_dead(scope.dead(entry), plan, found, missing)
    if plan.all_dead:
        missing = [name for name in missing if name not in LIVE]
    missing += plan.absent
    parts = [f"<d:response><d:href>{path}</d:href>"]
    if found or minimal or not missing:
        parts += ("<d:propstat><d:prop>", *found, "</d:prop>", _OK)
    if missing and not minimal:
        parts += (
            "<d:propstat><d:prop>",
            *(element(name, None) for name in missing),
            "</d:prop>",
            _MISSING,
        )
    parts.append("</d:response>")
    return "".join(parts).encode()


def _add_dead(values: dict[str, bytes], plan: Plan, found: list[str], missing: list[str]) -> None:
    for name in plan.dead:
        value = values.get(name)
        if value is None:
            missing.append(name)
        else:
            found.append(value.decode("utf-8", "replace"))
    if plan.all_dead:
        for name, value in values.items():
            if name not in plan.dead:
                found.append(element(name, None) if plan.names_only else value.decode("utf-8", "replace"))
