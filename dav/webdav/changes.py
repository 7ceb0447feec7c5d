"""MKCOL, DELETE, COPY and MOVE."""

from dav import forward
from dav.http.errors import HttpError
from dav.routes import Place
from dav.webdav.call import Call, Headers, Reply, entry_headers, lookup_or_none, require_writable
from fsd.core import lease, operations, tree
from fsd.core.errors import FsdError, PreconditionFailed
from fsd.core.locks import LockTable
from fsd.core.names import split


def mkcol(call: Call) -> Reply:
    """201; 405 when something is there, 409 without a parent, 415 for a body."""
    place = call.writable_place
    if call.has_body():
        raise HttpError(415, "MKCOL does not take a body.")
    if not place.path:
        raise HttpError(405, "The space is there already.")
    if call.if_header is not None or "HTTP_IF_MATCH" in call.environ or "HTTP_IF_NONE_MATCH" in call.environ:
        call.check_conditions(lookup_or_none(place))
    call.locks.check(place.path, call.tokens, call.user.id, binding=True)
    try:
        entry = operations.make_directory(place.space, place.path)
    except FileNotFoundError:
        # A missing parent is ParentMissing: this one was made, and deleted by somebody else at once.
        return Reply(201)
    return Reply(201, entry_headers(place, entry))


def delete(call: Call) -> Reply:
    """204; constant time, into the space's trash."""
    place = call.writable_place
    if call.has_body():
        raise HttpError(415, "DELETE does not take a body.")
    if not place.path:
        raise HttpError(403, "A space cannot be deleted here.")
    entry = tree.lookup(place.space, place.path)
    if entry.kind == "d" and call.environ.get("HTTP_DEPTH", "infinity").strip().lower() != "infinity":
        raise HttpError(400, "A folder is deleted with everything in it: Depth must be infinity.")
    call.check_conditions(entry)
    call.locks.check(place.path, call.tokens, call.user.id, subtree=True, binding=True)
    if_match = frozenset({entry.etag}) if call.is_conditional else None
    operations.delete(place.space, place.path, if_match=if_match)
    return Reply(204)


def copy(call: Call) -> Reply:
    return _transfer(call, moving=False)


def move(call: Call) -> Reply:
    return _transfer(call, moving=True)


def _transfer(call: Call, *, moving: bool) -> Reply:
    source = call.writable_place if moving else call.place
    target = call.destination()
    require_writable(target)
    overwrite = call.overwrite()
    entry = tree.lookup(source.space, source.path)
    depth = call.environ.get("HTTP_DEPTH", "infinity").strip().lower()
    if depth not in ("0", "infinity") or (moving and entry.kind == "d" and depth == "0"):
        raise HttpError(400, "The Depth header must be infinity here.")
    _check_places(source, target, moving)
    call.check_conditions(entry)
    user, tokens = call.user.id, call.tokens
    if moving:
        call.locks.check(source.path, tokens, user, subtree=True, binding=True)
        if (holder := forward.of_destination(call, target)) is not None:
            return _move_to_another_host(call, source, target, entry, holder)
    target_locks = LockTable(target.space)
    target_locks.check(target.path, tokens, user, subtree=True, binding=True)
    if_match = frozenset({entry.etag}) if call.is_conditional else None
    try:
        if moving:
            created = operations.move(
                source.space,
                source.path,
                target.space,
                target.path,
                overwrite=overwrite,
                if_match=if_match,
            )
        else:
            created = operations.copy(
                source.space,
                source.path,
                target.space,
                target.path,
                overwrite=overwrite,
                depth_infinity=depth == "infinity",
                if_match=if_match,
            )
    except FileExistsError:
        raise HttpError(412, "Something is at the Destination, and Overwrite is F.") from None
    return Reply(201 if created else 204, _headers_of(target))


def _move_to_another_host(
    call: Call, source: Place, target: Place, entry: tree.Entry, holder: forward.Holder
) -> Reply:
    """That one copies, then this one takes what was copied into the trash, as between two filesystems. Whatever happens
    in between leaves both."""
    since = lease.token(source.space)
    lease.require(source.space, since)
    reply = forward.copied(call, target, holder)
    if reply.status not in (201, 204):
        return reply
    lease.require(source.space, since)
    try:
        operations.delete(source.space, source.path, if_match=frozenset({entry.etag}))
    except (FileNotFoundError, PreconditionFailed):
        raise HttpError(409, f"{_name(source)} changed while it was being moved; both are kept.") from None
    return reply


def _headers_of(place: Place) -> Headers:
    """Etag and id of what is there now; nothing if somebody took it away meanwhile."""
    try:
        return entry_headers(place, tree.lookup(place.space, place.path))
    except (FsdError, OSError):
        return []


def _check_places(source: Place, target: Place, moving: bool) -> None:
    if not source.path and moving:
        raise HttpError(403, "A space cannot be moved.")
    if not target.path:
        raise HttpError(403, "A space cannot be replaced.")
    if source.record.id != target.record.id:
        return
    if source.path == target.path:
        raise HttpError(403, "The Destination is the resource itself.")
    if not source.path or target.path.startswith(source.path + b"/"):
        raise HttpError(403, "A folder cannot be put into itself.")
    if source.path.startswith(target.path + b"/"):
        raise HttpError(409, f"The Destination holds {_name(source)} itself.")


def _name(place: Place) -> str:
    return f"'{split(place.path)[1].decode('utf-8', 'replace')}'"
