"""Addresses that are not places in a tree (uploads, versions, trash): how all of them are resolved and listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dav.http.errors import HttpError
from dav.http.target import request_path, segments
from dav.routes import Router, Virtual
from dav.view import View
from dav.webdav.call import Call, Reply
from dav.webdav.propfind import depth_of, make_plan, wants_minimal
from dav.webdav.xml import MULTISTATUS, XML_TYPE, listed_response, read_body
from fsd.core.accounts import User
from fsd.core.grants import Role
from fsd.core.space import Space, SpaceRecord


class Prefixes:
    """Under which URL paths something is found; each of them also below ``/remote.php``."""

    def __init__(self, *paths: str) -> None:
        self._found: list[tuple[bytes, ...]] = []
        for path in paths:
            names = tuple(path.encode().strip(b"/").split(b"/"))
            self._found += [names, (b"remote.php", *names)]

    def used(self, names: tuple[bytes, ...]) -> int | None:
        """How many names lead there; None if these lead elsewhere, or not beyond."""
        for prefix in self._found:
            if names[: len(prefix)] == prefix and len(names) > len(prefix):
                return len(prefix)
        return None

    def lead(self, path: str) -> bool:
        """Whether a URL path (still encoded) is below one of them."""
        return self.used(tuple(segments(path))) is not None


@dataclass(frozen=True, slots=True)
class Address:
    """The URL path of a request: decoded names behind the prefix, and the same as they were spelled."""

    names: tuple[bytes, ...]
    spelled: tuple[str, ...]
    used: int
    slash: bool

    def href(self, count: int) -> str:
        """The URL path as asked, up to `count` names behind the prefix; no trailing slash."""
        return "/" + "/".join(self.spelled[: self.used + count])

    def call(self, environ: dict[str, Any], user: User, view: View, count: int) -> Call:
        """The request, on what is no place in a tree."""
        return Call(environ, user, Router(view), Virtual(self.names, self.href(count), self.slash, []))

    def text(self, index: int) -> str:
        """A name behind the prefix, for looking something up by it."""
        return self.names[index].decode("utf-8", "replace")


def address(environ: dict[str, Any], prefixes: Prefixes) -> Address:
    """The address of a request that is known to lead below a prefix."""
    raw = request_path(environ["REQUEST_URI"])
    names = tuple(segments(raw))
    used = prefixes.used(names)
    assert used is not None
    return Address(names[used:], tuple(part for part in raw.split("/") if part), used, raw.endswith("/"))


def nothing_here() -> HttpError:
    return HttpError(404, "There is nothing here.")


def enter(view: View, user: User, record: SpaceRecord | None) -> tuple[Space, Role]:
    """A space and the user's role in it; 404 without one."""
    role = view.role(record, user) if record is not None else None
    if record is None or role is None:
        raise nothing_here()
    return view.space(record), role


def enter_by_id(view: View, user: User, space_id: str) -> tuple[Space, Role]:
    """The same for a space's id."""
    try:
        record = view.record(space_id)
    except FileNotFoundError:
        raise nothing_here() from None
    return enter(view, user, record)


class Listing:
    """A PROPFIND of something that is not in a tree: what it asks for, and its answer."""

    def __init__(self, environ: dict[str, Any]) -> None:
        """HttpError 400, 403 for what can't be asked."""
        self.deep = depth_of(environ) == "1"
        self._plan = make_plan(read_body(environ))
        self._minimal = wants_minimal(environ)

    def reply(self, listed: Iterable[tuple[str, Mapping[str, str]]]) -> Reply:
        """207: each href with what it has (XML text by Clark name)."""
        pieces = [
            listed_response(href, values, self._plan.asked(values), self._minimal) for href, values in listed
        ]
        body = b"".join((MULTISTATUS, *pieces, b"</d:multistatus>"))
        return Reply(207, [XML_TYPE, ("DAV", "1"), ("Content-Length", str(len(body)))], [body])


def options(*headers: tuple[str, str]) -> Reply:
    """The answer to OPTIONS there."""
    return Reply(200, [*headers, ("DAV", "1"), ("Content-Length", "0")])
