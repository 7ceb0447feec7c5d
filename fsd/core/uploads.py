"""The end of an upload in several requests: its parts become one file, whole or not at all, like any other upload.

Bytes that arrive in order are appended to one part (`Tail`); the whole is then written beside the target, hashed on
the way, and published. Until that is done the parts stay, so a crash, a lock or a full disk costs no byte.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from fsd.core import lease, partials, quota
from fsd.core.content import Upload
from fsd.core.errors import NameRefused, PreconditionFailed
from fsd.core.partials import DATA, Partial, Terms
from fsd.core.places import require_writable

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.core.tree import Entry

_BLOCK = 1 << 20


def begin(
    space: Space, user_id: str, *, name: str | None = None, path: bytes | None = None, length: int | None = None,
    replaces: int = 0, terms: Terms | None = None,
) -> Partial:  # fmt: skip
    """Begin an upload if the quota and the disk have room for it. QuotaExceeded, OSError(ENOSPC), FileExistsError.

    `replaces`: bytes of the file that it will replace; only what goes beyond them is reserved.
    """
    require_writable(space)
    grows = max(0, (length or 0) - replaces)
    with quota.alone(space, grows):
        quota.check_disk(space, length or 0)
        return partials.create(
            space, user_id, name=name, path=path, length=length, reserve=grows, terms=terms
        )


class WrongOffset(PreconditionFailed):
    """The bytes do not continue what is there."""

    code = errno.EILSEQ


class Tail:
    """The end of an upload whose bytes arrive in order: what was written stays, however the request ends.

    Raises Locked while another request is at it, WrongOffset, FileNotFoundError. One thread at a time.
    """

    def __init__(
        self, space: Space, partial: Partial, offset: int, checksum: tuple[str, bytes] | None = None
    ) -> None:
        """`checksum`: (algorithm, digest) of the bytes of this request; if they don't fit they are taken back."""
        self._space = space
        self._limit = partial.length
        self._offset = self.size = offset
        self._checksum = checksum
        self._hash = hashlib.new(checksum[0], usedforsecurity=False) if checksum else None
        with ExitStack() as stack:
            directory = stack.enter_context(partials.opened(space, partial, alone=True))
            lease.require(space)
            self._fd = os.open(DATA, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
            stack.callback(os.close, self._fd)
            have = os.fstat(self._fd).st_size
            if have != offset:
                raise WrongOffset(f"{have} bytes are here; the request begins at {offset}.")
            os.lseek(self._fd, offset, os.SEEK_SET)
            self._open = stack.pop_all()

    def write(self, view: memoryview) -> None:
        """Append. NameRefused beyond the announced length, OSError(ENOSPC)."""
        if self._limit is not None and self.size + len(view) > self._limit:
            raise NameRefused(f"More than the announced {self._limit} bytes arrived.")
        if self._hash is not None:
            self._hash.update(view)
        while view:
            lease.require(self._space)  # the host that took over goes on where this one was
            written = os.write(self._fd, view)
            self.size += written
            view = view[written:]

    def close(self) -> bool:
        """Make it durable; False (and the bytes of this request are taken back) if they don't fit their checksum."""
        with self._open:
            fits = self._hash is None or self._checksum is None or self._hash.digest() == self._checksum[1]
            if not fits:
                lease.require(self._space)
                os.ftruncate(self._fd, self._offset)
                self.size = self._offset
            os.fsync(self._fd)
        return fits

    def abort(self) -> None:
        """The request broke off. What arrived stays, unless it was to be checked as a whole."""
        with self._open:
            if self._hash is not None and lease.may_write(self._space):
                os.ftruncate(self._fd, self._offset)


def size(space: Space, partial: Partial) -> int:
    """How many bytes are here. FileNotFoundError if the upload is gone."""
    with partials.opened(space, partial) as directory:
        return sum(length for _, length in partials.parts(directory))


def finish(source: Space, partial: Partial, target: Space, path: bytes, terms: Terms) -> tuple[Entry, bool]:
    """Publish the parts, joined in the byte-wise order of their names, as the file `path` of `target`.

    Returns (entry, whether it is new). NameRefused if the bytes are not as many as announced or don't fit the
    checksum, what `content.Upload` raises, Locked while another request is at it. On an error the parts stay.
    """
    with partials.opened(source, partial, alone=True) as directory:
        found = partials.parts(directory)
        total = sum(length for _, length in found)
        if partial.length is not None and total != partial.length:
            raise NameRefused(f"{total} of {partial.length} announced bytes arrived; nothing was changed.")
        own = partial.reserved if source is target else 0
        with Upload(
            target, path, length=total, mtime_ns=terms.mtime_ns, if_match=terms.if_match,
            must_not_exist=terms.must_not_exist, checksum=terms.checksum, reserved=own,
        ) as upload:  # fmt: skip
            for name, _ in found:
                _pour(directory, name, upload)
            done = upload.commit()
        # One of a known path has an address of its own (TUS), where a client may ask how it ended.
        partials.drop(source, partial, became=total if partial.path is not None else None)
    return done


def _pour(directory: int, name: bytes, upload: Upload) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while data := os.read(fd, _BLOCK):
            upload.write(data)
    finally:
        os.close(fd)
