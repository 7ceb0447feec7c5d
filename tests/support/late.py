"""A filesystem that takes every write and says only at close(2) that there was no room: as NFS and CephFS do, whose
writes are delayed. One file, `f`, empty at first.

`python -m tests.support.late DIR` mounts it; it ends when it is unmounted."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyfuse3
import trio

from tests.support.waiting import wait_for

_FILE = 2


class _Late(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = cast(Any, inode)
        entry.st_mode = stat.S_IFREG | 0o644 if inode == _FILE else stat.S_IFDIR | 0o755
        entry.st_size, entry.st_nlink = len(self.data), 1
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def getattr(self, inode: Any, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def lookup(self, parent_inode: Any, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        if name != b"f":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(_FILE)

    async def open(self, inode: Any, flags: int, ctx: Any = None) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=cast(Any, 1))

    async def setattr(self, inode: Any, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            self.data = self.data[: attr.st_size]
        return self._attributes(inode)

    async def read(self, fh: Any, off: int, size: int) -> bytes:
        return self.data[off : off + size]

    async def write(self, fh: Any, off: int, buf: bytes) -> int:
        self.data = self.data[:off].ljust(off, b"\0") + buf
        return len(buf)

    async def flush(self, fh: Any) -> None:
        if self.data:
            raise pyfuse3.FUSEError(errno.EDQUOT)

    async def release(self, fh: Any) -> None:
        pass


@contextmanager
def late_disk(place: Path) -> Iterator[Path]:
    """Mount it over an existing directory."""
    process = subprocess.Popen([sys.executable, "-m", "tests.support.late", str(place)])
    try:
        wait_for(lambda: (place / "f").exists(), what="a filesystem")
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
        process.wait(20)


def main() -> None:
    """Mount, serve, unmount."""
    pyfuse3.init(_Late(), sys.argv[1], {"fsname=late", "default_permissions"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
