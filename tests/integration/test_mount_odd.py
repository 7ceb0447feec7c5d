"""What programs rarely ask of a filesystem, and what changes between a question and its answer: the same as the disk,
and the mount lives on."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.late import late_disk
from tests.support.mounting import WAYS, Mount, below, mounted
from tests.support.mounts import disk
from tests.support.serving import Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root
_GETFLAGS = 0x80086601
_FIONREAD = 0x541B


def outcome(work: Callable[[], object]) -> object:
    """What it gives, or the errno it fails with."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_whoever_waits_for_a_file_is_told_at_once(mount: Mount, here: Path) -> None:
    (here / "f").write_bytes(b"abc")
    with open(here / "f", "r+b", buffering=0) as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]
        assert file.read() == b"abc"
    assert (here / "f").stat().st_size == 3


def test_ioctls(mount: Mount, here: Path) -> None:
    """They end with an error, as on a filesystem that has none."""
    (here / "f").write_bytes(b"abc")
    for path in (here / "f", here):
        fd = os.open(path, os.O_RDONLY)
        for request in (_GETFLAGS, 0x40086602, 0x801C581F, 0x40049409, 0xC0185879, 0xC020660B, 0x5452):
            assert isinstance(outcome(lambda r=request, fd=fd: fcntl.ioctl(fd, r, bytes(64))), str | bytes)
        os.close(fd)
    assert (here / "f").read_bytes() == b"abc"


@contextmanager
def asked(mount: Mount, work: Callable[[], object]) -> Iterator[list[object]]:
    """`work` in a thread, whose request waits for a daemon that is stopped meanwhile; its outcome is there at the
    end."""
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(outcome(work)), daemon=True)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        thread.start()
        asleep = Path(f"/proc/self/task/{thread.native_id}/wchan")
        wait_for(lambda: "request_wait" in asleep.read_text(), what="a request")
        yield result
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    thread.join(10)
    assert result, "the daemon waits for what it opened"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC])
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(mount: Mount, here: Path, flags: int) -> None:
    (here / "f").write_bytes(b"abc")
    assert (here / "f").stat().st_size == 3

    def opened() -> int:
        fd = os.open(here / "f", flags | os.O_NONBLOCK)
        os.close(fd)
        return stat.S_IFMT(os.lstat(here / "f").st_mode)

    with asked(mount, opened) as result:
        os.mkfifo(below(mount, here / "pipe"))
        os.replace(below(mount, here / "pipe"), below(mount, here / "f"))
    # It is found, and opened by the caller's own kernel (fifo(7): no reader, no writer).
    assert result == ["ENXIO" if flags == os.O_WRONLY else stat.S_IFIFO]
    assert stat.S_ISFIFO((here / "f").lstat().st_mode)


def test_a_pipe_where_a_file_is_to_be_made_holds_nobody_up(mount: Mount, here: Path) -> None:
    assert not (here / "f").exists()
    with asked(mount, lambda: os.open(here / "f", os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK)) as result:
        os.mkfifo(below(mount, here / "f"))
    assert result == ["ENXIO"]
    assert stat.S_ISFIFO((here / "f").lstat().st_mode)


def test_a_lease_on_a_file_is_waited_for(mount: Mount, here: Path) -> None:
    """Whoever keeps it gives it back, and the file is opened (fcntl(2), leases)."""
    (here / "f").write_bytes(b"abc")
    held = os.open(below(mount, here / "f"), os.O_RDONLY)
    heard = threading.Event()
    before = signal.signal(signal.SIGIO, lambda *_: None)

    def give_back() -> None:
        wait_for(lambda: fcntl.fcntl(held, fcntl.F_GETLEASE) == fcntl.F_UNLCK, every=0.001, what="a break")
        heard.set()
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    try:
        for name, flags in (("f", os.O_WRONLY), ("f", os.O_WRONLY | os.O_TRUNC)):
            # Whoever closed it is gone when the daemon has heard of it.
            wait_for(
                lambda: outcome(lambda: fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)) == 0,
                what="a lease",
            )
            keeper = threading.Thread(target=give_back)
            keeper.start()
            fd = os.open(here / name, flags)
            os.write(fd, b"new")
            os.close(fd)
            keeper.join()
            assert heard.is_set()
    finally:
        signal.signal(signal.SIGIO, before)
        os.close(held)
    assert (here / "f").read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_far_times(mount: Mount, here: Path, tmp_path: Path, kind: str) -> None:
    """As far as the disk goes: ext4 from 1901 to 2446, xfs to 2486, btrfs and tmpfs anywhere."""
    seconds = (
        -(1 << 31),
        -(1 << 40),
        -1,
        (1 << 33) + 7,
        10_413_792_000,
        15_032_385_535,
        16_299_260_424,
        1 << 40,
    )
    inner = below(mount, here) / "inner"
    inner.mkdir()
    with disk(tmp_path, "times", kind=kind) as made:
        assert os.spawnlp(os.P_WAIT, "mount", "mount", "--bind", str(made.place), str(inner)) == 0
        try:
            for number, second in enumerate(seconds):
                on_disk, through = inner / f"disk{number}", here / "inner" / f"mount{number}"
                for path in (on_disk, through):
                    path.touch()
                    os.utime(path, ns=(second * 10**9 + 5, second * 10**9 + 7))
                expected = on_disk.stat()
                for path in (through, below(mount, through), here / "inner" / on_disk.name):
                    found = path.stat()
                    assert (found.st_mtime_ns, found.st_atime_ns) == (
                        expected.st_mtime_ns, expected.st_atime_ns), (path, second)  # fmt: skip
                # A change that only the time tells is heard, however far it lies.
                os.utime(below(mount, through), ns=(second * 10**9, second * 10**9 + 2**64 // 10**9 * 10**9))
                wait_for(
                    lambda: through.stat().st_mtime_ns == below(mount, through).stat().st_mtime_ns,  # noqa: B023
                    what="another far time",
                )
        finally:
            os.spawnlp(os.P_WAIT, "umount", "umount", "-l", str(inner))


def test_statx_of_what_is_far(here: Path) -> None:
    """Whole 64-bit sizes and offsets end in a result or an errno."""
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    assert outcome(lambda: os.pwrite(fd, b"x", (1 << 63) - 2)) in ("EFBIG", 1)
    assert outcome(lambda: os.pread(fd, 10, -1)) == "EINVAL"
    assert outcome(lambda: os.ftruncate(fd, (1 << 63) - 1)) in ("EFBIG", "EINVAL", None)
    assert outcome(lambda: os.lseek(fd, -5, os.SEEK_SET)) == "EINVAL"
    os.ftruncate(fd, 0)
    assert outcome(lambda: os.lseek(fd, 5, os.SEEK_DATA)) == "ENXIO"
    assert outcome(lambda: os.posix_fallocate(fd, 0, 0)) == "EINVAL"
    assert struct.unpack("i", bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)))) == (0,)
    os.close(fd)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_disk_says_at_close_reaches_the_caller(
    tmp_path: Path, make_server: Callable[..., Server], way: str
) -> None:
    server = make_server(started=False)
    server.fsd("init")
    server.fsd("space", "create", "posix")
    inner = server.data / "projects/posix/inner"
    inner.mkdir()
    with late_disk(inner), mounted(server, tmp_path / "mnt", "posix", way=way) as mount:
        assert (mount.path / "inner/f").stat().st_size == 0
        for _ in range(2):  # a local file's close, which has nothing to say, changes nothing about it
            (mount.path / "local").write_bytes(b"abc")
            fd = os.open(mount.path / "inner/f", os.O_RDWR)
            assert outcome(lambda fd=fd: os.close(fd)) is None
            fd = os.open(mount.path / "inner/f", os.O_RDWR)
            os.write(fd, b"abc")
            copy = os.dup(fd)
            assert [outcome(lambda f=f: os.close(f)) for f in (copy, fd)] == ["EDQUOT"] * 2
            fd = os.open(mount.path / "inner/f", os.O_RDONLY)
            assert os.read(fd, 5) == b"abc"
            os.close(fd)
            os.truncate(mount.path / "inner/f", 0)


def test_locks_go_with_any_close(here: Path) -> None:
    """A process's locks end with the first descriptor of the file that it closes (fcntl_locking(2))."""
    (here / "f").write_bytes(b"abc")
    fd, other = (os.open(here / "f", os.O_RDWR) for _ in range(2))
    fcntl.lockf(fd, fcntl.LOCK_EX)
    refused = [sys.executable, "-c", f"import fcntl; fcntl.lockf(open({str(here / 'f')!r}, 'r+'), 6)"]
    assert subprocess.run(refused, stderr=subprocess.DEVNULL).returncode == 1
    os.close(other)
    assert subprocess.run(refused).returncode == 0
    os.close(fd)
