"""PROPPATCH: all or nothing, dead properties and the few live ones that clients may set."""

from dataclasses import dataclass, field

from lxml import etree

from dav.http import limits
from dav.http.dates import NANO, parse_mtime
from dav.http.errors import HttpError, from_os_error, status_line
from dav.webdav.call import Call, Reply, require_writable
from dav.webdav.properties import IGNORED_WRITES, LIVE, MTIME_WRITES
from dav.webdav.xml import DAV, MULTISTATUS, OC, XML_TYPE, element, elements, href, parse, read_body
from fsd.core import marks, operations, properties, tree
from fsd.core.tree import Entry

_FAVORITE = f"{OC}favorite"


@dataclass(slots=True)
class _Changes:
    """What the request wants, in order of names; ``refused`` maps a name to its status."""

    names: dict[str, None] = field(default_factory=dict)
    dead: dict[str, bytes | None] = field(default_factory=dict)
    mtime_ns: int | None = None
    favorite: bool | None = None
    refused: dict[str, int] = field(default_factory=dict)


def handle(call: Call) -> Reply:
    """207 with one propstat a status: 200 for all, or the failures with their status and 424 for the rest."""
    place = call.place
    if call.environ.get("HTTP_DEPTH", "0").strip() != "0":
        raise HttpError(400, "PROPPATCH takes only Depth 0.")
    changes = _parse(read_body(call.environ))
    entry = tree.lookup(place.space, place.path)
    call.check_conditions(entry)
    if changes.names.keys() - {_FAVORITE}:
        require_writable(place)
        call.locks.check(place.path, call.tokens, call.user.id)
    elif place.record.read_only:
        # What somebody likes is their own: who may look may say so, and no lock is about it.
        raise HttpError(403, "This space is read-only.")
    if not changes.refused:
        _apply(call, changes, entry)
    path = place.href + ("/" if entry.kind == "d" else "")
    body = MULTISTATUS + _reply_xml(path, changes) + b"</d:multistatus>"
    return Reply(207, [XML_TYPE], [body])


def _parse(body: bytes) -> _Changes:
    root = parse(body)
    if root.tag != f"{DAV}propertyupdate":
        raise HttpError(400, "The request body must be a propertyupdate element.")
    changes = _Changes()
    for action in elements(root):
        if action.tag not in (f"{DAV}set", f"{DAV}remove"):
            continue
        for prop in elements(action):
            if prop.tag != f"{DAV}prop":
                raise HttpError(400, "A set or remove element holds prop elements.")
            for item in elements(prop):
                _add(changes, item, removing=action.tag == f"{DAV}remove")
    if not changes.names:
        raise HttpError(400, "The request changes no property.")
    if len(changes.names) > limits.PROPERTIES:
        raise HttpError(400, f"At most {limits.PROPERTIES} properties can be changed at once.")
    return changes


def _add(changes: _Changes, item: "etree._Element", *, removing: bool) -> None:
    name = str(item.tag)
    changes.names[name] = None
    if name in MTIME_WRITES:
        mtime = None if removing else parse_mtime(str(item.xpath("string()")))
        if mtime is None:
            changes.refused[name] = 409
        else:
            changes.mtime_ns = mtime
    elif name in IGNORED_WRITES:
        pass
    elif name == _FAVORITE:
        changes.favorite = not removing and str(item.xpath("string()")).strip().lower() in (
            "1",
            "true",
            "yes",
        )
    elif name in LIVE or name.startswith((DAV, marks.PRIVATE)):
        changes.refused[name] = 403
    elif removing:
        changes.dead[name] = None
    else:
        item.tail = None
        _keep_language(item)
        changes.dead[name] = etree.tostring(item, encoding="utf-8", xml_declaration=False)


def _keep_language(item: "etree._Element") -> None:
    """The language in scope belongs to the value (RFC 4918 section 4.3)."""
    name = "{http://www.w3.org/XML/1998/namespace}lang"
    for each in (item, *item.iterancestors()):
        language = each.get(name)
        if language is not None:
            item.set(name, language)
            return


def _apply(call: Call, changes: _Changes, entry: Entry) -> None:
    """Make the changes; what fails is noted as refused, with nothing changed."""
    place = call.place
    if changes.mtime_ns is not None:
        operations.set_mtime(place.space, place.path, changes.mtime_ns // NANO * NANO)
    if not changes.dead and changes.favorite is None:
        return
    own = marks.favorite_name(call.user.id)
    wanted = dict(changes.dead)
    if changes.favorite is not None:
        wanted[own] = b"1" if changes.favorite else None
    try:
        properties.update(
            place.space,
            place.path,
            {name: value for name, value in wanted.items() if value is not None},
            {name for name, value in wanted.items() if value is None},
        )
    except OSError as error:
        if changes.mtime_ns is not None:
            operations.set_mtime(place.space, place.path, entry.mtime_ns)
        status = from_os_error(error).status
        if status in (404, 503):
            raise
        names = [_FAVORITE if name == own else name for name in wanted]
        changes.refused.update(dict.fromkeys(names, status))


def _reply_xml(path: str, changes: _Changes) -> bytes:
    groups: dict[int, list[str]] = {}
    for name in changes.names:
        status = changes.refused.get(name, 424 if changes.refused else 200)
        groups.setdefault(status, []).append(name)
    parts = [f"<d:response>{href(path)}"]
    for status, names in sorted(groups.items()):
        props = "".join(element(name, None) for name in names)
        error = "<d:error><d:cannot-modify-protected-property/></d:error>" if status == 403 else ""
        parts.append(
            f"<d:propstat><d:prop>{props}</d:prop><d:status>HTTP/1.1 {status_line(status)}</d:status>"
            f"{error}</d:propstat>"
        )
    parts.append("</d:response>")
    return "".join(parts).encode()
