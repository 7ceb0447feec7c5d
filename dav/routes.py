"""Where a URL leads: all aliases into one tree of places, each answered under the spelling that was asked.

A place is a space and a path in it; everything above the spaces is virtual and holds only what the user may
see.  A space that the user has no role in does not exist for them (404).
"""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

from dav.http.errors import HttpError
from dav.http.target import request_path, segments
from dav.view import View
from fsd.core import tree
from fsd.core.accounts import User
from fsd.core.errors import FsdError
from fsd.core.grants import Role
from fsd.core.names import join, quote_path
from fsd.core.space import Space, SpaceRecord

SPACES_PREFIX = "/dav/spaces/"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
"""A name that is spelled in URLs as it is."""
_STATIC: dict[tuple[bytes, ...], tuple[bytes, ...]] = {
    (): (b"dav", b"remote.php", b"webdav"),
    (b"dav",): (b"files", b"home", b"spaces"),
    (b"remote.php",): (b"dav", b"webdav"),
    (b"remote.php", b"dav"): (b"files", b"spaces"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a space.  ``href`` is the URL path as asked, without a trailing slash; ``root_href`` and
    ``root_path`` say which URL stands for which directory of the space, in the asked spelling."""

    space: Space
    role: Role
    path: bytes
    href: str
    root_href: str
    root_path: bytes
    slash: bool

    @property
    def record(self) -> SpaceRecord:
        return self.space.record

    @property
    def writable(self) -> bool:
        return self.role.can_write and not self.record.read_only

    def file_id(self, node_id: str) -> str:
        """The id that clients see, in oc:id, oc:fileid and OC-FileId."""
        return f"{self.record.id}!{node_id}"

    def href_of(self, path: bytes) -> str:
        """The URL path of another path in the space, under the asked alias where it reaches that far."""
        root = self.root_path
        if path == root:
            return self.root_href
        if not root or path.startswith(root + b"/"):
            return f"{self.root_href}/{quote_path(path[len(root) :].lstrip(b'/'))}"
        return f"{SPACES_PREFIX}{self.record.id}/{quote_path(path)}"


@dataclass(slots=True)
class Child:
    """A member of a virtual collection; ``record`` is the space it leads to, if it is one."""

    name: bytes
    record: SpaceRecord | None = None


@dataclass(slots=True)
class Virtual:
    """A collection that is not on disk."""

    names: tuple[bytes, ...]
    href: str
    slash: bool
    children: list[Child]


class Router:
    """Resolves URL paths for a user, in one view of the registry: made for a request."""

    public = False
    """Whether it is for somebody without an account, to whom nothing above the place is shown."""

    def __init__(self, view: View) -> None:
        self.view = view

    def resolve(self, user: User, uri: str) -> Place | Virtual:
        """The place of a URL path (still encoded).  HttpError 400 or 404; StorageUnavailable, NotYetKnown."""
        if "!" in uri or "%21" in uri:  # perhaps a node's id, and a node may be moved
            return self._resolve(user, uri)
        return self.view.memo(
            ("place", user.id, uri), lambda: self._below(user, uri) or self._resolve(user, uri)
        )

    def _below(self, user: User, uri: str) -> Place | None:
        """The place of a plain name in a folder that was met before: what uploads ask for, each once."""
        folder, _, name = uri.rpartition("/")
        if not folder or folder[-1] == "/" or "?" in folder or not _PLAIN.match(name):
            return None
        above = self.view.memo(("folder", user.id, folder), lambda: self._resolve(user, folder + "/"))
        if not isinstance(above, Place):
            return None
        return Place(
            above.space,
            above.role,
            join(above.path, name.encode("ascii")),
            f"{above.href}/{name}",
            above.root_href,
            above.root_path,
            slash=False,
        )

    def _resolve(self, user: User, uri: str) -> Place | Virtual:
        raw = request_path(uri)
        if not raw.isascii():
            # Bytes that a client should have encoded: in an href they must not become characters.
            raw = "".join(c if c.isascii() else f"%{ord(c):02X}" for c in raw)
        if raw.startswith("//"):
            raw = "/" + raw.lstrip("/")  # an href that begins with two slashes would name a host
        names = tuple(segments(raw))
        spelled = [part for part in raw.split("/") if part]
        request = _Request(user, names, spelled, 0, raw)
        for depth in (3, 2, 1):
            handler = _ALIASES.get(names[:depth]) if len(names) >= depth else None
            if handler is not None:
                request.used = depth
                return handler(self, request)
        static = _STATIC.get(names)
        if static is None:
            raise HttpError(404, "There is nothing here.")
        return request.virtual([Child(name) for name in static])

    def home(self, user: User) -> dict[bytes, SpaceRecord]:
        """The user's spaces by the names they have as folders: unique, and free of slashes."""
        found: dict[bytes, SpaceRecord] = {}
        for record, _ in sorted(self.view.visible(user), key=lambda pair: (pair[0].created, pair[0].id)):
            name = record.name.replace("/", "_").encode("utf-8", "surrogateescape")
            if name in (b"", b".", b"..") or name in found:
                name += f" ({record.hex[:8]})".encode()
            found[name] = record
        return found

    def _enter(self, request: "_Request", record: SpaceRecord, root_path: bytes = b"") -> Place:
        role = self.view.role(record, request.user)
        if role is None:
            raise HttpError(404, "There is nothing here.")
        path = root_path
        for name in request.names[request.used :]:
            path = join(path, name)
        return Place(
            space=self.view.space(record),
            role=role,
            path=path,
            href=request.href,
            root_href="/" + "/".join(request.spelled[: request.used]),
            root_path=root_path,
            slash=request.raw.endswith("/"),
        )

    def _spaces(self, request: "_Request") -> Place | Virtual:
        if len(request.names) == request.used:
            return request.virtual([Child(r.id.encode(), r) for r, _ in self.view.visible(request.user)])
        space_id, mark, node_id = request.names[request.used].decode("utf-8", "replace").partition("!")
        request.used += 1
        try:
            record = self.view.record(space_id)
        except FileNotFoundError:
            raise HttpError(404, "There is nothing here.") from None
        root_path = b""
        if mark:
            if self.view.role(record, request.user) is None:
                raise HttpError(404, "There is nothing here.")
            root_path = _path_of(self.view.space(record), node_id)
        return self._enter(request, record, root_path)

    def _files(self, request: "_Request") -> Place | Virtual:
        if len(request.names) == request.used:
            own = self.view.personal(request.user)
            return request.virtual([Child(request.user.name.encode(), own)] if own else [])
        owner = self.view.user(request.names[request.used].decode("utf-8", "replace"))
        request.used += 1
        record = self.view.personal(owner) if owner is not None else None
        if record is None:
            raise HttpError(404, "There is nothing here.")
        return self._enter(request, record)

    def _home(self, request: "_Request") -> Place | Virtual:
        home = self.home(request.user)
        if len(request.names) == request.used:
            return request.virtual([Child(name, record) for name, record in home.items()])
        record = home.get(request.names[request.used])
        request.used += 1
        if record is None:
            raise HttpError(404, "There is nothing here.")
        return self._enter(request, record)

    def _personal(self, request: "_Request") -> Place:
        record = self.view.personal(request.user)
        if record is None:
            raise HttpError(404, "You have no personal space.")
        return self._enter(request, record)


_ALIASES: dict[tuple[bytes, ...], Callable[[Router, "_Request"], Place | Virtual]] = {
    (b"dav", b"spaces"): Router._spaces,
    (b"remote.php", b"dav", b"spaces"): Router._spaces,
    (b"dav", b"files"): Router._files,
    (b"remote.php", b"dav", b"files"): Router._files,
    (b"dav", b"home"): Router._home,
    (b"remote.php", b"webdav"): Router._personal,
    (b"webdav",): Router._personal,
}


def _path_of(space: Space, node_id: str) -> bytes:
    if len(node_id) != 32 or not set(node_id) <= set("0123456789abcdef"):
        raise HttpError(404, "There is nothing here.")
    return tree.path_of(space, node_id)


@dataclass(slots=True)
class _Request:
    """A path on its way through the aliases: ``used`` names of it are consumed."""

    user: User
    names: tuple[bytes, ...]
    spelled: list[str]
    used: int
    raw: str

    @property
    def href(self) -> str:
        return self.raw.rstrip("/")

    def virtual(self, children: list[Child]) -> Virtual:
        return Virtual(self.names, self.href, self.raw.endswith("/"), children)


def root_entry(view: View, record: SpaceRecord) -> tree.Entry | None:
    """The root of a space for a listing of spaces; None while its storage is unavailable."""
    try:
        return tree.lookup(view.space(record), b"")
    except FsdError as error:
        if error.errno in (errno.ENODEV, errno.EAGAIN, errno.ENOENT):
            return None
        raise
