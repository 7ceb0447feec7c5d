"""Storages that hang, filesystems that cannot be heard, and what is said of them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fsd.service import status
from tests.integration.test_watcher import Rig, write
from tests.support.waiting import wait_for
from watcher.sources import fanotify, fanotify_abi

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@contextmanager
def hanging(place: Path) -> Iterator[None]:
    """A filesystem over `place` that answers nobody: FUSE whose daemon never reads. At the end all who wait
    are freed."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % fd
    if libc.mount(b"hanging", os.fsencode(place), b"fuse", 0, options):
        os.close(fd)
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        os.close(fd)  # with it the connection ends, and what waits gets ENOTCONN
        subprocess.run(["umount", "-l", str(place)], check=True)


def usage(space) -> int:
    with space.index.read() as db:
        return db.execute("SELECT total FROM dir WHERE n=1").fetchone()[0]


@pytest.mark.root
def test_a_storage_that_hangs_holds_up_only_its_own_space(rig: Rig, allow_log):
    allow_log("is unavailable|cannot be|failed|reconciling")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    second = rig.registry.create("second")
    root = Path(os.fsdecode(second.path))
    space = rig.registry.open(second.id)
    rig.start()
    write(rig.root / "a/f", 10)
    rig.right()
    with hanging(rig.root):
        # Both its threads will soon be in there; the other space must not notice.
        for number in range(1, 30):
            write(root / f"d{number}/f", number)
            expected = sum(range(number + 1))
            wait_for(lambda expected=expected: usage(space) == expected, timeout=4.0, every=0.005)
        wait_for(lambda: rig.told().get("hung", 0) > 0, what="the hanging storage in the status")
        assert rig.told()["state"] == "unavailable"
        assert any("has not answered for" in text for text in status.read(rig.state / "run").problems())
        write(root / "late", 1000)
        wait_for(lambda: usage(space) == expected + 1000, timeout=4.0)
    wait_for(lambda: rig.told()["state"] == "watching" and not rig.told()["hung"], timeout=20)
    write(rig.root / "b/f", 5)
    rig.right()
    space.close()


@pytest.mark.root
def test_the_end_does_not_wait_for_a_storage_that_hangs(rig: Rig, allow_log, monkeypatch: pytest.MonkeyPatch):
    allow_log("is unavailable|cannot be|failed")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    monkeypatch.setattr("watcher.loop.END", 1.0)
    rig.start()
    with hanging(rig.root):
        wait_for(lambda: rig.watcher.keepers[rig.record.hex].front.busy(1e12) > 0)
        rig.stop()
    assert not status.read(rig.state / "run").watcher_runs


def test_what_hears_is_shown_and_why_nothing_better_does(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.start()
    expected = "inotify" if fanotify.usable() is not None else "fanotify"
    assert rig.told()["source"] == expected
    rig.stop()

    def refused() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fanotify_abi, "open_group", refused)
    rig.start()
    assert (rig.told()["source"], rig.told()["fallback"]) == (
        "inotify",
        "fanotify: needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH",
    )
    write(rig.root / "a/f", 7)
    rig.right()
    rig.registry.set(rig.record.id, source="poll")
    wait_for(lambda: rig.told()["source"] == "poll", what="the source that the space wants")
    assert rig.told()["fallback"] == ""
    write(rig.root / "a/g", 8)
    rig.right()
    ages = rig.told()["poll"]
    assert 0 < ages["directories"] < 30
    assert 0 < ages["files"] < 30


def test_a_displaced_internal_directory_is_an_alarm(rig: Rig):
    rig.start()
    (rig.root / ".fsd").rename(rig.root / "other")
    wait_for(lambda: any(".fsd" in text for text in status.read(rig.state / "run").problems()))
    (rig.root / "other").rename(rig.root / ".fsd")
    wait_for(lambda: not status.read(rig.state / "run").problems())


@pytest.mark.root
def test_filesystems_inside_a_space_each_have_their_source(rig: Rig):
    """A tmpfs and an overlay, which has no handles, inside; one that tells nothing is polled."""
    if os.geteuid() != 0 or fanotify.usable() is not None:
        pytest.skip("mounting needs root")
    base = rig.root.parent.parent.parent
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    inner, overlay = rig.root / "inner", rig.root / "over"
    for place in (inner, overlay):
        place.mkdir()
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    mounted: list[Path] = []
    try:
        for command in (
            ["mount", "-t", "tmpfs", "none", str(inner)],
            ["mount", "-t", "overlay", "overlay", "-o", options, str(overlay)],
        ):
            if subprocess.run(command, capture_output=True).returncode != 0:
                pytest.skip("needs the right to mount")
            mounted.append(Path(command[-1]))
        rig.start(polled=frozenset({"tmpfs"}))
        parts = {part["path"]: part["source"] for part in rig.told()["parts"]}
        assert parts == {"": "fanotify", "inner": "poll", "over": "inotify"}
        assert rig.told()["fallback"].startswith("fanotify: "), "of the overlay"
        write(inner / "d/f", 100)
        write(overlay / "e/f", 30)
        write(rig.root / "f", 5)
        rig.right()
        (inner / "d/f").write_bytes(b"x" * 50)
        write(overlay / "e/g", 2)
        rig.right()
    finally:
        rig.stop()
        for place in mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)
