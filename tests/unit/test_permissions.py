"""What fsd writes can be used by whom it should be: what is kept of a replaced file, what a new one inherits."""

import os
import stat

import pytest

from fsd.core import operations, posixacl, trash
from fsd.core.operations import copy, make_directory, move
from fsd.core.posixacl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry
from tests.support.worlds import make_space
from tests.unit.core_space import assert_right, on_disk, put, write

pytestmark = pytest.mark.root
LIST = [Entry(USER_OBJ, 6), Entry(USER, 6, 4001), Entry(GROUP_OBJ, 4), Entry(MASK, 6), Entry(OTHER, 0)]


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    yield made
    made.close()


def dress(space, path):
    """Somebody's file: owner, group, mode, ACL and attributes that are none of fsd's."""
    place = on_disk(space, path)
    os.chown(place, 4002, 4100)
    os.chmod(place, 0o660)
    fd = os.open(place, os.O_RDONLY)
    posixacl.write(fd, posixacl.ACCESS, LIST)
    os.close(fd)
    os.setxattr(place, "user.instrument", b"spectrometer")
    os.setxattr(place, "trusted.site", b"7")


def look(space, path):
    place = on_disk(space, path)
    found = os.stat(place)
    attributes = {
        name: os.getxattr(place, name)
        for name in ("user.instrument", "trusted.site")
        if name in os.listxattr(place)
    }
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), posixacl.read(place), attributes


def replace_by_put(space):
    put(space, b"data", b"new content")


def replace_by_move(space):
    put(space, b"data.tmp", b"new content")
    assert move(space, b"data.tmp", space, b"data", overwrite=True) is False


def replace_by_copy(space):
    put(space, b"other", b"new content")
    assert copy(space, b"other", space, b"data", overwrite=True) is False


def delete_and_restore(space):
    operations.delete(space, b"data")
    trash.restore(space, trash.items(space)[0].key)


def move_away_and_back(space):
    make_directory(space, b"d")
    move(space, b"data", space, b"d/data", overwrite=False)
    move(space, b"d/data", space, b"data", overwrite=False)


@pytest.mark.parametrize(
    "change", [replace_by_put, replace_by_move, replace_by_copy, delete_and_restore, move_away_and_back]
)
def test_owner_mode_list_and_attributes_are_kept(space, change):
    write(space, b"data", b"old")
    dress(space, b"data")
    before = look(space, b"data")
    assert before == (
        4002,
        4100,
        0o660,
        sorted(LIST),
        {"user.instrument": b"spectrometer", "trusted.site": b"7"},
    )
    change(space)
    assert look(space, b"data") == before
    assert_right(space, outside=True)


def test_a_move_over_keeps_the_moved_files_own_attributes(space):
    write(space, b"old")
    os.setxattr(on_disk(space, b"old"), "user.note", b"of the old")
    os.setxattr(on_disk(space, b"old"), "user.fsd.p.{x:}a", b"<a/>")
    put(space, b"new")
    os.setxattr(on_disk(space, b"new"), "user.note", b"of the new")
    move(space, b"new", space, b"old", overwrite=True)
    names = os.listxattr(on_disk(space, b"old"))
    assert (
        os.getxattr(on_disk(space, b"old"), "user.note") == b"of the new" and "user.fsd.p.{x:}a" not in names
    )
    (item,) = trash.items(space)
    assert item.path == b"old"


@pytest.mark.parametrize("default", [None, posixacl.shared(0o2770, 4001)])
def test_what_is_made_in_a_shared_directory_is_shared(space, default):
    """PUT, MKCOL, COPY of a tree: all as if made there by a program of the group."""
    os.mkdir(on_disk(space, b"lab"))
    os.chown(on_disk(space, b"lab"), -1, 4100)
    os.chmod(on_disk(space, b"lab"), 0o2770)
    fd = os.open(on_disk(space, b"lab"), os.O_RDONLY)
    posixacl.write(fd, posixacl.DEFAULT, default)
    os.close(fd)
    make_directory(space, b"tree")
    make_directory(space, b"tree/below")
    put(space, b"tree/below/file")
    os.chmod(on_disk(space, b"tree/below/file"), 0o755)
    write(space, b"tree/script", b"#!/bin/sh")
    put(space, b"lab/put")
    make_directory(space, b"lab/made")
    put(space, b"lab/made/put")
    copy(space, b"tree", space, b"lab/copy", overwrite=False)
    os.mkdir(on_disk(space, b"like"))
    lab = on_disk(space, b"lab")
    os.mkdir(lab + b"/by-hand")
    write(space, b"lab/by-hand/file")
    wanted = {
        True: os.stat(lab + b"/by-hand"), False: os.stat(lab + b"/by-hand/file"),
    }  # fmt: skip
    for path in (b"put", b"made", b"made/put", b"copy", b"copy/below", b"copy/below/file", b"copy/script"):
        found = os.stat(lab + b"/" + path)
        like = wanted[stat.S_ISDIR(found.st_mode)]
        assert found.st_gid == 4100 == like.st_gid, path
        assert found.st_mode & ~0o111 == like.st_mode & ~0o111, (path, oct(found.st_mode), oct(like.st_mode))
        both = [
            posixacl.read(each, posixacl.DEFAULT) if stat.S_ISDIR(found.st_mode) else None
            for each in (lab + b"/" + path, lab + b"/by-hand")
        ]
        assert both[0] == both[1], path
    assert os.stat(lab + b"/copy/below/file").st_mode & 0o100
    assert_right(space, outside=True)
