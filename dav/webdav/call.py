"""One WebDAV request as its method sees it, and the reply it makes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dav.http import ifheader
from dav.http.conditions import evaluate as evaluate_conditions
from dav.http.dates import NANO
from dav.http.errors import HttpError, error_body, error_headers, status_line
from dav.http.target import destination_path, request_path
from dav.routes import Place, Router, Virtual
from dav.webdav.properties import permissions
from fsd.core import lease, tree
from fsd.core.accounts import User
from fsd.core.locks import LockTable
from fsd.core.tree import Entry

Headers = list[tuple[str, str]]


@dataclass(slots=True)
class Reply:
    """Status, headers and body of an answer; the body may have ``close`` (PEP 3333)."""

    status: int
    headers: Headers = field(default_factory=list)
    body: Iterable[bytes] = ()

    @property
    def line(self) -> str:
        return status_line(self.status)


class Body(Protocol):
    """A request body that was agreed to: ``feed`` its bytes, then ``finish``; ``abort`` when the client is gone."""

    def feed(self, view: memoryview, /) -> None:
        """The next bytes.  HttpError, OSError: then ``abort``."""

    def finish(self) -> Reply:
        """All bytes were fed.  HttpError, OSError."""

    def abort(self) -> None:
        """Leave nothing behind but what the protocol keeps; harmless after ``finish``."""


def error_reply(error: HttpError) -> Reply:
    """The answer for an error, in the form that clients show to people."""
    body = error_body(error)
    return Reply(error.status, error_headers(error, len(body)), [body])


_MAKING = frozenset({"PUT", "MKCOL", "LOCK"})
_OUTSIDE = "Only what is inside a space can be changed."


class Call:
    """A request on a resolved target.  ``place`` refuses virtual targets.  ``target``: if it is not in the tree."""

    def __init__(
        self, environ: dict[str, Any], user: User, router: Router, target: Place | Virtual | None = None
    ) -> None:
        self.environ = environ
        self.user = user
        self.router = router
        self.method: str = environ["REQUEST_METHOD"]
        self.uri = request_path(environ["REQUEST_URI"])
        self.target = self._find() if target is None else target
        self._if: ifheader.IfHeader | None = None
        self._if_parsed = False

    def _find(self) -> Place | Virtual:
        try:
            return self.router.resolve(self.user, self.uri)
        except HttpError as error:
            if error.status == 404 and self.method in _MAKING and self._would_be_a_space(self.uri):
                raise HttpError(403, _OUTSIDE) from None
            raise

    def _would_be_a_space(self, uri: str) -> bool:
        """Whether what is not there would stand beside the spaces, by a name (an id is not made up by anybody)."""
        try:
            above = self.router.resolve(self.user, uri.rstrip("/").rpartition("/")[0] + "/")
        except HttpError:
            return False
        return isinstance(above, Virtual) and above.names[-1:] != (b"spaces",)

    @property
    def place(self) -> Place:
        """The target in a space.  403 for virtual collections: nothing can be changed there."""
        if isinstance(self.target, Virtual):
            raise HttpError(403, _OUTSIDE)
        return self.target

    @property
    def writable_place(self) -> Place:
        """The target, if the user may write there; 403 otherwise."""
        place = self.place
        require_writable(place)
        return place

    @property
    def locks(self) -> LockTable:
        return LockTable(self.place.space)

    @property
    def hosts(self) -> list[str]:
        """The names under which the client may address this server."""
        host = self.environ.get("HTTP_HOST", "")
        return [host, self.environ.get("fsd.forwarded_host", ""), self.environ.get("fsd.public_host", "")]

    @property
    def if_header(self) -> ifheader.IfHeader | None:
        """The parsed ``If`` header; 400 if malformed."""
        if not self._if_parsed:
            self._if_parsed = True
            text = self.environ.get("HTTP_IF")
            if text:
                try:
                    self._if = ifheader.parse(text)
                except ifheader.IfSyntax as error:
                    raise HttpError(400, str(error)) from None
        return self._if

    @property
    def tokens(self) -> frozenset[str]:
        """The lock tokens that the client submits."""
        header = self.if_header
        return header.tokens if header is not None else frozenset()

    def has_body(self) -> bool:
        length: str = self.environ.get("CONTENT_LENGTH", "0")
        return length.strip("0") != "" or "HTTP_TRANSFER_ENCODING" in self.environ

    def destination(self) -> Place:
        """The Destination of COPY and MOVE.  400, 403, 404 → 409, 502."""
        header = self.environ.get("HTTP_DESTINATION")
        if not header:
            raise HttpError(400, "The Destination header is missing.")
        path = destination_path(header, self.hosts)
        try:
            target = self.router.resolve(self.user, path)
        except HttpError as error:
            if error.status == 404 and not self._would_be_a_space(path):
                raise HttpError(409, "The Destination lies in no space of yours.") from None
            if error.status == 404:
                raise HttpError(403, "The Destination must be inside a space.") from None
            raise
        if isinstance(target, Virtual):
            raise HttpError(403, "The Destination must be inside a space.")
        return target

    def overwrite(self) -> bool:
        """The Overwrite header; T when absent."""
        value = self.environ.get("HTTP_OVERWRITE", "T").strip().upper()
        if value not in ("T", "F"):
            raise HttpError(400, "The Overwrite header must be T or F.")
        return bool(value == "T")

    def check_conditions(self, entry: Entry | None, *, reading: bool = False) -> None:
        """HttpError 412 or 304 when the conditional headers or ``If`` end the request."""
        mtime = entry.mtime_ns // NANO if entry is not None else None
        self.check_state(entry.etag if entry is not None else None, mtime, reading=reading)

    def check_state(self, etag: str | None, mtime: int | None, *, reading: bool = False) -> None:
        """The same for what is no entry of a tree: its etag, None if it is not there, and its time in seconds."""
        status = evaluate_conditions(self.environ, etag, mtime, reading=reading)
        if status == 412:
            raise HttpError(412, "The resource is not what your request expects.")
        if status is not None:
            raise HttpError(status, "The resource has not changed.", headers=etag_headers(etag or ""))
        header = self.if_header
        if header is not None and not ifheader.evaluate(header, lambda url: self._state_of(url, etag)):
            raise HttpError(412, "The If header does not hold.")

    @property
    def is_conditional(self) -> bool:
        """Whether the request is about content that its client has seen: it must still be there when it is changed."""
        header = self.if_header
        return (
            "HTTP_IF_MATCH" in self.environ
            or "HTTP_IF_UNMODIFIED_SINCE" in self.environ
            or (header is not None and header.names_etags())
        )

    def _state_of(self, url: str | None, etag: str | None) -> tuple[str | None, frozenset[str]] | None:
        """Etag and lock tokens of a resource named in the If header; None if it is not one of ours."""
        if url is None or request_path(url) == self.uri:
            place: Place | Virtual = self.target
        else:
            try:
                place = self.router.resolve(self.user, destination_path(url, self.hosts))
            except HttpError:
                return None
            etag = _etag_at(place)
        if isinstance(place, Virtual):
            return etag, frozenset()
        if not lease.may_write(place.space):
            # Its locks are another host's to know, and to insist on where something is changed there.
            return etag, self.tokens
        tokens = frozenset(lock.token for lock in LockTable(place.space).covering(place.path))
        return etag, tokens


def _etag_at(place: Place | Virtual) -> str | None:
    if isinstance(place, Virtual):
        return None
    try:
        return tree.lookup(place.space, place.path).etag
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_writable(place: Place) -> None:
    """403 unless the user's role and the space allow changes."""
    if place.record.read_only:
        raise HttpError(403, "This space is read-only.")
    if not place.role.can_write:
        raise HttpError(403, "You may look at this space, but not change it.")


def etag_headers(etag: str) -> tuple[tuple[str, str], ...]:
    """ETag and OC-ETag."""
    return (("ETag", f'"{etag}"'), ("OC-ETag", f'"{etag}"'))


def entry_headers(place: Place, entry: Entry) -> Headers:
    """What sync clients read from the answer to a write; whoever wrote may write."""
    own = [("OC-FileId", place.file_id(entry.id)), ("OC-Perm", permissions(entry))]
    return [*etag_headers(entry.etag), *own]


def lookup_or_none(place: Place) -> Entry | None:
    """The entry, or None where it provably does not exist."""
    try:
        return tree.lookup(place.space, place.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
