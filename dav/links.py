"""Public links over HTTP: a part of one space for whoever has the address, and its password if it has one.

``/s/TOKEN`` for people, ``/dav/public-files/TOKEN`` and ``/public.php/dav/files/TOKEN`` for clients, and
``/public.php/webdav`` with the token as the user name of Basic (any name does elsewhere). Each is the same place.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any

from dav.auth.basic import MAX_HEADER, credentials, network
from dav.http.errors import HttpError
from dav.http.target import request_path, segments
from dav.routes import Place, Router
from dav.webdav.call import Call
from fsd.core import links, passwords, tree
from fsd.core.accounts import User
from fsd.core.grants import Role
from fsd.core.links import Link, LinkRole
from fsd.core.names import join, split
from fsd.service import logs

if TYPE_CHECKING:
    from dav.auth.throttle import Throttle
    from dav.view import View
    from fsd.core.space import SpaceRecord

_PREFIXES = ("/s/", "/dav/public-files/", "/remote.php/dav/public-files/", "/public.php/dav/files/")
_BY_NAME = "/public.php/webdav"
_READING = frozenset({"GET", "HEAD", "OPTIONS", "PROPFIND"})
_METHODS = {
    LinkRole.VIEWER: _READING,
    LinkRole.EDITOR: _READING | {"PUT", "MKCOL", "DELETE", "MOVE", "COPY"},
    LinkRole.UPLOADER: frozenset({"OPTIONS", "PROPFIND", "PUT"}),
}
_REPLACING = frozenset({"DELETE", "MOVE", "MKCOL"})
_MOST_KNOWN = 1000
_HASHING = 2
_CHALLENGE = (("WWW-Authenticate", 'Basic realm="Link", charset="UTF-8"'),)


def is_here(uri: str) -> bool:
    """Whether a request target leads to a public link."""
    path = request_path(uri)
    return path.startswith(_PREFIXES) or path == _BY_NAME or path.startswith(_BY_NAME + "/")


class _LinkRouter(Router):
    """Knows the place behind one link, and nothing else."""

    public = True

    def __init__(self, view: View, root: Place, used: int) -> None:
        """`root`: what the link shows, under the address that was asked, which has `used` names."""
        super().__init__(view)
        self._root, self._used = root, used
        self._is_file = tree.lookup(root.space, root.path).kind != "d"

    def resolve(self, user: User, uri: str) -> Place:
        raw = request_path(uri)
        spelled = [part for part in raw.split("/") if part]
        if "/" + "/".join(spelled[: self._used]) != self._root.root_href:
            raise _nothing()
        path = self._root.path
        below = segments(raw)[self._used :]
        if self._is_file and below in ([], [split(path)[1]]):
            below = []  # clients look for a file in a folder
        for name in below:
            path = join(path, name)
        root = self._root
        return Place(
            root.space, root.role, path, raw.rstrip("/"), root.root_href, root.path, raw.endswith("/")
        )


class PublicLinks:
    """Lets in who has the address. Thread-safe."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._hashing = threading.Semaphore(_HASHING)
        self._known: set[tuple[str, str, bytes]] = set()
        """Passwords that were right: a slow hash for each request would be no use to anybody."""

    def call(self, environ: dict[str, Any], view: View) -> Call:
        """The request on the place. 401, 403, 404, 429; OSError."""
        raw = request_path(environ["REQUEST_URI"])
        name, password = _credentials(environ)
        names = segments(raw)
        if raw.startswith(_BY_NAME):
            if name is None:
                raise HttpError(401, "The link's token is the user name.", headers=_CHALLENGE)
            token, used = name, 2
        else:
            used = next(prefix.count("/") for prefix in _PREFIXES if raw.startswith(prefix))
            if len(names) < used:
                raise _nothing()
            token = names[used - 1].decode("utf-8", "replace")
        record, link = _find(view, token)
        creator = view.user_by_id(link.creator)
        role = view.role(record, creator) if creator is not None and not creator.disabled else None
        if role is None or (link.role.can_write and not role.can_write):
            raise _nothing()
        self._check_password(environ, link, password)
        space = view.space(record)
        path = links.path_of(space, link)
        href = "/" + "/".join([part for part in raw.split("/") if part][:used])
        given = Role.EDITOR if link.role.can_write else Role.VIEWER
        router = _LinkRouter(view, Place(space, given, path, href, href, path, False), used)
        visitor = _visitor(link)
        place = router.resolve(visitor, environ["REQUEST_URI"])
        _check_allowed(environ, link, place, len(names) - used)
        return Call(environ, visitor, router, place)

    def _check_password(self, environ: dict[str, Any], link: Link, password: str | None) -> None:
        if not link.password:
            return
        if password is None:
            raise HttpError(401, "This link has a password.", headers=_CHALLENGE)
        known = (link.id, link.password, hashlib.sha256(password.encode("utf-8", "surrogateescape")).digest())
        if known in self._known:
            return
        address = str(environ.get("REMOTE_ADDR", ""))
        keys = (f"link {link.id}", f"address {network(address)}")
        self._refuse_if_slowed(keys)
        tell = environ.get("fsd.may_block")
        if tell is not None:
            tell()  # a password's hash takes a tenth of a second
        with self._hashing:
            # Again: a burst of guesses must not pass while the first of them are hashed.
            self._refuse_if_slowed(keys)
            right = passwords.matches(link.password, password)
            if not right:
                self._throttle.failed(*keys)
        if not right:
            logs.audit(_visitor(link).name, "login", "", outcome="refused", address=address)
            raise HttpError(401, "The password of the link is wrong.", headers=_CHALLENGE)
        self._throttle.succeeded(keys[0])
        if len(self._known) >= _MOST_KNOWN:
            self._known = set()
        self._known.add(known)

    def _refuse_if_slowed(self, keys: tuple[str, ...]) -> None:
        seconds = self._throttle.wait(*keys)
        if seconds:
            raise HttpError(
                429, "Too many wrong passwords; try again later.", headers=(("Retry-After", str(seconds)),)
            )


def _find(view: View, token: str) -> tuple[SpaceRecord, Link]:
    found = view.link(links.digest_of(token))
    if found is None or found[1].expired:
        raise _nothing()
    return found


def _nothing() -> HttpError:
    return HttpError(404, "There is no such link (any more).")


def _visitor(link: Link) -> User:
    """Somebody without an account, as audit lines and locks name them."""
    none: frozenset[str] = frozenset()
    return User(
        f"link:{link.id}", f"link {link.id}", "Public link", "", "guest", none, none, False, 0, link.created
    )


def _check_allowed(environ: dict[str, Any], link: Link, place: Place, depth: int) -> None:
    """403 for what the link does not give. Who only brings files overwrites none, and sees none."""
    method = environ["REQUEST_METHOD"]
    allowed = method in _METHODS[link.role] and not (
        method in _REPLACING and (not depth or place.path == place.root_path)
    )
    if link.role is LinkRole.UPLOADER:
        if method == "PUT":
            environ["HTTP_IF_NONE_MATCH"] = "*"
            allowed = depth == 1
        elif method == "OPTIONS":
            allowed = depth == 0  # what can be done with a name tells whether it is there
        elif method == "PROPFIND":
            allowed = depth == 0
            environ["HTTP_DEPTH"] = "0"
    if not allowed:
        raise HttpError(403, "This link does not allow that.")


def _credentials(environ: dict[str, Any]) -> tuple[str | None, str | None]:
    """User name and password of Basic; (None, None) without or for anything else."""
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "basic" or len(value) > MAX_HEADER:
        return None, None
    return credentials(value) or (None, None)
