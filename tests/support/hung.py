"""A filesystem that never answers, as NFS with its server gone: every call into it sleeps in the kernel."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MNT_FORCE, _MNT_DETACH = 1, 2


@contextmanager
def hung_mount(place: Path) -> Iterator[Path]:
    """Mount it over an existing directory; whoever waits in it is freed with an error at the end.

    It is a FUSE connection whose other end nobody reads; closing that end aborts it (Documentation/filesystems/fuse).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device
    if libc.mount(b"hung", os.fsencode(place), b"fuse", 0, options):
        error = ctypes.get_errno()
        os.close(device)
        raise OSError(error, os.strerror(error))
    try:
        yield place
    finally:
        os.close(device)
        libc.umount2(os.fsencode(place), _MNT_DETACH)
