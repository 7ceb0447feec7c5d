"""The trash of a space over WebDAV: list, restore by MOVE, delete for good.

Addresses: ``/dav/spaces/trash-bin/SPACE/`` and, for the personal space, ``/dav/trash-bin/USER/``, both also below
``/remote.php``. Entries are named by their keys; what they were called is in their properties. Who may write in the
space may see its trash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from dav.http.dates import NANO, http_date
from dav.http.errors import HttpError
from dav.http.target import request_path
from dav.routes import Place
from dav.view import View
from dav.webdav import beside
from dav.webdav.call import Call, Reply, entry_headers, require_writable
from dav.webdav.xml import DAV, OC
from fsd.core import moving, trash, tree
from fsd.core.accounts import User
from fsd.core.locks import LockTable
from fsd.core.names import to_text
from fsd.core.space import Space, SpaceRecord
from fsd.core.trash import TrashItem
from fsd.service import logs

_ALLOW = ("Allow", "OPTIONS, PROPFIND, MOVE, DELETE")
_SPACES = beside.Prefixes("/dav/spaces/trash-bin")
_USERS = beside.Prefixes("/dav/trash-bin")


def is_here(path: str) -> bool:
    """Whether a URL path (still encoded) leads into a trash bin."""
    return "/trash-bin/" in path + "/" and (_SPACES.lead(path) or _USERS.lead(path))


@dataclass(slots=True)
class _Bin:
    """One request on a trash bin; ``key`` None is the bin itself, ``inner`` a path below a deleted directory."""

    call: Call
    space: Space
    href: str
    key: str | None
    inner: bytes

    @property
    def environ(self) -> dict[str, Any]:
        return self.call.environ


def answer(environ: dict[str, Any], user: User, view: View) -> Reply:
    """The reply to a request on a trash bin. HttpError, OSError."""
    bin_ = _resolve(environ, user, view)
    handler = _METHODS.get(environ["REQUEST_METHOD"])
    if handler is None:
        raise HttpError(405, "A trash can be listed, restored from and emptied.", headers=(_ALLOW,))
    return handler(bin_)


def _resolve(environ: dict[str, Any], user: User, view: View) -> _Bin:
    by_space = _SPACES.lead(request_path(environ["REQUEST_URI"]))
    address = beside.address(environ, _SPACES if by_space else _USERS)
    name = address.text(0)
    if by_space:
        space, role = beside.enter_by_id(view, user, name)
    else:
        space, role = beside.enter(view, user, _personal(name, view))
    if not role.can_write:
        raise HttpError(403, "Only who may write in a space sees its trash.")
    key = address.names[1].decode("utf-8", "surrogateescape") if len(address.names) > 1 else None
    inner = b"/".join(address.names[2:])
    if inner and environ["REQUEST_METHOD"] not in ("PROPFIND", "OPTIONS"):
        raise HttpError(403, "What lies in a deleted folder comes back, or goes, with the folder.")
    return _Bin(address.call(environ, user, view, 1), space, address.href(1), key, inner)


def _personal(name: str, view: View) -> SpaceRecord | None:
    owner = view.user(name)
    return view.personal(owner) if owner is not None else None


def _item(bin_: _Bin) -> TrashItem:
    assert bin_.key is not None
    try:
        return trash.get(bin_.space, bin_.key)
    except FileNotFoundError:
        raise HttpError(404, "This is not in the trash (any more).") from None


def _options(_: _Bin) -> Reply:
    return beside.options(_ALLOW, ("MS-Author-Via", "DAV"))


def _propfind(bin_: _Bin) -> Reply:
    wanted = beside.Listing(bin_.environ)
    if bin_.key is not None:
        found = _inside(bin_, wanted.deep)
    else:
        items = trash.items(bin_.space)
        found = [(f"{bin_.href}/", _own_values(bin_, items))]
        if wanted.deep:
            found += [(_href(bin_, item), _values(bin_, item)) for item in items]
    return wanted.reply(found)


def _inside(bin_: _Bin, deep: bool) -> list[tuple[str, dict[str, str]]]:
    top = _item(bin_)
    if top.kind != "d" and not bin_.inner:
        return [(_href(bin_, top), _values(bin_, top))]
    assert bin_.key is not None
    try:
        items = trash.inside(bin_.space, bin_.key, bin_.inner, members=deep)
    except (FileNotFoundError, NotADirectoryError):
        raise HttpError(404, "This is not in the trash (any more).") from None
    base = _href(bin_, top).rstrip("/")
    found = []
    for item in items:
        below = item.path[len(top.path) :]
        slash = "/" if item.kind == "d" else ""
        values = _values(bin_, item)
        if below:
            ident = f"{bin_.space.record.id}!{item.node_id or _digest(item.key, to_text(below))}"
            etag = _etag(item.key, to_text(below), item.size, item.mtime_ns)
            values |= {f"{OC}id": ident, f"{OC}fileid": ident, f"{DAV}getetag": etag, f"{OC}permissions": ""}
        found.append((f"{base}{quote(below)}{slash}", values))
    return found


def _href(bin_: _Bin, item: TrashItem) -> str:
    name = quote(item.key.encode("utf-8", "surrogateescape"))
    return f"{bin_.href}/{name}{'/' if item.kind == 'd' else ''}"


def _etag(*parts: str | int) -> str:
    return f'"{_digest(*parts)}"'


def _digest(*parts: str | int) -> str:
    text = "\0".join(map(str, parts))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _own_values(bin_: _Bin, items: list[TrashItem]) -> dict[str, str]:
    ident = _digest("trash", bin_.space.record.id)
    return {
        f"{DAV}resourcetype": "<d:collection/>",
        f"{DAV}displayname": "Trash",
        f"{DAV}getlastmodified": http_date(int(max((item.deleted for item in items), default=0))),
        f"{DAV}getetag": _etag("trash", *sorted(item.key for item in items)),
        f"{OC}id": ident,
        f"{OC}fileid": ident,
        f"{OC}permissions": "",
        f"{OC}size": str(sum(item.size for item in items)),
    }


def _values(bin_: _Bin, item: TrashItem) -> dict[str, str]:
    deleted = int(item.deleted)
    ident = f"{bin_.space.record.id}!{item.node_id or _digest(item.key)}"
    values = {
        f"{DAV}resourcetype": "<d:collection/>" if item.kind == "d" else "",
        f"{DAV}displayname": escape(to_text(item.name)),
        f"{DAV}getetag": _etag(item.key, item.size, item.mtime_ns),
        f"{OC}id": ident,
        f"{OC}fileid": ident,
        f"{OC}permissions": "D",
        f"{DAV}getlastmodified": http_date(item.mtime_ns // NANO),
        f"{OC}size": str(item.size),
        f"{OC}trashbin-original-filename": escape(to_text(item.name)),
        f"{OC}trashbin-original-location": escape(to_text(item.path)),
        f"{OC}trashbin-delete-timestamp": str(deleted),
        f"{OC}trashbin-delete-datetime": http_date(deleted),
    }
    if item.kind != "d":
        values[f"{DAV}getcontentlength"] = str(item.size)
    return values


def _move(bin_: _Bin) -> Reply:
    """Restore to the Destination: 201, or 204 over something else, which goes into the trash in its turn."""
    if bin_.key is None:
        raise HttpError(403, "The trash itself cannot be moved.")
    item = _item(bin_)
    target = _destination(bin_)
    call = bin_.call
    overwrite = call.overwrite()
    _check_conditions(bin_, item)
    LockTable(target.space).check(target.path, call.tokens, call.user.id, subtree=True, binding=True)
    try:
        if overwrite:
            created = moving.out_of_trash(bin_.space, item.key, target.path)
        else:
            trash.restore(bin_.space, item.key, target.path)
            created = True
    except FileExistsError:
        raise HttpError(412, "Something is at the Destination.") from None
    _audit(bin_, "trash restore", item.path)
    headers = entry_headers(target, tree.lookup(target.space, target.path))
    return Reply(201 if created else 204, headers)


def _check_conditions(bin_: _Bin, item: TrashItem) -> None:
    bin_.call.check_state(_digest(item.key, item.size, item.mtime_ns), item.mtime_ns // NANO)


def _destination(bin_: _Bin) -> Place:
    target = bin_.call.destination()
    if target.record.id != bin_.space.record.id or not target.path:
        raise HttpError(403, "What was deleted is restored into its own space.")
    require_writable(target)
    return target


def _delete(bin_: _Bin) -> Reply:
    """For good: one entry, or all of them."""
    if bin_.key is None:
        trash.empty(bin_.space)
        _audit(bin_, "trash empty", b"")
    else:
        item = _item(bin_)
        _check_conditions(bin_, item)
        trash.remove(bin_.space, item.key)
        _audit(bin_, "trash delete", item.path)
    return Reply(204)


def _audit(bin_: _Bin, action: str, path: bytes) -> None:
    address = bin_.environ["REMOTE_ADDR"]
    logs.audit(bin_.call.user.name, action, "/" + to_text(path), space=bin_.space.record.id, address=address)


_METHODS: dict[str, Callable[[_Bin], Reply]] = {
    "OPTIONS": _options,
    "PROPFIND": _propfind,
    "MOVE": _move,
    "DELETE": _delete,
}
