"""Copying bytes and attributes between open files."""

import errno
import os

import pytest

from fsd.core import copying


@pytest.fixture
def files(tmp_path):
    opened = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("src", "dst")]
    yield opened
    for fd in opened:
        os.close(fd)


def refuse(*_args):
    raise OSError(errno.EOPNOTSUPP, "not here")


@pytest.fixture(params=["kernel", "by hand"])
def way(request, monkeypatch):
    if request.param == "by hand":
        monkeypatch.setattr(copying, "clone", refuse)
        monkeypatch.setattr(os, "copy_file_range", refuse)


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(3_000_001)])
def test_content_arrives(files, way, content):
    src, dst = files
    os.write(src, content)
    assert copying.copy_data(src, dst) == len(content)
    assert os.pread(dst, len(content) + 1, 0) == content


def test_holes_stay_holes(files, way):
    src, dst = files
    os.pwrite(src, b"begin", 0)
    os.pwrite(src, b"middle", 50 << 20)
    os.ftruncate(src, 100 << 20)
    assert copying.copy_data(src, dst) == 100 << 20
    assert os.pread(dst, 6, 50 << 20) == b"middle"
    assert os.pread(dst, 5, 0) == b"begin"
    assert os.fstat(dst).st_size == 100 << 20
    assert os.fstat(dst).st_blocks * 512 < 1 << 20


def test_an_error_of_the_disk_is_not_taken_for_a_missing_ability(files, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "full")

    src, dst = files
    os.write(src, b"x")
    monkeypatch.setattr(copying, "clone", refuse)
    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError) as caught:
        copying.copy_data(src, dst)
    assert caught.value.errno == errno.ENOSPC


def test_the_services_own_attributes_stay_behind(files):
    src, dst = files
    for name in ("user.fsd.id", "user.fsd.tree", "user.fsd.p.{n}x", "user.other"):
        os.setxattr(src, name, name.encode())
    copying.set_user_attributes(dst, copying.user_attributes(src))
    assert sorted(os.listxattr(dst)) == ["user.fsd.p.{n}x", "user.other"]
    copying.dress_like(dst, src, os.fstat(src))
    assert sorted(os.listxattr(dst)) == ["user.fsd.p.{n}x", "user.other"]


def test_a_filesystem_without_attributes(files, monkeypatch):
    src, dst = files
    monkeypatch.setattr(os, "listxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    monkeypatch.setattr(os, "setxattr", refuse)
    assert copying.user_attributes(src) == {}
    copying.set_user_attributes(dst, {"user.x": b"1"})
    copying.dress_like(dst, src, os.fstat(src))


def test_an_attribute_that_errors_is_not_taken_for_missing(files, monkeypatch):
    def broken(*_args, **_options):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "getxattr", broken)
    with pytest.raises(OSError):
        copying.get_attribute(files[0], "user.x")


def test_the_whole_filesystem_can_be_synced(files):
    copying.sync_filesystem(files[0])
    with pytest.raises(OSError):
        copying.sync_filesystem(-1)
