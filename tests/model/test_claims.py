"""Claims to an id: labels that came with a restore, a move from another filesystem, a copy, or by somebody's hand.

The programs are the real ones, with a reconcile after every single system call of them. On ext4, xfs and btrfs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import labels, limbo
from fsd.core.space import Space
from fsd.core.tree import lookup
from tests.model.old import NEW, OLD, assert_survives_the_index, grow_old, here, ids, look, pass_time, run
from tests.support import killpoints
from tests.support.mounts import disk
from tests.support.worlds import differences, sweep

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child"),
]
LONG_AFTER = 4e9


def sh(script: str) -> list[str]:
    return ["sh", "-ec", script]


TREE = {b"d", b"d/deep", b"d/deep/leaf", b"d/one"}
SAVE = {
    "cp -a": ("cp -a d ../pack/", "cp -a ../pack/d ."),
    "rsync -aX": ("rsync -aX d ../pack/", "rsync -aX ../pack/d ."),
    "tar": (
        "tar --xattrs --xattrs-include='*' -cf ../p.tar d",
        "tar --xattrs --xattrs-include='*' -xf ../p.tar",
    ),
    "mv": ("cp -a d ../pack/", "mv ../pack/d ."),
}


@pytest.mark.parametrize("settled", [True, False], ids=["long-after", "at-once"])
@pytest.mark.parametrize("how", SAVE)
def test_a_tree_that_was_lost_and_is_restored(space: Space, how: str, settled: bool, every: bool) -> None:
    before = ids(space)
    save, restore = SAVE[how]
    subprocess.run(sh(save), cwd=space.root, check=True)
    shutil.rmtree(here(space) / "d")
    look(space)
    if settled:
        limbo.settle(space, now=LONG_AFTER)
    run(space, sh(restore), every=every)
    pass_time(space)
    after = ids(space)
    assert {path: after.get(path) for path in TREE} == {path: before[path] for path in TREE}
    assert_survives_the_index(space)


@pytest.mark.parametrize("how", SAVE)
def test_a_tree_that_is_restored_beside_the_living_one(space: Space, how: str, every: bool) -> None:
    before = ids(space)
    save, restore = SAVE[how]
    subprocess.run(sh(save), cwd=space.root, check=True)
    os.mkdir(here(space) / "r")
    look(space)
    before = ids(space)
    run(space, sh(f"cd r; {restore.replace('../p', '../../p')}"), every=every)
    pass_time(space)
    after = ids(space)
    assert {path: after.get(path) for path in before} == before
    assert_survives_the_index(space)


@pytest.mark.parametrize("how", ["cp -a", "rsync -aX", "tar"])
def test_a_tree_that_is_restored_over_the_changed_one(space: Space, how: str, every: bool) -> None:
    before = ids(space)
    save, restore = SAVE[how]
    subprocess.run(sh(save), cwd=space.root, check=True)
    (here(space) / "d/one").write_bytes(NEW)
    (here(space) / "d/deep/leaf").unlink()
    look(space)
    etag = lookup(space, b"d/one").etag
    limbo.settle(space, now=LONG_AFTER)
    run(space, sh(restore), every=every)
    after = ids(space)
    assert (here(space) / "d/one").read_bytes() == OLD
    assert {path: after.get(path) for path in TREE} == {path: before[path] for path in TREE}
    assert lookup(space, b"d/one").etag != etag
    assert_survives_the_index(space)


def test_one_of_two_copies_survives_the_original(space: Space, every: bool) -> None:
    """Copies made of a living file are others; that the original goes later does not make one of them the original."""
    before = ids(space)
    run(space, sh("cp -a f copy"), every=every)
    pass_time(space)
    copy = ids(space)[b"copy"]
    run(space, sh("rm f"), every=every)
    limbo.settle(space, now=LONG_AFTER)
    sweep(space)
    assert ids(space)[b"copy"] == copy != before[b"f"]
    assert_survives_the_index(space)


@pytest.fixture
def other(space: Space, tmp_path: Path) -> Iterator[Path]:
    """Another filesystem, mounted inside the space, with an old file in it."""
    with disk(here(space), "inner", megabytes=16, kind="tmpfs") as made:
        (made.place / "within").write_bytes(OLD)
        sweep(space)
        grow_old(space)
        yield made.place


ACROSS = {
    "mv of a file inwards": ("mv f inner/", {b"f": b"inner/f"}),
    "mv of a file outwards": ("mv inner/within .", {b"inner/within": b"within"}),
    "mv of a tree inwards": (
        "mv d inner/",
        {
            b"d": b"inner/d",
            b"d/deep": b"inner/d/deep",
            b"d/deep/leaf": b"inner/d/deep/leaf",
            b"d/one": b"inner/d/one",
        },
    ),
    "rsync and remove": ("rsync -aX --remove-source-files f inner/", {b"f": b"inner/f"}),
    "gio move": ("gio move f inner/f", {b"f": b"inner/f"}),
    "there and back": ("mv f inner/; mv inner/f .", {b"f": b"f"}),
}


@pytest.mark.parametrize("how", ACROSS)
def test_a_move_across_filesystems_within_a_space(space: Space, other: Path, how: str, every: bool) -> None:
    before = ids(space)
    script, moved = ACROSS[how]
    run(space, sh(script), every=every)
    pass_time(space)
    after = ids(space)
    assert {new: after.get(new) for new in moved.values()} == {new: before[old] for old, new in moved.items()}
    assert differences(space) == []
    assert_survives_the_index(space)


def test_a_label_stripped_by_hand_comes_back(space: Space) -> None:
    before = ids(space)
    for name in ("f", "d", "d/one"):
        os.removexattr(here(space) / name, labels.ID_ATTRIBUTE)
    look(space)
    grow_old(space)
    assert ids(space) == before
    assert all(labels.ID_ATTRIBUTE in os.listxattr(here(space) / name) for name in ("f", "d", "d/one"))
    assert_survives_the_index(space)


@pytest.mark.parametrize("kept", [True, False], ids=["with-index", "without-index"])
def test_labels_exchanged_by_hand_change_nothing(space: Space, kept: bool) -> None:
    before = ids(space)
    pairs = [("f", "g"), ("d", "e")]
    for one, two in pairs:
        first, second = (os.getxattr(here(space) / name, labels.ID_ATTRIBUTE) for name in (one, two))
        os.setxattr(here(space) / one, labels.ID_ATTRIBUTE, second)
        os.setxattr(here(space) / two, labels.ID_ATTRIBUTE, first)
    if not kept:
        space.index.path.unlink()
    sweep(space)
    assert ids(space) == before
    assert_survives_the_index(space)


@pytest.mark.parametrize(
    "rubbish", [b"", b"1:", b"x" * 64, b"1:" + b"0" * 32 + b":" + b"0" * 16 + b":0", b"\xff\0"]
)
def test_a_label_that_is_rubbish_changes_nothing(space: Space, rubbish: bytes) -> None:
    before = ids(space)
    for name in ("f", "d"):
        os.setxattr(here(space) / name, labels.ID_ATTRIBUTE, rubbish)
    space.index.path.unlink()
    sweep(space)
    assert ids(space) == before
    assert_survives_the_index(space)


def test_an_inode_number_that_is_used_again_is_somebody_else(space: Space) -> None:
    """Unlinked and created at once, the number returns; whatever was known of the old node does not."""
    before = ids(space)
    seen = {before[b"f"]}
    number = os.stat(here(space) / "f").st_ino
    os.unlink(here(space) / "f")
    sweep(space)
    limbo.settle(space, now=LONG_AFTER)
    reused = 0
    numbered = os.statvfs(space.root).f_files > 0
    for turn in range(300 if numbered else 20):
        if reused and turn >= 20:
            break  # a filesystem may take its time to free a number
        name = here(space) / f"other{turn}"
        name.write_bytes(OLD)
        reused += name.stat().st_ino == number
        sweep(space)
        node = lookup(space, os.fsencode(name.name)).id
        assert node not in seen
        seen.add(node)
        name.unlink()
        sweep(space)
        limbo.settle(space, now=LONG_AFTER)
    assert reused or not numbered, "only btrfs never reuses a number, and counts none"
