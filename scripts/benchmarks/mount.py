"""Figures of a mount, against the directory itself, bindfs and the example that pyfuse3 ships, in one run. Best of
three, as CPU that others take shows in single runs; where the kernel does all the work itself, best of many short ones,
by turns, as the difference is smaller than what one run differs from the next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from scripts.benchmarks.table import Row
from tests.support.mounting import mounted
from tests.support.serving import Server
from tests.support.waiting import wait_for

FILES = 10_000
ROUNDS = 3
TURNS = 25
Measure = Callable[[Path], float]


def _drop() -> None:
    """Have the kernel forget names and attributes (not the content)."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _create(place: Path) -> float:
    shutil.rmtree(place / "small", ignore_errors=True)
    (place / "small").mkdir()
    top = str(place / "small")

    def work() -> None:
        for number in range(FILES):
            fd = os.open(f"{top}/f{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, b"x" * 1024)
            os.close(fd)

    return _timed(work)


def _cold_stat(place: Path) -> float:
    time.sleep(1)
    _drop()
    return _timed(lambda: [os.stat(f"{place}/small/f{number}") for number in range(FILES)])


def _cold_ls(place: Path) -> float:
    _drop()
    environment = {**os.environ, "LC_ALL": "C"}
    return _timed(
        lambda: subprocess.run(
            ["ls", "-l", place / "small"], stdout=subprocess.DEVNULL, env=environment, check=True
        )
    )


def _sequential(place: Path, *, write: bool) -> float:
    data = b"s" * (1 << 20)
    fd = os.open(place / "large", os.O_RDWR | os.O_CREAT)

    def work() -> None:
        for number in range(256):
            if write:
                os.pwrite(fd, data, number << 20)
            else:
                os.pread(fd, 1 << 20, number << 20)

    took = _timed(work)
    os.fsync(fd)  # what is not on the disk yet would slow down the next one
    os.close(fd)
    return took


def _random_read(place: Path) -> float:
    fd = os.open(place / "large", os.O_RDONLY)
    spots = [(number * 7919 % 65536) << 12 for number in range(50_000)]
    took = _timed(lambda: [os.pread(fd, 4096, spot) for spot in spots])
    os.close(fd)
    return took


def _small_writes(place: Path) -> float:
    fd = os.open(place / "large", os.O_WRONLY)
    data = b"w" * 4096
    spots = [(number * 7919 % 65536) << 12 for number in range(10_000)]
    took = _timed(lambda: [os.pwrite(fd, data, spot) for spot in spots])
    os.close(fd)
    return took


def _untar(place: Path) -> float:
    archive = place.parent / "tree.tar"
    shutil.rmtree(place / "untar", ignore_errors=True)
    (place / "untar").mkdir()
    return _timed(lambda: subprocess.run(["tar", "xf", archive, "-C", place / "untar"], check=True))


def _clone(place: Path) -> float:
    shutil.rmtree(place / "clone", ignore_errors=True)
    command = ["git", "clone", "-q", "--no-hardlinks", str(place.parent / "repository"), str(place / "clone")]
    return _timed(lambda: subprocess.run(command, check=True))


def _status(place: Path) -> float:
    command = ["git", "-C", str(place / "clone"), "status", "--short"]
    return _timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


MEASURES: dict[str, Measure] = {
    "create": _create,
    "cold stat": _cold_stat,
    "cold ls -l": _cold_ls,
    "write 1 MiB": lambda place: _sequential(place, write=True),
    "read 1 MiB": lambda place: _sequential(place, write=False),
    "random 4k read": _random_read,
    "4k write": _small_writes,
    "tar x": _untar,
    "git clone": _clone,
    "git status": _status,
}
GOALS: tuple[tuple[str, str, str, str, float], ...] = (
    ("create + write + close of 10,000 small files", "create", "fsd", "bindfs", 0.8),
    ("cold stat of 10,000 files", "cold stat", "fsd", "bindfs", 0.7),
    ("cold `ls -l` of 10,000", "cold ls -l", "fsd", "bindfs", 1.0),
    ("sequential write 1 MiB", "write 1 MiB", "fsd", "native", 0.9),
    ("sequential read 1 MiB", "read 1 MiB", "fsd", "native", 0.9),
    ("random 4k read", "random 4k read", "fsd", "native", 0.9),
    ("random 4k read, no passthrough", "random 4k read", "fsd, no passthrough", "pyfuse3's example", 2.0),
    ("4k writes, no passthrough", "4k write", "fsd, no passthrough", "pyfuse3's example", 0.0),
    ("`tar x` of 3,000 files", "tar x", "fsd", "bindfs", 1 / 2.5),
    ("`git clone`", "git clone", "fsd", "bindfs", 1 / 2),
    ("`git status`", "git status", "fsd", "bindfs", 1 / 3),
)


def mount_figures(base: Path) -> list[Row]:
    """All figures of a local mount."""
    prepare(base)
    best: dict[tuple[str, str], float] = {}
    with ExitStack() as stack:
        places = {name: stack.enter_context(place) for name, place in _places(base).items()}
        for _ in range(ROUNDS):
            for measure, work in MEASURES.items():
                for name, place in places.items():
                    if place is not None:
                        took = work(place)
                        best[measure, name] = min(took, best.get((measure, name), took))
        spent = _by_turns(places, best)
    return [*(_row(best, *goal) for goal in GOALS), *spent]


def _by_turns(places: dict[str, Path | None], best: dict[tuple[str, str], float]) -> list[Row]:
    """The data path: native and mount, one after the other and the other way round; CPU time of the caller as well,
    which no load of others touches."""
    rows = []
    for measure in ("write 1 MiB", "read 1 MiB", "random 4k read"):
        spent = dict.fromkeys(("native", "fsd"), 0.0)
        for turn in range(TURNS):
            for name in ("native", "fsd") if turn % 2 else ("fsd", "native"):
                place = places[name]
                assert place is not None
                before = time.process_time()
                took = MEASURES[measure](place)
                spent[name] += time.process_time() - before
                best[measure, name] = min(took, best[measure, name])
        told = f"{spent['native'] / spent['fsd']:.2f} × native ({spent['fsd'] / TURNS * 1e3:.0f} ms)"
        rows.append(Row(f"{measure}: CPU time of the caller", "", told))
    return rows


def _row(
    best: dict[tuple[str, str], float], figure: str, measure: str, ours: str, peer: str, goal: float
) -> Row:
    if (measure, peer) not in best:
        return Row(figure, f"≥ {goal:.1f} × {peer}", "the peer is not here")
    mine, theirs = best[measure, ours], best[measure, peer]
    told = f"{theirs / mine:.2f} × {peer} ({mine:.2f} s, {theirs:.2f} s)"
    return Row(
        figure, f"≥ {goal:.1f} × {peer}" if goal else "", told, theirs / mine >= goal if goal else None
    )


def prepare(base: Path) -> None:
    """A tree of 3,000 small files in 60 directories (`tree`), as an archive (`tree.tar`) and in git (`repository`)."""
    tree = base / "tree"
    for number in range(3000):
        place = tree / f"d{number % 60}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(b"line\n" * (number % 200))
    with tarfile.open(base / "tree.tar", "w") as archive:
        archive.add(tree, "tree")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(base / "repository")]
    shutil.copytree(tree, base / "repository")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)


def _places(base: Path) -> dict[str, AbstractContextManager[Path | None]]:
    return {
        "native": _native(base / "native"),
        "bindfs": _bindfs(base),
        "pyfuse3's example": _example(base),
        "fsd": _ours(base, "fsd", "on"),
        "fsd, no passthrough": _ours(base, "plain", "off"),
    }


@contextmanager
def _native(place: Path) -> Iterator[Path]:
    place.mkdir()
    yield place


@contextmanager
def _ours(base: Path, name: str, way: str) -> Iterator[Path]:
    server = Server(base / f"{name}-data")
    server.fsd("init")
    server.fsd("space", "create", "bench")
    with mounted(server, base / name, "bench", way=way):
        yield base / name


@contextmanager
def _peer(base: Path, name: str, command: list[str]) -> Iterator[Path | None]:
    """Another FUSE filesystem in the foreground, over a directory of its own."""
    if shutil.which(command[0]) is None:
        yield None
        return
    (base / f"{name}-source").mkdir()
    place = base / name
    place.mkdir()
    process = subprocess.Popen(
        [*command, str(base / f"{name}-source"), str(place)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: os.path.ismount(place), what=name)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
        process.kill()  # a mount namespace of somebody else may hold the mount for as long as it likes
        process.wait(20)


@contextmanager
def _bindfs(base: Path) -> Iterator[Path | None]:
    with _peer(base, "bindfs", ["bindfs", "-f"]) as place:
        yield place


@contextmanager
def _example(base: Path) -> Iterator[Path | None]:
    """passthroughfs.py from pyfuse3's source, if FSD_BENCH_EXAMPLE names it."""
    script = os.environ.get("FSD_BENCH_EXAMPLE")
    if script is None:
        yield None
        return
    with _peer(base, "example", [sys.executable, script]) as place:
        yield place
