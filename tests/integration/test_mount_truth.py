"""One truth: what is written through a mount is right over WebDAV when close or fsync returns; what is written
elsewhere is seen through the mount although it keeps what it was told for a minute."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.davclient import Dav
from tests.support.mounting import Mount, mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root
SOON = 5.0
"""Seconds: an order of magnitude less than what the kernel keeps."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without a watcher: whatever is right is right because somebody looked."""
    made = Server(tmp_path_factory.mktemp("truth"), options=("--only", "web,jobs"))
    made.start()
    made.fsd("space", "create", "truth")
    yield made
    made.close()
    assert not made.complaints()


@pytest.fixture(scope="module")
def mount(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(server, tmp_path_factory.mktemp("mount") / "mnt", "truth") as made:
        yield made


@pytest.fixture
def dav(server: Server) -> Dav:
    return server.space_dav(server.space("truth"))


@pytest.fixture
def here(mount: Mount, request: pytest.FixtureRequest) -> Path:
    place = mount.path / request.node.originalname
    place.mkdir()
    return place


def below(mount: Mount, path: Path) -> Path:
    return mount.server.data / "projects/truth" / path.relative_to(mount.path)


def path_of(mount: Mount, path: Path) -> bytes:
    return os.fsencode(path.relative_to(mount.path))


def test_sizes_and_etags_are_right_when_close_returns(mount: Mount, dav: Dav, here: Path) -> None:
    etags, base = {dav.stat(b"").etag}, dav.stat(b"").size
    for number in range(1, 30):
        (here / f"d{number % 3}").mkdir(exist_ok=True)
        (here / f"d{number % 3}/f{number}").write_bytes(b"x" * number)
        root = dav.stat(b"")
        assert root.size - base == sum(range(number + 1)) and root.etag not in etags
        etags.add(root.etag)
        assert dav.stat(path_of(mount, here / f"d{number % 3}/f{number}")).size == number
    os.rename(here / "d1", here / "e1")
    assert dav.stat(b"").etag not in etags and dav.stat(path_of(mount, here / "e1")).size > 0
    shutil.rmtree(here / "e1")
    assert dav.stat(b"").size - base == sum(number for number in range(30) if number % 3 != 1)


def test_a_file_that_is_being_written(mount: Mount, dav: Dav, here: Path) -> None:
    base = dav.stat(b"").size
    with open(here / "f", "wb", buffering=0) as file:
        for number in range(1, 6):
            file.write(b"12345")
            os.fsync(file.fileno())
            assert dav.stat(b"").size - base == 5 * number
        os.rename(here, here.with_name("renamed"))
        file.write(b"6")
        os.fsync(file.fileno())
        assert dav.stat(b"").size - base == 26
    assert dav.stat(b"renamed/f").size == 26


def test_metadata_and_links(mount: Mount, dav: Dav, here: Path) -> None:
    (here / "a").write_bytes(b"12")
    etag = dav.stat(path_of(mount, here / "a")).etag
    os.chmod(here / "a", 0o600)
    os.setxattr(here / "a", "user.mine", b"1")
    assert dav.stat(path_of(mount, here / "a")).etag == etag
    os.link(here / "a", here / "b")
    assert dav.stat(path_of(mount, here)).size == 4
    with open(here / "b", "ab") as file:
        file.write(b"345")
    assert dav.stat(path_of(mount, here)).size == 10
    os.truncate(here / "a", 1)
    assert dav.stat(path_of(mount, here)).size == 2
    os.utime(here / "a", ns=(0, 10**9))
    assert dav.stat(path_of(mount, here / "a")).mtime == 1


def test_many_writers_and_a_reader(mount: Mount, dav: Dav, here: Path) -> None:
    """Whatever a reader sees is some moment's truth: never less than what was closed before it asked."""
    closed, stop, wrong = [0], threading.Event(), []

    def read() -> None:
        client = mount.server.space_dav(mount.server.space("truth"))
        base_path = path_of(mount, here)
        while not stop.is_set():
            least = closed[0]
            size = client.stat(base_path).size
            if size < least:
                wrong.append((size, least))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        (here / f"f{number}").write_bytes(b"1234567890")
        closed[0] += 10
    stop.set()
    reader.join()
    assert not wrong
    assert dav.stat(path_of(mount, here)).size == 3000


def test_what_is_written_into_the_tree_is_seen(mount: Mount, here: Path) -> None:
    direct = below(mount, here)
    assert not (here / "new").exists(), "the kernel keeps that there is none"
    (direct / "new").write_bytes(b"1")
    wait_for((here / "new").exists, timeout=SOON, every=0.0005)
    assert (here / "new").stat().st_size == 1
    with open(direct / "new", "ab") as file:
        file.write(b"234")
    wait_for(lambda: (here / "new").stat().st_size == 4, timeout=SOON, every=0.0005)
    assert (here / "new").read_bytes() == b"1234"
    (direct / "new").write_bytes(b"4321")
    wait_for(lambda: (here / "new").read_bytes() == b"4321", timeout=SOON, every=0.0005)
    os.rename(direct / "new", direct / "other")
    wait_for(lambda: not (here / "new").exists(), timeout=SOON, every=0.0005)
    assert (here / "other").read_bytes() == b"4321"
    os.chmod(direct / "other", 0o601)
    wait_for(lambda: (here / "other").stat().st_mode & 0o777 == 0o601, timeout=SOON, every=0.0005)
    (direct / "other").unlink()
    wait_for(lambda: os.listdir(here) == [] and not (here / "other").exists(), timeout=SOON, every=0.0005)
    before = here.stat().st_mtime_ns
    (direct / "d").mkdir()
    wait_for(lambda: here.stat().st_mtime_ns > before, timeout=SOON, every=0.0005)


def test_what_is_written_over_webdav_is_seen(mount: Mount, dav: Dav, here: Path) -> None:
    name = path_of(mount, here / "f")
    assert not (here / "f").exists()
    dav.put(name, b"first")
    wait_for((here / "f").exists, timeout=SOON, every=0.0005)
    assert (here / "f").read_bytes() == b"first"
    with open(here / "f", "rb") as old:
        dav.put(name, b"second!")
        wait_for(lambda: (here / "f").read_bytes() == b"second!", timeout=SOON, every=0.0005)
        assert old.read() == b"first", "an open file stays what it was"
    dav.request("DELETE", name)
    wait_for(lambda: not (here / "f").exists(), timeout=SOON, every=0.0005)


def test_a_tree_moved_beneath_the_mount(mount: Mount, here: Path) -> None:
    direct = below(mount, here)
    (here / "a/b").mkdir(parents=True)
    (here / "a/b/f").write_bytes(b"1")
    os.rename(direct / "a", direct / "z")
    wait_for(lambda: os.listdir(here) == ["z"] and not (here / "a").exists(), timeout=SOON, every=0.0005)
    assert (here / "z/b/f").read_bytes() == b"1"
    (here / "z/b/g").write_bytes(b"22")
    assert (direct / "z/b/g").read_bytes() == b"22"


def test_lost_events_cost_nothing_but_a_look(mount: Mount, here: Path) -> None:
    """More changes at once than the kernel's queue holds."""
    direct = below(mount, here)
    for number in range(50):
        (here / f"f{number}").write_bytes(b"old")
        (here / f"f{number}").stat()
    subprocess.run(["sh", "-c", f"kill -STOP {mount.pid}"], check=True)
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        for number in range(limit // 2 + 100):
            name = direct / f"n{number % 200}"
            name.touch()
            name.unlink()
        for number in range(50):
            (direct / f"f{number}").write_bytes(b"newer")
    finally:
        subprocess.run(["sh", "-c", f"kill -CONT {mount.pid}"], check=True)
    wait_for(lambda: all((here / f"f{number}").stat().st_size == 5 for number in range(50)), timeout=SOON)


def test_the_internals_of_a_copy_of_a_space_are_hidden_as_everywhere(
    mount: Mount, dav: Dav, here: Path
) -> None:
    copy = below(mount, here) / "copy"
    (copy / ".fsd" / "trash").mkdir(parents=True, mode=0o700)
    (copy / ".fsd").chmod(0o700)
    (copy / "file").write_bytes(b"x")
    assert {entry.path for entry in dav.propfind(path_of(mount, here / "copy"))[1:]} == {
        path_of(mount, here / "copy" / "file")
    }
    assert os.listdir(here / "copy") == ["file"]
    assert not (here / "copy" / ".fsd").exists()
    with pytest.raises(OSError):
        (here / "copy" / ".fsd").rename(here / "out")
