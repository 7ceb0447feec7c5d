"""A remote mount when things go wrong: its server, the network, its process, its disk, its credentials. Nothing that
was written is lost, and nothing fails without saying why."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.mount import mountpoints
from tests.support.davclient import Dav
from tests.support.mounting import fails
from tests.support.mounts import disk
from tests.support.remote import RemoteMount, remotely
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for

pytestmark = pytest.mark.root
LATER = ("--write-back", "3600")
SOON = ("--write-back", "0.1")
USER = 65534


@pytest.fixture
def team(server: Server) -> Iterator[Dav]:
    """A space, as another client has it."""
    server.fsd("space", "create", "team")
    client = server.dav("/dav/home/team")
    yield client
    client.close()


def tree(server: Server) -> Path:
    return server.data / "projects/team"


def online(mount: RemoteMount) -> None:
    wait_for(
        lambda: mount.told()["server"] == "there" and mount.told()["events"], timeout=30, what="the server"
    )


# -- the mount's process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_while_it_begins(server: Server, team: Dav, tmp_path: Path, number: signal.Signals) -> None:
    """No thread of it waits for its own mount, as not even SIGKILL ends that."""
    mount = RemoteMount(server, tmp_path / "mnt")
    for _ in range(5):
        process = mount.begin()
        point = os.fsencode(mount.path)
        wait_for(
            lambda: any(m.point == point for m in mountpoints.mounts()), every=0.0005, what="a mountpoint"
        )
        process.send_signal(number)
        assert process.wait(30) in (0, -number)
        mountpoints.clear_dead(str(mount.path))
        assert mountpoints.at(str(mount.path)).state == "none"


def test_killed_before_anything_was_uploaded(server: Server, team: Dav, tmp_path: Path) -> None:
    team.put(b"old", b"old content")
    team.put(b"contested", b"first")
    mount = RemoteMount(server, tmp_path / "mnt", *LATER).start()
    top = mount.path / "team"
    (top / "a").mkdir()
    (top / "a/new").write_bytes(b"new")
    (top / "temporary").write_bytes(b"renamed")
    (top / "temporary").rename(top / "a/renamed")
    (top / "deleted").write_bytes(b"deleted")
    (top / "deleted").unlink()
    with open(top / "old", "r+b") as file:
        file.write(b"NEW")
    (top / "contested").write_bytes(b"ours")
    still_open = open(top / "half", "wb", buffering=0)
    still_open.write(b"written, never closed")
    mount.kill()
    assert mount.status()["waiting"]["files"] == 5 and mount.status()["pid"] is None
    team.put(b"contested", b"theirs")
    assert not (tree(server) / "a/new").exists()
    with fails(errno.ENOTCONN):
        still_open.write(b"x")
    still_open.close()
    with remotely(server, mount.path, *SOON, cache=mount.cache) as again:
        again.allow_log("was changed elsewhere")
        again.uploaded()
        found = {
            name: (tree(server) / name).read_bytes()
            for name in ("a/new", "a/renamed", "old", "half", "contested")
        }
        assert found == {
            "a/new": b"new", "a/renamed": b"renamed", "old": b"NEW content",
            "half": b"written, never closed", "contested": b"theirs",
        }  # fmt: skip
        (copy,) = (name for name in os.listdir(tree(server)) if "conflicted copy" in name)
        assert (tree(server) / copy).read_bytes() == b"ours"
        assert not (tree(server) / "deleted").exists() and not (tree(server) / "temporary").exists()
        agree(lambda: _same(top, tree(server)))


def _same(one: Path, two: Path) -> None:
    assert set(os.listdir(one)) == set(os.listdir(two)) - {".fsd"}


def test_ended_while_something_waits(server: Server, team: Dav, tmp_path: Path) -> None:
    with remotely(server, tmp_path / "mnt", *LATER) as mount:
        (mount.path / "team/file").write_bytes(b"sent at the end")
        assert mount.stop() == 0
        assert team.get(b"file") == b"sent at the end"
        assert mount.status() and mount.status()["waiting"]["files"] == 0


# -- the server and the network


def test_the_server_goes_and_comes_back(server: Server, team: Dav, tmp_path: Path) -> None:
    team.put(b"read", b"cached")
    team.put(b"unread", b"not cached")
    with remotely(server, tmp_path / "mnt", *SOON, "--timeout", "5") as mount:
        top = mount.path / "team"
        assert (top / "read").read_bytes() == b"cached"
        online(mount)
        server.kill()
        wait_for(lambda: mount.told()["server"] == "away", what="the mount to notice")
        assert (top / "read").read_bytes() == b"cached" and "unread" in os.listdir(top)
        with fails(errno.EHOSTDOWN):
            (top / "unread").read_bytes()
        with fails(errno.EHOSTDOWN):
            (top / "folder").mkdir()
        (top / "new").write_bytes(b"made without it")
        (top / "new").rename(top / "renamed")
        (top / "read").write_bytes(b"changed without it")
        assert (top / "read").read_bytes() == b"changed without it"
        with open(top / "synced", "wb") as file:
            file.write(b"x")
            file.flush()
            with fails(errno.EHOSTDOWN):
                os.fsync(file.fileno())
        wait_for(lambda: mount.status()["waiting"]["files"] == 3, what="all three in the status")
        assert mount.status()["server"] == "away" and mount.status()["why"]
        server.start()
        online(mount)
        mount.uploaded()
        assert team.get(b"renamed") == b"made without it" and team.get(b"read") == b"changed without it"
        assert team.get(b"synced") == b"x" and (top / "unread").read_bytes() == b"not cached"


def test_mounted_without_the_server(server: Server, team: Dav, tmp_path: Path) -> None:
    team.mkcol(b"a")
    team.put(b"a/file", b"seen before")
    with remotely(server, tmp_path / "mnt") as mount:
        assert (mount.path / "team/a/file").read_bytes() == b"seen before"
    server.stop()
    with remotely(server, mount.path, *SOON, cache=mount.cache) as again:
        again.allow_log("mounted from the cache")
        top = again.path / "team"
        assert os.listdir(top / "a") == ["file"] and (top / "a/file").read_bytes() == b"seen before"
        (top / "a/new").write_bytes(b"meanwhile")
        server.start()
        online(again)
        again.uploaded()
        assert team.get(b"a/new") == b"meanwhile"
    server.stop()
    mount.cache = tmp_path / "empty"
    done = mount.command(
        "mount",
        "--user",
        "admin",
        "--cache",
        str(mount.cache),
        f"http://127.0.0.1:{server.port}",
        str(mount.path),
    )
    assert done.returncode == 1 and "can't be reached" in done.stderr and "Traceback" not in done.stderr
    server.start()


def test_a_network_that_swallows_everything(server: Server, team: Dav, tmp_path: Path) -> None:
    """The server's processes stand still: connections stay, answers don't come."""
    team.put(b"file", b"x")
    with remotely(server, tmp_path / "mnt", *SOON, "--timeout", "2") as mount:
        top = mount.path / "team"
        assert os.listdir(top) == ["file"]
        online(mount)
        pids = [server.process.pid, *server.children()]  # type: ignore[union-attr]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with fails(errno.EHOSTDOWN):
                (top / "file").read_bytes()
            (top / "new").write_bytes(b"y")
            assert (top / "new").read_bytes() == b"y"
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        online(mount)
        mount.uploaded()
        assert team.get(b"new") == b"y"
        # Who waits two seconds for an answer may have to ask a busy machine again.
        wait_for(lambda: (top / "file").read_bytes() == b"x", what="the file")


def test_a_large_upload_goes_on_where_it_was(server: Server, team: Dav, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 128
    uploads = tree(server) / ".fsd/uploads"

    def arrived() -> dict[str, int]:
        return {each.name: each.stat().st_size for each in uploads.rglob("*") if each.is_file()}

    mount = RemoteMount(server, tmp_path / "mnt", *SOON).start()
    mount.allow_log("is not uploaded")
    (mount.path / "team/large").write_bytes(data)
    wait_for(lambda: sum(arrived().values()) >= 17 << 20, what="the first part", every=0.001)
    mount.kill()
    assert not (tree(server) / "large").exists()
    begun = arrived()
    with remotely(server, mount.path, *SOON, cache=mount.cache) as again:
        wait_for(lambda: arrived() != begun, what="its going on", every=0.001)
        assert arrived().keys() <= begun.keys(), "no other upload was begun"
        again.uploaded()
        assert (tree(server) / "large").read_bytes() == data


def test_refused_by_the_quota(server: Server, team: Dav, tmp_path: Path) -> None:
    server.fsd("space", "set", "team", "--quota", "1M")
    with remotely(server, tmp_path / "mnt", *SOON) as mount:
        mount.allow_log("is not uploaded")
        with open(mount.path / "team/large", "wb") as file:
            file.write(b"x" * (2 << 20))
            file.flush()
            with fails(errno.EDQUOT):
                os.fsync(file.fileno())
        wait_for(lambda: any(each["error"] for each in mount.told()["changes"]), what="the status")
        done = mount.command("mount", "--status", "--cache", str(mount.cache))
        assert done.returncode == 1 and "team/large" in done.stderr and "507" in done.stderr
        assert (mount.path / "team/large").read_bytes() == b"x" * (2 << 20)
        server.fsd("space", "set", "team", "--quota", "10M")
        mount.uploaded()
        assert len(team.get(b"large")) == 2 << 20


# -- the cache


def test_the_cache_keeps_its_bound(server: Server, team: Dav, tmp_path: Path) -> None:
    for number in range(20):
        team.put(b"f%d" % number, os.urandom(300_000))
    with remotely(server, tmp_path / "mnt", *SOON, "--cache-size", "2M") as mount:
        for number in range(20):
            assert (mount.path / f"team/f{number}").read_bytes() == team.get(b"f%d" % number)
        (mount.path / "team/written").write_bytes(os.urandom(3 << 20))
        mount.uploaded()
        wait_for(lambda: _held(mount) <= 2 << 20, what="a cache within its bound")
        assert (mount.path / "team/written").read_bytes() == team.get(b"written")


def _held(mount: RemoteMount) -> int:
    return sum(path.stat().st_size for path in (mount.cache / "content").iterdir())


def test_the_cache_s_disk_is_full(server: Server, team: Dav, tmp_path: Path) -> None:
    team.put(b"large", b"l" * (12 << 20))
    with disk(tmp_path, "small", megabytes=8) as small:
        with remotely(server, tmp_path / "mnt", *SOON, cache=small.place / "cache") as mount:
            top = mount.path / "team"
            assert (top / "large").read_bytes() == b"l" * (12 << 20)
            with pytest.raises(OSError) as caught, open(top / "too much", "wb", buffering=0) as file:
                for _ in range(16):
                    file.write(b"x" * (1 << 20))
            assert caught.value.errno == errno.ENOSPC
            (top / "too much").unlink()
            (top / "small").write_bytes(b"there is room again")
            mount.uploaded()
            assert team.get(b"small") == b"there is room again"


# -- who one is


def test_as_an_ordinary_user(make_server: Callable[..., Server], open_place: Path) -> None:
    server = make_server()
    server.fsd("user", "add", "alice", "--password-stdin", stdin="alice-password\n")
    token = server.json("token", "create", "alice", "--name", "laptop")["token"]
    place = open_place / "alice"
    place.mkdir()
    os.chown(place, USER, USER)
    helper = Server(open_place / "helper")
    helper.become(USER)
    secret = place / "token"
    secret.write_text(token + "\n")
    os.chown(secret, USER, USER)
    mount = RemoteMount(server, place / "mnt", *SOON, "--token-file", str(secret), user="alice")
    mount.python, mount.identity = helper.python, helper.identity
    mount.environment |= helper.settings | {"HOME": str(place)}
    del mount.environment["FSD_MOUNT_TOKEN"]
    os.chown(mount.path, USER, USER)
    subprocess.run(["setfacl", "-m", f"u:{USER}:rw", "/dev/fuse"], check=True)
    try:
        secret.chmod(0o644)
        done = mount.command("mount", *mount.arguments, str(mount.path))
        assert done.returncode == 1 and "chmod 600" in done.stderr
        secret.chmod(0o600)
        mount.start()
        script = f"cd {mount.path}/alice && echo hello >file && cat file && id -u"
        done = subprocess.run(
            ["sh", "-ec", script],
            capture_output=True,
            text=True,
            user=USER,
            group=USER,
            extra_groups=[],
            cwd="/",
        )
        assert done.stdout == f"hello\n{USER}\n", done.stderr
        mount.uploaded()
        assert (server.data / "users/alice/file").read_text() == "hello\n"
        assert mount.cache.stat().st_mode & 0o777 == 0o700
        assert not subprocess.run(["grep", "-r", token, mount.cache], capture_output=True).stdout
        done = mount.command("umount", str(mount.path))
        assert done.returncode == 0, done.stderr
        assert mount.process is not None and mount.process.wait(20) == 0
    finally:
        mount.close()
        subprocess.run(["setfacl", "-x", f"u:{USER}", "/dev/fuse"], check=True)
    assert mount.complaints() == []


def test_who_may_only_look(server: Server, team: Dav, tmp_path: Path) -> None:
    server.fsd("user", "add", "bob", "--password-stdin", stdin="bob-password\n")
    server.fsd("space", "members", "team", "--add", "bob:viewer")
    team.put(b"file", b"x")
    with remotely(server, tmp_path / "mnt", user="bob", password="bob-password") as mount:
        top = mount.path / "team"
        assert (top / "file").read_bytes() == b"x"
        assert top.stat().st_mode & 0o222 == 0 and (top / "file").stat().st_mode & 0o222 == 0
        for change in (
            (top / "new").touch, (top / "new").mkdir, (top / "file").unlink,
            lambda: (top / "file").write_bytes(b"y"), lambda: (top / "file").rename(top / "other"),
        ):  # fmt: skip
            with fails(errno.EACCES):
                change()


def test_what_can_not_be_mounted(server: Server, tmp_path: Path) -> None:
    mount = RemoteMount(server, tmp_path / "mnt")
    url, point = f"http://127.0.0.1:{server.port}/", str(mount.path)
    mount.environment["FSD_MOUNT_TOKEN"] = "wrong"
    for code, words, arguments in (
        (1, "does not accept these credentials", (url, point)),
        (2, "in the clear", ("http://files.example.org/", point)),
        (2, "--token-file", (f"http://me:secret@127.0.0.1:{server.port}/", point)),
        (2, "is not the address of a server", (url + "dav/home/", point)),
        (2, "for the spaces of this machine", ("--as", "alice", url, point)),
        (2, "no size", ("--cache-size", "much", url, point)),
        (1, "can't be reached", ("https://127.0.0.1:1/", point)),
    ):
        done = mount.command("mount", *arguments)
        assert done.returncode == code and words in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    del mount.environment["FSD_MOUNT_TOKEN"]
    done = mount.command("mount", url, point)
    assert done.returncode == 2 and "No token" in done.stderr


def test_in_the_background_and_through_mount_8(server: Server, team: Dav, tmp_path: Path) -> None:
    team.put(b"file", b"x")
    mount = RemoteMount(server, tmp_path / "mnt")
    token = tmp_path / "token"
    token.write_text(mount.environment.pop("FSD_MOUNT_TOKEN") + "\n")
    token.chmod(0o600)
    program = tmp_path / "fsd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fsd.cli.main "$@"\n')
    program.chmod(0o755)
    helper = Path(__file__).parents[2] / "scripts/mount.fsd"
    options = f"rw,nofail,_netdev,user=admin,token-file={token},cache={mount.cache}"
    command = [helper, f"http://127.0.0.1:{server.port}/", mount.path, "-o", options]
    subprocess.run(command, check=True, env={**mount.environment, "FSD_PROGRAM": str(program)})
    try:
        assert (mount.path / "team/file").read_bytes() == b"x"
        (mount.path / "team/new").write_bytes(b"sent at the end")
    finally:
        done = mount.command("umount", str(mount.path))
    assert done.returncode == 0, done.stderr
    wait_for(lambda: mount.told()["pid"] is None, what="the end of the daemon")
    assert team.get(b"new") == b"sent at the end"


def test_over_tls(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(options=("--tls-self-signed",))
    certificate = server.state / "tls/cert.pem"
    mount = RemoteMount(server, tmp_path / "mnt", *SOON)
    mount.arguments[-1] = url = f"https://127.0.0.1:{server.port}/"
    done = mount.command("mount", url, str(mount.path))
    assert done.returncode == 1 and "certificate is not trusted" in done.stderr
    mount.arguments[:0] = ["--ca-file", str(certificate)]
    mount.start()
    try:
        (mount.path / "Administrator/file").write_bytes(b"x" * 3_000_000)
        mount.uploaded()
        assert (server.data / "users/admin/file").read_bytes() == b"x" * 3_000_000
        online(mount)
    finally:
        mount.close()
    assert mount.complaints() == []


def test_many_programs_at_once(server: Server, team: Dav, tmp_path: Path) -> None:
    with remotely(server, tmp_path / "mnt", *SOON) as mount:
        top = mount.path / "team"

        def work(number: int) -> None:
            place = top / f"d{number}"
            place.mkdir()
            for turn in range(30):
                (place / "file.new").write_bytes(b"%d %d" % (number, turn))
                (place / "file.new").replace(place / f"file{turn % 7}")
                if turn % 5 == 4:
                    (place / f"file{turn % 7}").unlink()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        mount.uploaded()
        done = subprocess.run(["diff", "-r", "-x", ".fsd", top, tree(server)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[:2000]
