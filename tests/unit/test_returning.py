"""Another directory at the place of a space: taken for the space only if it proves to be it. And what a machine that
went back as a whole must not do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fsd.core import restoring, returning, tree
from fsd.core.errors import StorageUnavailable
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.core.space import Space, SpaceRecord
from tests.support.mounts import disk
from tests.support.worlds import differences, drain, grow_quiet, make_space, sweep


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    return Registry(tmp_path / "state")


@pytest.fixture
def record(registry: Registry) -> SpaceRecord:
    record = registry.create("x")
    Path(os.fsdecode(record.path), "file").write_text("x")
    sweep(registry.open(record.id))
    return record


def replaced(record: SpaceRecord, by: Path | None = None) -> Path:
    """A copy of the space takes its place, the old one is set aside."""
    home = Path(os.fsdecode(record.path))
    aside = home.with_name("aside")
    home.rename(aside)
    shutil.copytree(by or aside, home)
    return home


def test_a_copy_with_the_signed_internals_is_the_space_again(
    registry: Registry, record: SpaceRecord, allow_log: Callable[[str], None]
) -> None:
    allow_log("was restored")
    etag = tree.lookup(registry.open(record.id), b"").etag
    replaced(record)
    with pytest.raises(StorageUnavailable):
        tree.listing(Space(record, registry.state_dir), b"")
    assert returning.accept(registry.get(record.id), registry.installation)
    space = registry.open(record.id)
    assert [entry.name for entry in tree.listing(space, b"")[1]] == [b"file"]
    assert tree.data_fingerprint(space) and tree.lookup(space, b"").etag != etag
    assert not returning.accept(registry.get(record.id), registry.installation)


def test_the_start_takes_it(
    registry: Registry, record: SpaceRecord, allow_log: Callable[[str], None]
) -> None:
    allow_log("was restored")
    replaced(record)
    registry.recover()
    space = registry.open(record.id)
    sweep(space)
    assert differences(space) == [] and tree.data_fingerprint(space)


@pytest.mark.parametrize("how", ["empty", "no acl", "another key", "another space", "another filesystem"])
def test_anything_else_stays_unavailable(registry: Registry, record: SpaceRecord, how: str) -> None:
    other = registry.create("other")
    home = replaced(record, Path(os.fsdecode(other.path)) if how == "another space" else None)
    if how == "empty":
        shutil.rmtree(home)
        home.mkdir()
    elif how == "no acl":
        (home / ".fsd/acl.json").unlink()
    elif how == "another key":
        registry.installation.replace_key(os.urandom(32))
    elif how == "another filesystem":
        registry.installation.set_setting(f"filesystem:{record.id}", "0123")
    assert not returning.accept(registry.get(record.id), registry.installation)
    with pytest.raises(StorageUnavailable):
        tree.listing(Space(record, registry.state_dir), b"")


def test_a_machine_that_went_back_repeats_no_number(
    registry: Registry, record: SpaceRecord, tmp_path: Path
) -> None:
    """Tree and state go back together, within one boot: nothing can tell, but no etag comes to mean something else."""
    home = Path(os.fsdecode(record.path))

    def history() -> set[str]:
        registry.recover()
        space = registry.open(record.id)
        seen = set()
        for number in range(5):
            (home / f"new{number}").write_text("x" * number)
            seen.add(tree.listing(space, b"")[0].etag)
            seen.add(tree.lookup(space, b"").etag)
        space.close()
        for number in range(5):
            (home / f"new{number}").unlink()
        return seen

    registry.open(record.id).close()
    shutil.copytree(tmp_path / "state", tmp_path / "kept")
    first = history()
    for name in os.listdir(tmp_path / "kept"):
        if name.startswith(record.hex):
            for old in (tmp_path / "state").glob(f"{name}*"):
                old.unlink()
            shutil.copy2(tmp_path / "kept" / name, tmp_path / "state" / name)
    assert len(first) >= 5 and not first & history()


def test_numbers_go_on_at_a_distance_after_a_start(registry: Registry, record: SpaceRecord) -> None:
    space = registry.open(record.id)
    with space.index.read() as db:
        (before,) = db.execute("SELECT number FROM head").fetchone()
    restoring.skip_numbers(space)
    Path(os.fsdecode(record.path), "new").write_text("x")
    tree.listing(space, b"")
    with space.index.read() as db:
        (after,) = db.execute("SELECT number FROM head").fetchone()
    assert after > before + 1000


@pytest.mark.root
def test_a_bind_mount_that_goes_away_deletes_nothing(tmp_path: Path) -> None:
    """Same filesystem, same device: still a mount point that no longer is one."""
    space = make_space(tmp_path / "world")
    root = Path(os.fsdecode(space.root))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f").write_text("kept")
    (root / "inner").mkdir()
    mount = ["mount", "--bind", str(tmp_path / "elsewhere"), str(root / "inner")]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        sweep(space)
        node = tree.lookup(space, b"inner/f").id
        subprocess.run(["umount", str(root / "inner")], check=True)
        for path in (b"inner/f", b"inner"):
            with pytest.raises(StorageUnavailable):
                tree.lookup(space, path)
        assert tree.usage(space) == 4
        subprocess.run(mount, check=True)
        assert tree.lookup(space, b"inner/f").id == node
    finally:
        subprocess.run(["umount", "-l", str(root / "inner")], capture_output=True)
        space.close()


@pytest.mark.root
def test_another_device_number_makes_no_mount_point(tmp_path: Path) -> None:
    """Device numbers change from boot to boot: a directory made then, before its parent was swept, is a plain one."""
    with disk(tmp_path, "one") as one, disk(tmp_path, "two"):
        space = make_space(one.place / "world")
        root = Path(os.fsdecode(space.root))
        sweep(space)
        known, state = space.record, space.state_dir
        space.close()
        before = os.stat(one.place).st_dev
        with disk(tmp_path, "three"):
            one.unmount()
            with disk(tmp_path, "four"):  # takes the device that has become free
                one.mount()
                assert os.stat(one.place).st_dev != before
                space = Space(known, state)
                for _ in range(2):
                    (root / "made").mkdir()
                    (root / "made/f").write_text("x")
                    assert tree.lookup(space, b"made/f").size == 1
                    shutil.rmtree(root / "made")
                drain(space)
                grow_quiet(space)
                space.close()
