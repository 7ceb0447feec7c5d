"""What a server that can't be reached, or says no, means to a program: an errno, and one sentence for the log."""

from __future__ import annotations

import errno
import re


class Offline(OSError):
    """The server can't be reached: nothing is known, least of all that something is gone."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EHOSTDOWN, f"the server can't be reached: {why}")


class Refused(OSError):
    """The server answered, and said no. `status` is HTTP's."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(_ERRNOS.get(status, errno.EIO), f"the server says {status}: {sentence}")
        self.status = status


_ERRNOS = {
    400: errno.EINVAL,
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    405: errno.EEXIST,
    409: errno.ENOENT,  # a folder on the way is missing
    412: errno.ESTALE,
    413: errno.EFBIG,
    416: errno.ESTALE,
    423: errno.EBUSY,
    429: errno.EBUSY,
    503: errno.EBUSY,  # not known yet, or the storage is away: never "gone"
    507: errno.EDQUOT,
}
_MESSAGE = re.compile(rb"<s:message>([^<]*)</s:message>")


def refused(status: int, body: bytes) -> Refused:
    """The error for an answer; the server's own sentence if it has one."""
    found = _MESSAGE.search(body)
    return Refused(status, found[1].decode("utf-8", "replace") if found else f"HTTP status {status}")
