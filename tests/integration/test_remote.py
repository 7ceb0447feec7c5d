"""A user's spaces mounted from another machine: what programs do in it, and what the server has afterwards."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.davclient import Dav
from tests.support.mounting import fails
from tests.support.remote import RemoteMount, remotely
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def mount(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteMount]:
    shared_server.fsd("space", "create", "team")
    base = tmp_path_factory.mktemp("remote")
    with remotely(shared_server, base / "mnt", "--write-back", "0.2", "--cache-size", "200M") as made:
        yield made


@pytest.fixture
def here(mount: RemoteMount, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the test's own, through the mount."""
    place = mount.path / "team" / request.node.originalname
    place.mkdir()
    return place


@pytest.fixture
def there(mount: RemoteMount, here: Path) -> Path:
    """The same in the server's tree."""
    return mount.server.data / "projects/team" / here.name


@pytest.fixture
def other(mount: RemoteMount, here: Path) -> Dav:
    """The same, as another client has it."""
    return mount.server.dav(f"/dav/home/team/{here.name}")


def same_trees(one: Path, two: Path) -> None:
    done = subprocess.run(["diff", "-r", one, two], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:2000]


def test_spaces(mount: RemoteMount) -> None:
    assert set(os.listdir(mount.path)) == {"Administrator", "team"}
    with fails(errno.EPERM):
        (mount.path / "new").mkdir()
    assert os.statvfs(mount.path).f_bavail > 0


def test_whoever_waits_for_a_file_is_told_at_once(here: Path) -> None:
    (here / "f").write_bytes(b"abc")
    with open(here / "f", "rb", buffering=0) as file:
        poller = select.poll()  # select(2) knows no descriptors beyond 1023
        poller.register(file, select.POLLIN)
        assert poller.poll(0) == [(file.fileno(), select.POLLIN)]
        assert file.read() == b"abc"


def test_written_renamed_deleted(mount: RemoteMount, here: Path, there: Path) -> None:
    (here / "a").mkdir()
    (here / "a/file").write_bytes(b"one")
    assert (here / "a/file").read_bytes() == b"one"
    mount.uploaded()
    assert (there / "a/file").read_bytes() == b"one"
    ident = os.getxattr(here / "a/file", "user.fsd.id")
    (here / "a/file").rename(here / "b")
    (here / "a").rmdir()
    assert os.listdir(there) == ["b"] and os.getxattr(here / "b", "user.fsd.id") == ident
    with open(here / "b", "ab") as file:
        file.write(b" two")
    mount.uploaded()
    assert (there / "b").read_bytes() == b"one two"
    assert mount.server.dav(f"/dav/home/team/{here.name}").stat(b"b").id.encode() == ident
    (here / "b").unlink()
    assert os.listdir(there) == os.listdir(here) == []


def test_a_new_file_that_is_renamed_at_once_is_uploaded_once(
    mount: RemoteMount, here: Path, there: Path
) -> None:
    """How git, editors and package managers write: a temporary name, then over the old one."""
    (here / "file").write_bytes(b"old")
    mount.uploaded()
    etag = os.getxattr(here / "file", "user.fsd.etag")
    ident = os.getxattr(here / "file", "user.fsd.id")
    for number in range(5):
        (here / "file.lock").write_bytes(b"new %d" % number)
        (here / "file.lock").replace(here / "file")
    assert os.listdir(here) == ["file"] and (here / "file").read_bytes() == b"new 4"
    mount.uploaded()
    assert os.listdir(there) == ["file"] and (there / "file").read_bytes() == b"new 4"
    assert os.getxattr(here / "file", "user.fsd.id") == ident
    assert os.getxattr(here / "file", "user.fsd.etag") != etag


def test_renamed_over_what_the_server_has(mount: RemoteMount, here: Path, there: Path) -> None:
    (here / "one").write_bytes(b"1")
    (here / "two").write_bytes(b"2")
    mount.uploaded()
    (here / "one").rename(here / "two")
    assert os.listdir(there) == ["two"] and (there / "two").read_bytes() == b"1"
    assert (here / "two").read_bytes() == b"1"
    (here / "three").write_bytes(b"3")
    (here / "two").rename(here / "three")
    mount.uploaded()
    assert os.listdir(there) == ["three"] and (there / "three").read_bytes() == b"1"


def test_names_that_can_not_be(here: Path) -> None:
    with fails(errno.EINVAL):
        (here / "line\nbreak").touch()
    with fails(errno.ENAMETOOLONG):
        (here / ("x" * 256)).touch()
    with fails(errno.EPERM):
        (here / "link").symlink_to("file")
    (here / "file").touch()
    with fails(errno.EPERM):
        os.link(here / "file", here / "other")
    with fails(errno.EEXIST):
        os.open(here / "file", os.O_CREAT | os.O_EXCL)
    with fails(errno.ENOTEMPTY):
        here.rmdir()
    with fails(errno.EXDEV):
        os.rename(here / "file", here.parent.parent / "Administrator/file")
    (here / "ä+%20 ?#&.txt").write_bytes(b"x")
    assert (here / "ä+%20 ?#&.txt").read_bytes() == b"x"


def test_a_folder_with_what_others_put_there_is_not_removed(here: Path, other: Dav) -> None:
    (here / "a").mkdir()
    assert os.listdir(here / "a") == []
    other.put(b"a/theirs", b"x")
    with fails(errno.ENOTEMPTY):
        (here / "a").rmdir()
    assert (here / "a/theirs").read_bytes() == b"x"


def test_fsync_waits_for_the_server(here: Path, other: Dav) -> None:
    with open(here / "file", "wb") as file:
        file.write(b"durable")
        file.flush()
        os.fsync(file.fileno())
        assert other.get(b"file") == b"durable"
        file.write(b" more")
        file.flush()
        os.fsync(file.fileno())
        assert other.get(b"file") == b"durable more"


def test_times_are_kept_to_the_nanosecond(mount: RemoteMount, here: Path, there: Path) -> None:
    when = 1_234_567_890_123_456_789
    (here / "file").write_bytes(b"x")
    os.utime(here / "file", ns=(when, when))
    mount.uploaded()
    assert (there / "file").stat().st_mtime_ns == (here / "file").stat().st_mtime_ns == when
    os.utime(here / "file", ns=(when - 1, when - 1))
    assert (here / "file").stat().st_mtime_ns == when - 1
    assert (there / "file").stat().st_mtime_ns // 10**9 == when // 10**9  # PROPPATCH has whole seconds
    assert (here / "file").read_bytes() == b"x"


def test_truncated_mapped_appended(mount: RemoteMount, here: Path, there: Path) -> None:
    (here / "file").write_bytes(b"0123456789" * 1000)
    mount.uploaded()
    os.truncate(here / "file", 5000)
    mount.uploaded()
    assert (there / "file").read_bytes() == b"0123456789" * 500
    with open(here / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        assert view[4990:] == b"0123456789"
        view[:4] = b"abcd"
    with open(here / "file", "ab") as file:
        file.write(b"!")
    mount.uploaded()
    assert (there / "file").read_bytes() == b"abcd456789" + b"0123456789" * 499 + b"!"
    with open(here / "file", "wb"):
        pass
    mount.uploaded()
    assert (there / "file").read_bytes() == b""


def test_unlinked_while_open(mount: RemoteMount, here: Path, there: Path) -> None:
    (here / "file").write_bytes(b"still here")
    mount.uploaded()
    with open(here / "file", "r+b") as file:
        (here / "file").unlink()
        assert os.listdir(there) == []
        assert file.read() == b"still here"
        file.write(b"!")
    (here / "file").write_bytes(b"another")
    mount.uploaded()
    assert (there / "file").read_bytes() == b"another"


# -- what others do


def test_changes_of_others_are_seen(mount: RemoteMount, here: Path, there: Path, other: Dav) -> None:
    wait_for(lambda: mount.told()["events"], what="events")
    assert os.listdir(here) == [] and not (here / "new").exists()
    other.put(b"new", b"one")
    agree(lambda: _is(here / "new", b"one"))
    other.put(b"new", b"another")
    agree(lambda: _is(here / "new", b"another"))
    other.move(b"new", b"moved")
    agree(lambda: _listed(here, {"moved"}))
    assert (here / "moved").read_bytes() == b"another"
    (there / "direct").write_bytes(b"not over HTTP")
    agree(lambda: _is(here / "direct", b"not over HTTP"))
    (there / "direct").write_bytes(b"again")
    agree(lambda: _is(here / "direct", b"again"))
    other.mkcol(b"folder")
    other.put(b"folder/in", b"x")
    agree(lambda: _listed(here, {"moved", "direct", "folder"}))
    assert os.listdir(here / "folder") == ["in"]
    shutil.rmtree(there / "folder")
    other.delete(b"moved")
    agree(lambda: _listed(here, {"direct"}))


def _is(path: Path, data: bytes) -> None:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = None
    assert found == data
    assert path.stat().st_size == len(data)


def _listed(path: Path, names: set[str]) -> None:
    assert set(os.listdir(path)) == names
    assert all((path / name).exists() for name in names)


def test_our_own_echoes_hide_nothing(mount: RemoteMount, here: Path, other: Dav) -> None:
    """Somebody changes what was just uploaded from here: the event may look like the echo of the upload."""
    for number in range(6):
        (here / "file").write_bytes(b"ours %d" % number)
        mount.uploaded()
        other.put(b"file", b"theirs %d!" % number)
        agree(lambda number=number: _is(here / "file", b"theirs %d!" % number))


def test_both_change_a_file(mount: RemoteMount, here: Path, there: Path, other: Dav) -> None:
    mount.allow_log("was changed elsewhere")
    (here / "report.txt").write_bytes(b"first")
    mount.uploaded()
    with open(here / "report.txt", "wb") as file:
        file.write(b"ours")
        file.flush()
        other.put(b"report.txt", b"theirs")
    mount.uploaded()
    agree(lambda: _is(here / "report.txt", b"theirs"))
    (copy,) = set(os.listdir(there)) - {"report.txt"}
    assert copy.startswith("report (conflicted copy admin 2") and copy.endswith(").txt")
    assert (there / copy).read_bytes() == (here / copy).read_bytes() == b"ours"
    assert (there / "report.txt").read_bytes() == b"theirs"
    wait_for(lambda: copy in mount.status()["conflicts"], what="the conflict in the status")


def test_both_make_a_file(mount: RemoteMount, here: Path, there: Path, other: Dav) -> None:
    mount.allow_log("was changed elsewhere")
    for data in (b"ours", b"just the same"):
        with open(here / "file", "wb") as file:
            file.write(data)
            file.flush()
            other.put(b"file", b"theirs" if data == b"ours" else data)
        mount.uploaded()
        copies = set(os.listdir(there)) - {"file"}
        assert len(copies) == (data == b"ours")
        for copy in copies:
            assert (there / copy).read_bytes() == b"ours"
            agree(lambda copy=copy: _listed(here, {"file", copy}))
            (here / copy).unlink()
        agree(lambda: _listed(here, {"file"}))
        (here / "file").unlink()


def test_changed_here_and_deleted_there(mount: RemoteMount, here: Path, there: Path, other: Dav) -> None:
    (here / "file").write_bytes(b"first")
    mount.uploaded()
    with open(here / "file", "wb") as file:
        file.write(b"ours")
        file.flush()
        other.delete(b"file")
    mount.uploaded()
    assert (there / "file").read_bytes() == (here / "file").read_bytes() == b"ours"


def test_changed_here_and_moved_there(mount: RemoteMount, here: Path, there: Path, other: Dav) -> None:
    (here / "file").write_bytes(b"first")
    (here / "a").mkdir()
    mount.uploaded()
    with open(here / "file", "wb") as file:
        file.write(b"ours")
        file.flush()
        other.move(b"file", b"a/elsewhere")
    mount.uploaded()
    assert (there / "a/elsewhere").read_bytes() == b"ours"
    agree(lambda: _is(here / "a/elsewhere", b"ours"))


# -- large files, many files


def test_a_part_of_a_large_file_is_fetched_alone(mount: RemoteMount, here: Path, there: Path) -> None:
    block = os.urandom(1 << 20)
    with open(there / "large", "wb") as file:
        for number in range(40):
            file.write(number.to_bytes(8, "big") + block[8:])
    wait_for(
        lambda: (here / "large").exists() and (here / "large").stat().st_size == 40 << 20, what="the file"
    )
    before = mount.told()["cached"]["bytes"]
    with open(here / "large", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 8, 30 << 20) == (30).to_bytes(8, "big")
        assert os.pread(file.fileno(), 100, (40 << 20) - 100) == block[-100:]
    wait_for(lambda: mount.told()["cached"]["bytes"] > before, what="the status")
    assert mount.told()["cached"]["bytes"] - before <= 2 << 20
    assert (here / "large").read_bytes() == (there / "large").read_bytes()
    with open(here / "large", "r+b") as file:
        file.seek(20 << 20)
        file.write(b"changed!")
    mount.uploaded()
    with open(there / "large", "rb") as file:
        assert os.pread(file.fileno(), 16, 20 << 20) == b"changed!" + block[8:16]
    assert (there / "large").stat().st_size == 40 << 20


def test_git(mount: RemoteMount, here: Path, there: Path, tmp_path: Path) -> None:
    def git(*arguments: str | Path, at: Path) -> str:
        command = [
            "git",
            "-c",
            "user.name=n",
            "-c",
            "user.email=e",
            "-c",
            "gc.auto=0",
            "-C",
            str(at),
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    source = tmp_path / "source"
    source.mkdir()
    for number in range(60):
        (source / f"d{number % 6}").mkdir(exist_ok=True)
        (source / f"d{number % 6}/f{number}").write_bytes(b"line\n" * number)
    git("init", "-q", "-b", "main", at=source)
    git("add", "-A", at=source)
    git("commit", "-qm", "all", at=source)
    git("clone", "-q", "--no-hardlinks", source, here / "clone", at=tmp_path)
    clone = here / "clone"
    assert git("status", "--short", at=clone) == ""
    (clone / "d1/f1").write_bytes(b"changed")
    (clone / "new").write_bytes(b"new")
    git("add", "-A", at=clone)
    git("commit", "-qm", "more", at=clone)
    git("checkout", "-qb", "branch", at=clone)
    git("repack", "-adq", at=clone)
    mount.uploaded()
    same_trees(here / "clone", there / "clone")
    git("fsck", "--strict", at=there / "clone")
    assert git("log", "--oneline", "--all", at=there / "clone").count("\n") == 2
    assert git("status", "--short", at=clone) == git("status", "--short", at=there / "clone") == ""


def test_tar_and_rm(mount: RemoteMount, here: Path, there: Path, tmp_path: Path) -> None:
    for number in range(200):
        place = tmp_path / f"tree/d{number % 10}/e"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(b"line\n" * number)
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        archive.add(tmp_path / "tree", "tree")
    subprocess.run(["tar", "xf", tmp_path / "tree.tar", "-C", here], check=True)
    same_trees(tmp_path / "tree", here / "tree")
    mount.uploaded()
    same_trees(tmp_path / "tree", there / "tree")
    assert (there / "tree/d1/e/f1").stat().st_mtime_ns == (here / "tree/d1/e/f1").stat().st_mtime_ns
    subprocess.run(["rm", "-r", here / "tree"], check=True)
    assert os.listdir(there) == os.listdir(here) == []


def test_sqlite(mount: RemoteMount, here: Path, there: Path) -> None:
    with contextlib.closing(sqlite3.connect(here / "a.db")) as db:
        db.execute("CREATE TABLE t(n)")
        for number in range(5):
            with db:
                db.executemany("INSERT INTO t VALUES (?)", [(number,)] * 100)
    mount.uploaded()
    for place in (here, there):
        with contextlib.closing(sqlite3.connect(place / "a.db")) as db:
            assert db.execute("SELECT count(*), sum(n) FROM t").fetchone() == (500, 1000)
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert os.listdir(there) == ["a.db"]
