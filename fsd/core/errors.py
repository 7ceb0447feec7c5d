"""The error model: `OSError` subclasses with a fixed errno, so that every door can map errno to its own code.

Built-in subclasses (`FileNotFoundError`, `FileExistsError`, ...) are used where they say enough. `str(error)` is
one sentence a person can act on.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class FsdError(OSError):
    """Base of the domain errors; `errno` is fixed by the class."""

    code: ClassVar[int] = errno.EIO

    def __init__(self, message: str) -> None:
        super().__init__(self.code, message)

    def __str__(self) -> str:
        return str(self.strerror)


class StorageUnavailable(FsdError):
    """The directory below us is not provably the one that was registered (unmounted, swapped)."""

    code = errno.ENODEV


class NotYetKnown(FsdError):
    """The answer depends on parts of the tree that have not been verified yet; asking again later helps."""

    code = errno.EAGAIN


class DatabaseDamaged(FsdError):
    """A database that holds what is nowhere else is damaged: a person has to restore it."""

    code = errno.EUCLEAN


class Elsewhere(NotYetKnown):
    """Another host works on the space just now; nothing of it may be changed here."""


class SpaceDisabled(FsdError):
    """The space exists but is not served, or the asker may not know that it exists."""

    code = errno.ENOENT


class QuotaExceeded(FsdError):
    """The space's quota does not allow these bytes."""

    code = errno.EDQUOT


class PreconditionFailed(FsdError):
    """What stands at the path is not what the writer has seen."""

    code = errno.ESTALE


class Locked(FsdError):
    """A lock that the caller does not hold protects this path."""

    code = errno.EBUSY


class NameRefused(FsdError):
    """A name or another input that fsd does not accept for something new."""

    code = errno.EINVAL


class Forbidden(FsdError, PermissionError):
    """The role, or the kind of the entry, does not allow this."""

    code = errno.EACCES


class ReadOnlySpace(FsdError):
    """The space is served read-only."""

    code = errno.EROFS


class AcrossMounts(FsdError):
    """The operation would have to be atomic across two filesystems inside one space."""

    code = errno.EXDEV


class ParentMissing(FsdError):
    """The directory that should hold the new entry does not exist."""

    code = errno.ENOENT


USAGE, FINDINGS, BUSY, INTERRUPTED = 2, 3, 4, 130


class UserError(Exception):
    """A mistake of the person at the command line: one sentence, an exit code, no traceback."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
