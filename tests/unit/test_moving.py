"""Moves between spaces, on one filesystem and on two: arrived whole and gone, or nothing has changed."""

import errno
import os
import stat

import pytest

from fsd.core import moving, properties, quota, trash, tree
from fsd.core.errors import PreconditionFailed, QuotaExceeded
from tests.unit.core_space import assert_right, move, on_disk, put, read, write


class TestMoveBetweenSpaces:
    @pytest.fixture(params=["one disk", "two disks"])
    def far(self, request, other, monkeypatch):
        if request.param == "two disks":

            def cross(*_args):
                raise OSError(errno.EXDEV, "another disk")

            real = moving.rename_new

            def rename(sfd, sname, dfd, dname):
                if os.readlink(b"/proc/self/fd/%d" % sfd).startswith(
                    os.path.dirname(other.root)[:-4] + b"/one"
                ):
                    if os.readlink(b"/proc/self/fd/%d" % dfd).startswith(other.root):
                        cross()
                real(sfd, sname, dfd, dname)

            monkeypatch.setattr(moving, "rename_new", rename)
        return other

    def test_a_tree_arrives_and_is_gone(self, filled, far):
        os.utime(on_disk(filled, b"d/one"), ns=(10**18, 10**18))
        os.chmod(on_disk(filled, b"d/sub"), 0o2751)
        os.symlink(b"../nowhere", on_disk(filled, b"d/link"))
        os.mkfifo(on_disk(filled, b"d/fifo"))
        os.utime(on_disk(filled, b"d"), ns=(10**18, 10**18))
        assert move(filled, b"d", b"arrived", to=far)
        assert read(far, b"arrived/sub/two") == b"22"
        assert tree.lookup(far, b"arrived").size == 3
        assert os.stat(on_disk(far, b"arrived/one")).st_mtime_ns == 10**18
        assert os.stat(on_disk(far, b"arrived")).st_mtime_ns == 10**18
        assert stat.S_IMODE(os.stat(on_disk(far, b"arrived/sub")).st_mode) == 0o2751
        assert os.readlink(on_disk(far, b"arrived/link")) == b"../nowhere"
        assert stat.S_ISFIFO(os.lstat(on_disk(far, b"arrived/fifo")).st_mode)
        assert not os.path.exists(on_disk(filled, b"d"))
        assert_right(filled)
        assert_right(far)

    def test_over_something(self, filled, far):
        put(far, b"there", b"kept in the trash")
        with pytest.raises(PreconditionFailed):
            move(filled, b"d", b"there", to=far)
        assert read(filled, b"d/one") == b"1"
        assert not move(filled, b"d", b"there", to=far, overwrite=True)
        assert [item.path for item in trash.items(far)] == [b"there"]
        assert_right(filled)
        assert_right(far)

    def test_the_quota_of_the_destination_counts(self, filled, far, monkeypatch):
        monkeypatch.setattr(quota, "_limit", lambda space: 2 if space is far else None)
        with pytest.raises(QuotaExceeded):
            move(filled, b"d", b"x", to=far)
        assert read(filled, b"d/one") == b"1"
        assert_right(far)

    def test_properties_arrive(self, filled, far):
        properties.update(filled, b"d/one", {"{n}small": b"<s/>", "{n}large": b"L" * 5000})
        move(filled, b"d", b"x", to=far)
        assert properties.get_all(far, b"x/one") == {"{n}small": b"<s/>", "{n}large": b"L" * 5000}

    def test_a_source_written_to_meanwhile_stays(self, filled, other, monkeypatch):
        from fsd.core import building, copying

        real = copying.sync_filesystem

        def late(fd):
            real(fd)
            write(filled, b"d/one", b"written in the last moment")

        def cross(*_args):
            raise OSError(errno.EXDEV, "another disk")

        monkeypatch.setattr(building.copying, "sync_filesystem", late)
        monkeypatch.setattr(moving, "rename_new", cross)
        with pytest.raises(PreconditionFailed, match="while it was being moved"):
            move(filled, b"d", b"x", to=other)
        assert read(filled, b"d/one") == b"written in the last moment"
        assert os.listdir(other.root) == [b".fsd"]
        assert_right(filled, outside=True)
        assert_right(other)
