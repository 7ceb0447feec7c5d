"""Living with failure: mounts whose daemon was killed, hangs or is told to end; quota; programs at work."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import tree
from fsd.core.registry import Registry
from fsd.core.space import Space
from fsd.mount import mountpoints
from tests.support.mounting import Mount, mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A data root with one space, served by nobody."""
    made = Server(tmp_path_factory.mktemp("failure"))
    made.fsd("init")
    made.fsd("space", "create", "work")
    return made


@pytest.fixture
def mount(server: Server, tmp_path: Path) -> Iterator[Mount]:
    with mounted(server, tmp_path / "mnt", "work") as made:
        shutil.rmtree(made.path / "t", ignore_errors=True)
        (made.path / "t").mkdir()
        yield made


@pytest.fixture
def space(server: Server) -> Iterator[Space]:
    """The space as another process reads it."""
    made = Space(Registry(server.state).get(server.space("work")["id"]), server.state)
    yield made
    made.close()


def test_a_killed_daemon_is_replaced(server: Server, mount: Mount, space: Space) -> None:
    (mount.path / "t/before").write_bytes(b"123")
    opened = open(mount.path / "t/open", "wb", buffering=0)
    opened.write(b"4567")
    mount.kill()
    assert tree.lookup(space, b"t").size == 7, "what the dead announced is settled"
    with pytest.raises(OSError) as dead:
        os.listdir(mount.path)
    assert dead.value.errno == errno.ENOTCONN
    mount.start()
    assert sorted(os.listdir(mount.path / "t")) == ["before", "open"]
    assert (mount.path / "t/open").read_bytes() == b"4567"
    assert len([each for each in mountpoints.mounts() if each.point == os.fsencode(mount.path)]) == 1
    # What the kernel wrote by itself it goes on writing until it is closed; without passthrough that fails.
    try:
        opened.write(b"8")
        size = 5
    except OSError as error:
        assert error.errno == errno.ENOTCONN
        size = 4
    opened.close()
    assert (mount.path / "t/open").stat().st_size == size == tree.lookup(space, b"t/open").size
    assert tree.lookup(space, b"t").size == 3 + size


def test_a_dead_mount_that_goes_while_it_is_asked_is_none(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.kill()
    ask = mountpoints._dead

    def asked_too_late(path: bytes) -> bool:
        mountpoints.unmount(str(mount.path), lazily=True)
        return ask(path)

    monkeypatch.setattr(mountpoints, "_dead", asked_too_late)
    assert mountpoints.at(str(mount.path)).state == "none"


def test_umount_of_the_dead_and_of_nothing(server: Server, mount: Mount) -> None:
    mount.kill()
    assert "cleared away" in server.run("umount", str(mount.path)).stderr
    done = server.run("umount", str(mount.path))
    assert done.returncode == 1 and "Nothing is mounted" in done.stderr
    done = server.run("umount", "/proc")
    assert done.returncode == 1 and "not fsd's" in done.stderr


def test_umount_while_busy(server: Server, mount: Mount, space: Space) -> None:
    with open(mount.path / "t/f", "wb", buffering=0) as file:
        file.write(b"12")
        done = server.run("umount", str(mount.path))
        assert done.returncode == 4 and "in use" in done.stderr
        file.write(b"3")
    server.fsd("umount", str(mount.path))
    assert mount.process is not None and mount.process.wait(20) == 0
    assert tree.lookup(space, b"t").size == 3 and not space.board.waiting()


def test_sigterm_unmounts(mount: Mount, space: Space) -> None:
    (mount.path / "t/f").write_bytes(b"12")
    assert mount.stop(signal.SIGTERM) == 0
    assert mountpoints.at(str(mount.path)).state == "none" and os.listdir(mount.path) == []
    assert tree.lookup(space, b"t").size == 2 and not space.board.waiting()


def test_a_hung_daemon_is_cut_off(server: Server, mount: Mount) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    caller = subprocess.Popen(["ls", mount.path / "t/never-asked-for"], stderr=subprocess.DEVNULL)
    asleep = Path(f"/proc/{caller.pid}/wchan")
    wait_for(lambda: "request_wait" in asleep.read_text(), what="a caller that hangs")
    server.fsd("umount", "--force", str(mount.path))
    assert caller.wait(10) != 0
    assert mountpoints.at(str(mount.path)).state == "none"
    os.kill(mount.pid, signal.SIGCONT)
    assert mount.process is not None
    mount.process.wait(20)


def test_two_at_one_place_and_bad_places(server: Server, mount: Mount, tmp_path: Path) -> None:
    done = server.run("mount", "work", str(mount.path))
    assert done.returncode == 4 and "mounted already" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full/f").touch()
    inside = server.data / "projects/work/t/inside"
    inside.mkdir()
    for arguments, code, said in (
        (["work", str(tmp_path / "full")], 1, "not empty"),
        (["work", str(tmp_path / "full/f")], 1, "not a directory"),
        (["work", str(tmp_path / "nowhere")], 1, "no directory"),
        (["nothing", str(tmp_path)], 1, "nothing"),
        ([str(tmp_path)], 2, "--all"),
        (["--all", "work", str(tmp_path)], 2, "--all"),
        (["work", str(inside)], 1, "inside the space"),
        (["work", str(inside), "--as", "nobody-of-ours"], 1, "no user"),
    ):
        done = server.run("mount", *arguments)
        assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done


def test_in_the_background_and_through_mount_8(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "background"
    place.mkdir()
    server.fsd("mount", "work", str(place), "--background")
    assert mountpoints.at(str(place)).state == "ours" and "t" in os.listdir(place)
    server.fsd("umount", str(place))
    wait_for(lambda: mountpoints.at(str(place)).state == "none")
    helper = Path(__file__).parents[2] / "scripts/mount.fsd"
    program = tmp_path / "fsd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fsd.cli.main "$@"\n')
    program.chmod(0o755)
    options = f"rw,nofail,data={server.data},state={server.state},passthrough=off,ro"
    environment = {**server.environment, "FSD_PROGRAM": str(program)}
    subprocess.run([helper, "work", place, "-o", options], check=True, env=environment)
    with pytest.raises(OSError) as refused:
        (place / "new").touch()
    assert refused.value.errno == errno.EROFS
    server.fsd("umount", str(place))
    done = server.run("mount", "work", str(place / "missing"), "--background")
    assert done.returncode == 1 and "no directory" in done.stderr


def test_two_mounts_of_one_space(server: Server, mount: Mount, space: Space, tmp_path: Path) -> None:
    with mounted(server, tmp_path / "second", "work") as second:
        (mount.path / "t/f").write_bytes(b"1")
        wait_for((second.path / "t/f").exists, every=0.001)
        (second.path / "t/f").write_bytes(b"22")
        wait_for(lambda: (mount.path / "t/f").read_bytes() == b"22", every=0.001)
        assert tree.lookup(space, b"t").size == 2


def test_quota(server: Server, mount: Mount, space: Space) -> None:
    server.fsd("space", "set", "work", "--quota", "1M")
    blocks = os.statvfs(mount.path)
    wait_for(lambda: os.statvfs(mount.path).f_blocks * os.statvfs(mount.path).f_frsize == 1 << 20)
    used = tree.usage(space)
    blocks = os.statvfs(mount.path)
    assert (1 << 20) - used - blocks.f_frsize < blocks.f_bavail * blocks.f_frsize <= (1 << 20) - used
    (mount.path / "t/half").write_bytes(bytes(1 << 19))
    with open(mount.path / "t/more", "w+b", buffering=0) as file:
        written = 0
        with pytest.raises(OSError) as full:
            while True:
                written += file.write(bytes(10_000))
        assert full.value.errno == errno.EDQUOT
        assert (1 << 19) - used - 10_000 < written <= (1 << 19) - used
        with pytest.raises(OSError) as full:
            os.truncate(mount.path / "t/more", 1 << 20)
        assert full.value.errno == errno.EDQUOT
        with pytest.raises(OSError) as full:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
        assert full.value.errno in (errno.EDQUOT, errno.ENOTSUP)
        file.seek(0)
        file.write(bytes(1000))
    assert tree.usage(space) <= 1 << 20
    os.unlink(mount.path / "t/half")
    (mount.path / "t/again").write_bytes(bytes(1 << 19))
    server.fsd("space", "set", "work", "--quota", "none")
    wait_for(lambda: os.statvfs(mount.path).f_blocks * os.statvfs(mount.path).f_frsize > 1 << 24)
    (mount.path / "t/large").write_bytes(bytes(2 << 20))


def test_a_full_disk_is_an_error_and_nothing_else(server: Server, tmp_path: Path) -> None:
    from tests.support.mounts import disk

    with disk(tmp_path, "small", megabytes=16) as small:
        (small.place / "files").mkdir()
        server.fsd("space", "adopt", str(small.place / "files"), "--name", "small")
        with mounted(server, tmp_path / "mnt", "small") as mount:
            small.fill()
            with pytest.raises(OSError) as full:
                (mount.path / "f").write_bytes(bytes(1 << 20))
            assert full.value.errno == errno.ENOSPC
            (small.place / "filler").unlink()
            (mount.path / "f").write_bytes(bytes(1 << 20))
        server.fsd("space", "delete", "small")


def test_databases_compilers_and_version_control(mount: Mount, tmp_path: Path) -> None:
    place = mount.path / "t"
    for mode in ("delete", "wal"):
        with sqlite3.connect(place / f"{mode}.db") as db:
            db.execute(f"pragma journal_mode={mode}")
            db.execute("create table t(a, b)")
            for number in range(50):
                db.execute("insert into t values(?, ?)", (number, "x" * number * 10))
                db.commit()
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        db.close()
    (place / "hello.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    subprocess.run(["cc", "-o", place / "hello", place / "hello.c"], check=True)
    assert subprocess.run([place / "hello"], capture_output=True, text=True).stdout == "hello\n"
    (place / "package").mkdir()
    (place / "package/__init__.py").write_text("value = 42\n")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.dont_write_bytecode = False; import package; print(package.value)",
        ],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "42\n" and (place / "package/__pycache__").is_dir()
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q", "r"], ["-C", "r", "add", "-A"], ["-C", "r", "commit", "-qm", "one"]):
        if command[-1] == "-A":
            for number in range(100):
                (place / f"r/f{number}").write_text(f"{number}\n")
        subprocess.run([*git, *command], cwd=place, check=True)
    subprocess.run([*git, "clone", "-q", "r", "clone"], cwd=place, check=True)
    assert subprocess.run([*git, "-C", "clone", "fsck"], cwd=place, capture_output=True).returncode == 0
    status = subprocess.run(
        [*git, "-C", "clone", "status", "--short"], cwd=place, capture_output=True, text=True
    )
    assert status.stdout == "" and status.returncode == 0
    subprocess.run(["tar", "cf", tmp_path / "t.tar", "-C", place, "r"], check=True)
    (place / "x").mkdir()
    subprocess.run(["tar", "xpf", tmp_path / "t.tar", "-C", place / "x"], check=True)
    subprocess.run(["diff", "-r", place / "r", place / "x/r"], check=True)
    subprocess.run(["rsync", "-aX", f"{place}/r/", f"{place}/copy/"], check=True)
    subprocess.run(["diff", "-r", place / "r", place / "copy"], check=True)


_PARENT = """
import ctypes, subprocess, sys
prctl = ctypes.CDLL(None).prctl
mount = subprocess.Popen(sys.argv[1:], preexec_fn=lambda: prctl(1, 15), stdin=subprocess.DEVNULL)
print(mount.pid, flush=True)
sys.stdin.read()
"""


def test_a_daemon_dies_with_its_parent(server: Server, tmp_path: Path) -> None:
    """Who started it asked the kernel for that (prctl(2), PR_SET_PDEATHSIG), and it stays so while files are opened."""
    mount = Mount(server, tmp_path / "mnt", "work")
    command = [
        sys.executable,
        "-c",
        _PARENT,
        sys.executable,
        "-m",
        "fsd.cli.main",
        "mount",
        "work",
        mount.path,
    ]
    with (
        open(mount.log_path, "ab") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=mount.environment, cwd="/"
        ) as parent,
    ):
        assert parent.stdin is not None and parent.stdout is not None
        daemon = int(parent.stdout.readline())
        try:
            wait_for(lambda: mountpoints.at(str(mount.path)).state == "ours", timeout=60)
            for number in range(3):
                (mount.path / f"f{number}").write_bytes(b"opened, maybe with passthrough")
                (mount.path / f"d{number}").mkdir()
            parent.kill()
            parent.wait(10)
            wait_for(lambda: not Path(f"/proc/{daemon}").exists(), timeout=20)
            wait_for(lambda: mountpoints.at(str(mount.path)).state == "none")
        finally:
            mount.close()
