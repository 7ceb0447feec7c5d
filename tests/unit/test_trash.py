"""The trash: what is written there, what comes back and as what, and what goes for good."""

import errno
import os
import time

import pytest

from fsd.core import intents, operations, properties, trash, tree
from fsd.core.errors import ParentMissing
from tests.support.worlds import make_space, sweep
from tests.unit.core_space import assert_right, on_disk, put, read, staging, write


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    yield made
    made.close()


def names(space, part):
    return sorted(os.listdir(on_disk(space, b".fsd/trash/" + part)))


def thrown(space, path, content=b"bytes"):
    put(space, path, content)
    node_id = tree.lookup(space, path).id
    operations.delete(space, path)
    return trash.items(space)[0].key, node_id


def test_the_info_file_is_freedesktops(space):
    key, node_id = thrown(space, "grüße 100%.txt".encode())
    info = read(space, b".fsd/trash/info/" + key.encode() + b".trashinfo").decode("ascii").splitlines()
    assert info[0] == "[Trash Info]"
    assert info[1] == "Path=gr%C3%BC%C3%9Fe%20100%25.txt"
    assert info[2].startswith("DeletionDate=") and len(info[2]) == len("DeletionDate=2026-11-21T05:00:00")
    assert f"X-Fsd-Id={node_id}" in info
    assert names(space, b"files") == [key.encode()]


def test_items_tell_what_was_where(space):
    operations.make_directory(space, b"d")
    put(space, b"d/x", b"12345")
    write(space, b"d/\xff\n")
    sweep(space)
    before = time.time()
    operations.delete(space, b"d/\xff\n")
    operations.delete(space, b"d")
    directory, file = trash.items(space)
    assert (directory.path, directory.kind, directory.size) == (b"d", "d", 5)
    assert (file.path, file.name, file.kind) == (b"d/\xff\n", b"\xff\n", "f")
    assert before - 1 < file.deleted <= directory.deleted <= time.time()
    assert tree.usage(space) == 0
    assert trash.get(space, file.key) == file


def test_restore_brings_the_id_back(space):
    key, node_id = thrown(space, b"a")
    assert trash.restore(space, key) == b"a"
    assert tree.lookup(space, b"a").id == node_id
    assert read(space, b"a") == b"bytes"
    assert names(space, b"info") == names(space, b"files") == []
    assert_right(space)


def test_restore_of_a_tree_makes_it_known_whole(space):
    operations.make_directory(space, b"d")
    operations.make_directory(space, b"d/e")
    put(space, b"d/e/x", b"123")
    operations.delete(space, b"d")
    trash.restore(space, trash.items(space)[0].key)
    assert tree.usage(space) == 3
    assert_right(space)


def test_missing_parents_are_made_again_but_not_for_a_place_that_was_named(space):
    operations.make_directory(space, b"d")
    operations.make_directory(space, b"d/e")
    key, _ = thrown(space, b"d/e/x")
    operations.delete(space, b"d")
    with pytest.raises(ParentMissing):
        trash.restore(space, key, b"d/e/y")
    assert trash.restore(space, key) == b"d/e/x"
    assert read(space, b"d/e/x") == b"bytes"
    assert_right(space)


def test_a_taken_name_is_refused_or_numbered(space):
    keys = [thrown(space, b"a.tar.gz", b"%d" % n)[0] for n in range(3)]
    put(space, b"a.tar.gz", b"new")
    with pytest.raises(FileExistsError):
        trash.restore(space, keys[0])
    assert trash.restore(space, keys[0], taken="rename") == b"a.tar (2).gz"
    assert trash.restore(space, keys[1], taken="rename") == b"a.tar (3).gz"
    assert read(space, b"a.tar.gz") == b"new"
    assert read(space, b"a.tar (3).gz") == b"1"
    assert trash.restore(space, keys[2], b"elsewhere") == b"elsewhere"
    assert_right(space)


def test_an_odd_name_comes_back_as_it_was(space):
    write(space, b"\xff")
    operations.delete(space, b"\xff")
    assert trash.restore(space, trash.items(space)[0].key) == b"\xff"


def test_unknown_keys(space):
    for key in ("no", "..", "../../x", ""):
        for action in (trash.get, trash.restore, trash.remove):
            with pytest.raises(FileNotFoundError):
                action(space, key)


def test_an_entry_without_info_is_listed_and_can_go(space):
    write(space, b".fsd/trash/files/lost")
    (item,) = trash.items(space)
    assert (item.key, item.path, item.node_id) == ("lost", b"lost", None)
    trash.remove(space, "lost")
    assert trash.items(space) == []


def test_removing_deep_trees_links_and_what_is_write_protected(space, tmp_path):
    (tmp_path / "outside").write_bytes(b"must stay")
    here = on_disk(space, b"deep")
    os.mkdir(here)
    fd = os.open(here, os.O_RDONLY)
    for _ in range(300):  # deeper than a path can be long
        os.mkdir(b"x" * 200, dir_fd=fd)
        below = os.open(b"x" * 200, os.O_RDONLY, dir_fd=fd)
        os.symlink(tmp_path / "outside", b"link", dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    os.makedirs(on_disk(space, b"box/shut"))
    write(space, b"box/shut/x")
    os.chmod(on_disk(space, b"box/shut"), 0o500)
    for name in (b"deep", b"box"):
        os.rename(on_disk(space, name), on_disk(space, b".fsd/trash/files/" + name))
    assert trash.empty(space) == 2
    assert names(space, b"files") == []
    assert staging(space) == []
    assert (tmp_path / "outside").read_bytes() == b"must stay"


def test_the_retention(space):
    thrown(space, b"old")
    (old,) = trash.items(space)
    assert trash.purge(space, 60, now=old.deleted + 59) == 0
    assert trash.purge(space, 60, now=old.deleted + 61) == 1
    assert trash.items(space) == []


def test_overflowing_properties_go_with_the_last_of_a_node(space):
    put(space, b"a")
    properties.update(space, b"a", {"{n}x": b"x" * 5000})
    operations.copy(space, b"a", space, b"b", overwrite=False)
    operations.delete(space, b"a")
    assert len(os.listdir(on_disk(space, b".fsd/meta"))) == 2
    trash.empty(space)
    assert len(os.listdir(on_disk(space, b".fsd/meta"))) == 1
    assert properties.get_all(space, b"b") == {"{n}x": b"x" * 5000}


def test_info_of_a_deletion_that_never_was_is_swept(space):
    trash.write_info(space, intents.staged_name(5), b"x", None, 0)
    with intents.of(space).begin() as under_way:
        trash.write_info(space, under_way.name, b"y", None, 0)
        trash.sweep_info(space)
        assert names(space, b"info") == [under_way.name + trash.SUFFIX]
    trash.sweep_info(space)
    assert names(space, b"info") == []


def test_a_full_disk_leaves_no_info(space, monkeypatch):
    def full(_fd):
        raise OSError(errno.ENOSPC, "full")

    put(space, b"a")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        operations.delete(space, b"a")
    assert names(space, b"info") == []
    assert read(space, b"a") == b"content"
