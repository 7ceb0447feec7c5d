"""PROPFIND: what is asked, and its answer read as it comes in, in memory that does not grow with it."""

from __future__ import annotations

import calendar
from collections.abc import AsyncIterator
from email.utils import parsedate_tz
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from lxml import etree

from fsd.mount.remote.errors import Refused

_DAV, _OC = "{DAV:}", "{http://owncloud.org/ns}"
ASKED = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop>'
    b"<d:resourcetype/><d:getcontentlength/><d:getlastmodified/><d:getetag/><oc:id/><oc:permissions/>"
    b"</d:prop></d:propfind>"
)
ROOM = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:"><d:prop><d:quota-used-bytes/><d:quota-available-bytes/>'
    b"</d:prop></d:propfind>"
)


class Found(NamedTuple):
    """One resource. `etag` without quotes, `mtime` in seconds since the epoch."""

    name: bytes
    is_dir: bool
    size: int
    mtime: int
    etag: str
    id: str
    permissions: str


async def read(chunks: AsyncIterator[bytes]) -> list[Found]:
    """The resources of a 207, the one that was asked for first. Refused: the document is cut off, or no such document;
    a listing is whole or an error."""
    parser = etree.XMLPullParser(
        events=("end",), tag=f"{_DAV}response", resolve_entities=False, no_network=True
    )
    found: list[Found] = []
    try:
        async for chunk in chunks:
            parser.feed(chunk)
            _take(parser, found)
        parser.close()
        _take(parser, found)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise Refused(502, f"its listing can't be read ({error})") from None
    if not found:
        raise Refused(502, "its listing is empty")
    return found


def _take(parser: etree.XMLPullParser, found: list[Found]) -> None:
    for _, element in parser.read_events():
        if not isinstance(element, etree._Element):
            continue
        found.append(_found(element))
        element.clear()
        parent = element.getparent()
        while parent is not None and len(parent) > 1:
            del parent[0]


def _found(response: etree._Element) -> Found:
    values: dict[str, etree._Element] = {}
    for propstat in response.iterchildren(f"{_DAV}propstat"):
        if " 200 " in f"{propstat.findtext(f'{_DAV}status')} ":
            prop = propstat.find(f"{_DAV}prop")
            values.update((str(each.tag), each) for each in (prop if prop is not None else ()))

    def text(name: str) -> str:
        element = values.get(name)
        return (element.text or "") if element is not None else ""

    kind = values.get(f"{_DAV}resourcetype")
    href = response.findtext(f"{_DAV}href") or ""
    return Found(
        name=unquote_to_bytes(href.rstrip("/").rpartition("/")[2]),
        is_dir=kind is not None and kind.find(f"{_DAV}collection") is not None,
        size=int(text(f"{_DAV}getcontentlength") or 0),
        mtime=_seconds(text(f"{_DAV}getlastmodified")),
        etag=text(f"{_DAV}getetag").strip('"'),
        id=text(f"{_OC}id"),
        permissions=text(f"{_OC}permissions"),
    )


@lru_cache(maxsize=4096)
def _seconds(date: str) -> int:
    parsed = parsedate_tz(date) if date else None
    return calendar.timegm((*parsed[:6], 0, 1, 0)) - (parsed[9] or 0) if parsed is not None else 0


def room(body: bytes) -> tuple[int, int] | None:
    """(used, available) bytes of an answer to `ROOM`; None where the server does not say."""
    try:
        root = etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError:
        return None
    used, free = (root.findtext(f".//{_DAV}quota-{word}-bytes") for word in ("used", "available"))
    try:
        return int(used or 0), int(free or -3)
    except ValueError:
        return None
