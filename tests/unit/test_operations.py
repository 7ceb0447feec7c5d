"""MKCOL, DELETE, MOVE, COPY and times: one visible step, ids as promised, the index right when they return."""

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from fsd.core import moving, operations, places, properties, publish, quota, trash, tree
from fsd.core.errors import (
    AcrossMounts,
    Forbidden,
    NameRefused,
    ParentMissing,
    PreconditionFailed,
    QuotaExceeded,
    ReadOnlySpace,
    SpaceDisabled,
)
from fsd.core.locks import LockTable
from fsd.core.space import Space
from tests.faults.disks import may_mount, small_disk
from tests.unit.core_space import assert_right, move, on_disk, put, read, root_etag, write


def ids(space, *paths):
    return [tree.lookup(space, path).id for path in paths]


def copy(space, src, dst, *, to=None, overwrite=False, **options):
    return operations.copy(space, src, to or space, dst, overwrite=overwrite, **options)


class TestMakeDirectory:
    def test_it_is_there_and_known(self, space):
        before = root_etag(space)
        entry = operations.make_directory(space, b"d")
        assert (entry.kind, entry.size) == ("d", 0)
        assert root_etag(space) != before
        assert_right(space)

    def test_refusals(self, space):
        put(space, b"file")
        operations.make_directory(space, b"d")
        for path, error in (
            (b"d", FileExistsError),
            (b"file", FileExistsError),
            (b"no/d", ParentMissing),
            (b"file/d", ParentMissing),
            (b"a\nb", NameRefused),
            (b".fsd", Forbidden),
            (b"", Forbidden),
        ):
            with pytest.raises(error):
                operations.make_directory(space, path)
        assert_right(space)

    @pytest.mark.root
    def test_owner_mode_and_setgid(self, space, tmp_path):
        made = Space(replace(space.record, uid=7, gid=8, dir_mode=0o750), space.state_dir)
        operations.make_directory(made, b"d")
        found = os.stat(on_disk(space, b"d"))
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 8, 0o750)
        os.chown(on_disk(space, b"d"), 7, 99)
        os.chmod(on_disk(space, b"d"), 0o2770)
        operations.make_directory(made, b"d/e")
        found = os.stat(on_disk(space, b"d/e"))
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (99, 0o2750)
        made.close()


class TestDelete:
    def test_a_directory_goes_at_once_and_whole(self, filled):
        before = root_etag(filled)
        operations.delete(filled, b"d")
        assert tree.usage(filled) == 3
        assert root_etag(filled) != before
        with pytest.raises(FileNotFoundError):
            tree.lookup(filled, b"d/one")
        assert_right(filled)

    def test_refusals(self, filled):
        for path, error in (
            (b"no", FileNotFoundError),
            (b"file/no", FileNotFoundError),
            (b".fsd", FileNotFoundError),
            (b".fsd/trash", FileNotFoundError),
            (b"", Forbidden),
        ):
            with pytest.raises(error):
                operations.delete(filled, path)
        with pytest.raises(PreconditionFailed):
            operations.delete(filled, b"file", if_match={"another"})
        operations.delete(filled, b"file", if_match={tree.lookup(filled, b"file").etag})

    def test_a_link_goes_and_its_target_stays(self, filled):
        os.symlink(b"d", on_disk(filled, b"link"))
        with pytest.raises(FileNotFoundError):
            operations.delete(filled, b"link/one")
        operations.delete(filled, b"link")
        assert read(filled, b"d/one") == b"1"
        assert_right(filled)

    def test_odd_names_can_be_deleted(self, space):
        write(space, b"\xff\n\x01")
        operations.delete(space, b"\xff\n\x01")
        assert trash.items(space)[0].path == b"\xff\n\x01"

    def test_locks_below_end(self, filled):
        table = LockTable(filled)
        table.acquire(b"d/sub/two", principal="x")
        table.acquire(b"file", principal="x")
        operations.delete(filled, b"d")
        assert [lock.path for lock in table.inside(b"")] == [b"file"]

    @pytest.mark.skipif(not may_mount(), reason="needs the right to mount")
    def test_mounts_are_named(self, filled):
        os.mkdir(on_disk(filled, b"d/sub/mnt with space"))
        with small_disk(Path(os.fsdecode(on_disk(filled, b"d/sub/mnt with space"))), "1m") as inner:
            (inner / "x").write_bytes(b"x")
            for path in (b"d", b"d/sub/mnt with space"):
                with pytest.raises(Forbidden, match="mounted"):
                    operations.delete(filled, path)
            with pytest.raises(Forbidden, match="mounted"):
                move(filled, b"d", b"elsewhere")
            with pytest.raises(AcrossMounts):
                operations.delete(filled, b"d/sub/mnt with space/x")
            with pytest.raises(AcrossMounts):
                move(filled, b"d/sub/mnt with space/x", b"x")
            assert (inner / "x").read_bytes() == b"x"
            assert os.listdir(on_disk(filled, b".fsd/trash/info")) == []
            filled.close()


class TestMove:
    def test_ids_and_etags_go_along(self, filled):
        put(filled, b"d/old")
        before = [tree.lookup(filled, p) for p in (b"d", b"d/one", b"d/sub/two")]
        assert move(filled, b"d", b"e")
        after = [tree.lookup(filled, p) for p in (b"e", b"e/one", b"e/sub/two")]
        assert [entry.id for entry in after] == [entry.id for entry in before]
        assert [entry.etag for entry in after[1:]] == [entry.etag for entry in before[1:]]
        assert_right(filled)

    def test_over_a_file_the_sources_id_wins_and_the_old_one_is_in_the_trash(self, filled):
        (source,) = ids(filled, b"file")
        with pytest.raises(PreconditionFailed):
            move(filled, b"file", b"d/one")
        assert not move(filled, b"file", b"d/one", overwrite=True)
        assert ids(filled, b"d/one") == [source]
        assert read(filled, b"d/one") == b"333"
        (item,) = trash.items(filled)
        assert (item.path, item.kind, item.size) == (b"d/one", "f", 1)
        assert_right(filled)

    @pytest.mark.parametrize(
        ("src", "dst"), [(b"d", b"file"), (b"file", b"d"), (b"d", b"e"), (b"link", b"d")]
    )
    def test_over_every_kind(self, filled, src, dst):
        operations.make_directory(filled, b"e")
        put(filled, b"e/kept", b"4444")
        os.symlink(b"nowhere", on_disk(filled, b"link"))
        (source,) = ids(filled, src)
        assert not move(filled, src, dst, overwrite=True)
        assert ids(filled, dst) == [source]
        assert [item.path for item in trash.items(filled)] == [dst]
        assert not os.path.lexists(on_disk(filled, src))
        assert_right(filled, outside=True)

    def test_refusals(self, filled):
        for src, dst, error in (
            (b"no", b"x", FileNotFoundError),
            (b"file", b"no/x", ParentMissing),
            (b"file", b"file", Forbidden),
            (b"d", b"d/sub/d", Forbidden),
            (b"d/sub", b"d", Forbidden),
            (b"", b"x", Forbidden),
            (b"file", b"", Forbidden),
            (b"file", b".fsd", Forbidden),
            (b"file", b".fsd/x", ParentMissing),
            (b"file", b"a\nb", NameRefused),
            (b".fsd", b"x", FileNotFoundError),
        ):
            with pytest.raises(error):
                move(filled, src, dst, overwrite=True)
        with pytest.raises(PreconditionFailed):
            move(filled, b"file", b"x", if_match={"another"})
        assert_right(filled)

    def test_an_odd_name_keeps_its_name_elsewhere(self, filled):
        write(filled, b"\xff")
        move(filled, b"\xff", b"d/\xff")
        assert read(filled, b"d/\xff") == b"from outside"
        with pytest.raises(NameRefused):
            move(filled, b"d/\xff", b"d/\xfe")

    def test_between_two_names_of_one_file(self, filled):
        os.link(on_disk(filled, b"file"), on_disk(filled, b"second"))
        assert not move(filled, b"file", b"second", overwrite=True)
        assert read(filled, b"second") == b"333"
        assert not os.path.exists(on_disk(filled, b"file"))
        assert_right(filled, outside=True)

    def test_locks_stay_behind_and_end(self, filled):
        table = LockTable(filled)
        table.acquire(b"d/one", principal="x")
        table.acquire(b"file", principal="x")
        move(filled, b"d", b"file", overwrite=True)
        assert not table.any()

    def test_without_the_newer_renames(self, filled, monkeypatch):
        def refuse(*_args):
            raise OSError(errno.EINVAL, "cannot")

        monkeypatch.setattr(places, "rename_noreplace", refuse)
        monkeypatch.setattr(moving, "rename_exchange", refuse)
        monkeypatch.setattr(publish, "rename_exchange", refuse)
        (source,) = ids(filled, b"d")
        assert move(filled, b"file", b"moved")
        assert move(filled, b"d", b"e")
        operations.make_directory(filled, b"f")
        assert not move(filled, b"e", b"f", overwrite=True)
        assert not copy(filled, b"f", b"moved", overwrite=True)
        assert ids(filled, b"f") == [source]
        assert_right(filled)

    def test_without_hard_links(self, filled, monkeypatch):
        def refuse(*_args, **_options):
            raise PermissionError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "link", refuse)
        assert not move(filled, b"file", b"d/one", overwrite=True)
        assert read(filled, b"d/one") == b"333"
        assert_right(filled)


class TestCopy:
    def test_a_tree_with_everything(self, filled):
        properties.update(filled, b"d", {"{n}p": b"<p/>"})
        properties.update(filled, b"d/one", {"{n}p": b"<q/>", "{n}large": b"L" * 5000})
        os.setxattr(on_disk(filled, b"d/one"), "user.foreign", b"f")
        os.utime(on_disk(filled, b"d/sub"), ns=(10**18, 10**18))
        os.chmod(on_disk(filled, b"d/one"), 0o700)
        os.symlink(b"one", on_disk(filled, b"d/link"))
        old = ids(filled, b"d", b"d/one", b"d/sub")
        assert copy(filled, b"d", b"e")
        assert read(filled, b"e/sub/two") == b"22"
        assert set(ids(filled, b"e", b"e/one", b"e/sub")).isdisjoint(old)
        assert ids(filled, b"d", b"d/one", b"d/sub") == old
        assert properties.get_all(filled, b"e") == {"{n}p": b"<p/>"}
        assert properties.get_all(filled, b"e/one") == {"{n}p": b"<q/>", "{n}large": b"L" * 5000}
        assert os.getxattr(on_disk(filled, b"e/one"), "user.foreign") == b"f"
        assert os.stat(on_disk(filled, b"e/one")).st_mode & 0o100
        assert os.stat(on_disk(filled, b"e/sub")).st_mtime_ns == 10**18
        assert os.readlink(on_disk(filled, b"e/link")) == b"one"
        assert_right(filled, outside=True)

    def test_depth_0_is_the_directory_alone(self, filled):
        properties.update(filled, b"d", {"{n}p": b"<p/>"})
        assert copy(filled, b"d", b"e", depth_infinity=False)
        assert os.listdir(on_disk(filled, b"e")) == []
        assert properties.get_all(filled, b"e") == {"{n}p": b"<p/>"}
        assert_right(filled)

    def test_a_file_over_a_file_is_a_replacement(self, filled):
        properties.update(filled, b"file", {"{n}mine": b"1"})
        properties.update(filled, b"d/one", {"{n}theirs": b"2"})
        (old,) = ids(filled, b"d/one")
        with pytest.raises(PreconditionFailed):
            copy(filled, b"file", b"d/one")
        assert not copy(filled, b"file", b"d/one", overwrite=True)
        assert ids(filled, b"d/one") == [old]
        assert read(filled, b"d/one") == b"333"
        assert properties.get_all(filled, b"d/one") == {"{n}mine": b"1"}
        assert_right(filled)

    @pytest.mark.parametrize(("src", "dst"), [(b"d", b"file"), (b"file", b"d"), (b"d", b"e")])
    def test_over_other_kinds_goes_through_the_trash(self, filled, src, dst):
        operations.make_directory(filled, b"e")
        assert not copy(filled, src, dst, overwrite=True)
        assert [item.path for item in trash.items(filled)] == [dst]
        assert_right(filled)

    def test_refusals(self, filled):
        for src, dst, error in (
            (b"no", b"x", FileNotFoundError),
            (b"file", b"no/x", ParentMissing),
            (b"file", b"file", Forbidden),
            (b"d", b"d/sub/x", Forbidden),
            (b"d/sub", b"d", Forbidden),
            (b"", b"x", Forbidden),
            (b"d", b"a\nb", NameRefused),
        ):
            with pytest.raises(error):
                copy(filled, src, dst, overwrite=True)
        assert_right(filled)

    @pytest.mark.parametrize("change", ["content", "attribute"])
    def test_only_what_was_meant(self, filled, monkeypatch, change):
        path, etag = Path(os.fsdecode(on_disk(filled, b"file"))), tree.lookup(filled, b"file").etag
        with pytest.raises(PreconditionFailed):
            copy(filled, b"file", b"x", if_match={"another"})
        source = operations.source

        def changed_first(space, name):
            monkeypatch.undo()
            if change == "content":
                path.write_bytes(b"other, longer content")
            else:
                os.setxattr(path, "user.foreign", b"1")
            return source(space, name)

        monkeypatch.setattr(operations, "source", changed_first)
        if change == "content":
            with pytest.raises(PreconditionFailed):
                copy(filled, b"file", b"x", if_match={etag})
            assert not path.with_name("x").exists()
        else:
            assert copy(filled, b"file", b"x", if_match={etag})
        assert_right(filled)

    def test_over_a_name_in_a_directory_that_is_moved_away_meanwhile(self, filled, monkeypatch):
        real = operations.build

        def build(*args, **options):
            os.rename(on_disk(filled, b"d"), on_disk(filled, b"moved"))
            return real(*args, **options)

        monkeypatch.setattr(operations, "build", build)
        operations.make_directory(filled, b"src")
        with pytest.raises(PreconditionFailed):
            copy(filled, b"src", b"d/one", overwrite=True)
        assert read(filled, b"moved/one") == b"1"
        assert_right(filled, outside=True)

    def test_a_whole_space_into_another(self, filled, other):
        assert copy(filled, b"", b"backup", to=other)
        assert sorted(os.listdir(on_disk(other, b"backup"))) == [b"d", b"file"]
        assert tree.lookup(other, b"backup").size == 6
        assert_right(other)

    def test_what_cannot_be_read_fails_the_whole(self, filled, monkeypatch):
        from fsd.core import copying

        real, count = copying.copy_data, []

        def second_fails(src, dst):
            count.append(1)
            if len(count) == 2:
                raise PermissionError(errno.EACCES, "no")
            return real(src, dst)

        monkeypatch.setattr(copying, "copy_data", second_fails)
        with pytest.raises(PermissionError):
            copy(filled, b"d", b"e")
        assert not os.path.exists(on_disk(filled, b"e"))
        assert_right(filled)

    def test_special_files(self, filled):
        os.mkfifo(on_disk(filled, b"d/fifo"))
        if may_mount():
            os.mknod(on_disk(filled, b"d/null"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
        copy(filled, b"d", b"e")
        assert stat.S_ISFIFO(os.lstat(on_disk(filled, b"e/fifo")).st_mode)
        assert not os.path.lexists(on_disk(filled, b"e/null"))
        copy(filled, b"d/fifo", b"e/again")
        if may_mount():
            with pytest.raises(Forbidden):
                copy(filled, b"d/null", b"e/null")
        assert_right(filled, outside=True)

    def test_the_quota(self, filled, monkeypatch):
        monkeypatch.setattr(quota, "_limit", lambda _space: 8)
        with pytest.raises(QuotaExceeded):
            copy(filled, b"d", b"e")
        assert_right(filled)


class TestTimes:
    def test_a_time_is_set_and_changes_a_files_etag(self, filled):
        before = tree.lookup(filled, b"file")
        operations.set_mtime(filled, b"file", -5_000_000_000)
        after = tree.lookup(filled, b"file")
        assert after.mtime_ns == -5_000_000_000
        assert after.etag != before.etag
        assert after.id == before.id
        operations.set_mtime(filled, b"d", 10**18)
        assert os.stat(on_disk(filled, b"d")).st_mtime_ns == 10**18
        assert_right(filled)

    def test_of_a_link_not_of_its_target(self, filled):
        os.symlink(b"file", on_disk(filled, b"link"))
        before = os.stat(on_disk(filled, b"file")).st_mtime_ns
        operations.set_mtime(filled, b"link", 10**18)
        assert os.lstat(on_disk(filled, b"link")).st_mtime_ns == 10**18
        assert os.stat(on_disk(filled, b"file")).st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "error"), [({"read_only": True}, ReadOnlySpace), ({"state": "disabled"}, SpaceDisabled)]
)
def test_a_closed_space_takes_nothing(filled, change, error):
    closed = Space(replace(filled.record, **change), filled.state_dir)
    for attempt in (
        lambda: operations.make_directory(closed, b"x"),
        lambda: operations.delete(closed, b"file"),
        lambda: move(closed, b"file", b"x"),
        lambda: copy(filled, b"file", b"x", to=closed),
        lambda: operations.set_mtime(closed, b"file", 0),
        lambda: properties.update(closed, b"file", {"{n}x": b""}),
        lambda: trash.empty(closed) or trash.restore(closed, "x"),
    ):
        with pytest.raises(error):
            attempt()
