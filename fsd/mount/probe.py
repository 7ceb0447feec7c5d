"""`python -m fsd.mount.probe SHIM on|off PARENT`: does the shim work on this host? A mount of one file, in a
directory of its own, written and read by a thread of this process. Exit 0, or a line that says what is wrong."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import trio

from fsd.mount.shim import Shim

_SIZE = 1 << 20


_PR_SET_PDEATHSIG = 1
_MNT_DETACH = 2
_libc = ctypes.CDLL(None)


def _end_with(parent: int, place: str) -> None:
    """Unmount, clear `place` away and end at SIGTERM, and when the process that asks dies, however it does (prctl(2)).

    At once: a thread that waits for the mount waits for this very process, and not even SIGKILL ends such a wait. It
    ends when the connection to the kernel is closed.
    """

    def end(*_: object) -> None:
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{fd}") == "/dev/fuse":
                    os.close(int(fd))
        point = f"{place}/mnt"
        if os.geteuid() == 0:
            _libc.umount2(os.fsencode(point), _MNT_DETACH)
        else:
            subprocess.run(["fusermount3", "-uzq", point], stderr=subprocess.DEVNULL)
        shutil.rmtree(place, ignore_errors=True)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        end()


def main() -> int:
    """Mount, try, unmount."""
    shim = Shim(Path(sys.argv[1]))
    shim.want(sys.argv[2] == "on")
    import pyfuse3

    with tempfile.TemporaryDirectory(prefix="fsd-probe-") as place:
        _end_with(int(sys.argv[3]), place)
        backing, point = Path(place) / "backing", Path(place) / "mnt"
        backing.write_bytes(b"old")
        point.mkdir()
        probe = _Probe(shim, backing)
        pyfuse3.init(cast(Any, probe), str(point), {"default_permissions", "fsname=fsd-probe"})
        try:
            shim.attach()
            said = trio.run(_serve, probe, point)
        finally:
            pyfuse3.close(unmount=True)
    if said is not None:
        print(said)
    return 0 if said is None else 1


async def _serve(probe: _Probe, point: Path) -> str | None:
    import pyfuse3

    said: list[str | None] = []

    async def use() -> None:
        try:
            said.append(await trio.to_thread.run_sync(_use, probe, point))
        except OSError as error:
            said.append(f"{error}")
        finally:
            pyfuse3.terminate()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await pyfuse3.main()
    return said[0]


def _use(probe: _Probe, point: Path) -> str | None:
    """What a program does with a file; what of it is wrong."""
    os.stat(point)
    if probe.shim.settled() != (sys.argv[2] == "on"):
        return "the kernel does not offer passthrough (Linux 6.9)"
    data = os.urandom(_SIZE)
    fd = os.open(point / "file", os.O_RDWR)
    try:
        probe.backing.chmod(0o4600)
        os.pwrite(fd, data, 0)
        if os.pread(fd, _SIZE, 0) != data or probe.backing.read_bytes() != data:
            return "what was written is not what is read"
        if probe.shim.passthrough and probe.backing.stat().st_mode & stat.S_ISUID:
            return "what is written past the daemon keeps its set-id bits"
        os.posix_fallocate(fd, _SIZE, 1 << 16)
        if os.lseek(fd, 0, os.SEEK_DATA) != 0 or os.fstat(fd).st_size != _SIZE + (1 << 16):
            return "fallocate and lseek don't reach the file"
    finally:
        os.close(fd)
    if probe.shim.passthrough and probe.calls:
        return "reads and writes still come to the daemon"
    return None


class _Probe:
    """A filesystem of one file. Has only the handlers that the test needs."""

    supports_dot_lookup = enable_writeback_cache = enable_acl = False

    def __init__(self, shim: Shim, backing: Path) -> None:
        self.shim, self.backing = shim, backing
        self.calls = 0
        self._id = 0

    def __getattr__(self, name: str) -> Any:
        async def refuse(*_: object) -> None:
            import pyfuse3

            raise pyfuse3.FUSEError(errno.ENOSYS)

        return refuse

    def init(self) -> None: ...

    def _attributes(self, inode: int) -> Any:
        import pyfuse3

        found = os.stat(self.backing if inode == 2 else self.backing.parent)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_size = inode, found.st_mode, found.st_size
        entry.attr_timeout = 0
        return entry

    async def getattr(self, inode: int, ctx: object) -> Any:
        return self._attributes(inode)

    async def lookup(self, parent: int, name: bytes, ctx: object) -> Any:
        import pyfuse3

        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(2)

    async def forget(self, inodes: object) -> None: ...

    async def open(self, inode: int, flags: int, ctx: object) -> Any:
        import pyfuse3

        fd = os.open(self.backing, os.O_RDWR)
        if self.shim.passthrough:
            try:
                self._id = self.shim.register(fd)
            except OSError as error:
                print(f"the kernel refuses: {error.strerror}")
                raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
            self.shim.use(self._id)
        return pyfuse3.FileInfo(fh=fd, keep_cache=False)

    async def read(self, fd: int, offset: int, size: int) -> bytes:
        self.calls += 1
        return os.pread(fd, size, offset)

    async def write(self, fd: int, offset: int, data: bytes) -> int:
        self.calls += 1
        return os.pwrite(fd, data, offset)

    async def release(self, fd: int) -> None:
        os.close(fd)
        if self._id:
            self.shim.unregister(self._id)


if __name__ == "__main__":
    sys.exit(main())
