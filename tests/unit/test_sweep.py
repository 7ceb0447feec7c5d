"""Sweeps: new trees in bulk, directories with one lstat each, then files; stopped, killed, in the way of others."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.core import bulk, commit, index, labels, large, populate, tree, xattrs
from fsd.core import sweep as sweeping
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.sweep import Sweep
from tests.faults.disks import fill_up, may_mount
from tests.support.mounts import disk
from tests.support.worlds import differences, make_space, rows


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Space]:
    """Its nodes count as quiet at once."""
    ripe(monkeypatch)
    opened = make_space(tmp_path)
    yield opened
    opened.close()


def ripe(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (commit, populate):
        monkeypatch.setattr(module, "QUIET_S", -1.0)


def root(space: Space) -> Path:
    return Path(os.fsdecode(space.root))


def plant(base: Path, *, dirs: int = 30, files: int = 5) -> None:
    """A tree with some of everything."""
    for number in range(dirs):
        place = base / f"d{number % 7}/e{number}"
        place.mkdir(parents=True)
        for file in range(files):
            (place / f"f{file}").write_bytes(b"x" * (number + file))
    (base / "link").symlink_to("nowhere")
    os.mkfifo(base / "d0/fifo")
    os.link(base / "d0/e0/f0", base / "d1/hard")
    os.write(os.open(os.fsencode(base) + b"/d2/\xff\n", os.O_CREAT | os.O_WRONLY), b"odd")


def run(sweep: Sweep) -> None:
    while not sweep.step(60).finished:
        pass


def swept(space: Space) -> Sweep:
    """A whole sweep in a new epoch."""
    done = Sweep(space)
    done.begin()
    run(done)
    return done


def labelled(space: Space) -> int:
    return sum(
        labels.ID_ATTRIBUTE in os.listxattr(os.path.join(top, name))
        for top, _, names in os.walk(root(space))
        for name in names
        if ".fsd" not in top and not os.path.islink(os.path.join(top, name))
    )


@pytest.mark.parametrize("direct", [True, False], ids=["calls", "through-proc"])
def test_attributes_of_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    if direct and not xattrs._direct:
        pytest.skip("needs Linux 6.13")
    monkeypatch.setattr(xattrs, "_direct", direct)
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "link").symlink_to("f")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert xattrs.list_names(fd, b"f") == []
        for number in range(8):
            xattrs.put(fd, b"f", b"user.%040d" % number, b"v%d" % number)
        big = os.urandom(1500)
        xattrs.put(fd, b"f", b"user.big", big)
        xattrs.put(fd, b"f", b"user.big", big[:1000])
        assert xattrs.get(fd, b"f", b"user.big") == big[:1000] == os.getxattr(tmp_path / "f", "user.big")
        assert sorted(xattrs.list_names(fd, b"f")) == sorted(map(os.fsencode, os.listxattr(tmp_path / "f")))
        for name, number in ((b"f", errno.ENODATA), (b"gone", errno.ENOENT)):
            with pytest.raises(OSError) as caught:
                xattrs.get(fd, name, b"user.none")
            assert caught.value.errno == number
        with pytest.raises(OSError) as caught:
            xattrs.put(fd, b"link", b"user.x", b"not on what it leads to")
        assert caught.value.errno == errno.EPERM
        assert "user.x" not in os.listxattr(tmp_path / "f")
    finally:
        os.close(fd)


def test_attributes_larger_than_the_usual_room(tmp_path: Path) -> None:
    with disk(tmp_path, "xfs", kind="xfs") as made:
        (made.place / "f").write_bytes(b"")
        fd = os.open(made.place, os.O_RDONLY)
        try:
            for number in range(60):
                xattrs.put(fd, b"f", b"user." + b"%03d" % number * 80, b"1")
            xattrs.put(fd, b"f", b"user.big", b"b" * 60_000)
            assert len(xattrs.list_names(fd, b"f")) == 61
            assert xattrs.get(fd, b"f", b"user.big") == b"b" * 60_000
        finally:
            os.close(fd)


@pytest.mark.parametrize("entries", [3, 40, 2000], ids=lambda n: f"{n}-at-once")
def test_a_new_tree_in_bulk(space: Space, monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr(bulk, "ENTRIES", entries)
    plant(root(space))
    swept(space)
    assert differences(space) == []
    assert tree.usage(space) == sum(entry.size for entry in tree.listing(space, b"")[1])
    assert labelled(space) >= 150
    known = rows(space)
    space.index.path.unlink()
    swept(space)
    assert rows(space) == known, "ids and sizes come back"


def test_what_is_labelled_is_not_looked_at_again(space: Space) -> None:
    plant(root(space))
    swept(space)
    with space.index.read() as db:
        before = db.execute("SELECT n, seq FROM dir").fetchall()
    swept(space)
    with space.index.read() as db:
        assert db.execute("SELECT n, seq FROM dir").fetchall() == before
        assert db.execute("SELECT count(*) FROM dir, head WHERE dir.epoch<>head.epoch").fetchone() == (0,)


def test_a_file_that_moved_into_a_new_directory_keeps_its_id(space: Space) -> None:
    """Its id has a row: the bulk way finds out when it inserts."""
    plant(root(space))
    swept(space)
    before = rows(space)
    (root(space) / "new/deep").mkdir(parents=True)
    (root(space) / "new/deep/fresh").write_bytes(b"1")
    (root(space) / "d0/e0/f1").rename(root(space) / "new/deep/moved")
    space_rows = swept(space) and rows(space)
    assert space_rows[b"new/deep/moved"][0] == before[b"d0/e0/f1"][0]
    assert differences(space) == []


def test_others_commit_between_the_looks_and_the_commit(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader is faster with one of the directories, and a name comes into another one."""
    plant(root(space))
    real: Callable[..., object] = bulk._commit
    once: list[int] = []

    def first(space_: Space, looks: list, version: int) -> object:
        if looks and not once and any(ready.look.item.path == b"d0/e0" for ready in looks):
            once.append(1)
            thread = threading.Thread(target=reconcile, args=(space_, b"d0/e0"))
            thread.start()
            thread.join()
            (root(space_) / "d1/e1/late").write_bytes(b"late")
            thread = threading.Thread(target=reconcile, args=(space_, b"d1/e1", [b"late"]))
            thread.start()
            thread.join()
        return real(space_, looks, version)

    monkeypatch.setattr(bulk, "_commit", first)
    swept(space)
    assert once
    assert differences(space) == []
    assert labelled(space) >= 150


def test_bulk_work_lets_others_in(space: Space) -> None:
    """Somebody who waits for the lock is seen, and has it before the next bulk transaction."""
    order: list[str] = []

    def other() -> None:
        with space.index.write():
            order.append("other")

    with space.index.write():
        assert not space.index.wanted()
        thread = threading.Thread(target=other)
        thread.start()
        while not space.index.wanted():
            pass
    space.index.give_way()
    with space.index.write():
        order.append("bulk")
    thread.join()
    assert order == ["other", "bulk"]


def test_bulk_work_lets_other_processes_in(space: Space, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with space.index.write():
        pid = os.fork()
        if pid == 0:
            with space.index.exclusive():
                said.write_text("other")
            os._exit(0)
        while not space.index.wanted():
            pass
    space.index.give_way()
    with space.index.write():
        assert os.waitpid(pid, 0)[1] == 0
        assert said.read_text() == "other"


def test_a_look_at_directories_is_one_stat_each(space: Space, tmp_path: Path) -> None:
    """Counted from outside, by strace(1)."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    plant(root(space), dirs=200, files=2)
    swept(space)
    with space.index.read() as db:
        (dirs,) = db.execute("SELECT count(*) FROM dir").fetchone()
    assert dirs > 200
    space.close()
    script = (
        "import os, sys, time, pickle\n"
        "from fsd.core.space import Space\nfrom fsd.core.sweep import Sweep\n"
        "space = Space(*pickle.load(open(sys.argv[1], 'rb')))\nsweep = Sweep(space)\nsweep.begin()\n"
        "space.root_fd()\nos.access('/looks-begin', 0)\nassert sweep._directories(time.monotonic() + 60)\n"
        "os.access('/looks-end', 0)\n"
    )
    import pickle

    (tmp_path / "space").write_bytes(pickle.dumps((space.record, space.state_dir)))
    traced = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=file,getdents64,name_to_handle_at", "-o", str(traced)]
    subprocess.run([*command, sys.executable, "-c", script, str(tmp_path / "space")], check=True)
    text = traced.read_text()
    calls = text[text.index("looks-begin") : text.index("looks-end")].splitlines()[1:-1]
    in_tree = [line for line in calls if str(space.state_dir) not in line and "index.db" not in line]
    stats = [line for line in in_tree if "stat" in line]
    assert dirs <= len(stats) <= dirs + 2, "the root's proof is one more"
    assert in_tree == stats, "nothing is opened or listed"


def test_what_changed_in_downtime(space: Space) -> None:
    """Directories first: creates, deletes and moves are known when they are through; edits in place after the files."""
    base = root(space)
    plant(base)
    swept(space)
    before, etag = rows(space), tree.lookup(space, b"").etag
    (base / "d0/e0/created").write_bytes(b"created")
    (base / "d1/e1/f1").rename(base / "d1/e1/renamed")
    (base / "d2/e2").rename(base / "d3/moved")
    (base / "d4/e4/f0").unlink()
    (base / "d5/new/deep").mkdir(parents=True)
    (base / "d5/new/deep/f").write_bytes(b"deep")
    edited = base / "d6/e6/f1"
    status = edited.stat()
    edited.write_bytes(b"y" * status.st_size)
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))
    rev = _rev(space, b"d6/e6/f1")

    sweep = Sweep(space)
    sweep.begin()
    while not sweep._directories(0.0):
        pass
    while sweep._ahead or sweeping.dirty.pending(space, 1, sweep=True):
        sweep._contents(0.0)
    assert sweep.progress().phase == "files"
    assert differences(space) == []
    after = rows(space)
    assert after[b"d3/moved"][0] == before[b"d2/e2"][0]
    assert after[b"d3/moved/f1"][0] == before[b"d2/e2/f1"][0]
    assert after[b"d1/e1/renamed"][0] == before[b"d1/e1/f1"][0]
    assert tree.lookup(space, b"").etag != etag
    assert sweep.progress().done_dirs < sweep.progress().total_dirs
    run(sweep)
    assert sweep.progress().phase == "done"
    assert _rev(space, b"d6/e6/f1") == rev + 1, "an edit that left size and mtime alone"
    assert differences(space) == []


def _rev(space: Space, path: bytes) -> int:
    with space.index.read() as db:
        row = index.find(db, path)
    assert row is not None
    return row.rev


def test_a_killed_sweep_goes_on(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes next looks at what was not yet looked at, and compares what was not yet compared."""
    monkeypatch.setattr(sweeping, "_PAGE", 20)
    monkeypatch.setattr(sweeping, "_KEEP_EVERY_S", 0.0)
    plant(root(space), dirs=100, files=1)
    (root(space) / "d1/e1/f0").rename(root(space) / "d1/kept")
    swept(space)
    (root(space) / "d0/e0/new").write_bytes(b"1")
    first = Sweep(space)
    first.begin()
    first.step(0.0)
    assert first.progress().phase == "directories"
    looked = first.progress().looked
    second = Sweep(space)
    assert second.progress().looked == looked > 0
    asked = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: (asked.append(path), real(path, **options))[1])
    while not second._directories(0.0):
        pass
    monkeypatch.undo()
    ripe(monkeypatch)
    total = second.progress().total_dirs
    assert len([path for path in asked if isinstance(path, bytes) and path != space.root]) == total - looked
    monkeypatch.setattr(sweeping, "_AHEAD", 1)
    while second.progress().done_dirs < 10:
        second.step(0.0)
    third = Sweep(space)
    compared = third.progress().done_dirs
    assert compared >= 10
    run(third)
    assert differences(space) == []
    assert third.progress().finished


def test_a_sweep_beside_a_filesystem_that_is_away(space: Space) -> None:
    """Its neighbours are compared; what is in it keeps its rows; the sweep does not claim to be complete."""
    if not may_mount():
        pytest.skip("mounting needs root")
    inner = root(space) / "d0/inner"
    plant(root(space))
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "fsd-test", str(inner)], check=True)
    try:
        for number in range(80):
            (inner / f"i{number}").mkdir()
        swept(space)
        known = rows(space)
        subprocess.run(["umount", "-l", str(inner)], check=True)
        (root(space) / "d6/e6/f1").write_bytes(b"edited")
        away = Sweep(space)
        away.begin()
        with pytest.raises(OSError, match="not mounted"):
            run(away)
        assert not away.progress().finished
        assert rows(space).keys() == known.keys()
        assert rows(space)[b"d6/e6/f1"][2] == 6
    finally:
        subprocess.run(["umount", "-l", str(inner)], check=False, stderr=subprocess.DEVNULL)


def test_a_full_state_disk_during_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ripe(monkeypatch)
    with disk(tmp_path, "state", megabytes=2, kind="tmpfs") as made:
        space = make_space(tmp_path / "s")
        space.close()
        full = Space(space.record, made.place)
        plant(root(full), dirs=60)
        begun = Sweep(full)
        begun.step(0.0)
        hog = fill_up(made.place)
        with pytest.raises(OSError) as caught:
            run(begun)
        assert caught.value.errno == errno.ENOSPC
        hog.unlink()
        run(begun)
        assert differences(full) == []
        full.close()


def test_a_tree_without_room_for_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small inodes each label needs a block of its own. Nothing else depends on labels; the next sweep writes
    them when there is room."""
    ripe(monkeypatch)
    monkeypatch.setitem(
        __import__("tests.support.mounts", fromlist=["MAKE"]).MAKE,
        "ext4",
        ["mkfs.ext4", "-q", "-m", "0", "-I", "128"],
    )
    with disk(tmp_path, "small", megabytes=8) as made:
        space = make_space(made.place / "s")
        away = Space(space.record, tmp_path)
        shutil.rmtree(made.place / "s/state")
        plant(root(away), dirs=20)
        hog = fill_up(made.place)
        swept(away)
        assert differences(away) == []
        ids = rows(away)
        assert labelled(away) < 20
        hog.unlink()
        swept(away)
        swept(away)
        assert labelled(away) >= 100
        assert rows(away) == ids
        away.close()
        space.close()


def test_a_large_directory_in_batches(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """New, changed in every way, and unchanged; never more of it in memory than a batch."""
    monkeypatch.setattr(large, "LARGE", 200)
    monkeypatch.setattr(large, "_BATCH", 50)
    monkeypatch.setattr(bulk, "ENTRIES", 100)
    batches: list[int] = []
    real = large.reconcile
    monkeypatch.setattr(
        large,
        "reconcile",
        lambda s, p, names, **more: (batches.append(len(names)), real(s, p, names, **more))[1],
    )
    top = root(space) / "wide"
    top.mkdir()
    for number in range(700):
        (top / f"f{number}").write_bytes(b"x" * number)
    (top / "sub").mkdir()
    (top / "sub/f").write_bytes(b"below")
    swept(space)
    assert differences(space) == []
    assert len(batches) == 15
    assert labelled(space) == 701
    before, etag = rows(space), tree.lookup(space, b"").etag
    for number in range(0, 300, 3):
        (top / f"f{number}").unlink()
    (top / "f400").rename(top / "renamed")
    (top / "new").write_bytes(b"new")
    status = (top / "f500").stat()
    (top / "f500").write_bytes(b"y" * 500)
    os.utime(top / "f500", ns=(status.st_atime_ns, status.st_mtime_ns))
    (top / "sub/f").write_bytes(b"edited below")
    swept(space)
    assert differences(space) == []
    assert max(batches) == 50
    after = rows(space)
    assert after[b"wide/renamed"][0] == before[b"wide/f400"][0]
    assert _rev(space, b"wide/f500") == 1
    assert tree.lookup(space, b"").etag != etag
    etag = tree.lookup(space, b"").etag
    with space.index.read() as db:
        seqs = db.execute("SELECT n, seq FROM dir").fetchall()
    done = swept(space)
    assert done.progress().finished
    assert tree.lookup(space, b"").etag == etag
    with space.index.read() as db:
        assert db.execute("SELECT n, seq FROM dir").fetchall() == seqs
