"""The mounts that `fsd serve` keeps up: started with it, again after a crash, and gone with it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fsd.mount import mountpoints
from tests.support.mounting import mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
CRASH = r"ended unexpectedly"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "team mnt"
    made.mkdir()
    return made


@pytest.fixture
def server(make_server: Callable[..., Server], place: Path) -> Server:
    """With one mount, of a space that is there."""
    made = make_server(started=False)
    made.fsd("init")
    made.fsd("space", "create", "team")
    made.settings["FSD_MOUNTS"] = f"team '{place}'"
    return made.start()


def mounts(server: Server) -> dict[str, dict[str, Any]]:
    return {each["mountpoint"]: each for each in server.json_any("status")["mounts"]}


def is_up(place: Path) -> bool:
    return mountpoints.at(str(place)).state == "ours" and os.statvfs(place).f_namemax > 0


def pid_of(server: Server, place: Path) -> int:
    (pid,) = [pid for pid in server.child(str(place)) if not _finished(pid)]
    return pid


def _finished(pid: int) -> bool:
    return not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_up_with_the_server_and_gone_with_it(server: Server, place: Path) -> None:
    wait_for(lambda: is_up(place), what="the mount")
    (place / "f").write_bytes(b"123")
    record = server.space("team")
    assert server.space_dav(record).request("GET", b"f").body == b"123"
    told = mounts(server)[str(place)]
    assert told["state"] == "mounted" and told["pid"] == pid_of(server, place) and told["restarts"] == 0
    assert f"{place}: mounted" in server.run("status").stdout
    with open(place / "open", "wb", buffering=0) as file:  # in use: it goes all the same
        file.write(b"1")
        server.stop()
        assert mountpoints.at(str(place)).state == "none"
    assert os.listdir(place) == []
    server.start()
    wait_for(lambda: is_up(place), what="the mount after a restart")
    assert (place / "f").read_bytes() == b"123"


@pytest.mark.parametrize("moment", ["quiet", "open", "hung"])
def test_one_crash_takes_nobody_along(server: Server, place: Path, moment: str) -> None:
    server.allow_log(CRASH)
    wait_for(lambda: is_up(place), what="the mount")
    others = {pid for role in ("web", "watcher", "jobs") for pid in server.child(role)}
    killed = pid_of(server, place)
    file = open(place / "f", "wb", buffering=0) if moment == "open" else None
    if moment == "hung":
        os.kill(killed, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: is_up(place) and pid_of(server, place) != killed, what="another daemon")
    if file is not None:
        with suppress(OSError):  # the daemon that it was opened with is not there to be told
            file.close()
    (place / "after").write_bytes(b"1")
    assert len([each for each in mountpoints.mounts() if each.point == os.fsencode(place)]) == 1
    assert {pid for role in ("web", "watcher", "jobs") for pid in server.child(role)} == others
    wait_for(lambda: mounts(server)[str(place)]["restarts"] == 1, what="what the status says")
    (web, *_), mount = server.child("web"), pid_of(server, place)
    os.kill(web, signal.SIGKILL)
    wait_for(lambda: web not in server.child("web") and len(server.child("web")) == 2, what="another worker")
    assert pid_of(server, place) == mount and (place / "after").read_bytes() == b"1"


def test_a_daemon_that_hangs_is_replaced(server: Server, place: Path) -> None:
    """Whoever waits for it gets an error; a quiet one is left alone."""
    server.allow_log(rf"{CRASH}|no sign of life")
    server.stop()
    server.settings["FSD_MOUNT_PATIENCE"] = "3"
    server.start()
    wait_for(lambda: is_up(place), what="the mount")
    hung, beats = pid_of(server, place), next((server.state / "run").glob("pulse-*"))
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 5, what="time without a request")
    assert stat.S_ISFIFO(beats.stat().st_mode) and pid_of(server, place) == hung
    os.kill(hung, signal.SIGSTOP)
    caller = subprocess.Popen(["ls", place / "never-asked-for"], stderr=subprocess.DEVNULL)
    wait_for(lambda: not os.path.exists(f"/proc/{hung}"), timeout=60, what="its end")
    assert caller.wait(30) != 0
    wait_for(lambda: is_up(place), timeout=60, what="another daemon")
    wait_for(lambda: mounts(server)[str(place)]["restarts"] == 1, what="what the status says")
    (place / "after").write_bytes(b"1")


def test_a_server_that_is_killed_leaves_nothing_for_good(server: Server, place: Path) -> None:
    wait_for(lambda: is_up(place), what="the mount")
    server.kill()
    wait_for(lambda: mountpoints.at(str(place)).state == "dead", what="a daemon that dies with its server")
    server.start()
    wait_for(lambda: is_up(place), what="the mount")
    assert len([each for each in mountpoints.mounts() if each.point == os.fsencode(place)]) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_while_it_starts(server: Server, place: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Its self-test is a process with a mount of its own; both are gone with it."""
    server.stop()
    for _ in range(5):
        command = [server.python, "-m", "fsd.cli.main", "mount", "team", str(place)]
        environment = {**server.environment, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        wait_for(
            lambda: list(tmp_path.glob("fsd-probe-*/mnt")) or is_up(place), what="a self-test", every=0.001
        )
        process.send_signal(number)
        assert process.wait(30) in (0, -number)
        gone = number == signal.SIGTERM
        wait_for(lambda: not list(tmp_path.glob("fsd-probe-*")), what="the end of the self-test")
        mine = [each.point for each in mountpoints.mounts() if each.point.startswith(os.fsencode(tmp_path))]
        assert not mine if gone else all(point == os.fsencode(place) for point in mine), mine
        mountpoints.clear_dead(str(place))


def test_what_can_not_be_mounted_is_tried_again(server: Server, place: Path, tmp_path: Path) -> None:
    server.allow_log(CRASH)
    wait_for(lambda: is_up(place), what="the mount")
    mount, later = pid_of(server, place), tmp_path / "later"
    # A server reads its file anew, never its environment.
    server.stop()
    del server.settings["FSD_MOUNTS"]
    config = server.state / "fsd.toml"
    kept = config.read_text()

    def configure(*lines: str) -> None:
        quoted = ", ".join(f'"{line}"' for line in lines)
        config.write_text(f"mounts = [{quoted}]\n{kept}")

    configure(f"team '{place}'", f"team {later} ro")
    server.start()
    wait_for(lambda: is_up(place), what="the one that can be mounted")
    wait_for(lambda: mounts(server)[str(later)]["restarts"] >= 2, what="two tries")
    told = server.json_any("status")
    assert any(str(later) in problem for problem in told["problems"]), told["problems"]
    assert server.ops("/readyz")[0] == 200
    mount = pid_of(server, place)
    later.mkdir()
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: is_up(later), what="the other one")
    with pytest.raises(OSError):
        (later / "new").touch()
    assert pid_of(server, place) == mount, "a reload leaves mounts alone that are as they were"
    configure(f"team {later}")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: mountpoints.at(str(place)).state == "none", what="the end of one that is not wanted")
    wait_for(lambda: is_up(later) and not os.statvfs(later).f_flag & os.ST_RDONLY, what="other options")
    (later / "new").touch()
    config.write_text(kept)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: mountpoints.at(str(later)).state == "none", what="the end of all")


def test_the_manager_hears_when_a_mount_serves(server: Server, place: Path, tmp_path: Path) -> None:
    """Type=notify: READY=1 from the daemon itself, not before it answers; one that the server keeps up tells nobody."""
    server.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        server.settings["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with mounted(server, tmp_path / "alone", "team") as mount:
            assert {b"READY=1", b"MAINPID=%d" % mount.pid} <= set(manager.recv(1000).split(b"\n"))
        assert manager.recv(1000) == b"STOPPING=1"
        server.start()
        wait_for(lambda: is_up(place), what="the mount")
        server.stop()
        heard = [manager.recv(1000)]
        while b"STOPPING=1" not in heard[-1]:
            heard.append(manager.recv(1000))
        assert not [line for line in heard if b"MAINPID" in line], heard
        assert sum(b"READY=1" in line for line in heard) == 1, heard


def test_lines_that_make_no_sense(make_server: Callable[..., Server]) -> None:
    server = make_server(started=False)
    for line in (
        "team",
        "team relative",
        "team /mnt x,y",
        "team /mnt as=",
        "a /mnt; b /mnt",
        "a /mnt ro extra",
    ):
        server.settings["FSD_MOUNTS"] = line
        done = server.run("config", "show")
        assert done.returncode == 2 and "mounts" in done.stderr and "Traceback" not in done.stderr, line
    server.settings["FSD_MOUNTS"] = "team /mnt/a; all '/mnt/b c' ro,as=ann,passthrough=off"
    assert "team /mnt/a; all '/mnt/b c' ro,as=ann,passthrough=off" in server.run("config", "show").stdout
