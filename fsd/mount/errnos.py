"""From the core's errors to what a system call may answer."""

from __future__ import annotations

import errno

_SHOWN = {
    errno.EAGAIN: errno.EBUSY,
    # "Try again" would be taken for a non-blocking descriptor.
    errno.ENODEV: errno.EIO,
    # The storage is away; ENODEV would be read as "no such kind of device".
    errno.ENOSYS: errno.EOPNOTSUPP,
    # The kernel would never ask for this operation again, whatever the file.
    errno.EBADF: errno.EIO,
    # Of the daemon's own descriptors, never of the caller's.
    errno.EMFILE: errno.ENFILE,
    # The daemon's limit, not the caller's.
}


def number(error: OSError) -> int:
    """The errno for the caller; EIO where the error has none."""
    code = error.errno or errno.EIO
    return _SHOWN.get(code, code)
