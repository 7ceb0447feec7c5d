"""POSIX ACLs: the kernel's form, what is inherited, and that the kernel agrees."""

import os
import subprocess

import pytest

from fsd.core import posixacl
from fsd.core.posixacl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry

SHARED = posixacl.shared(0o2770, 4001)


def test_the_value_is_the_kernels(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        posixacl.write(fd, posixacl.DEFAULT, SHARED)
        told = subprocess.run(
            ["getfacl", "-cpd", tmp_path], capture_output=True, text=True, check=True
        ).stdout
        assert told.split() == ["user::rwx", "user:4001:rwx", "group::rwx", "mask::rwx", "other::---"]
        assert posixacl.read(fd, posixacl.DEFAULT) == sorted(SHARED) and posixacl.read(fd) is None
        posixacl.write(fd, posixacl.DEFAULT, None)
        posixacl.write(fd, posixacl.DEFAULT, None)
        assert posixacl.read(fd, posixacl.DEFAULT) is None
    finally:
        os.close(fd)


@pytest.mark.parametrize("raw", [b"", b"\1\0\0\0", posixacl.encode(SHARED)[:-1]])
def test_what_is_no_list(raw):
    with pytest.raises(ValueError, match="POSIX"):
        posixacl.decode(raw)


def test_permissions_after_the_mask():
    entries = [
        Entry(USER_OBJ, 7),
        Entry(USER, 7, 5),
        Entry(GROUP_OBJ, 6),
        Entry(GROUP, 3, 9),
        Entry(MASK, 4),
        Entry(OTHER, 1),
    ]
    asked = [(USER_OBJ,), (USER, 5), (USER, 6), (GROUP_OBJ,), (GROUP, 9), (OTHER,)]
    assert [posixacl.permissions(entries, *each) for each in asked] == [7, 4, 0, 4, 0, 1]
    assert posixacl.permissions([Entry(GROUP_OBJ, 6)], GROUP_OBJ) == 6


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o640, 0o600, 0o000])
@pytest.mark.parametrize("default", [SHARED, posixacl.shared(0o750), None])
@pytest.mark.parametrize("setgid", [False, True])
@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.root
def test_inherit_does_what_the_kernel_does(tmp_path, mode, default, setgid, directory):
    parent, aside = tmp_path / "parent", tmp_path / "aside"
    for each in (parent, aside):
        each.mkdir()
    os.chown(parent, -1, 4100)
    os.chmod(parent, 0o2775 if setgid else 0o775)
    above = os.open(parent, os.O_RDONLY)
    other = os.open(aside, os.O_RDONLY)
    posixacl.write(above, posixacl.DEFAULT, default)
    posixacl.write(other, posixacl.DEFAULT, posixacl.shared(0o2700, 77))
    make = (
        (lambda path: os.mkdir(path, mode))
        if directory
        else (lambda path: os.close(os.open(path, os.O_CREAT, mode)))
    )
    make(parent / "made")
    make(aside / "moved")
    fd = os.open(aside / "moved", os.O_RDONLY)
    posixacl.inherit(fd, above, mode)
    for each in (fd, above, other):
        os.close(each)
    wanted, got = os.stat(parent / "made"), os.stat(aside / "moved")
    assert (got.st_mode, got.st_gid) == (wanted.st_mode, wanted.st_gid)
    for name in (posixacl.ACCESS, posixacl.DEFAULT):
        lists = [posixacl.read(os.fsencode(path), name) for path in (parent / "made", aside / "moved")]
        assert lists[0] == lists[1], name


MASKED = [each._replace(permissions=0) if each.tag == MASK else each for each in SHARED]


@pytest.mark.parametrize("before", [None, MASKED, [*SHARED, Entry(USER, 4, 4002)]])
def test_one_more_user_is_admitted(tmp_path, before):
    (tmp_path / "f").write_bytes(b"")
    os.chmod(tmp_path / "f", 0o640)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    try:
        posixacl.write(fd, posixacl.ACCESS, before)
        posixacl.admit(fd, 4002, 6)
        after = posixacl.read(fd)
        assert posixacl.permissions(after, USER, 4002) == 6
        old = before or [Entry(USER_OBJ, 6), Entry(GROUP_OBJ, 4), Entry(OTHER, 0)]
        for each in old:
            if each.tag != MASK and each[::2] != (USER, 4002):
                assert posixacl.permissions(after, each.tag, each.id) == posixacl.permissions(
                    old, each.tag, each.id
                )
    finally:
        os.close(fd)
