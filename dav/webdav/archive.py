"""A folder, or several things, as one zip or tar: GET of a collection that asks for it, and `/archiver` for ownCloud's
web client.

What goes in is listed first, sorted by path; so length and etag are known, and a download that broke can go on with a
Range (the server reads again from the beginning). A file that changed meanwhile ends the connection: what arrives whole
is what was there at one time. Links and special files are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from dav.http import archives, ranges
from dav.http.archives import Member
from dav.http.conditions import range_applies
from dav.http.dates import NANO
from dav.http.errors import HttpError
from dav.routes import Place, Router
from dav.webdav.call import Call, Reply
from dav.webdav.get import read_part
from dav.webdav.properties import disposition
from fsd.core import tree
from fsd.core.names import join, to_text
from fsd.core.space import Space
from fsd.core.tree import Entry
from fsd.service import logs

if TYPE_CHECKING:
    from dav.view import View
    from fsd.core.accounts import User

PATH = "/archiver"
MOST = 200_000
"""Files and folders of one archive: about 100 MiB while it is sent."""


@dataclass(frozen=True, slots=True)
class _Format:
    media_type: str
    suffix: bytes
    pieces: Callable[[Sequence[Member], archives.Read], Iterator[bytes]]
    length: Callable[[Sequence[Member]], int]


_FORMATS = {
    "zip": _Format("application/zip", b".zip", archives.zip_pieces, archives.zip_length),
    "tar": _Format("application/x-tar", b".tar", archives.tar_pieces, archives.tar_length),
}


def wanted(environ: dict[str, Any]) -> str | None:
    """Which archive a GET of a folder asks for: `?format=zip`, or an Accept that names one (not a browser's)."""
    query = parse_qs(str(environ.get("QUERY_STRING", "")))
    for key in ("format", "accept"):
        if query.get(key, [""])[-1] in _FORMATS:
            return query[key][-1]
    accept = environ.get("HTTP_ACCEPT", "")
    found = [name for name, each in _FORMATS.items() if each.media_type in accept]
    return found[0] if found and "text/html" not in accept else None


def is_here(path: str) -> bool:
    return path == PATH


def answer(environ: dict[str, Any], user: User, view: View) -> Reply:
    """`/archiver?id=…&id=…&output-format=zip|tar`. 404 for an id that is nowhere, 400 without any."""
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        raise HttpError(405, "Archives can only be read.", headers=(("Allow", "GET, HEAD"),))
    query = parse_qs(environ.get("QUERY_STRING", ""))
    kind = query.get("output-format", ["zip"])[-1]
    if kind not in _FORMATS:
        raise HttpError(400, "The output-format must be zip or tar.")
    idents = query.get("id", [])
    if not idents:
        raise HttpError(400, "The id of what is wanted is missing.")
    router = Router(view)
    places = []
    for ident in idents:
        place = router.resolve(user, f"/dav/spaces/{ident.replace('%', '%25').replace('/', '%2F')}")
        assert isinstance(place, Place)
        places.append(place)
        logs.audit(
            user.name, "GET", "/" + to_text(place.path), later=True, space=place.record.id, archive=kind,
            address=environ["REMOTE_ADDR"],
        )  # fmt: skip
    return _send(environ, places, kind)


def folder(call: Call, kind: str) -> Reply:
    """The folder that was asked for, as an archive of its name."""
    return _send(call.environ, [call.place], kind)


def _send(environ: dict[str, Any], places: list[Place], kind: str) -> Reply:
    tell = environ.get("fsd.may_block")
    if tell is not None:
        tell()
    packing = _Packing()
    for place in places:
        packing.add(place)
    form = _FORMATS[kind]
    length, etag = form.length(packing.members), packing.etag(kind)
    headers = [
        ("Content-Type", form.media_type),
        ("Content-Disposition", disposition(packing.name + form.suffix)),
        ("ETag", f'"{etag}"'),
        ("Accept-Ranges", "bytes"),
        ("Cache-Control", "private, no-cache"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    body = form.pieces(packing.members, packing.read)
    status, offset, count = 200, 0, length
    asked = environ.get("HTTP_RANGE")
    if asked and range_applies(environ.get("HTTP_IF_RANGE"), etag, 0):
        parts = ranges.parse(asked, length)
        if parts is not None and not parts:
            unsatisfied = ("Content-Range", f"bytes */{length}")
            raise HttpError(416, "The archive does not have these bytes.", headers=(unsatisfied,))
        if parts is not None and len(parts) == 1:
            status, (offset, count) = 206, parts[0]
            headers.append(("Content-Range", f"bytes {offset}-{offset + count - 1}/{length}"))
    headers.append(("Content-Length", str(count)))
    if environ["REQUEST_METHOD"] == "HEAD":
        return Reply(status, headers)
    return Reply(status, headers, archives.part(body, offset, count))


class _Packing:
    """What goes into an archive."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.name = b"download"
        self._sources: list[tuple[Space, bytes, str]] = []
        self._tops: set[bytes] = set()

    def add(self, place: Place) -> None:
        """A place, under its own name, with all below it. 413 beyond MOST."""
        own = tree.lookup(place.space, place.path)
        top = own.name or place.record.name.replace("/", "_").encode("utf-8", "surrogateescape")
        name, number = top, 1
        while name in self._tops:
            number += 1
            name = top + b" (%d)" % number
        self._tops.add(name)
        self.name = top if len(self._tops) == 1 else b"download"
        self._take(place.space, own, name)
        if own.kind == "d":
            self._below(place.space, own.path, name)

    def _below(self, space: Space, path: bytes, name: bytes) -> None:
        waiting = [(path, name)]
        while waiting:
            path, name = waiting.pop()
            try:
                _, entries = tree.listing(space, path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # deleted while it was being listed
            folders = []
            for entry in entries:
                inside = join(name, entry.name)
                self._take(space, entry, inside)
                if entry.kind == "d":
                    folders.append((entry.path, inside))
            waiting += reversed(folders)

    def _take(self, space: Space, entry: Entry, name: bytes) -> None:
        if entry.kind not in "fd":
            return
        if entry.unreadable:
            raise HttpError(403, "Something in this folder cannot be read.")
        if len(self.members) >= MOST:
            raise HttpError(413, f"More than {MOST} files and folders don't go into one archive.")
        size = entry.size if entry.kind == "f" else 0
        executable = entry.kind == "f" and bool(entry.mode & 0o100)
        self.members.append(Member(name, entry.kind == "d", size, entry.mtime_ns // NANO, executable))
        self._sources.append((space, entry.path, entry.etag))

    def etag(self, kind: str) -> str:
        """It stands for exactly these bytes."""
        digest = hashlib.blake2b(kind.encode(), digest_size=16)
        for member, (_, _, etag) in zip(self.members, self._sources, strict=True):
            digest.update(b"%b\0%d\0" % (member.name, member.mtime))
            if not member.folder:
                digest.update(etag.encode())
        return digest.hexdigest()

    def read(self, number: int) -> Iterator[bytes]:
        """The bytes of a member. ConnectionAbortedError if they are no longer those that were listed."""
        space, path, etag = self._sources[number]
        try:
            fd, entry = tree.open_file(space, path)
        except OSError as error:
            raise ConnectionAbortedError("A file was taken away while the archive was being sent.") from error
        with open(fd, "rb", buffering=0):
            if entry.etag != etag:
                raise ConnectionAbortedError("A file was changed while the archive was being sent.")
            yield from read_part(fd, 0, entry.size)
