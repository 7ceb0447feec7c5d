"""LOCK and UNLOCK over the space's lock table: one table for all aliases, processes and restarts."""

import re

from lxml import etree

from dav.http.errors import HttpError
from dav.webdav.call import Call, Reply, lookup_or_none
from dav.webdav.properties import active_lock
from dav.webdav.xml import DAV, XML_TYPE, elements, parse, read_body
from fsd.core.content import Upload
from fsd.core.errors import PreconditionFailed
from fsd.core.locks import MAX_TIMEOUT_S, Lock, LockUnknown, PathLocked

_SECONDS = re.compile(r"Second-(\d{1,18})\Z", re.IGNORECASE)
_MISMATCH = "lock-token-matches-request-uri"
_MAX_OWNER = 8192


def lock(call: Call) -> Reply:
    """200, or 201 when the lock made an empty file; 423 when another lock is in the way."""
    place = call.writable_place
    depth = call.environ.get("HTTP_DEPTH", "infinity").strip().lower()
    if depth not in ("0", "infinity"):
        raise HttpError(400, "The Depth header must be 0 or infinity.")
    body = read_body(call.environ)
    if not body.strip():
        return _refresh(call)
    exclusive, owner = _parse(body)
    entry = lookup_or_none(place)
    call.check_conditions(entry)
    if entry is None:
        call.locks.check(place.path, call.tokens, call.user.id, binding=True)
    try:
        granted = call.locks.acquire(
            place.path,
            principal=call.user.id,
            exclusive=exclusive,
            depth="infinity" if depth == "infinity" else "0",
            owner=owner,
            timeout=_timeout(call),
        )
    except PathLocked as error:
        raise HttpError(423, str(error), "no-conflicting-lock", about=place.href_of(error.path)) from None
    created = False
    try:
        if entry is None:
            created = _make_empty(call)
        return _reply(call, granted, 201 if created else 200, new=True)
    except BaseException:
        # Whatever fails after the grant must not leave a lock that nobody knows the token of.
        call.locks.release(granted.token, place.path)
        raise


def _make_empty(call: Call) -> bool:
    """An empty file for a lock on an unmapped URL (RFC 4918 section 7.3); False if it is there meanwhile."""
    place = call.place
    if not place.path or place.slash:
        raise HttpError(409, "Only a file's address can be locked before it exists.")
    try:
        with Upload(place.space, place.path, length=0, must_not_exist=True) as upload:
            upload.commit()
    except (FileExistsError, PreconditionFailed):
        return False
    return True


def _parse(body: bytes) -> tuple[bool, bytes]:
    """(exclusive, the owner element as XML)."""
    root = parse(body)
    if root.tag != f"{DAV}lockinfo":
        raise HttpError(400, "The request body must be a lockinfo element.")
    scopes = [str(child.tag) for scope in root.findall(f"{DAV}lockscope") for child in elements(scope)]
    types = [str(child.tag) for kind in root.findall(f"{DAV}locktype") for child in elements(kind)]
    if types != [f"{DAV}write"] or scopes not in ([f"{DAV}exclusive"], [f"{DAV}shared"]):
        raise HttpError(400, "A lock has one scope, exclusive or shared, and the type write.")
    owner = root.find(f"{DAV}owner")
    if owner is None:
        return scopes == [f"{DAV}exclusive"], b""
    owner.tail = None
    text = etree.tostring(owner, encoding="utf-8", xml_declaration=False)
    if len(text) > _MAX_OWNER:
        raise HttpError(400, "The owner of the lock is too long.")
    return scopes == [f"{DAV}exclusive"], text


def _timeout(call: Call) -> int | None:
    """The first understood timeout of the header; None leaves it to the table."""
    for part in call.environ.get("HTTP_TIMEOUT", "").split(","):
        part = part.strip()
        if part.lower() == "infinite":
            return MAX_TIMEOUT_S
        match = _SECONDS.match(part)
        if match is not None:
            return min(int(match[1]), MAX_TIMEOUT_S)
    return None


def _refresh(call: Call) -> Reply:
    tokens = call.tokens
    if len(tokens) != 1:
        raise HttpError(400, "A refresh names exactly one lock in the If header.")
    (token,) = tokens
    known = call.locks.get(token)
    if known is not None and known.principal != call.user.id:
        raise HttpError(403, "The lock belongs to another user.")
    try:
        return _reply(call, call.locks.refresh(token, call.place.path, _timeout(call)), 200, new=False)
    except LockUnknown as error:
        raise HttpError(412, str(error), _MISMATCH) from None


def _reply(call: Call, granted: Lock, status: int, *, new: bool) -> Reply:
    active = active_lock(granted, call.place.href_of(granted.path))
    body = (
        '<?xml version="1.0" encoding="utf-8"?>\n<d:prop xmlns:d="DAV:"><d:lockdiscovery>'
        f"{active}</d:lockdiscovery></d:prop>"
    ).encode()
    headers = [XML_TYPE]
    if new:
        headers.append(("Lock-Token", f"<{granted.token}>"))
    return Reply(status, headers, [body])


def unlock(call: Call) -> Reply:
    """204; 409 when the token locks nothing here, 403 for another user's lock."""
    place = call.writable_place
    header = call.environ.get("HTTP_LOCK_TOKEN", "").strip()
    if not (header.startswith("<") and header.endswith(">")):
        raise HttpError(400, "The Lock-Token header is missing or malformed.")
    token = header[1:-1]
    if call.is_conditional or call.if_header is not None:
        call.check_conditions(lookup_or_none(place))
    known = call.locks.get(token)
    if known is not None and known.covers(place.path) and known.principal != call.user.id:
        raise HttpError(403, "The lock belongs to another user.")
    try:
        call.locks.release(token, place.path)
    except LockUnknown as error:
        raise HttpError(409, str(error), _MISMATCH) from None
    return Reply(204)
