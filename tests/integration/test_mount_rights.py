"""Whose rights hold in a mount: one user's, each member's own, and what changes while it is mounted."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import Mount, mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root
EDITOR, VIEWER, STRANGER = "daemon", "bin", "games"
"""Users that every Debian system has; fsd's users of the same names are them."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A data root that other users can reach, with users and two spaces; nothing serves it."""
    base = Path(tempfile.mkdtemp(prefix="fsd-rights-"))
    base.chmod(0o755)
    made = Server(base)
    made.fsd("init")
    for name in (EDITOR, VIEWER, STRANGER):
        made.fsd("user", "add", name, "--password-stdin", stdin="password\n")
    for name in ("team", "other"):
        made.fsd("space", "create", name)
    made.fsd("space", "members", "team", "--add", f"{EDITOR}:editor", "--add", f"{VIEWER}:viewer")
    yield made
    shutil.rmtree(base)


def direct(server: Server, name: str = "team") -> Path:
    return server.data / "projects" / name


def run_as(user: str, script: str, place: Path) -> subprocess.CompletedProcess[str]:
    """A shell script of another user of the system, in a directory of the mount."""
    found = pwd.getpwnam(user)
    return subprocess.run(
        ["sh", "-c", f'cd "$0" && {script}', place],
        capture_output=True, text=True, user=found.pw_uid, group=found.pw_gid, extra_groups=[], cwd="/",
    )  # fmt: skip


def works(user: str, script: str, place: Path) -> str:
    done = run_as(user, script, place)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[Mount]:
    with mounted(server, server.data.parent / "shared", "--all", "--allow-other") as mount:
        yield mount


def test_a_shared_mount_keeps_users_apart(server: Server, shared: Mount) -> None:
    team = shared.path / "team"
    works(
        EDITOR,
        "mkdir d && echo hello >d/f && mv d/f d/g && ln -s g d/l && echo more >>d/g",
        team,
    )
    (direct(server) / "d/g").chmod(0o755)
    assert works(VIEWER, "cat d/g && ls d && readlink d/l && test -x d/g", team).split() == [
        "hello", "more", "g", "l", "g"]  # fmt: skip
    for script in (
        "echo x >>d/g", "echo x >new", "mkdir new", "rm d/g", "mv d/g d/h", "ln -s x new", "touch d/g",
        "chmod 777 d/g", "truncate -s 0 d/g", "ln d/g new", "rmdir d", "mkfifo new", "setfattr -n user.x -v 1 d/g",
    ):  # fmt: skip
        done = run_as(VIEWER, script, team)
        assert (
            done.returncode != 0 and "denied" in done.stderr + done.stdout or "not permitted" in done.stderr
        ), script
    for user in (EDITOR, VIEWER):
        assert works(user, "ls", shared.path).split() == sorted([user, "team"])
    assert works(STRANGER, "ls -a", shared.path).split() == [".", "..", STRANGER]
    assert works("nobody", "ls -a", shared.path).split() == [".", ".."]
    assert run_as(STRANGER, "ls team", shared.path).returncode != 0
    assert run_as("nobody", "cat team/d/g", shared.path).returncode != 0
    assert (direct(server) / "d/g").read_text() == "hello\nmore\n"
    assert (direct(server) / "d/g").stat().st_uid == 0, "on disk the space's owner"


def test_the_kernel_asks_for_what_it_was_not_told(server: Server, shared: Mount) -> None:
    """A name that one user may see is in the kernel's cache; another one still gets nothing."""
    (direct(server) / "secret").write_text("secret")
    team = shared.path / "team"
    works(EDITOR, "cat secret", team)
    for _ in range(3):
        assert run_as(STRANGER, f"cat {team}/secret", Path("/")).returncode != 0
        assert run_as(STRANGER, f"ls {team}", Path("/")).returncode != 0
        assert run_as(STRANGER, f"cd {team}", Path("/")).returncode != 0


def test_grants_changed_while_mounted(server: Server, shared: Mount) -> None:
    team = shared.path / "team"
    (direct(server) / "live").write_text("1")
    works(VIEWER, "cat live", team)
    server.fsd("space", "members", "team", "--add", f"{VIEWER}:editor")
    wait_for(lambda: run_as(VIEWER, "echo 2 >>live && echo >new && rm new", team).returncode == 0)
    server.fsd("space", "members", "team", "--add", f"{VIEWER}:viewer")
    wait_for(lambda: run_as(VIEWER, "echo 3 >>live", team).returncode != 0)
    works(VIEWER, "cat live", team)
    server.fsd("space", "members", "team", "--remove", VIEWER)
    wait_for(lambda: run_as(VIEWER, f"cat {team}/live", Path("/")).returncode != 0)
    assert works(VIEWER, "ls", shared.path).split() == [VIEWER]
    server.fsd("space", "members", "team", "--add", f"{VIEWER}:viewer")
    wait_for(lambda: run_as(VIEWER, "cat live", team).returncode == 0)


def test_groups_disabled_users_and_spaces(server: Server, shared: Mount) -> None:
    other = shared.path / "other"
    server.fsd("group", "add", "crew")
    server.fsd("group", "join", "crew", STRANGER)
    server.fsd("space", "members", "other", "--group", "--add", "crew:editor")
    wait_for(lambda: run_as(STRANGER, "echo 1 >f", other).returncode == 0)
    server.fsd("user", "disable", STRANGER)
    wait_for(lambda: run_as(STRANGER, f"cat {other}/f", Path("/")).returncode != 0)
    server.fsd("user", "enable", STRANGER)
    wait_for(lambda: run_as(STRANGER, "cat f", other).returncode == 0)
    server.fsd("space", "disable", "other")
    wait_for(lambda: not other.exists() and run_as(STRANGER, f"cat {other}/f", Path("/")).returncode != 0)
    server.fsd("space", "restore", "other")
    wait_for(lambda: run_as(STRANGER, "cat f", other).stdout == "1\n")
    server.fsd("space", "create", "later")
    wait_for((shared.path / "later").is_dir)


def test_a_mount_of_one_user(server: Server, tmp_path: Path) -> None:
    (direct(server) / "file").write_text("1")
    (direct(server) / "program").write_text("#!/bin/sh\n")
    (direct(server) / "program").chmod(0o755)
    with mounted(server, server.data.parent / "editor", "--all", "--as", EDITOR, "--allow-other") as mount:
        team = mount.path / "team"
        assert set(os.listdir(mount.path)) == {EDITOR, "team"}
        seen = (team / "file").stat()
        assert (seen.st_uid, stat.S_IMODE(seen.st_mode)) == (pwd.getpwnam(EDITOR).pw_uid, 0o600)
        assert stat.S_IMODE((team / "program").stat().st_mode) == 0o700
        works(
            EDITOR,
            "echo 2 >file && cp -p file copy && chmod 755 copy && touch -d 2001-01-01 copy && rm copy",
            team,
        )
        assert run_as("nobody", f"ls {team}", Path("/")).returncode != 0
        assert run_as(EDITOR, "chown bin file", team).returncode != 0
        os.mkdir(team / "made")
        assert (direct(server) / "made").stat().st_uid == 0


def test_a_mount_of_a_viewer(server: Server) -> None:
    (direct(server) / "file").write_text("1")
    with mounted(server, server.data.parent / "viewer", "team", "--as", VIEWER) as mount:
        assert (mount.path / "file").read_text() == "1"
        assert stat.S_IMODE((mount.path / "file").stat().st_mode) == 0o400
        assert stat.S_IMODE(mount.path.stat().st_mode) == 0o500
        # Root passes the kernel's check, not ours: the role decides.
        for change in (
            lambda: (mount.path / "file").write_text("2"),
            lambda: (mount.path / "new").touch(),
            lambda: (mount.path / "new").mkdir(),
            lambda: os.unlink(mount.path / "file"),
            lambda: os.rename(mount.path / "file", mount.path / "new"),
            lambda: os.chmod(mount.path / "file", 0o700),
            lambda: os.symlink("x", mount.path / "new"),
            lambda: os.setxattr(mount.path / "file", "user.x", b"1"),
        ):
            with pytest.raises(PermissionError):
                change()
        assert (direct(server) / "file").read_text() == "1"


def test_a_stranger_sees_nothing(server: Server) -> None:
    with mounted(server, server.data.parent / "stranger", "team", "--as", STRANGER) as mount:
        with pytest.raises(PermissionError):
            os.listdir(mount.path)
        with pytest.raises(PermissionError):
            os.open(mount.path / "file", os.O_RDONLY)


def test_read_only(server: Server) -> None:
    (direct(server) / "file").write_text("1")
    with mounted(server, server.data.parent / "ro", "team", "--read-only") as mount:
        assert (mount.path / "file").read_text() == "1"
        with pytest.raises(OSError) as refused:
            (mount.path / "file").write_text("2")
        assert refused.value.errno == errno.EROFS


def test_what_is_deleted_goes_to_the_trash_if_the_space_says_so(server: Server) -> None:
    server.fsd("space", "create", "binned")
    with mounted(server, server.data.parent / "binned", "binned") as mount:
        (mount.path / "gone").write_text("1")
        (mount.path / "gone").unlink()
        assert server.json("trash", "list", "binned") == []
        server.fsd("space", "set", "binned", "--mount-trash", "on")
        (mount.path / "d").mkdir()

        def kept() -> bool:
            (mount.path / "d/kept").write_text("22")
            (mount.path / "d/kept").unlink()
            return bool(server.json("trash", "list", "binned"))

        wait_for(kept)
        items = server.json("trash", "list", "binned")
        assert {item["path"] for item in items} == {"d/kept"} and not (mount.path / "d/kept").exists()
        server.fsd("trash", "restore", "binned", items[0]["key"])
        wait_for((mount.path / "d/kept").exists)
        with open(mount.path / "d/kept", "r+") as file:
            (mount.path / "d/kept").unlink()
            assert file.read() == "22"
        os.rmdir(mount.path / "d")
