"""Chunked uploads as the ownCloud and Nextcloud clients do them: MKCOL a folder, PUT chunks, MOVE `.file` into place.

``/dav/uploads/USER/NAME/CHUNK``, also below ``/remote.php``. Chunks are joined in the byte-wise order of their names,
whatever these are. They lie in the user's personal space; the file may go into any space of theirs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dav.http import wanted
from dav.http.dates import http_date
from dav.http.errors import HttpError
from dav.uploads import finishing
from dav.view import View
from dav.webdav import beside
from dav.webdav.call import Body, Call, Reply, lookup_or_none
from dav.webdav.xml import DAV, OC
from fsd.core import partials, uploads
from fsd.core.accounts import User
from fsd.core.names import check_new_name
from fsd.core.partials import Part, Partial, Terms
from fsd.core.space import Space

_PREFIXES = beside.Prefixes("/dav/uploads")
_WHOLE = b".file"
_ALLOW = ("Allow", "OPTIONS, PROPFIND, MKCOL, PUT, MOVE, DELETE")
_ALLOW_ABOVE = ("Allow", "OPTIONS, PROPFIND")


def is_here(path: str) -> bool:
    """Whether a URL path (still encoded) is one of chunked uploads."""
    return "/uploads/" in path and _PREFIXES.lead(path)


@dataclass(slots=True)
class _Request:
    """One request: ``name`` the client's own name of the upload, ``part`` the chunk."""

    call: Call
    space: Space
    href: str
    name: str
    part: bytes | None

    @property
    def environ(self) -> dict[str, Any]:
        return self.call.environ

    def partial(self) -> Partial:
        try:
            return partials.get(self.space, self.call.user.id, name=self.name)
        except FileNotFoundError:
            raise HttpError(404, "There is no such upload (any more).") from None


def answer(environ: dict[str, Any], user: User, view: View) -> Reply | tuple[Call, Body]:
    """The reply, or the chunk that was agreed to. HttpError, OSError."""
    address = beside.address(environ, _PREFIXES)
    if len(address.names) == 1:
        return _of_user(address, environ, user, view)
    request = _resolve(address, environ, user, view)
    handler = _METHODS.get(environ["REQUEST_METHOD"])
    if handler is None:
        raise HttpError(405, "Chunks are put here, and moved into place together.", headers=(_ALLOW,))
    return handler(request)


def _enter(address: beside.Address, user: User, view: View) -> Space:
    owner = view.user(address.text(0))
    if owner is None or owner.id != user.id or len(address.names) > 3:
        raise beside.nothing_here()
    return beside.enter(view, user, view.personal(user))[0]


def _of_user(address: beside.Address, environ: dict[str, Any], user: User, view: View) -> Reply:
    """What is above the uploads: a collection that lists them."""
    space = _enter(address, user, view)
    if environ["REQUEST_METHOD"] == "OPTIONS":
        return beside.options(_ALLOW_ABOVE)
    if environ["REQUEST_METHOD"] != "PROPFIND":
        raise HttpError(405, "An upload begins with MKCOL of a name below this.", headers=(_ALLOW_ABOVE,))
    wanted = beside.Listing(environ)
    listed: list[tuple[str, dict[str, str]]] = []
    total, latest, etags = 0, 0.0, hashlib.blake2b(user.id.encode(), digest_size=16)
    for name, partial in _under_way(space, user):
        try:
            size = uploads.size(space, partial)
        except FileNotFoundError:
            continue  # it has ended meanwhile
        values = {f"{DAV}resourcetype": "<d:collection/>", **_common(partial, b"", size)}
        listed.append((f"{address.href(1)}/{quote(name)}/", values))
        total, latest = total + size, max(latest, partial.created)
        etags.update(values[f"{DAV}getetag"].encode())
    own = {
        f"{DAV}resourcetype": "<d:collection/>",
        **_values(
            hashlib.blake2b(user.id.encode(), digest_size=16).hexdigest(), etags.hexdigest(), latest, total
        ),
    }
    return wanted.reply([(f"{address.href(1)}/", own), *(listed if wanted.deep else [])])


def _under_way(space: Space, user: User) -> list[tuple[str, Partial]]:
    """The user's uploads by the names that MKCOL gave them: those of version 1 have a slash, those of TUS none."""
    now, own = time.time(), (each for each in partials.every(space) if each.user_id == user.id)
    return [(each.name, each) for each in own if each.name and each.name[0] != "/" and each.expires > now]


def _resolve(address: beside.Address, environ: dict[str, Any], user: User, view: View) -> _Request:
    space = _enter(address, user, view)
    name = address.names[1]
    check_new_name(name)
    part = address.names[2] if len(address.names) > 2 else None
    return _Request(address.call(environ, user, view, 2), space, address.href(2), name.decode(), part)


def _options(_: _Request) -> Reply:
    return beside.options(_ALLOW)


def _mkcol(request: _Request) -> Reply:
    """201, and the announced bytes are reserved; 405 if there is one of that name; 507."""
    if request.part is not None:
        raise HttpError(409, "An upload has no folders in it.")
    if request.call.has_body():
        raise HttpError(415, "MKCOL does not take a body.")
    replaces = 0
    if "HTTP_DESTINATION" in request.environ:
        target = finishing.target_call(request.call, request.call.destination())
        entry = lookup_or_none(target.place)
        replaces = (
            entry.size if entry is not None and target.place.record.id == request.space.record.id else 0
        )
    total = _total(request)
    try:
        uploads.begin(request.space, request.call.user.id, name=request.name, length=total, replaces=replaces)
    except FileExistsError:
        raise HttpError(405, "There is an upload of that name already.") from None
    return Reply(201, [("Content-Length", "0")])


def _total(request: _Request) -> int | None:
    text = request.environ.get("HTTP_OC_TOTAL_LENGTH")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HttpError(400, "OC-Total-Length is not a number of bytes.")
    limit = request.environ.get("fsd.max_body")
    if limit is not None and int(text) > limit:
        raise HttpError(413, f"At most {limit} bytes can be uploaded.")
    return int(text)


class _Chunk:
    """A chunk on its way."""

    def __init__(self, request: _Request, partial: Partial, part: Part) -> None:
        self._request, self._partial, self._part = request, partial, part
        self.feed = part.write

    def finish(self) -> Reply:
        new = self._part.close()
        partials.touch(self._request.space, self._partial)
        return Reply(201 if new else 204, [("Content-Length", "0")])

    def abort(self) -> None:
        self._part.abort()


def _put(request: _Request) -> tuple[Call, Body]:
    if request.part is None:
        raise HttpError(405, "Chunks are put into the upload.", headers=(_ALLOW,))
    partial = request.partial()
    with partials.opened(request.space, partial) as directory:
        partials.check_room_for_part(directory)
        return request.call, _Chunk(request, partial, Part(request.space, directory, request.part))


def _propfind(request: _Request) -> Reply:
    """What has arrived, so that a client goes on where it was."""
    wanted = beside.Listing(request.environ)
    partial = request.partial()
    with partials.opened(request.space, partial) as directory:
        found = partials.parts(directory)
    if request.part is not None:
        found = [each for each in found if each[0] == request.part]
        if not found:
            raise HttpError(404, "There is no such chunk.")
    own = {f"{DAV}resourcetype": "<d:collection/>", **_common(partial, b"", sum(size for _, size in found))}
    listed = [(f"{request.href}/", own)] if request.part is None else []
    if wanted.deep or request.part is not None:
        for name, size in found:
            values = {
                f"{DAV}resourcetype": "",
                f"{DAV}getcontentlength": str(size),
                **_common(partial, name, size),
            }
            listed.append((f"{request.href}/{quote(name)}", values))
    return wanted.reply(listed)


def _common(partial: Partial, name: bytes, size: int) -> dict[str, str]:
    ident = hashlib.blake2b(partial.id.encode() + b"/" + name, digest_size=16).hexdigest()
    etag = hashlib.blake2b(f"{ident}.{size}".encode(), digest_size=16).hexdigest()
    return _values(ident, etag, partial.created, size)


def _values(ident: str, etag: str, modified: float, size: int) -> dict[str, str]:
    return {
        f"{DAV}getetag": f'"{etag}"',
        f"{DAV}getlastmodified": http_date(int(modified)),
        f"{OC}id": ident,
        f"{OC}fileid": ident,
        f"{OC}permissions": "",
        f"{OC}size": str(size),
    }


def _move(request: _Request) -> Reply:
    """Join the chunks and publish the file: 201 or 204, as a PUT of the whole would."""
    if request.part != _WHOLE:
        raise HttpError(403, "Only '.file', the whole of the chunks, is moved.")
    partial = request.partial()
    target = finishing.target_call(request.call, request.call.destination())
    entry = lookup_or_none(target.place)
    target.check_conditions(entry)
    if not request.call.overwrite() and entry is not None:
        raise HttpError(412, "Something is at the Destination, and Overwrite is F.")
    total = _total(request)
    if total is not None and total != uploads.size(request.space, partial):
        raise HttpError(400, "The chunks are not as many bytes as announced; nothing was changed.")
    conditional = target.if_header is not None or "HTTP_IF_MATCH" in request.environ
    terms = Terms(
        mtime_ns=wanted.mtime(request.environ),
        checksum=wanted.checksum(request.environ),
        if_match=(entry.etag,) if entry is not None and conditional else None,
        must_not_exist=not request.call.overwrite(),
    )
    created, headers = finishing.publish(target, request.space, partial, terms)
    return Reply(201 if created else 204, headers)


def _delete(request: _Request) -> Reply:
    partial = request.partial()
    if request.part is None:
        partials.drop(request.space, partial)
        return Reply(204)
    with partials.opened(request.space, partial) as directory:
        partials.drop_part(request.space, directory, request.part)
    return Reply(204)


_METHODS: dict[str, Callable[[_Request], Reply | tuple[Call, Body]]] = {
    "OPTIONS": _options,
    "MKCOL": _mkcol,
    "PUT": _put,
    "PROPFIND": _propfind,
    "MOVE": _move,
    "DELETE": _delete,
}
