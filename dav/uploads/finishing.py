"""The last step of every upload in several requests: rights, locks and conditions of its target, then the file."""

from __future__ import annotations

from dav.http.errors import HttpError
from dav.routes import Place
from dav.webdav.call import Call, Headers, entry_headers, lookup_or_none, require_writable
from fsd.core import uploads
from fsd.core.names import to_text
from fsd.core.partials import Partial, Terms
from fsd.core.space import Space
from fsd.service import logs


def check_locks(call: Call) -> None:
    """423 if a lock is in the way of the call's target; a new name also changes its folder (RFC 4918 section 7.4)."""
    locks = call.locks
    if locks.any():
        adding = lookup_or_none(call.place) is None
        locks.check(call.place.path, call.tokens, call.user.id, binding=adding)


def target_call(call: Call, place: Place) -> Call:
    """The request as one on the file that the upload becomes: its locks and conditions are what counts."""
    require_writable(place)
    if not place.path:
        raise HttpError(405, "A space cannot be replaced by a file.")
    return Call(call.environ, call.user, call.router, place)


def publish(call: Call, source: Space, partial: Partial, terms: Terms) -> tuple[bool, Headers]:
    """Make the file: (whether it is new, what clients read from the answer). HttpError, OSError: the parts stay."""
    place = call.place
    require_writable(place)
    check_locks(call)
    entry, created = uploads.finish(source, partial, place.space, place.path, terms)
    logs.audit(
        call.user.name,
        "PUT",
        "/" + to_text(place.path),
        space=place.record.id,
        address=call.environ["REMOTE_ADDR"],
    )
    headers = entry_headers(place, entry)
    if terms.mtime_ns is not None:
        headers.append(("X-OC-Mtime", "accepted"))
    return created, headers
