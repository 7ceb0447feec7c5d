"""Reading XML request bodies: bounded, without DTD or entities; and the few pieces of writing they share."""

from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from dav.http import limits
from dav.http.errors import HttpError

DAV = "{DAV:}"
OC = "{http://owncloud.org/ns}"
NC = "{http://nextcloud.org/ns}"
PREFIXES = {"DAV:": "d", "http://owncloud.org/ns": "oc", "http://nextcloud.org/ns": "nc"}
MULTISTATUS = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<d:multistatus xmlns:d="DAV:" '
    b'xmlns:oc="http://owncloud.org/ns" xmlns:nc="http://nextcloud.org/ns">'
)
XML_TYPE = ("Content-Type", "application/xml; charset=utf-8")


def read_body(environ: dict[str, Any]) -> bytes:
    """The request body; 413 above ``limits.XML_BODY_BYTES``.  It can be read again."""
    known: bytes | None = environ.get("fsd.body")
    if known is not None:
        return known
    limit = limits.XML_BODY_BYTES
    announced = environ.get("CONTENT_LENGTH")
    if announced and int(announced) > limit:
        raise HttpError(413, "The request body is too large.")
    body: bytes = environ["wsgi.input"].read(limit + 1)
    if len(body) > limit:
        raise HttpError(413, "The request body is too large.")
    environ["fsd.body"] = body
    return body


def parse(body: bytes) -> "etree._Element":
    """The root element.  400 for anything that is not well-formed, or has a document type."""
    parser = etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(body, parser)
    except (etree.XMLSyntaxError, ValueError):
        raise HttpError(400, "The request body is not well-formed XML.") from None
    if root.getroottree().docinfo.doctype:  # type: ignore[union-attr]
        raise HttpError(400, "The request body must not have a document type.")
    return root


def elements(parent: "etree._Element") -> list["etree._Element"]:
    """The child elements; text between them is ignored, as clients leave odd things there."""
    return [child for child in parent if isinstance(child.tag, str)]


def open_tag(name: str) -> tuple[str, str]:
    """(start tag without its closing bracket, end tag) of a Clark name, declaring foreign namespaces inline."""
    namespace, _, local = name[1:].rpartition("}") if name.startswith("{") else ("", "", name)
    prefix = PREFIXES.get(namespace)
    if prefix is not None:
        return f"<{prefix}:{local}", f"</{prefix}:{local}>"
    if not namespace:
        return f"<{local}", f"</{local}>"
    return f"<x:{local} xmlns:x={quoteattr(namespace)}", f"</x:{local}>"


def element(name: str, inner: str | None) -> str:
    """``<d:name>inner</d:name>``, or an empty element."""
    start, end = open_tag(name)
    return f"{start}>{inner}{end}" if inner else f"{start}/>"


def href(path: str) -> str:
    return f"<d:href>{escape(path)}</d:href>"


def listed_response(path: str, values: Mapping[str, str], asked: Iterable[str], minimal: bool) -> bytes:
    """A response element of something that has exactly these values (XML text): what was asked for and is there, in
    one 200 propstat; unless ``minimal`` what is not, in a 404 one after it."""
    names = list(asked)
    found = "".join(element(name, values[name]) for name in names if name in values)
    missing = "".join(element(name, None) for name in names if name not in values)
    text = f"<d:propstat><d:prop>{found}</d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat>"
    if missing and not minimal:
        text += (
            f"<d:propstat><d:prop>{missing}</d:prop><d:status>HTTP/1.1 404 Not Found</d:status></d:propstat>"
        )
    return f"<d:response>{href(path)}{text}</d:response>".encode()
