"""The Graph API below a drive, and its tags: who may see a space may read, who may write there may tag."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dav.discovery import documents, endpoints
from dav.graph.items import Items
from dav.http.errors import HttpError
from dav.http.target import request_path, segments
from dav.routes import Place
from dav.webdav import beside
from dav.webdav.call import Reply, require_writable
from dav.webdav.xml import read_body
from fsd.core import marks, tree
from fsd.core.locks import LockTable
from fsd.core.names import split, to_text
from fsd.service import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from dav.view import View
    from fsd.core.accounts import User

    Environ = dict[str, Any]
_VERSIONS = ("/graph/v1.0/", "/graph/v1beta1/")
_TAGS = "extensions/org.libregraph/tags"
_DRIVE = re.compile(r"(?:me/drive|drives/([^/]+))(/root|/items/[^/]+)?(/children)?")
_NODE = re.compile(r"[0-9a-f]{32}")
_MOST_TAGGED = 100
DOWNLOAD_S = 3600
"""How long the address of a download holds, in seconds."""


def is_here(path: str) -> bool:
    """Whether a URL path (still encoded) is one of these."""
    rest = _rest(path)
    return rest == _TAGS or (rest is not None and _DRIVE.fullmatch(rest) is not None)


def _rest(path: str) -> str | None:
    for prefix in _VERSIONS:
        if path.startswith(prefix):
            return path[len(prefix) :].rstrip("/")
    return None


def answer(environ: Environ, user: User, view: View) -> Reply:
    """The reply. HttpError, OSError."""
    rest = _rest(request_path(environ["REQUEST_URI"])) or ""
    if rest == _TAGS:
        return _tags(environ, user, view)
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        raise HttpError(405, "This can only be read.", headers=(("Allow", "GET, HEAD"),))
    found = _DRIVE.fullmatch(rest)
    assert found is not None
    place = _drive(user, view, found[1])
    base = endpoints.base_url(environ)
    item, children = found[2], found[3] is not None
    if item is None:
        if children:
            raise beside.nothing_here()
        return endpoints.json_reply(environ, documents.drive(place.record, user, view, base))
    if item != "/root":
        place = _item(place, item.removeprefix("/items/"))
    if children:
        return endpoints.json_reply(environ, {"value": _children(place, base)})
    return endpoints.json_reply(environ, _document(environ, user, place, base))


def _drive(user: User, view: View, spelled: str | None) -> Place:
    """The root of a drive; `spelled` is its id as in the URL, None for the user's own space."""
    if spelled is None:
        space, role = beside.enter(view, user, view.personal(user))
    else:
        (name,) = segments(spelled)
        space, role = beside.enter_by_id(view, user, name.decode("utf-8", "replace"))
    href = f"/dav/spaces/{space.record.id}"
    return Place(space, role, b"", href, href, b"", False)


def _item(root: Place, spelled: str) -> Place:
    """Something in the drive by its id: with or without that of the space, which alone is its root."""
    (name,) = segments(spelled)
    ident = name.decode("utf-8", "replace")
    if ident == root.record.id:
        return root
    space_id, mark, node = ident.rpartition("!")
    if (mark and space_id != root.record.id) or not _NODE.fullmatch(node):
        raise beside.nothing_here()
    return Place(root.space, root.role, tree.path_of(root.space, node), root.href, root.root_href, b"", False)


def _children(place: Place, base: str) -> list[dict[str, Any]]:
    try:
        folder, entries = tree.listing(place.space, place.path)
    except NotADirectoryError:
        raise HttpError(400, "This is not a folder.") from None
    items = Items(place.space, base)
    return [items.document(entry, folder) for entry in entries]


def _document(environ: Environ, user: User, place: Place, base: str) -> dict[str, Any]:
    entry = tree.lookup(place.space, place.path)
    parent = tree.lookup(place.space, split(place.path)[0]) if place.path else None
    items = Items(place.space, base)
    found = items.document(entry, parent)
    if entry.kind == "f":
        # One signature takes some milliseconds: the items of a listing have none.
        sign: Callable[[User, str, int], str] = environ["fsd.sign"]
        found["@microsoft.graph.downloadUrl"] = sign(user, items.url(entry), DOWNLOAD_S)
    return found


# -- tags -------------------------------------------------------------------------------------------------------------


def _tags(environ: Environ, user: User, view: View) -> Reply:
    """GET: all tags in the user's spaces. PUT, DELETE: add or remove those of a file or folder."""
    method = environ["REQUEST_METHOD"]
    if method in ("GET", "HEAD"):
        return endpoints.json_reply(environ, {"value": sorted(_all_tags(user, view))})
    if method not in ("PUT", "DELETE"):
        raise HttpError(
            405, "Tags are read, put and deleted.", headers=(("Allow", "GET, HEAD, PUT, DELETE"),)
        )
    ident, tags = _wanted(read_body(environ))
    space_id, mark, node = ident.partition("!")
    space, role = beside.enter_by_id(view, user, space_id)
    href = f"/dav/spaces/{space.record.id}"
    place = Place(space, role, b"", href, href, b"", False)
    if mark:
        place = _item(place, node)
    require_writable(place)
    LockTable(space).check(place.path, frozenset(), user.id)
    adding = method == "PUT"
    marks.change_tags(space, place.path, tags if adding else [], [] if adding else tags)
    logs.audit(
        user.name, "tag" if adding else "untag", "/" + to_text(place.path), space=space.record.id,
        tags=",".join(tags), address=environ["REMOTE_ADDR"],
    )  # fmt: skip
    return Reply(200, [("Content-Length", "0")])


def _all_tags(user: User, view: View) -> set[str]:
    found: set[str] = set()

    def note(values: Any) -> bool:
        found.update(marks.tags_of(values))
        return False

    for record, _ in view.visible(user):
        for _path in marks.marked(view.space(record), b"", note):
            pass
    return found


def _wanted(body: bytes) -> tuple[str, list[str]]:
    """The id and the tags of a request."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise HttpError(400, "The request body is not JSON.") from None
    ident = asked.get("resourceId") if isinstance(asked, dict) else None
    tags = asked.get("tags") if isinstance(asked, dict) else None
    if not isinstance(ident, str) or not isinstance(tags, list) or not 0 < len(tags) <= _MOST_TAGGED:
        raise HttpError(400, "The request names a resourceId and its tags.")
    if not all(isinstance(tag, str) for tag in tags):
        raise HttpError(400, "Tags are text.")
    return ident, tags


def error_reply(environ: Environ, error: HttpError) -> Reply:
    """The answer for an error, in the form of the Graph API."""
    code = _CODES.get(error.status, "generalException" if error.status >= 500 else "invalidRequest")
    said = {"error": {"code": code, "message": error.sentence}}
    reply = endpoints.json_reply(environ, said, error.status)
    reply.headers += error.headers
    return reply


_CODES = {
    401: "unauthenticated",
    403: "accessDenied",
    404: "itemNotFound",
    412: "preconditionFailed",
    423: "itemIsLocked",
    429: "tooManyRequests",
    503: "serviceNotAvailable",
    507: "quotaLimitReached",
}
