"""fsd on a real CephFS: two clients of one filesystem, one that writes and one that serves."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsd.core import errors, ids, operations, tree
from fsd.core.space import Space
from tests.conformance import test_operations as suite
from tests.conformance.carriers import Carrier, CoreCarrier
from tests.support.ceph import Ceph
from tests.support.waiting import wait_for
from tests.support.worlds import differences, drain, grow_quiet, make_space, sweep
from tests.unit.core_space import put

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def served(ceph: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mount that fsd serves."""
    return ceph.mount(tmp_path_factory.mktemp("served") / "m")


@pytest.fixture(scope="module")
def writing(ceph: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mount that others write through."""
    return ceph.mount(tmp_path_factory.mktemp("writing") / "m")


@pytest.fixture
def space(served: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Space]:
    """An empty space of the test's own on the CephFS."""
    made = make_space(tmp_path / "space", root=served / f"s{abs(hash(request.node.nodeid)):x}")
    sweep(made)
    yield made
    made.close()


@pytest.fixture
def carrier(space: Space) -> Carrier:
    """The core on CephFS."""
    return CoreCarrier(space)


globals().update((name, test) for name, test in vars(suite).items() if name.startswith("test_"))
"""The whole suite of file operations, through the carrier above."""


def at(mount: Path, space: Space) -> Path:
    """A space's root in another mount."""
    return mount / os.fsdecode(os.path.basename(space.root))


def test_what_the_other_client_does_is_found_and_keeps_its_ids(space: Space, writing: Path) -> None:
    other = at(writing, space)
    (other / "d").mkdir()
    (other / "d" / "f").write_bytes(b"12345")
    sweep(space)
    node = tree.lookup(space, b"d/f").id
    (other / "d" / "f").rename(other / "g")
    (other / "g").write_bytes(b"changed and moved between two looks")
    sweep(space)
    assert tree.lookup(space, b"g").id == node and differences(space) == []
    with open(other / "h", "wb"):
        assert tree.lookup(space, b"h").id != node
    os.unlink(other / "g")
    (other / "k").write_bytes(b"another file")
    assert tree.lookup(space, b"k").id != node


def test_ids_are_the_same_through_each_client_and_need_no_attribute(space: Space, writing: Path) -> None:
    put(space, b"f")
    here, there = os.open(space.root, os.O_RDONLY), os.open(at(writing, space), os.O_RDONLY)
    try:
        assert ids.told_by(here) == "lasting inode numbers"
        for name in (b"", b"f"):
            ours = ids.node_binding(here, name, ids.statx(here, name))
            assert ours == ids.node_binding(there, name, ids.statx(there, name)) and not ids.is_weak(ours)
    finally:
        os.close(here)
        os.close(there)


def test_labels_outlive_the_index(space: Space, writing: Path) -> None:
    put(space, b"f", b"1")
    entry, _ = put(space, b"f", b"2")
    assert os.getxattr(at(writing, space) / "f", "user.fsd.id").decode().split(":")[1] == entry.id
    grow_quiet(space)
    space.index.path.unlink()
    sweep(space)
    again = tree.lookup(space, b"f")
    assert (again.id, again.etag) == (entry.id, entry.etag)


def test_no_inode_number_comes_twice(served: Path) -> None:
    """That is what ids on a CephFS stand on: unlike elsewhere, no number of a deleted file is given to another."""
    place, seen = served / "numbers", set[int]()
    place.mkdir()
    for _ in range(3):
        for number in range(150):
            (place / str(number)).touch()
        numbers = {entry.inode() for entry in os.scandir(place)}
        assert not numbers & seen
        seen |= numbers
        for number in range(150):
            (place / str(number)).unlink()


def test_snapshots_are_neither_shown_nor_counted_nor_made(space: Space, writing: Path) -> None:
    operations.make_directory(space, b"d")
    put(space, b"d/f", b"12345")
    (at(writing, space) / "d" / ".snap" / "before").mkdir()
    try:
        assert (at(writing, space) / "d" / ".snap" / "before" / "f").read_bytes() == b"12345"
        before = tree.lookup(space, b"")
        sweep(space)
        assert [entry.path for entry in tree.listing(space, b"d")[1]] == [b"d/f"]
        assert tree.lookup(space, b"") == before and before.size == 5
        for path in (b".snap", b"d/.snap", b"d/.snap/before", b"d/.snap/before/f"):
            with pytest.raises(FileNotFoundError):
                tree.lookup(space, path)
            with pytest.raises(FileNotFoundError):
                tree.listing(space, path)
            with pytest.raises(OSError, match="reserved|exist"):
                operations.make_directory(space, path)
            with pytest.raises(FileNotFoundError):
                operations.delete(space, path)
        with pytest.raises(OSError, match="exist"):
            operations.make_directory(space, b"d/.snap/mine")
        with pytest.raises(errors.Forbidden):
            put(space, b"d/.snap")
        with pytest.raises(OSError, match="exist"):
            put(space, b"d/.snap/file")
        assert os.listdir(at(writing, space) / "d" / ".snap") == ["before"]
    finally:
        (at(writing, space) / "d" / ".snap" / "before").rmdir()


def test_a_quota_of_the_storage_refuses_and_leaves_nothing(space: Space, writing: Path) -> None:
    put(space, b"kept", b"1")
    os.setxattr(at(writing, space), "ceph.quota.max_files", b"24")
    refused: list[Any] = []

    def full() -> bool:
        try:
            put(space, b"n%d" % len(os.listdir(space.root)), b"x")
        except OSError as error:
            refused.append(error)
        return bool(refused)

    wait_for(full, what="the quota of the storage")
    assert refused[0].errno == errno.EDQUOT
    os.setxattr(at(writing, space), "ceph.quota.max_files", b"0")
    drain(space)
    assert differences(space) == [] and os.listdir(space.root + b"/.fsd/staging") == []
