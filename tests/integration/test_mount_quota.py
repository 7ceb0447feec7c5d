"""A quota holds whatever is tried: many writers through several doors at once, holes, mappings, appends, files without
a name, descriptors that were open before."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import Mount, fails, mounted
from tests.support.mounts import disk
from tests.support.serving import Server
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
MEBI = 1 << 20
WRITER = """
import errno, os, sys
place, size = sys.argv[1], int(sys.argv[2])
try:
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        os.write(fd, bytes(size))
except OSError as error:
    sys.exit(0 if error.errno == errno.EDQUOT else f"{error}")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("quota"))
    made.fsd("init")
    made.fsd("space", "create", "q")
    made.start()
    yield made
    made.close()


@pytest.fixture
def mount(server: Server, tmp_path: Path) -> Iterator[Mount]:
    server.fsd("space", "set", "q", "--quota", "none")
    with mounted(server, tmp_path / "mnt", "q") as made:
        subprocess.run(["find", made.path, "-mindepth", "1", "-delete"], check=True)
        yield made


def limit(server: Server, mount: Mount, size: int) -> None:
    """Set the quota, and wait until the mount knows it."""
    server.fsd("space", "set", "q", "--quota", str(size))
    wait_for(lambda: os.statvfs(mount.path).f_blocks * os.statvfs(mount.path).f_frsize == size)


def on_disk(server: Server) -> int:
    """The sizes of all files, each name counted."""
    root = server.data / "projects/q"
    found = [
        Path(base, name).lstat() for base, _, names in os.walk(root) for name in names if ".fsd" not in base
    ]
    return sum(each.st_size for each in found)


def test_many_writers_through_several_doors(server: Server, mount: Mount, tmp_path: Path) -> None:
    size = 48 * MEBI
    with mounted(server, tmp_path / "second", "q") as second:
        limit(server, mount, size)
        limit(server, second, size)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, made.path / f"{number}{made.path.name}", str(chunk)]
            )
            for made in (mount, second)
            for number, chunk in enumerate((MEBI, 4096, 100_000))
        ]
        statuses: list[int] = []

        def put() -> None:
            dav = server.space_dav(server.space("q"))
            while not statuses or statuses[-1] in (201, 204):
                statuses.append(dav.request("PUT", b"put%d" % len(statuses), bytes(MEBI)).status)

        putting = threading.Thread(target=put)
        putting.start()
        codes = [writer.wait(300) for writer in writers]
        putting.join()
        assert codes == [0] * len(writers) and statuses[-1] == 507, (codes, statuses)
        assert size - 8 * MEBI < on_disk(server) <= size


def test_files_without_a_name_take_room(server: Server, mount: Mount) -> None:
    limit(server, mount, 4 * MEBI)
    gone = os.open(mount.path / "gone", os.O_RDWR | os.O_CREAT)
    os.write(gone, bytes(MEBI))
    os.unlink(mount.path / "gone")
    unnamed = os.open(mount.path, os.O_TMPFILE | os.O_RDWR)
    written = MEBI
    with fails(errno.EDQUOT):
        while written <= 8 * MEBI:
            written += os.write(unnamed if written % 2 else gone, bytes(100_001))
    assert 3.8 * MEBI < written <= 4 * MEBI
    with fails(errno.EDQUOT):
        (mount.path / "f").write_bytes(bytes(MEBI))
    os.close(gone)
    os.close(unnamed)
    (mount.path / "f").write_bytes(bytes(3 * MEBI))
    with open(mount.path / "over", "wb") as over:
        over.write(bytes(MEBI // 2))
    os.rename(mount.path / "over", mount.path / "f")
    (mount.path / "g").write_bytes(bytes(3 * MEBI))


def test_appends_where_the_kernel_knows_another_size(server: Server, mount: Mount) -> None:
    limit(server, mount, MEBI)
    beneath = server.data / "projects/q"
    for number in range(30):
        fd = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.truncate(beneath / "f", 700_000)
        try:
            os.write(fd, bytes(500_000))
        except OSError as error:
            assert error.errno == errno.EDQUOT
        os.close(fd)
        assert on_disk(server) <= MEBI, number
        os.unlink(mount.path / "f")


def test_holes_and_mappings(server: Server, mount: Mount) -> None:
    limit(server, mount, 4 * MEBI)
    fd = os.open(mount.path / "f", os.O_RDWR | os.O_CREAT)
    with fails(errno.EDQUOT):
        os.ftruncate(fd, 5 * MEBI)
    with fails(errno.EDQUOT):
        os.pwrite(fd, b"1", 5 * MEBI)
    with pytest.raises(OSError) as refused:
        os.posix_fallocate(fd, 0, 5 * MEBI)
    assert refused.value.errno in (errno.EDQUOT, errno.EOPNOTSUPP)
    os.ftruncate(fd, 3 * MEBI)
    with mmap.mmap(fd, 3 * MEBI) as mapped:
        mapped[:] = b"x" * len(mapped)
        mapped.flush()
    with fails(errno.EDQUOT):
        (mount.path / "g").write_bytes(bytes(2 * MEBI))
    os.close(fd)
    assert on_disk(server) <= 4 * MEBI


def test_what_was_open_before_there_was_a_quota(server: Server, mount: Mount) -> None:
    """The kernel writes past us there (passthrough), so it can't be stopped; but it counts, and the next open is."""
    with open(mount.path / "before", "wb", buffering=0) as before:
        before.write(bytes(MEBI))
        limit(server, mount, 4 * MEBI)
        try:
            while before.tell() < 6 * MEBI:
                before.write(bytes(MEBI))
        except OSError as error:
            assert error.errno == errno.EDQUOT
        left = max(0, 4 * MEBI - on_disk(server))
        with pytest.raises(OSError) as refused, open(mount.path / "after", "wb", buffering=0) as after:
            while True:
                after.write(bytes(100_000))
        assert refused.value.errno == errno.EDQUOT and (mount.path / "after").stat().st_size <= left
    with fails(errno.EDQUOT), open(mount.path / "before", "ab", buffering=0) as again:
        for _ in range(50):
            again.write(bytes(MEBI))


@pytest.fixture
def subvolume(tmp_path: Path, server: Server) -> Iterator[Path]:
    """A space that is a subvolume of a btrfs with a quota of its own, 32 MiB."""
    with disk(tmp_path, "btrfs", megabytes=400, kind="btrfs") as made:
        place = made.place / "space"
        for command in (
            ["quota", "enable", made.place],
            ["subvolume", "create", place],
            ["qgroup", "limit", "32M", place],
        ):
            subprocess.run(["btrfs", *command], check=True, capture_output=True)
        server.fsd("space", "adopt", str(place), "--name", "sub")
        yield place
        server.fsd("space", "delete", "sub")


@pytest.mark.parametrize(("own", "way"), [("none", "auto"), ("24M", "auto"), ("48M", "auto"), ("48M", "off")])
def test_the_storages_own_quota(server: Server, subvolume: Path, tmp_path: Path, own: str, way: str) -> None:
    """Whoever is smaller stops the writers; where the storage is, the kernel may write by itself."""
    ours = {"none": 1 << 60, "24M": 24 * MEBI, "48M": 48 * MEBI}[own]
    least = min(32 * MEBI, ours)
    server.fsd("space", "set", "sub", "--quota", own)
    with mounted(server, tmp_path / "mnt", "sub", way=way) as made:
        wait_for(lambda: os.statvfs(made.path).f_blocks * os.statvfs(made.path).f_frsize == least)
        fd = os.open(made.path / "f", os.O_RDWR | os.O_CREAT)
        if ours > 32 * MEBI:
            os.posix_fallocate(fd, 0, MEBI)
            with fails(errno.EDQUOT):
                os.posix_fallocate(fd, 0, 64 * MEBI)
            os.ftruncate(fd, 0)
        os.ftruncate(fd, 2 * MEBI)
        os.close(fd)
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, made.path / str(number), str(chunk)])
            for number, chunk in enumerate((MEBI, 4096, 100_000, 300_000))
        ]
        assert [writer.wait(300) for writer in writers] == [0] * 4
        with fails(errno.EDQUOT):
            (made.path / "more").write_bytes(os.urandom(2 * MEBI))
            os.sync()
            (made.path / "and more").write_bytes(os.urandom(2 * MEBI))
        sizes = sum(each.stat().st_size for each in made.path.iterdir())
        assert sizes <= (ours if ours < 32 * MEBI else 34 * MEBI), "2 MiB of them are a hole"
        os.sync()
        wait_for(lambda: os.statvfs(made.path).f_bavail * 4096 < 4 * MEBI, what="what is left")
        # A writer that came last has no file.
        written = [each for each in made.path.iterdir() if each.name.isdigit()]
        max(written, key=lambda each: each.stat().st_size).unlink()
        os.sync()
        with open(made.path / "again", "wb") as again:
            wait_for(lambda: again.write(b"1") and again.flush() is None, what="room again")
