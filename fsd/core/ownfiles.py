"""Small files of the service's own, in places where others may have been: read whole, within bounds, never waited for.

Backups, other hosts and people with a shell put links, FIFOs, directories and half files where these belong.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

from fsd.core.errors import DatabaseDamaged
from fsd.core.names import to_text


class Unusable(DatabaseDamaged):
    """A file of the service's own is there and is not one of its own making any more."""


def read(directory: int, name: bytes | str, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. FileNotFoundError, Unusable; OSError (EIO, EACCES)."""
    text = to_text(os.fsencode(name))
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Unusable(f"'{text}' is not a file.") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unusable(f"'{text}' is not a file.")
        found = bytearray()
        while data := os.read(fd, limit + 1 - len(found)):
            found += data
            if len(found) > limit:
                raise Unusable(f"'{text}' is larger than the {limit} bytes that it may have.")
        return bytes(found)
    finally:
        os.close(fd)


def parse(raw: bytes | str) -> dict[str, Any]:
    """The JSON object in it; ValueError for anything else, however deep."""
    try:
        found = json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found
