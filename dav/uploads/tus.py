"""TUS 1.0 (tus.io/protocols/resumable-upload): creation, creation-with-upload, checksum, expiration, termination.

An upload is created by POST to the folder that will hold the file; its own address is ``/dav/tus/SPACE/ID`` and takes
the same credentials. The file appears when the last byte is here, as with one PUT.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dav.discovery.endpoints import base_url
from dav.http import wanted
from dav.http.dates import http_date
from dav.http.errors import HttpError, from_os_error
from dav.http.target import segments
from dav.routes import Place
from dav.uploads import finishing
from dav.view import View
from dav.webdav import beside
from dav.webdav.call import Body, Call, Headers, Reply, lookup_or_none
from fsd.core import partials, uploads
from fsd.core.accounts import User
from fsd.core.errors import NameRefused, ParentMissing, PreconditionFailed
from fsd.core.names import check_new_name, join, split
from fsd.core.partials import Partial, Terms
from fsd.core.space import Space
from fsd.core.uploads import Tail, WrongOffset

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
_ALGORITHMS = {"sha1": 20, "md5": 16, "sha256": 32}
_PREFIXES = beside.Prefixes("/dav/tus")
_BYTES_TYPE = "application/offset+octet-stream"
_MISMATCH = 460


def headers_of_server() -> Headers:
    """What a client probes for."""
    return [
        ("Tus-Resumable", VERSION),
        ("Tus-Version", VERSION),
        ("Tus-Extension", EXTENSIONS),
        ("Tus-Checksum-Algorithm", ",".join(_ALGORITHMS)),
    ]


def is_here(path: str) -> bool:
    """Whether a URL path (still encoded) is that of an upload under way."""
    return path.startswith("/dav/tus/") and len(segments(path)) == 4


@dataclass(slots=True)
class _Upload:
    """An upload under way, and the request on it, whose target is the file that it becomes."""

    call: Call
    space: Space
    partial: Partial

    def answer(self, status: int, size: int, more: Headers | None = None) -> Reply:
        headers = [("Upload-Offset", str(size)), ("Upload-Expires", http_date(int(self.partial.expires)))]
        headers += [("Tus-Resumable", VERSION), ("Cache-Control", "no-store"), *(more or [])]
        return Reply(status, [*headers, ("Content-Length", "0")] if status != 204 else headers)


# -- creation ---------------------------------------------------------------------------------------------------------


def create(call: Call) -> Reply | Body:
    """POST to a folder: 201 with the upload's address; bytes in the body are its first."""
    with _named():
        return _create(call)


@contextmanager
def _named() -> Iterator[None]:
    """Errors, too, say which protocol is spoken, as all answers have to."""
    try:
        yield
    except (HttpError, OSError) as error:
        known = from_os_error(error) if isinstance(error, OSError) else error
        if known.status == 500 or isinstance(error, FileNotFoundError):
            raise  # whether something is gone is proven elsewhere
        known.headers = (*known.headers, ("Tus-Resumable", VERSION))
        raise known from error


def _create(call: Call) -> Reply | Body:
    environ = call.environ
    _check_version(environ)
    length = _number(environ, "HTTP_UPLOAD_LENGTH", "Upload-Length")
    limit = environ.get("fsd.max_body")
    if limit is not None and length > limit:
        raise HttpError(413, f"At most {limit} bytes can be uploaded.")
    place, terms = _terms(call)
    target = finishing.target_call(call, place)
    entry = lookup_or_none(place)
    target.check_conditions(entry)
    if entry is not None and entry.kind != "f":
        raise HttpError(409, "Something that is not a file has this name.")
    finishing.check_locks(target)
    partial = uploads.begin(
        place.space,
        call.user.id,
        path=place.path,
        length=length,
        replaces=entry.size if entry else 0,
        terms=terms,
    )
    upload = _Upload(target, place.space, partial)
    address = f"{base_url(environ)}/dav/tus/{place.record.id}/{partial.id}"
    located = [("Location", address)]
    if call.has_body():
        return _Bytes(upload, 0, None, 201, located)
    if length == 0:
        return upload.answer(201, 0, located + _complete(upload)[1])
    return upload.answer(201, 0, located)


def _terms(call: Call) -> tuple[Place, Terms]:
    """The place of the file and its terms, from Upload-Metadata and the conditional headers."""
    fields = _metadata(call.environ.get("HTTP_UPLOAD_METADATA", ""))
    folder = call.writable_place
    _check_folder(folder)
    path, href = folder.path, folder.href
    names = [name for name in fields.get("filename", b"").split(b"/") if name not in (b"", b".")]
    if not names:
        raise HttpError(400, "Upload-Metadata has no filename.")
    for name in names:
        if name == b"..":
            raise HttpError(400, "The filename must not lead out of the folder.")
        check_new_name(name)
        path = join(path, name)
    if len(names) > 1:
        _check_folder(dataclasses.replace(folder, path=split(path)[0]))
    environ = call.environ
    terms = Terms(
        mtime_ns=wanted.mtime(environ, _told(fields, "mtime") or None),
        checksum=wanted.checksum(environ, _told(fields, "checksum").strip().replace(" ", ":", 1)),
        if_match=wanted.if_match(environ),
        must_not_exist=wanted.must_not_exist(environ),
        said=environ.get("HTTP_UPLOAD_METADATA", ""),
    )
    return dataclasses.replace(folder, path=path, href=href, slash=False), terms


def _check_folder(place: Place) -> None:
    entry = lookup_or_none(place)
    if entry is None:
        raise ParentMissing("The folder of this file does not exist.")
    if entry.kind != "d":
        raise HttpError(405, "Uploads are created in a folder.")


def _metadata(header: str) -> dict[str, bytes]:
    found = {}
    for pair in header.split(","):
        key, _, value = pair.strip().partition(" ")
        if not key:
            continue
        try:
            found[key] = base64.b64decode(value.strip(), validate=True)
        except binascii.Error:
            raise HttpError(400, f"Upload-Metadata is malformed at '{key}'.") from None
    return found


def _told(fields: dict[str, bytes], name: str) -> str:
    return fields.get(name, b"").decode("latin-1")


# -- the upload's own address -----------------------------------------------------------------------------------------


def answer(environ: dict[str, Any], user: User, view: View) -> Reply | tuple[Call, Body]:
    """HEAD, PATCH, DELETE, OPTIONS. HttpError, OSError."""
    method = environ["REQUEST_METHOD"]
    if method == "OPTIONS":
        return Reply(204, headers_of_server())
    if method == "POST":
        # For clients whose environment knows no PATCH.
        method = environ.get("HTTP_X_HTTP_METHOD_OVERRIDE", "").strip().upper()
    handler = _METHODS.get(method)
    with _named():
        if handler is None:
            allowed = ("Allow", ", ".join(("OPTIONS", *_METHODS)))
            raise HttpError(405, "This is an upload under way.", headers=(allowed,))
        _check_version(environ)
        try:
            return handler(_resolve(environ, user, view))
        except _Gone:
            ended = _finished(environ, user, view) if handler is _head else None
            if ended is None:
                raise
            return ended


class _Gone(HttpError):
    def __init__(self) -> None:
        super().__init__(404, "There is no such upload (any more).")


def _finished(environ: dict[str, Any], user: User, view: View) -> Reply | None:
    """All bytes are here: for a client that lost the last answer, and would send all of it once more."""
    address = beside.address(environ, _PREFIXES)
    space, _ = beside.enter_by_id(view, user, address.text(0))
    length = partials.finished(space, user.id, address.text(1))
    if length is None:
        return None
    headers = [("Upload-Offset", str(length)), ("Upload-Length", str(length)), ("Tus-Resumable", VERSION)]
    return Reply(200, [*headers, ("Cache-Control", "no-store"), ("Content-Length", "0")])


def _resolve(environ: dict[str, Any], user: User, view: View) -> _Upload:
    address = beside.address(environ, _PREFIXES)
    space, role = beside.enter_by_id(view, user, address.text(0))
    try:
        partial = partials.get(space, user.id, ident=address.text(1))
    except FileNotFoundError:
        raise _Gone from None
    if partial.path is None:
        raise _Gone
    href = f"/dav/spaces/{space.record.id}"
    place = Place(space, role, partial.path, href, href, b"", False)
    return _Upload(finishing.target_call(address.call(environ, user, view, 2), place), space, partial)


def _head(upload: _Upload) -> Reply:
    size = uploads.size(upload.space, upload.partial)
    told = [("Upload-Length", str(upload.partial.length))]
    if upload.partial.terms.said:
        told.append(("Upload-Metadata", upload.partial.terms.said))
    return upload.answer(200, size, told)


def _patch(upload: _Upload) -> Reply | tuple[Call, Body]:
    environ = upload.call.environ
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != _BYTES_TYPE:
        raise HttpError(415, f"The bytes of an upload come as {_BYTES_TYPE}.")
    offset = _number(environ, "HTTP_UPLOAD_OFFSET", "Upload-Offset")
    return upload.call, _Bytes(upload, offset, _chunk_checksum(environ), 204, [])


def _chunk_checksum(environ: dict[str, Any]) -> tuple[str, bytes] | None:
    text = environ.get("HTTP_UPLOAD_CHECKSUM")
    if text is None:
        return None
    algorithm, _, value = text.strip().partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        digest = b""
    if _ALGORITHMS.get(algorithm.lower()) != len(digest):
        raise HttpError(400, "Upload-Checksum is malformed, or its algorithm is not known.")
    return algorithm.lower(), digest


class _Bytes:
    """Bytes of an upload on their way. What arrived stays when the connection breaks."""

    def __init__(
        self, upload: _Upload, offset: int, checksum: tuple[str, bytes] | None, status: int, more: Headers
    ) -> None:
        self._upload, self._status, self._more = upload, status, more
        try:
            self._tail = Tail(upload.space, upload.partial, offset, checksum)
        except WrongOffset as error:
            raise HttpError(409, str(error)) from None

    def feed(self, view: memoryview, /) -> None:
        with _named():
            self._tail.write(view)

    def finish(self) -> Reply:
        with _named():
            return self._finish()

    def _finish(self) -> Reply:
        upload = self._upload
        if not self._tail.close():
            raise HttpError(_MISMATCH, "The bytes do not fit their checksum; they were not kept.")
        partials.touch(upload.space, upload.partial)
        more = self._more
        if self._tail.size == upload.partial.length:
            more = more + _complete(upload)[1]
        return upload.answer(self._status, self._tail.size, more)

    def abort(self) -> None:
        self._tail.abort()


def _complete(upload: _Upload) -> tuple[bool, Headers]:
    """All bytes are here: the file appears. What can't succeed by asking again ends the upload."""
    try:
        return finishing.publish(upload.call, upload.space, upload.partial, upload.partial.terms)
    except (PreconditionFailed, NameRefused):
        partials.drop(upload.space, upload.partial)
        raise


def _delete(upload: _Upload) -> Reply:
    partials.drop(upload.space, upload.partial)
    return Reply(204, [("Tus-Resumable", VERSION)])


def _check_version(environ: dict[str, Any]) -> None:
    if environ.get("HTTP_TUS_RESUMABLE") != VERSION:
        raise HttpError(412, f"TUS {VERSION} is spoken here.", headers=(("Tus-Version", VERSION),))


def _number(environ: dict[str, Any], key: str, name: str) -> int:
    text = environ.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HttpError(400, f"{name} must be a number of bytes.")
    return int(text)


_METHODS: dict[str, Callable[[_Upload], Reply | tuple[Call, Body]]] = {
    "HEAD": _head,
    "PATCH": _patch,
    "DELETE": _delete,
}
