"""Figures of the programs people have: rclone against its own server in the same run, the desktop client's first sync,
and what a client that finds nothing new costs."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.benchmarks import peers
from scripts.benchmarks.fsd_server import PASSWORD, USER, adopt, cpu, quiet, served
from scripts.benchmarks.load import Connection
from scripts.benchmarks.table import Row
from tests.support.waiting import wait_for

_RCLONE = os.path.join(os.path.dirname(sys.executable), "rclone")
"""From PyPI: Debian's sends 100 requests a second at most, whatever the server does."""
_TURNS = 2
_FILES = 10_000
_MANY = 100_000
_POLLS = 3000
_POLL = b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:"><d:prop><d:getetag/></d:prop></d:propfind>'


def _tree(root: Path, count: int) -> None:
    for number in range(count):
        if number % 100 == 0:
            (root / f"d{number // 100}").mkdir(parents=True)
        (root / f"d{number // 100}/f{number}").write_bytes(b"%d" % number * 100)


def _rclone(port: int, path: str, vendor: str, user: str, password: str) -> list[str]:
    secret = subprocess.run(
        ["rclone", "obscure", password], capture_output=True, text=True, check=True
    ).stdout.strip()
    return [
        *(_RCLONE, "--config", os.devnull, "--webdav-url", f"http://127.0.0.1:{port}{path}"),
        *("--webdav-pacer-min-sleep", "100us"),
        *("--webdav-vendor", vendor, "--webdav-user", user, "--webdav-pass", secret),
    ]


def _timed(*command: str | Path) -> float:
    started = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return time.perf_counter() - started


class _Times:
    """The best of several turns, by what was done."""

    def __init__(self) -> None:
        self.best: dict[str, float] = {}

    def note(self, name: str, seconds: float) -> None:
        self.best[name] = min(seconds, self.best.get(name, seconds))


def _copies(rclone: list[str], source: Path, work: Path, times: _Times) -> None:
    for turn in range(_TURNS):
        times.note("in", _timed(*rclone, "copy", source, f":webdav:in{turn}"))
        times.note("out", _timed(*rclone, "copy", f":webdav:in{turn}", work / f"out{turn}"))
        shutil.rmtree(work / f"out{turn}")


def rclone_copies(base: Path) -> list[Row]:
    """10,000 files of some hundred bytes in 100 directories, in and out; the check of 100,000 that finds nothing."""
    source, many = base / "source", base / "many"
    _tree(source, _FILES)
    ours, own, theirs = _Times(), _Times(), _Times()
    with served(base / "fsd") as server:
        path = server.dav("/dav/files/admin").prefix
        for vendor, times in (("owncloud", own), ("other", ours)):
            _copies(_rclone(server.port, path, vendor, USER, PASSWORD), source, base, times)
            for turn in range(_TURNS):
                server.dav(path).delete(b"in%d" % turn)
        tree = base / "adopted"
        _tree(tree, _MANY)
        record = adopt(server, tree, "many")
        quiet(server)
        used = cpu(server)
        rclone = _rclone(server.port, f"/dav/spaces/{record['id']}", "owncloud", USER, PASSWORD)
        for _ in range(_TURNS):
            own.note("check", _timed(*rclone, "copy", tree, ":webdav:", "--exclude", "/.fsd/**"))
        used = (cpu(server) - used) / _TURNS
        rclone = _rclone(server.port, f"/dav/spaces/{record['id']}", "other", USER, PASSWORD)
        for _ in range(_TURNS):
            ours.note("check", _timed(*rclone, "copy", tree, ":webdav:", "--exclude", "/.fsd/**"))
    with peers.running("rclone", base / "rclone") as peer:
        assert peer is not None
        port, root, _ = peer
        rclone = _rclone(port, "", "other", peers.USER, peers.PASSWORD)
        _copies(rclone, source, base, theirs)
        shutil.rmtree(root)
        shutil.copytree(base / "adopted", root, ignore=shutil.ignore_patterns(".fsd"))
        for _ in range(_TURNS):
            theirs.note("check", _timed(*rclone, "copy", root, ":webdav:"))
    shutil.rmtree(many, ignore_errors=True)
    names = {
        "in": f"rclone copies {_FILES:,} files in",
        "out": "… out",
        "check": f"… finds {_MANY:,} unchanged",
    }
    rows = []
    for key, name in names.items():
        ratio = ours.best[key] / theirs.best[key]
        seconds = (
            f"{ours.best[key]:.1f} s; as owncloud {own.best[key]:.1f} s; rclone {theirs.best[key]:.1f} s"
        )
        text = f"{ratio:.2f} × ({seconds})"
        rows.append(Row(name, "≤ 1.0 × rclone serve webdav", text, ratio <= 1.0))
    rows.append(Row("… CPU of the server for that check", "", f"{used:.1f} s"))
    return rows


def first_sync(base: Path) -> list[Row]:
    """owncloudcmd's first sync of 10,000 files down; CPU of server and client."""
    with served(base / "fsd", workers=1) as server:
        _tree(server.data / "users" / USER, _FILES)
        dav = server.dav("/dav/files/admin")
        dav.propfind(b"")
        last = b"d%d/f%d" % ((_FILES - 1) // 100, _FILES - 1)
        wait_for(
            lambda: "oc-checksum" in dav.request("HEAD", last).headers, timeout=600, what="checksums", every=1
        )
        quiet(server)
        (base / "local").mkdir()
        (base / "excludes").write_text("*.nosync\n")
        command = ["owncloudcmd", "--non-interactive", "--silent", "--exclude", str(base / "excludes"), "-h"]
        command += [
            "--user",
            USER,
            "--password",
            PASSWORD,
            str(base / "local"),
            f"http://127.0.0.1:{server.port}",
        ]
        environment = {
            **os.environ,
            "HOME": str(base),
            "QT_QPA_PLATFORM": "offscreen",
            "XDG_RUNTIME_DIR": str(base),
        }
        used, before = cpu(server), resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        took = time.perf_counter() - started
        after, used = resource.getrusage(resource.RUSAGE_CHILDREN), cpu(server) - used
    client = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count = sum(len(files) for _, _, files in os.walk(base / "local"))
    assert count >= _FILES, f"{count} files arrived"
    share = used / client
    text = f"{share:.0%} (server {used:.1f} s, client {client:.1f} s of {took:.1f} s)"
    return [
        Row(
            f"owncloudcmd's first sync of {_FILES:,} files: server's CPU",
            "< 25 % of the client's",
            text,
            share < 0.25,
        )
    ]


def polls(base: Path) -> list[Row]:
    """What a desktop client asks each time that nothing has changed: the root's etag."""
    with served(base / "fsd", workers=1) as server:
        _tree(server.data / "users" / USER, 1000)
        server.dav("/dav/files/admin").propfind(b"")
        quiet(server)
        connection = Connection(server.port, USER, PASSWORD)
        used = cpu(server)
        for _ in range(_POLLS):
            status, _ = connection.ask("PROPFIND", "/remote.php/dav/files/admin/", _POLL, "Depth: 0\r\n")
            assert status == 207
        used = (cpu(server) - used) / _POLLS * 1000
    return [Row("a poll that finds nothing", "one request, < 1 ms of CPU", f"{used:.2f} ms of CPU", used < 1)]
