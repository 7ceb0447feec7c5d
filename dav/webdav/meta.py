"""What is known of a file by its id: its path, and its versions to list, read, restore and delete.

``/dav/meta/FILE-ID``, ``/dav/meta/FILE-ID/v`` and ``/dav/meta/FILE-ID/v/KEY``, also below ``/remote.php``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from dav.http.dates import NANO, http_date
from dav.http.errors import HttpError
from dav.routes import Place
from dav.uploads.finishing import check_locks
from dav.view import View
from dav.webdav import beside, get
from dav.webdav.call import Call, Reply, entry_headers, require_writable
from dav.webdav.properties import content_type
from dav.webdav.xml import DAV, OC
from fsd.core import reverting, tree, versions
from fsd.core.accounts import User
from fsd.core.names import split, to_text
from fsd.core.tree import Entry
from fsd.core.versions import Version
from fsd.service import logs

_PREFIXES = beside.Prefixes("/dav/meta")
_ALLOW = ("Allow", "OPTIONS, GET, HEAD, PROPFIND, COPY, DELETE")


def is_here(path: str) -> bool:
    """Whether a URL path (still encoded) is one of these."""
    return "/meta/" in path and _PREFIXES.lead(path)


@dataclass(slots=True)
class _Request:
    """A request on a file by its id. ``below``: what of its versions, () for the file itself."""

    call: Call
    place: Place
    node_id: str
    href: str
    below: tuple[bytes, ...]

    @property
    def key(self) -> str:
        """The version's key; 404 for what is no version."""
        if len(self.below) != 2 or self.below[0] != b"v":
            raise HttpError(405, "Only a version can be read, restored and deleted here.", headers=(_ALLOW,))
        return self.below[1].decode("utf-8", "replace")


def answer(environ: dict[str, Any], user: User, view: View) -> Reply:
    """The reply. HttpError, OSError."""
    request = _resolve(environ, user, view)
    handler = _METHODS.get(environ["REQUEST_METHOD"])
    if handler is None:
        raise HttpError(405, "Versions can be listed, read, restored and deleted.", headers=(_ALLOW,))
    return handler(request)


def _resolve(environ: dict[str, Any], user: User, view: View) -> _Request:
    address = beside.address(environ, _PREFIXES)
    space_id, mark, node_id = address.text(0).partition("!")
    space, role = beside.enter_by_id(view, user, space_id)
    below = address.names[1:]
    if not mark or len(below) > 2 or (below and below[0] != b"v"):
        raise beside.nothing_here()
    path = tree.path_of(space, node_id)
    root = f"/dav/spaces/{space.record.id}"
    call = address.call(environ, user, view, 1)
    return _Request(call, Place(space, role, path, root, root, b"", False), node_id, address.href(1), below)


def _options(_: _Request) -> Reply:
    return beside.options(_ALLOW)


def _propfind(request: _Request) -> Reply:
    wanted = beside.Listing(request.call.environ)
    if not request.below:
        listed = [(f"{request.href}/", _own(request, "meta"))]
    elif len(request.below) == 2:
        fd, version = _opened(request)
        os.close(fd)
        listed = [(f"{request.href}/v/{version.key}", _values(request, version))]
    else:
        listed = [(f"{request.href}/v/", _own(request, "versions"))]
        if wanted.deep:
            for version in versions.items(request.place.space, request.node_id):
                listed.append((f"{request.href}/v/{version.key}", _values(request, version)))
    return wanted.reply(listed)


def _own(request: _Request, what: str) -> dict[str, str]:
    found = versions.items(request.place.space, request.node_id)
    path = to_text(request.place.path)
    ident = request.place.file_id(request.node_id)
    return {
        f"{DAV}resourcetype": "<d:collection/>",
        f"{DAV}getetag": f'"{_digest(what, request.node_id, path, *(version.key for version in found))}"',
        f"{DAV}getlastmodified": http_date(max((version.mtime_ns for version in found), default=0) // NANO),
        f"{OC}id": ident,
        f"{OC}fileid": ident,
        f"{OC}permissions": "",
        f"{OC}size": str(sum(version.size for version in found)),
        f"{OC}meta-path-for-user": escape("/" + path),
    }


def _values(request: _Request, version: Version) -> dict[str, str]:
    ident = f"{request.place.file_id(request.node_id)}.{version.key}"
    return {
        f"{DAV}resourcetype": "",
        f"{DAV}getcontentlength": str(version.size),
        f"{DAV}getcontenttype": content_type(split(request.place.path)[1]),
        f"{DAV}getlastmodified": http_date(version.mtime_ns // NANO),
        f"{DAV}getetag": f'"{versions.etag_of(request.node_id, version.key)}"',
        f"{OC}id": ident,
        f"{OC}fileid": ident,
        f"{OC}permissions": "",
        f"{OC}size": str(version.size),
    }


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _opened(request: _Request) -> tuple[int, Version]:
    try:
        return versions.open_version(request.place.space, request.node_id, request.key)
    except FileNotFoundError:
        raise HttpError(404, "There is no such version (any more).") from None


def _get(request: _Request) -> Reply:
    """The bytes as they were, ranges included."""
    fd, version = _opened(request)
    try:
        found = os.fstat(fd)
        path = request.place.path
        entry = Entry(
            path, split(path)[1], "f", request.node_id, version.size, versions.etag_of(request.node_id, version.key),
            version.mtime_ns, found.st_ctime_ns, found.st_mode, found.st_uid, found.st_gid, 1, found.st_ino,
            unreadable=False,
        )  # fmt: skip
        request.call.check_conditions(entry, reading=True)
        return get.send(request.call, request.place, fd, entry)
    except BaseException:
        os.close(fd)
        raise


def _head(request: _Request) -> Reply:
    reply = _get(request)
    close = getattr(reply.body, "close", None)
    if close is not None:
        close()
    return Reply(reply.status, reply.headers)


def _copy(request: _Request) -> Reply:
    """Restore onto the file itself: 204, the id stays, and what it held becomes a version."""
    key, call = request.key, request.call
    target = call.destination()
    require_writable(target)
    if (target.record.id, target.path) != (request.place.record.id, request.place.path):
        raise HttpError(403, "A version is restored onto its own file.")
    onto = Call(call.environ, call.user, call.router, target)
    before = tree.lookup(target.space, target.path)
    onto.check_conditions(before)
    check_locks(onto)
    os.close(_opened(request)[0])
    entry = reverting.restore(target.space, request.node_id, key, target.path, before.etag)
    _audit(request, "version restore")
    return Reply(204, entry_headers(target, entry))


def _delete(request: _Request) -> Reply:
    key = request.key
    require_writable(request.place)
    fd, version = _opened(request)
    os.close(fd)
    request.call.check_state(versions.etag_of(request.node_id, key), version.mtime_ns // NANO)
    versions.remove(request.place.space, request.node_id, key)
    _audit(request, "version delete")
    return Reply(204)


def _audit(request: _Request, action: str) -> None:
    environ = request.call.environ
    logs.audit(
        request.call.user.name, action, "/" + to_text(request.place.path), space=request.place.record.id,
        version=request.key, address=environ["REMOTE_ADDR"],
    )  # fmt: skip


_METHODS: dict[str, Callable[[_Request], Reply]] = {
    "OPTIONS": _options,
    "PROPFIND": _propfind,
    "GET": _get,
    "HEAD": _head,
    "COPY": _copy,
    "DELETE": _delete,
}
