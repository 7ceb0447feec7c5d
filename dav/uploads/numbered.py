"""Chunked uploads, version 1, of clients from before ``/dav/uploads``: ``PUT NAME-chunking-TRANSFER-COUNT-INDEX`` with
``OC-Chunked``, beside the file that they become.

Chunks may come in any order and at the same time. The one that completes the file is answered as a PUT of the whole
would be, and is the only one with an ETag: clients take an ETag for the end of the upload. A client that was killed
sends the chunks from the first one that was not answered, under the same TRANSFER; those before it are still here.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from dav.http import wanted
from dav.http.errors import HttpError
from dav.routes import Place
from dav.uploads import finishing
from dav.webdav.call import Call, Reply, lookup_or_none
from fsd.core import partials, tree, uploads
from fsd.core.errors import Locked, NameRefused, NotYetKnown, ParentMissing, PreconditionFailed
from fsd.core.names import check_new_name, join, split, to_text
from fsd.core.partials import Part, Partial, Terms

_NAME = re.compile(rb"(.+)-chunking-([0-9]{1,20})-([0-9]{1,6})-([0-9]{1,6})", re.DOTALL)
_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What a chunk's name says; `path` is that of the file."""

    path: bytes
    transfer: str
    count: int
    index: int


def begin(call: Call) -> Incoming:
    """Agree to a chunk, or refuse it: what would refuse the file refuses each of its chunks. HttpError, OSError."""
    tell = call.environ.get("fsd.may_block")
    if tell is not None:
        tell()  # perhaps it is the last one
    place = call.writable_place
    chunk = _parse(place)
    target = finishing.target_call(call, dataclasses.replace(place, path=chunk.path))
    entry = lookup_or_none(target.place)
    _check(target, entry, chunk)
    terms = _terms(call.environ)
    replaces = entry.size if entry is not None else 0
    partial = _partial(target, chunk, terms, _total(call.environ), replaces)
    if terms.checksum is not None and partial.terms.checksum != terms.checksum:
        partial = partials.set_checksum(target.place.space, partial, terms.checksum)
    with partials.opened(target.place.space, partial) as directory:
        partials.check_room_for_part(directory)
        return Incoming(
            target, partial, chunk, Part(target.place.space, directory, b"%06d" % chunk.index), terms
        )


def _parse(place: Place) -> _Chunk:
    parent, name = split(place.path)
    found = _NAME.fullmatch(name)
    if found is None or place.slash:
        # Storing it would leave pieces among people's files.
        raise HttpError(400, "A chunk (OC-Chunked) is named NAME-chunking-TRANSFER-COUNT-INDEX.")
    whole, transfer, count, index = found.groups()
    if int(index) >= int(count):
        raise HttpError(400, "Chunks are numbered from 0; this number is beyond their count.")
    check_new_name(whole)
    return _Chunk(join(parent, whole), transfer.decode(), int(count), int(index))


def _check(target: Call, entry: tree.Entry | None, chunk: _Chunk) -> None:
    if entry is not None and entry.kind == "d":
        raise HttpError(405, "A folder has this name.")
    if entry is None:
        parent = split(chunk.path)[0]
        try:
            tree.lookup(target.place.space, parent)
        except (FileNotFoundError, NotADirectoryError):
            raise ParentMissing("The folder of this file does not exist.") from None
    target.check_conditions(entry)
    finishing.check_locks(target)


def _total(environ: dict[str, Any]) -> int | None:
    text = environ.get("HTTP_OC_TOTAL_LENGTH")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HttpError(400, "OC-Total-Length is not a number of bytes.")
    limit = environ.get("fsd.max_body")
    if limit is not None and int(text) > limit:
        raise HttpError(413, f"At most {limit} bytes can be uploaded.")
    return int(text)


def _terms(environ: dict[str, Any]) -> Terms:
    return Terms(
        wanted.mtime(environ),
        wanted.checksum(environ),
        wanted.if_match(environ),
        wanted.must_not_exist(environ),
    )


def _partial(target: Call, chunk: _Chunk, terms: Terms, total: int | None, replaces: int) -> Partial:
    """The upload that the chunk belongs to; begun, and its bytes reserved, with whichever chunk is the first."""
    space, user = target.place.space, target.user.id
    # A slash keeps it apart from the names that clients give to uploads of version 2.
    name = f"/{to_text(chunk.path)}-chunking-{chunk.transfer}-{chunk.count}"
    for _ in range(_TRIES):
        try:
            partial = partials.get(space, user, name=name)
        except FileNotFoundError:
            pass
        else:
            if total is None or partial.length == total:
                return partial
            partials.drop(space, partial)  # the file is another one by now
        try:
            return uploads.begin(
                space, user, name=name, path=chunk.path, length=total, replaces=replaces, terms=terms
            )
        except FileExistsError:
            partials.expire(space)  # begun by another chunk just now, or too old to go on
    raise NotYetKnown("Another chunk of this upload is beginning it; send this one again.")


class Incoming:
    """A chunk on its way."""

    def __init__(self, target: Call, partial: Partial, chunk: _Chunk, part: Part, terms: Terms) -> None:
        self._target, self._partial, self._chunk = target, partial, chunk
        self._part, self._terms = part, terms
        self.feed = part.write

    def finish(self) -> Reply:
        """201 without an ETag, or the answer for the whole file if this was all that was missing."""
        self._part.close()
        partials.touch(self._target.place.space, self._partial)
        if not self._complete():
            return Reply(201, [("Content-Length", "0")])
        return self._published()

    def abort(self) -> None:
        self._part.abort()

    def _complete(self) -> bool:
        try:
            with partials.opened(self._target.place.space, self._partial) as directory:
                return len(partials.parts(directory)) == self._chunk.count
        except FileNotFoundError:
            return False  # another chunk has completed it

    def _published(self) -> Reply:
        space = self._target.place.space
        try:
            # Another chunk may have brought the checksum meanwhile.
            partial = partials.get(space, self._partial.user_id, ident=self._partial.id)
            mtime_ns = partial.terms.mtime_ns if self._terms.mtime_ns is None else self._terms.mtime_ns
            terms = self._terms._replace(mtime_ns=mtime_ns, checksum=partial.terms.checksum)
            created, headers = finishing.publish(self._target, space, partial, terms)
        except (Locked, FileNotFoundError):
            if self._target.locks.any():
                finishing.check_locks(self._target)
            return Reply(201, [("Content-Length", "0")])  # another chunk is completing it, or has done so
        except (PreconditionFailed, NameRefused):
            partials.drop(space, self._partial)  # sending a chunk again can't help
            raise
        return Reply(201 if created else 204, headers)
