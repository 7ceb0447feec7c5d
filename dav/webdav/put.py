"""PUT: streamed beside the target, checked, then published whole or not at all."""

from typing import Any

from dav.http import limits, wanted
from dav.http.conditions import strong_match
from dav.http.errors import HttpError
from dav.webdav.call import Call, Reply, entry_headers, lookup_or_none
from fsd.core import hashing
from fsd.core.content import Upload
from fsd.core.steps import Steps, run


class Incoming:
    """An upload that was agreed to: ``feed`` its bytes, then ``finish``; ``abort`` leaves nothing of it."""

    def __init__(self, call: Call, upload: Upload, *, limit: int | None, timed: bool) -> None:
        self._call = call
        self._upload = upload
        self._limit = limit
        self._timed = timed
        self._received = 0

    def feed(self, view: memoryview) -> None:
        """The next bytes.  HttpError 413, OSError of the disk: then ``abort``."""
        self._received += len(view)
        if self._limit is not None and self._received > self._limit:
            raise _too_large(self._limit)
        self._upload.write(view)

    def finish(self) -> Reply:
        """201 or 204; the bytes are durable and the root's etag right."""
        return run(self.steps())

    def steps(self) -> Steps[Reply]:
        """`finish`, so that files of several requests can be settled together."""
        with self._upload as upload:
            # A lock may have been taken while the body was arriving.
            _check_locks(self._call)
            entry, created = yield from upload.steps()
        place = self._call.place
        headers = entry_headers(place, entry)
        known = hashing.known(place.space, entry)
        if known is not None:
            headers.append(("OC-Checksum", known.best))
        if self._timed:
            headers.append(("X-OC-Mtime", "accepted"))
        return Reply(201 if created else 204, headers)

    def abort(self) -> None:
        self._upload.abort()


def begin(call: Call) -> Incoming:
    """Agree to an upload, or refuse it.

    Everything that can refuse is asked before the first byte of the body is (Expect: 100-continue).
    """
    place = call.writable_place
    environ = call.environ
    _refuse_unsupported(environ)
    if not place.path:
        raise HttpError(405, "A space cannot be replaced by a file.")
    if place.slash:
        raise HttpError(405, "A file's address does not end with a slash.")
    length = _length(environ)
    limit: int | None = environ.get("fsd.max_body")
    if limit is not None and length is not None and length > limit:
        raise _too_large(limit)
    mtime_ns = wanted.mtime(environ)
    checksum = wanted.checksum(environ)
    if_match, must_not_exist = _preconditions(call)
    if length is None or length > limits.DRAIN_BYTES or "HTTP_EXPECT" in environ:
        # Early for bodies worth refusing; a small one is here already, and asked about once, at the end.
        _check_locks(call)
    upload = Upload(
        place.space,
        place.path,
        length=length,
        mtime_ns=mtime_ns,
        if_match=if_match,
        must_not_exist=must_not_exist,
        checksum=checksum,
        durability=environ["fsd.durable"],
    )
    return Incoming(call, upload, limit=limit, timed=mtime_ns is not None)


def _check_locks(call: Call) -> None:
    """423 if a lock is in the way; a new name also changes its folder (RFC 4918 section 7.4)."""
    locks = call.locks
    if locks.any():
        adding = lookup_or_none(call.place) is None
        locks.check(call.place.path, call.tokens, call.user.id, binding=adding)


def _refuse_unsupported(environ: dict[str, Any]) -> None:
    if "HTTP_CONTENT_RANGE" in environ:
        raise HttpError(400, "A PUT replaces a whole file; Content-Range is not possible.")
    if environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() not in ("", "identity"):
        raise HttpError(415, "An encoded body is not understood.")


def _length(environ: dict[str, Any]) -> int | None:
    """The announced length; None for a chunked body.  411 when there is neither."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    announced = environ.get("CONTENT_LENGTH")
    if announced is None:
        raise HttpError(411, "The length of the file must be announced.")
    return int(announced)


def _preconditions(call: Call) -> tuple[frozenset[str] | None, bool]:
    """(etags one of which must be there at the end, or None; whether nothing may be there).

    The entity tags are checked again by the upload at the moment of its commit.
    """
    environ = call.environ
    match = environ.get("HTTP_IF_MATCH")
    none_match = environ.get("HTTP_IF_NONE_MATCH")
    since = environ.get("HTTP_IF_UNMODIFIED_SINCE")
    if match is None and none_match is None and since is None and call.if_header is None:
        return None, False
    entry = lookup_or_none(call.place)
    etag = entry.etag if entry is not None else None
    call.check_conditions(entry)
    if match is not None and strong_match(match, etag):
        return frozenset(wanted.if_match(environ) or ()), False
    if none_match is not None and none_match.strip() == "*":
        return None, True
    if none_match is not None or call.is_conditional:
        # What the conditions were checked against is what the client has seen: nothing else is replaced.
        return (None, True) if entry is None else (frozenset({entry.etag}), False)
    return None, False


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"At most {limit} bytes can be uploaded at once.")
