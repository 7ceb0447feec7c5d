"""What an error of the core means to a client: one table, errno and class to status."""

import errno
from dataclasses import dataclass
from http import HTTPStatus
from xml.sax.saxutils import escape

from dav.http.failures import BodyError, TooSlow
from fsd.core import errors as core

RETRY_SECONDS = 5

_SABRE = {
    400: "BadRequest",
    401: "NotAuthenticated",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    411: "LengthRequired",
    412: "PreconditionFailed",
    415: "UnsupportedMediaType",
    416: "RequestedRangeNotSatisfiable",
    423: "Locked",
    501: "NotImplemented",
    503: "ServiceUnavailable",
    507: "InsufficientStorage",
}


@dataclass(slots=True)
class HttpError(Exception):
    """An answer that is not a success: status, one sentence, DAV precondition element (and the resource it is about),
    further headers."""

    status: int
    sentence: str
    condition: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    about: str = ""

    def __str__(self) -> str:
        return f"{self.status} {self.sentence}"


_CLASSES: tuple[tuple[type[BaseException], int], ...] = (
    (core.StorageUnavailable, 503),
    (core.NotYetKnown, 503),
    (core.DatabaseDamaged, 503),
    (core.SpaceDisabled, 404),
    (core.QuotaExceeded, 507),
    (core.PreconditionFailed, 412),
    (core.Locked, 423),
    (core.NameRefused, 400),
    (core.ParentMissing, 409),
    (core.AcrossMounts, 403),
    (core.ReadOnlySpace, 403),
    (core.Forbidden, 403),
    (TooSlow, 408),
    (BodyError, 400),
    (FileNotFoundError, 404),
    (FileExistsError, 405),
    (NotADirectoryError, 404),
    (IsADirectoryError, 405),
    (PermissionError, 403),
    (BlockingIOError, 503),
    (TimeoutError, 503),
)
_ERRNOS = {
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
    errno.EFBIG: 507,
    errno.ENAMETOOLONG: 400,
    errno.EINVAL: 400,
    errno.ELOOP: 403,
    errno.EROFS: 403,
    errno.EXDEV: 403,
    errno.ENOTEMPTY: 409,
    errno.EBUSY: 503,
    errno.ENODEV: 503,
    errno.ENXIO: 403,
    errno.ESTALE: 503,
    errno.EIO: 503,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
    errno.ENOMEM: 503,
    errno.ENOTCONN: 503,
    errno.EHOSTDOWN: 503,
}
_PHRASES = {460: "Checksum Mismatch"}
"""Of statuses that are no standard's: TUS has one."""
_SENTENCES = {
    403: "This is not allowed here.",
    404: "There is nothing here.",
    405: "Something is here already.",
    409: "A folder on the way is missing, or is not a folder.",
    503: "The storage cannot answer just now.",
    507: "There is no space left.",
}


_NOT_LET = "The server's own user may not do this on the disk; whoever runs the server can let it."
_ERRNO_SENTENCES = {
    errno.EDQUOT: "A quota of the storage is used up; delete something or ask for a larger one.",
    errno.EROFS: "The storage is read-only just now: what is there can be read, nothing can be changed.",
    errno.EACCES: _NOT_LET,
    errno.EPERM: _NOT_LET,
    errno.EFBIG: "The file is larger than this storage can hold.",
    errno.ENAMETOOLONG: "The name, or the whole path, is too long for this storage.",
    errno.EINVAL: "The storage does not take such a name or value.",
}
"""Where the status alone would hide what to do: the storage's own quotas (CephFS, project quotas), its state, and the
rights of the server."""


def status_of(error: OSError) -> int:
    """The status for an OSError.  Unknown ones are 500; nothing but proven absence is 404."""
    for kind, status in _CLASSES:
        if isinstance(error, kind):
            return status
    return _ERRNOS.get(error.errno or 0, 500)


def from_os_error(error: OSError) -> HttpError:
    """The answer for an OSError of the core or of the disk."""
    status = status_of(error)
    if isinstance(error, (core.FsdError, BodyError, TooSlow)):
        sentence = str(error)
    else:
        # strerror texts and paths stay in the log: they tell strangers about the disk.
        sentence = _ERRNO_SENTENCES.get(error.errno or 0) or _SENTENCES.get(
            status, "The server could not do this."
        )
    headers: tuple[tuple[str, str], ...] = ()
    if status == 503:
        headers = (("Retry-After", str(RETRY_SECONDS)),)
    return HttpError(status, sentence, headers=headers)


def status_line(status: int) -> str:
    """``404 Not Found``."""
    return f"{status} {_PHRASES.get(status) or HTTPStatus(status).phrase}"


def error_body(error: HttpError) -> bytes:
    """The body sync clients show to people (sabre's form), with the DAV precondition if there is one."""
    name = _SABRE.get(error.status, "Exception")
    parts = [
        '<?xml version="1.0" encoding="utf-8"?>\n<d:error xmlns:d="DAV:" xmlns:s="http://sabredav.org/ns">'
    ]
    if error.condition:
        about = f"<d:href>{escape(error.about)}</d:href>" if error.about else ""
        parts.append(
            f"<d:{error.condition}>{about}</d:{error.condition}>" if about else f"<d:{error.condition}/>"
        )
    exception = "Sabre\\DAV\\Exception" + ("" if name == "Exception" else f"\\{name}")
    parts.append(f"<s:exception>{exception}</s:exception>")
    parts.append(f"<s:message>{escape(error.sentence)}</s:message></d:error>\n")
    return "".join(parts).encode()


def error_headers(error: HttpError, length: int) -> list[tuple[str, str]]:
    """The headers of its answer."""
    return [
        ("Content-Type", "application/xml; charset=utf-8"),
        ("Content-Length", str(length)),
        *error.headers,
    ]
