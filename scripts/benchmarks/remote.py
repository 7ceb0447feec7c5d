"""Figures of a remote mount, against `rclone mount` with full caching and davfs2, all on one fsd server, in one run.
Each round begins with empty caches; best of two. What is uploaded later is waited for between the rounds."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from scripts.benchmarks.mount import prepare
from scripts.benchmarks.table import Row
from tests.support.remote import remotely
from tests.support.serving import ADMIN, ADMIN_PASSWORD, Server
from tests.support.waiting import wait_for

ROUNDS = 2
SMALL = 500
Measure = Callable[[Path, Path], None]


def _untar(place: Path, base: Path) -> None:
    subprocess.run(["tar", "xf", base / "tree.tar", "-C", place], check=True)


def _clone(place: Path, base: Path) -> None:
    command = ["git", "clone", "-q", "--no-hardlinks", str(base / "repository"), str(place / "clone")]
    subprocess.run(command, check=True)


def _read_small(place: Path, base: Path) -> None:
    names = sorted(os.listdir(place.parent / "small"))
    assert len(names) == SMALL
    for name in names:
        (place.parent / "small" / name).read_bytes()


MEASURES: dict[str, Measure] = {
    f"reading {SMALL} small files": _read_small,
    "`tar x` of 3,000 files": _untar,
    "`git clone`": _clone,
}


def remote_figures(base: Path) -> list[Row]:
    """All figures of a remote mount."""
    prepare(base)
    server = Server(base / "server")
    server.start()
    best: dict[tuple[str, str], float] = {}
    try:
        server.fsd("space", "create", "bench")
        tree = server.data / "projects/bench"
        (tree / "small").mkdir()
        for number in range(SMALL):
            (tree / f"small/f{number}").write_bytes(b"x" * (number % 4000 + 1))
        for turn in range(ROUNDS):
            for name, mount in _PEERS.items():
                _one_round(base, server, tree, f"{name}{turn}", mount, best, name)
    finally:
        server.stop()
    rows = []
    for measure in MEASURES:
        for peer in ("rclone", "davfs2"):
            rows.append(_row(best, measure, peer))
    return rows


def _one_round(
    base: Path, server: Server, tree: Path, place: str,
    mount: Callable[[Path, Server], AbstractContextManager[Path | None]],
    best: dict[tuple[str, str], float], name: str,
) -> None:  # fmt: skip
    (tree / place).mkdir()
    with ExitStack() as stack:
        top = stack.enter_context(mount(base / f"mount-{place}", server))
        if top is None:
            return
        here = top / "bench" / place
        try:
            wait_for(here.is_dir, what=f"{name} to list the space")
        except AssertionError:
            return
        for measure, work in MEASURES.items():
            started = time.perf_counter()
            try:
                work(here, base)
            except (OSError, AssertionError, subprocess.CalledProcessError):
                continue  # it can't do that: no figure
            took = time.perf_counter() - started
            best[measure, name] = min(took, best.get((measure, name), took))
    shutil.rmtree(tree / place)


def _row(best: dict[tuple[str, str], float], measure: str, peer: str) -> Row:
    mine, theirs = best.get((measure, "fsd")), best.get((measure, peer))
    goal = f"faster than {peer}" if peer == "rclone" else ""
    if mine is None:
        return Row(f"remote: {measure}", goal, "it failed", False)
    if theirs is None:
        return Row(f"remote: {measure}", goal, f"{mine:.2f} s; {peer} is not here, or can't do it")
    told = f"{theirs / mine:.1f} × as fast as {peer} ({mine:.2f} s, {theirs:.2f} s)"
    return Row(f"remote: {measure}", goal, told, theirs > mine if goal else None)


@contextmanager
def _ours(place: Path, server: Server) -> Iterator[Path | None]:
    with remotely(server, place) as mount:
        yield place
        mount.uploaded()


@contextmanager
def _rclone(place: Path, server: Server) -> Iterator[Path | None]:
    if shutil.which("rclone") is None:
        yield None
        return
    hidden = subprocess.run(["rclone", "obscure", ADMIN_PASSWORD], capture_output=True, text=True, check=True)
    remote = f":webdav,vendor=owncloud,url='http://127.0.0.1:{server.port}/dav/home',user={ADMIN}:"
    place.mkdir()
    command = [
        "rclone", "mount", remote, str(place), "--vfs-cache-mode", "full", "--cache-dir", f"{place}.cache",
        "--config", "/dev/null",
    ]  # fmt: skip
    environment = {**os.environ, "RCLONE_WEBDAV_PASS": hidden.stdout.strip()}
    with _daemon(place, command, environment):
        yield place
        # It uploads what it has five seconds after each close.
        subprocess.run(["sync", "-f", str(place)], check=False)
        time.sleep(8)


@contextmanager
def _davfs(place: Path, server: Server) -> Iterator[Path | None]:
    if shutil.which("mount.davfs") is None:
        yield None
        return
    place.mkdir()
    url = f"http://127.0.0.1:{server.port}/dav/home/"
    secrets = place.with_name(place.name + ".secrets")
    secrets.write_text(f"{url} {ADMIN} {ADMIN_PASSWORD}\n")
    secrets.chmod(0o600)
    config = place.with_name(place.name + ".conf")
    config.write_text(f"secrets {secrets}\nask_auth 0\ncache_dir {place}.cache\n")
    Path(f"{place}.cache").mkdir()
    done = subprocess.run(
        ["mount.davfs", "-o", f"conf={config}", url, str(place)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=False, capture_output=True, timeout=120)


@contextmanager
def _daemon(place: Path, command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: os.path.ismount(place), what=command[0])
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
        process.wait(60)


_PEERS: dict[str, Callable[[Path, Server], AbstractContextManager[Path | None]]] = {
    "fsd": _ours,
    "rclone": _rclone,
    "davfs2": _davfs,
}
