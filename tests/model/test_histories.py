"""Operations on disk and over WebDAV, side by side, while processes are killed and the index is deleted.

At the end of each round every invariant must hold: listings, sizes and ids against a walk, no half file, no
etag that stood for two contents, nothing for `fsd check` to find. The seed is printed; `--seed` plays one
again, `--seconds` and
`--big` make it longer.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.histories import OnDisk, OverDav, ThroughMount, whole
from tests.support.oracle import Snapshot, settled
from tests.support.seeds import seed_of
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for

CHAOS = r"restart|exit|died|killed|signal|rebuil|recreat|deleted|overflow|watch|index"


class History:
    """What was ever seen: which content each etag stood for."""

    def __init__(self) -> None:
        self._meaning: dict[tuple[str, str], str] = {}

    def learn(self, root: bytes, seen: Snapshot) -> list[str]:
        """Record a snapshot; every etag that now stands for another content, in words."""
        wrong = []
        for path, resource in seen.served.items():
            meaning = self._of(root, path, seen)
            known = self._meaning.setdefault((resource.id, resource.etag), meaning)
            if known != meaning:
                wrong.append(f"{path!r}: etag {resource.etag} stood for another content before")
        return wrong

    @staticmethod
    def _of(root: bytes, path: bytes, seen: Snapshot) -> str:
        entry = seen.disk[path]
        if entry.kind == "f":
            with open(root + b"/" + path, "rb") as file:
                return "file " + hashlib.sha1(file.read()).hexdigest()
        if entry.kind != "d":
            return entry.kind
        prefix = path + b"/" if path else b""
        below = sorted(
            (name[len(prefix) :], item.kind, item.size, seen.served[name].id if item.kind != "d" else "")
            for name, item in seen.disk.items()
            if name != path and name.startswith(prefix)
        )
        return "directory " + hashlib.sha1(repr(below).encode()).hexdigest()


class Chaos:
    """Kills what can be killed, deletes what can be deleted."""

    def __init__(self, server: Server, record: dict[str, object], seed: str) -> None:
        self.server, self.random = server, random.Random(seed)
        self.index = server.state / f"{str(record['id']).rpartition('$')[2]}.index.db"
        self.done: list[str] = []
        self.mounted = False

    def step(self) -> None:
        """One blow."""
        blow = self.random.choice(
            [self.kill_watcher, self.kill_watcher, self.kill_worker, self.kill_worker]
            + [self.delete_index, self.kill_everything, self.restart, self.reload]
            + [self.kill_mount] * (4 if self.mounted else 0)
        )
        self.done.append(blow.__name__)
        blow()

    def _kill(self, role: str) -> None:
        pids = self.server.child(role)
        if pids:
            try:
                os.kill(self.random.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                pass

    def kill_watcher(self) -> None:
        self._kill("watcher")

    def kill_worker(self) -> None:
        self._kill("web")

    def kill_mount(self) -> None:
        """What it announced stays in the page cache; the server starts another."""
        self._kill("\0mount\0")

    def kill_everything(self) -> None:
        """As a power cut, but for the page cache."""
        self.server.kill()
        self.server.start()

    def restart(self) -> None:
        """As an administrator does."""
        self.server.stop()
        self.server.start()

    def reload(self) -> None:
        """New processes, one after the other."""
        assert self.server.process is not None
        self.server.process.send_signal(signal.SIGHUP)

    def delete_index(self) -> None:
        for suffix in ("-wal", "-shm", ""):
            Path(f"{self.index}{suffix}").unlink(missing_ok=True)


def _play(step: Callable[[], None], until: float, pause: tuple[float, float], seed: str) -> threading.Thread:
    chance = random.Random(seed)
    stop = threading.Event()

    def loop() -> None:
        while time.monotonic() < until:
            step()
            stop.wait(chance.uniform(*pause))

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def _whole_files(root: bytes, seen: Snapshot) -> list[str]:
    wrong = []
    for path, entry in seen.disk.items():
        if entry.kind == "f":
            with open(root + b"/" + path, "rb") as file:
                if not whole(file.read()):
                    wrong.append(f"half a file at {path!r}")
    return wrong


def _sentinels(server: Server, record: dict[str, object]) -> tuple[Callable[[], None], list[str]]:
    """A reader of things nobody touches: they may be unavailable for a moment, never absent."""
    dav = server.space_dav(dict(record))
    wrong: list[str] = []

    def look() -> None:
        try:
            listing = dav.request("PROPFIND", b"kept", None, {"Depth": "1"})
            file = dav.request("GET", b"kept/file")
        except Exception:
            return
        if listing.status not in (207, 503) or (listing.status == 207 and b"kept/file" not in listing.body):
            wrong.append(f"the listing of what nobody touched: {listing.status} {listing.body[:200]!r}")
        if file.status not in (200, 503) or (file.status == 200 and file.body != b"kept"):
            wrong.append(f"the file nobody touched: {file.status} {file.body[:200]!r}")

    return look, wrong


def _round(
    server: Server,
    record: dict[str, object],
    seed: str,
    seconds: float,
    chaos: bool,
    mount: Path | None = None,
) -> tuple[str, list[str]]:
    root = os.fsencode(str(record["path"]))
    disk = OnDisk(f"disk{seed}", root)
    davs = [OverDav(f"dav{number}{seed}", server.space_dav(dict(record))) for number in range(2)]
    look, wrong = _sentinels(server, record)
    until = time.monotonic() + seconds
    threads = [
        _play(disk.step, until, (0.0, 0.01), seed),
        *(_play(dav.step, until, (0.0, 0.01), seed) for dav in davs),
        _play(look, until, (0.01, 0.1), seed),
    ]
    through = ThroughMount(f"mount{seed}", os.fsencode(mount)) if mount is not None else None
    if through is not None:
        threads.append(_play(through.step, until, (0.0, 0.01), seed))
    blows = Chaos(server, record, f"chaos{seed}")
    blows.mounted = mount is not None
    if chaos:
        threads.append(_play(blows.step, until, (0.4, 1.5), seed))
    for thread in threads:
        thread.join()
    said = f"disk {disk.done}, dav {sum(dav.done for dav in davs)} operations, {len(blows.done)} blows"
    if through is not None:
        said += f", mount {through.done}"
    return said, [*wrong, *(line for dav in davs for line in dav.wrong)]


def _seeds(request: pytest.FixtureRequest, count: int) -> list[int]:
    seed = seed_of(request.config)
    return [seed + number for number in range(1 if request.config.getoption("--seed") is not None else count)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chaos", [False, True], ids=["calm", "chaos"])
def test_disk_and_dav_side_by_side(
    make_server: Callable[..., Server], request: pytest.FixtureRequest, chaos: bool
) -> None:
    big = request.config.getoption("--big")
    seconds = request.config.getoption("--seconds") or (60.0 if big else 6.0)
    server = make_server()
    if chaos:
        server.allow_log(CHAOS)
    server.fsd("space", "create", "model")
    record = server.space("model")
    root = os.fsencode(record["path"])
    os.mkdir(root + b"/kept")
    with open(root + b"/kept/file", "wb") as file:
        file.write(b"kept")
    dav, history = server.space_dav(record), History()
    for seed in _seeds(request, 10 if big else 2):
        said, wrong = _round(server, record, str(seed), seconds, chaos)
        print(f"seed {seed}: {said}")
        assert not wrong, (seed, wrong[:8])
        seen = settled(root, dav, wait=agree, timeout=60, what=f"seed {seed}")
        assert not (wrong := history.learn(root, seen)), (seed, wrong[:8])
        halves = [line for line in _whole_files(root, seen) if b"kept/file" not in line.encode()]
        assert not halves, (seed, halves[:8])
        wait_for(
            lambda: server.run("check", "model", "--json").returncode == 0,
            timeout=30,
            what=f"seed {seed}: a clean check",
        )


@pytest.mark.root
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chaos", [False, True], ids=["calm", "chaos"])
def test_disk_and_dav_and_a_mount_side_by_side(
    bare: Path, make_server: Callable[..., Server], request: pytest.FixtureRequest, chaos: bool
) -> None:
    """The same with a mount as a third door, which the server keeps up and which is killed as well."""
    big = request.config.getoption("--big")
    seconds = request.config.getoption("--seconds") or (60.0 if big else 6.0)
    server, mount = make_server(started=False), bare
    server.fsd("init")
    server.fsd("space", "create", "model")
    server.settings["FSD_MOUNTS"] = f"model {mount}"
    server.start()
    if chaos:
        server.allow_log(CHAOS)
    record = server.space("model")
    root = os.fsencode(record["path"])
    os.mkdir(root + b"/kept")
    with open(root + b"/kept/file", "wb") as file:
        file.write(b"kept")
    dav, history = server.space_dav(record), History()
    for seed in _seeds(request, 10 if big else 1):
        wait_for(lambda: (mount / "kept").is_dir(), what="the mount")
        said, wrong = _round(server, record, str(seed), seconds, chaos, mount)
        print(f"seed {seed}: {said}")
        assert not wrong, (seed, wrong[:8])
        seen = settled(root, dav, wait=agree, timeout=60, what=f"seed {seed}")
        assert not (wrong := history.learn(root, seen)), (seed, wrong[:8])
        halves = [line for line in _whole_files(root, seen) if b"kept/file" not in line.encode()]
        assert not halves, (seed, halves[:8])
        wait_for(
            lambda: _tree(os.fsencode(mount)) == _tree(root), what=f"seed {seed}: the mount shows the tree"
        )
        wait_for(
            lambda: server.run("check", "model", "--json").returncode == 0,
            timeout=30,
            what=f"seed {seed}: a clean check",
        )


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Path]:
    """A mountpoint that takes nothing while nothing is mounted on it, as who writes there is not asked to stop."""
    place = tmp_path / "mnt"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], check=True)
    yield place
    while os.path.ismount(place):
        subprocess.run(["umount", "-l", place], check=True)


def _tree(root: bytes) -> dict[bytes, tuple[int, ...]]:
    """All below a directory but the internals: kind and mode, links, owner, size (of files), times."""
    found = {}
    for base, directories, files in os.walk(root):
        if base == root and b".fsd" in directories:
            directories.remove(b".fsd")
        for name in directories + files:
            path = os.path.join(base, name)
            each = os.lstat(path)
            size = 0 if name in directories else each.st_size
            links = 0 if name in directories else each.st_nlink
            found[path[len(root) :]] = (
                each.st_mode,
                links,
                each.st_uid,
                size,
                each.st_mtime_ns,
                each.st_ctime_ns,
            )
    return found


def test_ids_and_file_etags_survive_the_index(make_server: Callable[..., Server]) -> None:
    """Deleted while the server runs and while it is down: no id, size, listing or file etag changes."""
    server = make_server()
    server.allow_log(CHAOS)
    server.fsd("space", "create", "model")
    record = server.space("model")
    root = os.fsencode(record["path"])
    disk = OnDisk("survive", root)
    for _ in range(400):
        disk.step()
    dav = server.space_dav(record)
    before = settled(root, dav, wait=agree, timeout=60)
    index = Chaos(server, record, "index")
    for running in (True, False):
        if not running:
            server.stop()
        index.delete_index()
        if not running:
            server.start()
        after = settled(root, dav, wait=agree, timeout=60)
        for path, resource in before.served.items():
            found = after.served[path]
            assert (found.id, found.size, found.length) == (resource.id, resource.size, resource.length), path
            assert resource.is_dir or found.etag == resource.etag, path
