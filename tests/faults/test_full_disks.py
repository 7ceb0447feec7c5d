"""A full data disk and a full state disk: each change is refused with ENOSPC and has changed nothing, reading goes
on, and everything works again once there is room.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import check, operations, properties, spare, trash, tree
from fsd.core.content import Upload
from fsd.core.space import Space
from tests.faults.disks import fill_up, loop_disk, may_mount, small_disk
from tests.faults.world import TREE, contents, fill
from tests.support.mounts import disk
from tests.support.worlds import differences, make_space, sweep

pytestmark = pytest.mark.skipif(not may_mount(), reason="needs the right to mount")

LARGE = 1 << 20

CHANGES = {
    "put new": lambda s: put(s, b"new", LARGE),
    "put over": lambda s: put(s, b"file", LARGE),
    "put small over": lambda s: put(s, b"file", 30_000),
    "mkcol": lambda s: [operations.make_directory(s, b"full/%0250d" % n) for n in range(400)],
    "delete": lambda s: operations.delete(s, b"dir"),
    "move": lambda s: operations.move(s, b"dir", s, b"full/dir", overwrite=False),
    "move over": lambda s: operations.move(s, b"file", s, b"other", overwrite=True),
    "copy": lambda s: operations.copy(s, b"dir", s, b"copy", overwrite=False),
    "properties": lambda s: properties.update(s, b"file", {"{n}x": b"x" * 90_000}),
}


def put(space: Space, path: bytes, size: int) -> None:
    with Upload(space, path, length=None) as upload:
        for _ in range(size // 1000):
            upload.write(b"y" * 1000)
        upload.commit()


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path / "world")
    fill(made.root, TREE)
    sweep(made)
    yield made
    made.close()


def assert_as_before(space: Space) -> None:
    assert contents(space.root) == TREE
    assert os.listdir(os.path.join(space.root, b".fsd/staging")) == []
    listed = {entry.name for entry in tree.listing(space, b"")[1]}
    assert listed == {b"file", b"other", b"dir", b"full"}
    fd, _ = tree.open_file(space, b"file")
    with open(fd, "rb") as file:
        assert file.read() == TREE[b"file"]


DATA = [
    (name, kind)
    for kind in ("tmpfs", "ext4")
    for name in ("put new", "put over", "copy", "properties", "mkcol")
    if (name, kind) != ("mkcol", "tmpfs")  # a directory takes no space there
]


@pytest.mark.parametrize(("name", "kind"), DATA)
def test_a_full_data_disk(name: str, kind: str, tmp_path: Path, allow_log) -> None:
    allow_log(".")
    base = tmp_path / "world"
    small = small_disk(base, "3m") if kind == "tmpfs" else loop_disk(tmp_path / "image", base, 12)
    with small:
        # The state lives elsewhere, as it should.
        made = make_space_on(base, tmp_path / "state")
        try:
            fill(made.root, TREE)
            sweep(made)
            hog = fill_up(base)
            with pytest.raises(OSError) as caught:
                CHANGES[name](made)
            assert caught.value.errno == errno.ENOSPC
            if name != "mkcol":  # there some were made before the disk refused
                assert_as_before(made)
            assert differences(made) == []
            hog.unlink()
            put(made, b"again", LARGE)
            assert tree.lookup(made, b"again").size == LARGE // 1000 * 1000
        finally:
            made.close()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_who_has_filled_a_disk_can_delete(kind: str, tmp_path: Path, allow_log) -> None:
    """Into the trash, whose notes take the room that is kept for them, and then for good."""
    allow_log(".")
    base = tmp_path / "world"
    small = small_disk(base, "8m") if kind == "tmpfs" else loop_disk(tmp_path / "image", base, 24)
    with small:
        made = make_space_on(base, tmp_path / "state")
        try:
            fill(made.root, TREE)
            sweep(made)
            spare.keep(made)
            assert differences(made) == []
            hog = fill_up(base)
            with pytest.raises(OSError) as caught:
                put(made, b"new", LARGE)
            assert caught.value.errno == errno.ENOSPC
            operations.delete(made, b"dir")
            operations.move(made, b"file", made, b"other", overwrite=True)
            assert {entry.name for entry in tree.listing(made, b"")[1]} == {b"other", b"full"}
            assert {item.path for item in trash.items(made)} == {b"dir", b"other"}
            trash.empty(made)
            assert trash.items(made) == [] and differences(made) == []
            hog.unlink()
            spare.keep(made)
            again = os.stat(os.path.join(made.root, b".fsd", spare.NAME))
            assert again.st_blocks * 512 >= spare.SIZE
            assert list(check.check(made)) == []
        finally:
            made.close()


def test_a_disk_without_much_room_gives_none_away(tmp_path: Path) -> None:
    with small_disk(tmp_path / "world", "900k"):
        made = make_space_on(tmp_path / "world", tmp_path / "state")
        spare.keep(made)
        assert not os.path.lexists(os.path.join(made.root, b".fsd", spare.NAME))
        made.close()


def make_space_on(base: Path, state: Path) -> Space:
    """A space whose root is on one filesystem and whose state is on another."""
    made = make_space(base)
    (base / "state").rmdir()
    state.mkdir()
    return Space(made.record, state)


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("mkcol", "properties")])
def test_a_full_state_disk(name: str, tmp_path: Path, allow_log) -> None:
    allow_log(".")
    base = tmp_path / "world"
    with small_disk(tmp_path / "state", "700k") as state:
        made = make_space(base)
        made = Space(made.record, state)
        try:
            fill(made.root, TREE)
            sweep(made)
            tree.listing(made, b"dir")
            hog = fill_up(state)
            failed = 0
            for _ in range(40):  # what is allocated already may still take a change or two
                try:
                    CHANGES[name](made)
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error
                    failed += 1
                    break
                undo_change(made, name)
            assert failed, "a full state disk never showed"
            assert contents(made.root) == TREE
            assert_as_before(made)
            hog.unlink()
            CHANGES[name](made)
            sweep(made)
            assert differences(made) == []
        finally:
            made.close()


def undo_change(space: Space, name: str) -> None:
    """Put the tree back by plain system calls, as a program behind the server would."""
    for entry in os.listdir(space.root):
        if entry != b".fsd":
            path = os.path.join(space.root, entry)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    fill(space.root, TREE)


def test_a_full_disk_that_copies_on_write_kills_nobody(tmp_path: Path) -> None:
    """SQLite maps a file of its own; on a btrfs without room a store into it would end the process by SIGBUS."""
    with disk(tmp_path, "volume", megabytes=120, kind="btrfs") as volume:
        made = make_space(volume.place / "world")
        fill(made.root, TREE)
        sweep(made)
        tree.listing(made, b"")
        os.sync()  # what has reached the disk is what would be copied
        filler = volume.fill()
        os.sync()
        pid = os.fork()
        if pid == 0:
            try:
                other = Space(made.record, made.state_dir)
                for number in range(200):
                    try:
                        os.chmod(os.path.join(made.root, b"file"), number)
                        tree.listing(other, b"")
                    except (OSError, sqlite3.Error):
                        continue
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        filler.unlink()
        made.close()
        assert status == 0, f"killed by {os.WTERMSIG(status)}"
