"""The fanotify source on the filesystems it is for, with their subvolumes and mounts; and its own bounds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.core.syscalls import link_fd
from tests.support.ears import Listener
from tests.support.mounts import disk
from tests.support.waiting import wait_for
from watcher.hint import Hint, Kind
from watcher.sources import fanotify, handles, queue
from watcher.sources.base import check_source, covers
from watcher.sources.fanotify import FanotifySource

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _usable() -> None:
    if fanotify.usable() is not None:
        pytest.skip("fanotify needs root")


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "space").mkdir()
    return tmp_path / "space"


@pytest.fixture
def ear(root: Path) -> Iterator[Listener]:
    made = Listener(FanotifySource(), root)
    yield made
    made.source.close()


def heard(ear: Listener, directory: bytes, name: bytes) -> list[Hint]:
    return ear.until(lambda hints: covers(hints, directory, name), f"{name!r} in {directory!r}")


@pytest.mark.parametrize(("kind", "megabytes"), [("ext4", 32), ("xfs", 320), ("btrfs", 128), ("tmpfs", 16)])
def test_every_local_filesystem(tmp_path: Path, kind: str, megabytes: int):
    with disk(tmp_path, "disk", kind=kind, megabytes=megabytes) as storage:
        check_source(FanotifySource, str(storage.place))


def test_btrfs_with_subvolumes_and_a_snapshot_inside(tmp_path: Path):
    with disk(tmp_path, "disk", kind="btrfs", megabytes=160) as storage:
        root = storage.place / "space"
        run("btrfs", "subvolume", "create", root)
        ear = Listener(FanotifySource(), root)
        try:
            run("btrfs", "subvolume", "create", root / "sub")
            heard(ear, b"", b"sub")
            (root / "sub/d").mkdir()
            (root / "sub/d/f").write_bytes(b"x")
            heard(ear, b"sub/d", b"f")
            run("btrfs", "subvolume", "snapshot", root / "sub", root / "snap")
            heard(ear, b"", b"snap")
            (root / "snap/d/f").write_bytes(b"xy")
            hints = heard(ear, b"snap/d", b"f")
            assert not covers(hints, b"sub/d", b"f"), "the snapshot's directory is another one"
            run("btrfs", "subvolume", "delete", root / "snap")
            heard(ear, b"", b"snap")
        finally:
            ear.source.close()


def test_btrfs_mounted_by_a_subvolume(tmp_path: Path):
    """As most installers do it. The mark is refused there, and is placed through the top-level volume."""
    with disk(tmp_path, "disk", kind="btrfs", megabytes=160) as storage:
        for name in ("@data", "@other"):
            run("btrfs", "subvolume", "create", storage.place / name)
        place = tmp_path / "data"
        place.mkdir()
        run("mount", "-o", "loop,subvol=@data", storage.image, place)
        try:
            ear = Listener(FanotifySource(), place)
            try:
                (place / "a/b").mkdir(parents=True)
                (place / "a/b/f").write_bytes(b"x")
                heard(ear, b"a/b", b"f")
                (storage.place / "@other/f").write_bytes(b"x")
                (storage.place / "@data/a/g").write_bytes(b"x")
                hints = heard(ear, b"a", b"g")
                assert not any(hint.dir == b"" and b"f" in hint.names for hint in hints)
                assert not [
                    line
                    for line in Path("/proc/self/mountinfo").read_text().splitlines()
                    if "fsd-top" in line
                ]
            finally:
                ear.source.close()
        finally:
            run("umount", "-l", place)


def test_a_filesystem_inside_a_space_can_be_unmounted_while_it_is_heard(
    tmp_path: Path, root: Path, ear: Listener
):
    with disk(tmp_path, "inner", megabytes=16) as inner:
        inner.unmount()
        inner.place = root / "in"
        inner.place.mkdir()
        inner.mount()
        ear.add("s", inner.place, base=b"in")
        (inner.place / "f").write_bytes(b"x")
        heard(ear, b"in", b"f")
        inner.unmount(lazy=False)
        (root / "g").write_bytes(b"x")
        heard(ear, b"", b"g")
        inner.mount()
        ear.add("s", inner.place, base=b"in")
        (inner.place / "h").write_bytes(b"x")
        heard(ear, b"in", b"h")


def test_changes_through_a_bind_mount_and_what_is_bound_into_a_space(tmp_path: Path):
    """Wherever a change is made, it is told at its place in the space; a directory from outside, bound into
    it, as well."""
    with disk(tmp_path, "disk", megabytes=32) as storage:
        root, outside, elsewhere = (storage.place / name for name in ("space", "outside", "elsewhere"))
        for place in (root / "d/in", outside / "deep", elsewhere):
            place.mkdir(parents=True)
        run("mount", "--bind", root / "d", elsewhere)
        run("mount", "--bind", outside, root / "d/in")
        try:
            ear = Listener(FanotifySource(), root)
            ear.add("s", root / "d/in", base=b"d/in")
            try:
                (elsewhere / "f").write_bytes(b"x")
                heard(ear, b"d", b"f")
                (outside / "deep/g").write_bytes(b"x")
                heard(ear, b"d/in/deep", b"g")
            finally:
                ear.source.close()
        finally:
            run("umount", root / "d/in")
            run("umount", elsewhere)


def test_a_space_that_is_reached_through_a_bind_mount_hears_only_itself(tmp_path: Path):
    with disk(tmp_path, "disk", megabytes=32) as storage:
        (storage.place / "space").mkdir()
        place = tmp_path / "view"
        place.mkdir()
        run("mount", "--bind", storage.place / "space", place)
        try:
            ear = Listener(FanotifySource(), place)
            try:
                (storage.place / "beside").write_bytes(b"x")
                (storage.place / "space/d").mkdir()
                (storage.place / "space/d/f").write_bytes(b"x")
                hints = heard(ear, b"d", b"f")
                assert {name for hint in hints for name in hint.names} == {b"d", b"f"}
            finally:
                ear.source.close()
        finally:
            run("umount", "-l", place)


def test_a_filesystem_without_handles_is_refused(tmp_path: Path):
    for name in ("lower", "upper", "work", "over"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    run("mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "over")
    source = FanotifySource()
    try:
        with pytest.raises(OSError):
            source.add("s", os.fsencode(tmp_path / "over"), (0, 0))
        assert source.spaces() == set()
    finally:
        source.close()
        run("umount", "-l", tmp_path / "over")


def test_what_happens_outside_costs_no_questions(tmp_path: Path):
    with disk(tmp_path, "disk", kind="tmpfs") as storage:
        (storage.place / "space").mkdir()
        ear = Listener(FanotifySource(), storage.place / "space")
        try:
            _make_noise(ear, storage.place / "outside")
        finally:
            ear.source.close()


def _make_noise(ear: Listener, outside: Path) -> None:
    for number in range(20):
        (outside / f"d{number}").mkdir(parents=True)
        (outside / f"d{number}/first").write_bytes(b"x")
    ear.settle()
    before = ear.source.handles.asked
    for turn in range(30):
        for number in range(20):
            (outside / f"d{number}/f{turn}").write_bytes(b"x")
        (outside / f"r{turn}").mkdir()
        os.rename(outside / f"r{turn}", outside / "r")
        os.rmdir(outside / "r")
        ear.settle()
    assert not ear.hints
    assert ear.source.handles.asked == before, "not even while something is renamed there"


def test_what_is_remembered_is_bounded_and_still_right(ear: Listener, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(handles, "MAX_KNOWN", 16)
    for number in range(100):
        os.makedirs(ear.root / f"d{number}/e")
        (ear.root / f"d{number}/e/f").write_bytes(b"x")
    ear.settle()
    known = ear.source.handles
    assert len(known._young) + len(known._old) <= 32
    for number in range(0, 100, 7):
        (ear.root / f"d{number}/e/g").write_bytes(b"x")
        heard(ear, b"d%d/e" % number, b"g")


def test_a_deep_tree_is_renamed_and_only_then_heard_of(ear: Listener):
    """The rename and what follows below are in one batch, merged with what came before."""
    os.makedirs(ear.root / "a/b/c")
    (ear.root / "a/b/c/f").write_bytes(b"x")
    ear.settle()
    for turn in range(8):
        ear.hints = []
        ear.source.queue.gate.clear()
        old, new = ("a", "z") if turn % 2 == 0 else ("z", "a")
        (ear.root / old / "b/c/f").write_bytes(b"xx")
        os.rename(ear.root / old, ear.root / new)
        (ear.root / new / "b/c/f").write_bytes(b"xxx")
        ear.source.queue.gate.set()
        ear.settle()
        (hint,) = (each for each in ear.hints if b"f" in each.names)
        assert hint.dir == os.fsencode(f"{new}/b/c")
        assert hint.binding


def test_our_own_processes_are_told_apart(root: Path):
    ear = Listener(FanotifySource(own=lambda: {os.getpid()}), root)
    try:
        (root / "ours").write_bytes(b"x")
        assert all(hint.meta for hint in heard(ear, b"", b"ours"))
        ear.settle()
        ear.hints = []
        run("touch", root / "theirs")
        hints = heard(ear, b"", b"theirs")  # touch sets times as well, which may be told apart
        assert not all(hint.meta for hint in hints)
    finally:
        ear.source.close()


def test_only_what_others_do_is_urgent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue, "PATIENCE", 3600.0)
    with disk(tmp_path, "disk", kind="tmpfs", megabytes=16) as storage:
        source = FanotifySource(own=lambda: {os.getpid()})
        try:
            fanotify.abi.mark_filesystem(source.group, os.fsencode(storage.place))
            (storage.place / "ours").write_bytes(b"x")
            wait_for(source.queue.held)
            assert not source.queue.bell.is_set()
            run("touch", storage.place / "theirs")
            wait_for(source.queue.bell.is_set)
        finally:
            source.close()


def test_what_we_write_without_a_name_is_heard_of_when_it_has_one(root: Path):
    ear = Listener(FanotifySource(own=lambda: {os.getpid()}), root)
    try:
        fd = os.open(root, os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"x")
        link_fd(fd, -1, os.fsencode(root / "named"))
        os.close(fd)
        (root / "#1").write_bytes(b"x")
        ear.settle()
        names = {name for hint in ear.hints for name in hint.names}
        assert names == {b"named", b"#1"}  # the second one was made under this name
    finally:
        ear.source.close()


def test_too_many_renames_at_once_are_a_gap(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fanotify, "MAX_RENAMES", 10)
    ear = Listener(FanotifySource(), root)
    try:
        ear.source.queue.gate.clear()
        for number in range(30):
            (root / f"a{number}").mkdir()
            os.rename(root / f"a{number}", root / f"b{number}")
        ear.source.queue.gate.set()
        ear.settle()
        assert [hint for hint in ear.hints if hint.kind is Kind.GAP]
        assert len([hint for hint in ear.hints if hint.kind is Kind.MOVED]) <= 10
    finally:
        ear.source.close()


def test_a_broken_handle_is_no_silence(
    ear: Listener, allow_log: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    """A directory that cannot be told for another reason than being gone: everything is looked at."""
    allow_log("cannot be told by its handle")

    def broken(fd: int, handle: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(handles, "open_handle", broken)
    (ear.root / "d").mkdir()
    ear.source.handles.moved_all()
    (ear.root / "f").write_bytes(b"x")
    ear.until(lambda hints: any(hint.kind is Kind.GAP for hint in hints), "a GAP")
    assert set(ear.source.status("s").errors) == {"Input/output error"}
