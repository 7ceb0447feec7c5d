"""A mount namespace of the test process's own: what tests mount ends with the last process that sees it, whatever
happened to the test, and nobody else's mounts wake the watchers under test."""

from __future__ import annotations

import ctypes

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19


def own_mounts() -> bool:
    """Go on in a namespace that hears of the system's mounts and tells of none; False where that is not allowed.

    It counts for the calling thread and for what that starts (unshare(2)).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        return False
    return bool(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None) == 0)
