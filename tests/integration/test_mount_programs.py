"""Suites and databases at work inside a mount: fio with verification, stress-ng's filesystem stressors, PostgreSQL
killed while it writes, SQLite, git. What fails on the disk itself (a stressor may) is not asked of the mount."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import WAYS, Mount, below, mounted, open_space, open_way
from tests.support.postgres import Postgres, available

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

FIO = {
    "buffered": "--ioengine=psync --rw=randwrite --bs=512-64k --bs_unaligned --size=8m --numjobs=4",
    "appended": "--ioengine=psync --rw=write --bs=1m --size=16m --numjobs=2",
    "direct": "--ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite --bs=4k --size=4m --numjobs=2",
    "mapped": "--ioengine=mmap --rw=randrw --bs=4k --size=4m --numjobs=2 --verify_backlog=64",
    "ring": "--ioengine=io_uring --iodepth=16 --rw=randrw --bs=4k --size=4m --numjobs=2",
    "synchronous": "--ioengine=psync --sync=1 --rw=randwrite --bs=4k --size=256k --numjobs=4",
    "crowded": "--thread --ioengine=psync --rw=randwrite --bs=4k --size=64k --numjobs=100",
}
STRESSORS = (
    "access chdir chmod chown copy-file dentry dir dnotify dup fallocate fanotify fcntl fiemap file-ioctl filename "
    "flock fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka lockf lockofd mknod "
    "open rename symlink sync-file touch utime verity xattr mmap mmapfork revio seek sendfile readahead aio splice tee"
).split()
FEW = ("rename", "mmap", "handle")


@pytest.fixture(scope="module", params=WAYS)
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One space, mounted as it is, that everybody may reach on disk: a database server is not root."""
    base = open_way(tmp_path_factory.mktemp("programs"))
    with mounted(open_space(base), base / "mnt", "posix", way=request.param) as made:
        yield made


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return not request.config.getoption("--big")


@pytest.mark.parametrize("kind", FIO)
def test_fio_reads_what_it_wrote(mount: Mount, here: Path, kind: str) -> None:
    """Through the mount, and what lies on disk afterwards."""
    options = [f"--name={kind}", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--minimal"]
    command = ["fio", *options, *FIO[kind].split()]
    for place, more in ((here, []), (below(mount, here), ["--verify_only=1"])):
        if kind in ("mapped", "ring") and more:
            continue  # it writes again what it has verified
        done = subprocess.run(
            [*command, f"--directory={place}", *more], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]


def test_stressors(mount: Mount, here: Path, tmp_path: Path, quick: bool) -> None:
    here.chmod(0o777)
    for name in FEW if quick else STRESSORS:
        if name not in FEW and _stressed(name, tmp_path, 1) is not None:
            continue
        failed = _stressed(name, here, 1 if quick else 2)
        assert failed is None, f"{name}: {failed}"


def _stressed(name: str, place: Path, seconds: int) -> str | None:
    sizes = ["--hdd-bytes", "32m", "--iomix-bytes", "32m", "--fallocate-bytes", "32m"]
    command = [
        "stress-ng",
        f"--{name}",
        "2",
        "-t",
        f"{seconds}",
        "--verify",
        "--temp-path",
        str(place),
        *sizes,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return (
        None if done.returncode in (0, 3, 4) else done.stdout[-1000:] + done.stderr[-1000:]
    )  # 3, 4: not here


@pytest.fixture
def postgres(here: Path, tmp_path: Path) -> Iterator[Postgres]:
    if not available():
        pytest.fail("PostgreSQL is not installed; scripts/test installs it")
    made = Postgres(here / "data", open_way(tmp_path))
    yield made
    made.stop()


def test_a_database_server_that_is_killed(postgres: Postgres, quick: bool) -> None:
    """What it answered is there after its recovery, and nothing of its pages is damaged."""
    postgres.start()
    postgres.sql("CREATE TABLE t (n integer PRIMARY KEY, filler text)")
    for _ in range(1 if quick else 4):
        before = int(postgres.sql("SELECT count(*) FROM t"))
        answered = postgres.insert_until_killed(after=before + (200 if quick else 2000))
        postgres.start()
        found = int(postgres.sql("SELECT count(*) FROM t"))
        assert found >= answered > before
        assert postgres.sql("SELECT count(*) FROM t WHERE filler <> repeat(n::text, 200)") == "0"
    postgres.stop()
    assert re.search(r"Bad checksums: +0$", postgres.checksums(), re.MULTILINE)


def test_sqlite_that_is_killed(here: Path, quick: bool) -> None:
    """In both kinds of journal: what was committed is there, whole."""
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('pragma journal_mode=' + sys.argv[2])\n"
        "db.execute('create table if not exists t(n integer primary key, filler)')\n"
        "while True:\n"
        "    db.execute('begin')\n"
        "    for _ in range(10): last = db.execute('insert into t(filler) values (randomblob(3000))').lastrowid\n"
        "    db.execute('commit')\n"
        "    print(last, flush=True)\n"
    )
    for journal in ("wal", "delete", "truncate"):
        for _ in range(1 if quick else 10):
            command = ["python3", "-c", script, str(here / journal), journal]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout is not None
                said = [int(writer.stdout.readline()) for _ in range(5)]
                writer.send_signal(signal.SIGKILL)
                said += [
                    int(line)
                    for line in writer.stdout.read().splitlines(keepends=True)
                    if line.endswith("\n")
                ]
            with sqlite3.connect(here / journal) as db:
                assert db.execute("pragma integrity_check").fetchone() == ("ok",)
                (count,) = db.execute("select count(*) from t").fetchone()
                assert count >= said[-1] and count % 10 == 0


def test_git_at_work(mount: Mount, here: Path, tmp_path: Path, quick: bool) -> None:
    """Commits, branches, merges, packing, a worktree; `git fsck` finds nothing, and the disk has the same."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main", "-C"]

    def run(*words: str, at: Path = here / "one") -> str:
        done = subprocess.run([*git, str(at), *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    (here / "one").mkdir()
    run("init", "-q")
    for number in range(6 if quick else 30):
        for index in range(10):
            place = here / "one" / f"d{index % 3}"
            place.mkdir(exist_ok=True)
            (place / f"f{index}").write_text(f"{number} {index}\n" * 20)
        run("add", "-A")
        run("commit", "-qm", f"{number}")
        if number % 5 == 0:
            run("checkout", "-qb", f"side{number}")
            (here / "one" / f"new{number}").write_text("side")
            run("add", "-A")
            run("commit", "-qm", "side")
            run("checkout", "-q", "main")
            run("merge", "-q", "--no-ff", "-m", "merged", f"side{number}")
    run("gc", "-q", "--aggressive", "--prune=now")
    run("fsck", "--full", "--strict")
    run("worktree", "add", "-q", str(here / "two"), "side5")
    run("clone", "-q", str(here / "one"), str(tmp_path / "three"), at=tmp_path)
    run("clone", "-q", "--local", str(here / "one"), str(here / "four"), at=here)
    for place in (here / "one", here / "two", here / "four"):
        assert run("status", "--short", at=place) == ""
        run("fsck", "--full", at=place)
    shutil.rmtree(here / "two")
    run("worktree", "prune")
    same = subprocess.run(
        ["diff", "-r", here / "one", below(mount, here / "one")], capture_output=True, text=True
    )
    assert same.returncode == 0, same.stdout[:1000]
