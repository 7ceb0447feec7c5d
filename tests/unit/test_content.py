"""Upload: whole or not at all, preconditions as of the moment of the change, what is kept of what is replaced."""

import errno
import os
import stat
import threading
from dataclasses import replace

import pytest

from fsd.core import content, operations, publish, quota, tree
from fsd.core.content import Upload
from fsd.core.errors import (
    AcrossMounts,
    Forbidden,
    NameRefused,
    ParentMissing,
    PreconditionFailed,
    QuotaExceeded,
    ReadOnlySpace,
)
from fsd.core.space import Space
from tests.faults.disks import may_mount, small_disk
from tests.support import killpoints
from tests.support.worlds import make_space
from tests.unit.core_space import assert_right, on_disk, put, read, root_etag, staging, write


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    yield made
    made.close()


def test_a_new_file_is_there_and_known(space):
    before = root_etag(space)
    entry, created = put(space, b"a", b"12345", mtime_ns=1_500_000_000_123_456_789)
    assert created
    assert (entry.size, entry.mtime_ns, entry.kind) == (5, 1_500_000_000_123_456_789, "f")
    assert read(space, b"a") == b"12345"
    assert tree.usage(space) == 5
    assert root_etag(space) != before
    assert tree.lookup(space, b"a") == entry
    assert_right(space)


def test_a_replacement_keeps_the_id_and_changes_the_etag(space):
    old, _ = put(space, b"a", b"12345", mtime_ns=10**18)
    new, created = put(space, b"a", b"54321", mtime_ns=10**18)
    assert not created
    assert new.id == old.id
    assert new.etag != old.etag  # although size and time are the same
    assert read(space, b"a") == b"54321"
    assert_right(space)


def test_the_id_of_a_replacement_survives_the_index(space, tmp_path):
    put(space, b"a", b"1")
    new, _ = put(space, b"a", b"2")
    space.close()
    for path in (tmp_path / "state").glob("*.index.db*"):
        path.unlink()
    found = tree.lookup(space, b"a")
    assert (found.id, found.etag) == (new.id, new.etag)


@pytest.mark.parametrize("label", ["none", "lazy"])
def test_ids_stay_without_labels_too(tmp_path, label):
    space = make_space(tmp_path, label=label)
    old, _ = put(space, b"a", b"1")
    new, _ = put(space, b"a", b"22")
    assert new.id == old.id
    assert_right(space)
    space.close()


@pytest.mark.root
def test_mode_owner_and_foreign_attributes_of_the_replaced_file_are_kept(space):
    put(space, b"a")
    path = on_disk(space, b"a")
    os.chown(path, 1234, 4321)
    os.chmod(path, 0o640)
    os.setxattr(path, "user.mine", b"kept")
    os.setxattr(path, "user.fsd.p.{n}x", b"<x/>")
    put(space, b"a", b"new")
    found = os.stat(path)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640)
    assert os.getxattr(path, "user.mine") == b"kept"
    assert os.getxattr(path, "user.fsd.p.{n}x") == b"<x/>"
    assert_right(space)


def test_acls_are_inherited_and_kept(space, tmp_path):
    os.mkdir(on_disk(space, b"d"))
    # POSIX ACL, version 2: u::rwx u:1234:rwx g::r-x m::rwx o::---
    acl = bytes.fromhex(
        "0200000001000700ffffffff02000700d204000004000500ffffffff10000700ffffffff20000000ffffffff"
    )
    os.setxattr(on_disk(space, b"d"), "system.posix_acl_default", acl)
    put(space, b"d/new")
    inherited = os.getxattr(on_disk(space, b"d/new"), "system.posix_acl_access")
    put(space, b"d/new", b"again")
    assert os.getxattr(on_disk(space, b"d/new"), "system.posix_acl_access") == inherited
    os.removexattr(on_disk(space, b"d/new"), "system.posix_acl_access")
    put(space, b"d/new", b"and again")
    assert "system.posix_acl_access" not in os.listxattr(on_disk(space, b"d/new"))


@pytest.mark.root
def test_the_space_says_owner_and_mode_and_a_setgid_directory_the_group(tmp_path):
    made = make_space(tmp_path)
    space = Space(replace(made.record, uid=77, gid=88, file_mode=0o664), tmp_path / "state")
    put(space, b"a")
    found = os.stat(on_disk(space, b"a"))
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (77, 88, 0o664)
    os.mkdir(on_disk(space, b"d"))
    os.chown(on_disk(space, b"d"), 0, 99)
    os.chmod(on_disk(space, b"d"), 0o2775)
    put(space, b"d/a")
    assert os.stat(on_disk(space, b"d/a")).st_gid == 99
    space.close()


def test_nothing_is_visible_before_the_commit_nor_after_an_abort(space):
    with Upload(space, b"a", length=None) as upload:
        upload.write(b"half")
        assert os.listdir(space.root) == [b".fsd"]
    assert os.listdir(space.root) == [b".fsd"]
    assert_right(space)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"length": 6}, NameRefused),
        ({"length": None, "checksum": ("SHA1", "0" * 40)}, NameRefused),
        ({"length": None, "if_match": {"no such etag"}}, PreconditionFailed),
        ({"length": None, "must_not_exist": True}, PreconditionFailed),
    ],
)
def test_what_is_refused_has_changed_nothing(space, options, error):
    old, _ = put(space, b"a", b"old")
    with pytest.raises(error):
        with Upload(space, b"a", **options) as upload:
            upload.write(b"12345")
            upload.commit()
    assert read(space, b"a") == b"old"
    assert tree.lookup(space, b"a") == old
    assert_right(space)


def test_more_than_announced_is_refused_at_once(space):
    with Upload(space, b"a", length=3) as upload, pytest.raises(NameRefused, match="announced 3"):
        upload.write(b"1234")


@pytest.mark.parametrize(
    ("algorithm", "value"),
    [
        ("SHA1", "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3"),
        ("md5", "098F6BCD4621D373CADE4E832627B4F6"),
        ("ADLER32", "045d01c1"),
        ("SHA256", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
    ],
)
def test_checksums(space, algorithm, value):
    put(space, b"a", b"test", checksum=(algorithm, value))
    with pytest.raises(NameRefused, match="not known"):
        Upload(space, b"a", length=1, checksum=("CRC7", "0"))


def test_if_match_of_a_missing_file_fails_and_any_matches_what_is_there(space):
    with pytest.raises(PreconditionFailed, match="does not exist"):
        Upload(space, b"a", length=1, if_match={"*"})
    old, _ = put(space, b"a")
    put(space, b"a", b"1", if_match={"*"})
    with pytest.raises(PreconditionFailed):
        put(space, b"a", b"2", if_match={old.etag})
    put(space, b"a", b"3", if_match={"other", tree.lookup(space, b"a").etag})


def test_a_change_during_the_upload_counts(space):
    old, _ = put(space, b"a", b"old")
    with Upload(space, b"a", length=3, if_match={old.etag}) as upload:
        upload.write(b"new")
        write(space, b"a", b"somebody else's")
        with pytest.raises(PreconditionFailed):
            upload.commit()
    assert read(space, b"a") == b"somebody else's"
    assert_right(space, outside=True)


def test_a_name_taken_during_the_upload(space):
    with Upload(space, b"a", length=1, must_not_exist=True) as upload:
        upload.write(b"1")
        write(space, b"a")
        with pytest.raises(PreconditionFailed):
            upload.commit()
    with Upload(space, b"b", length=1) as upload:
        upload.write(b"1")
        write(space, b"b")
        _, created = upload.commit()
    assert not created
    assert read(space, b"a") == b"from outside"
    assert_right(space, outside=True)


@pytest.mark.parametrize("guarded", [True, False])
def test_what_comes_out_of_the_exchange_is_looked_at(space, monkeypatch, guarded):
    """A program replaces the file in the last moment: its version must not get lost unseen."""
    old, _ = put(space, b"a", b"old")
    real, done = publish.rename_exchange, []

    def exchange(*args):
        if not done:
            done.append(1)
            write(space, b"a.tmp", b"the program's")
            os.rename(on_disk(space, b"a.tmp"), on_disk(space, b"a"))
        real(*args)

    monkeypatch.setattr(publish, "rename_exchange", exchange)
    if guarded:
        with pytest.raises(PreconditionFailed):
            put(space, b"a", b"ours", if_match={old.etag})
        assert read(space, b"a") == b"the program's"
    else:
        put(space, b"a", b"ours")
        assert read(space, b"a") == b"ours"
    assert_right(space, outside=True)


def test_a_directory_moved_in_at_the_last_moment_is_not_replaced(space, monkeypatch):
    put(space, b"a", b"old")
    real, done = publish.rename_exchange, []

    def exchange(*args):
        if not done:
            done.append(1)
            os.unlink(on_disk(space, b"a"))
            os.mkdir(on_disk(space, b"a"))
            write(space, b"a/inside")
        real(*args)

    monkeypatch.setattr(publish, "rename_exchange", exchange)
    with pytest.raises(IsADirectoryError):
        put(space, b"a", b"ours")
    assert read(space, b"a/inside") == b"from outside"
    assert_right(space, outside=True)


def test_a_file_deleted_at_the_last_moment_is_made(space, monkeypatch):
    put(space, b"a", b"old")
    real, done = publish.rename_exchange, []

    def exchange(*args):
        if not done:
            done.append(1)
            os.unlink(on_disk(space, b"a"))
        real(*args)

    monkeypatch.setattr(publish, "rename_exchange", exchange)
    _, created = put(space, b"a", b"ours")
    assert created
    assert read(space, b"a") == b"ours"
    assert_right(space, outside=True)


def test_links_and_special_files_are_refused(space):
    os.symlink("/etc/passwd", on_disk(space, b"link"))
    os.mkfifo(on_disk(space, b"fifo"))
    os.mkdir(on_disk(space, b"d"))
    for name, error in ((b"link", Forbidden), (b"fifo", Forbidden), (b"d", IsADirectoryError)):
        with pytest.raises(error):
            Upload(space, name, length=1)
    os.symlink(b"d", on_disk(space, b"way"))
    with pytest.raises(Forbidden, match="symbolic link"):
        Upload(space, b"way/a", length=1)


@pytest.mark.parametrize("path", [b"no/a", b"file/a", b".fsd/a", b".fsd/staging/a"])
def test_without_a_directory_there_is_no_file(space, path):
    put(space, b"file")
    with pytest.raises(ParentMissing):
        Upload(space, path, length=1)


@pytest.mark.parametrize("path", [b"a/../b", b"a//b", b"./a", b"\xff", b"a\nb", b"x" * 256, b"\x7f"])
def test_names_that_may_not_be_made(space, path):
    os.mkdir(on_disk(space, b"a"))
    with pytest.raises(NameRefused):
        Upload(space, path, length=1)


def test_an_odd_name_that_exists_can_be_written_to(space):
    write(space, b"\xff\n")
    _, created = put(space, b"\xff\n", b"new")
    assert not created
    with pytest.raises(Forbidden):
        Upload(space, b".fsd", length=1)
    with pytest.raises(Forbidden):
        Upload(space, b"", length=1)


def test_the_quota_is_asked_first_and_while_writing(space, monkeypatch):
    monkeypatch.setattr(quota, "_limit", lambda _space: 10)
    put(space, b"a", b"12345")
    with pytest.raises(QuotaExceeded, match="room for 5 more bytes, not 6"):
        Upload(space, b"b", length=6)
    put(space, b"a", b"1234567890")  # the replaced bytes don't count
    with Upload(space, b"b", length=None) as upload, pytest.raises(QuotaExceeded):
        upload.write(b"1")
    assert quota.available(space) == 0
    assert_right(space)


def test_a_length_beyond_the_disk_is_refused_at_once(space):
    with pytest.raises(OSError) as caught:
        Upload(space, b"a", length=1 << 60)
    assert caught.value.errno == errno.ENOSPC


def test_a_read_only_space(space, tmp_path):
    closed = Space(replace(space.record, read_only=True), tmp_path / "state")
    with pytest.raises(ReadOnlySpace):
        Upload(closed, b"a", length=1)


@pytest.mark.parametrize("moment", [0.0, 60.0], ids=["long", "short"])
def test_a_directory_moved_during_the_upload(space, monkeypatch, moment):
    """The path counts; in a short upload that is asked for at the end only, when it is too late for another one."""
    monkeypatch.setattr(content, "_SHORT_S", moment)
    os.mkdir(on_disk(space, b"d"))
    with Upload(space, b"d/a", length=1) as upload:
        upload.write(b"1")
        os.rename(on_disk(space, b"d"), on_disk(space, b"e"))
        with pytest.raises(ParentMissing):
            upload.commit()
    assert os.listdir(on_disk(space, b"e")) == []
    with Upload(space, b"e/a", length=1) as upload:
        upload.write(b"1")
        os.rename(on_disk(space, b"e"), on_disk(space, b"f"))
        os.mkdir(on_disk(space, b"e"))
        if moment:
            with pytest.raises(ParentMissing):
                upload.commit()
        else:
            upload.commit()
    assert os.listdir(on_disk(space, b"e")) == ([] if moment else [b"a"])
    assert os.listdir(on_disk(space, b"f")) == []
    assert_right(space, outside=True)


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount")
def test_on_an_inner_mount_new_files_work_and_replacing_says_why_not(space):
    from pathlib import Path

    with small_disk(Path(os.fsdecode(on_disk(space, b"inner"))), "2m"):
        put(space, b"inner/new", b"1")
        with pytest.raises(AcrossMounts, match="another filesystem"):
            put(space, b"inner/new", b"2")
        assert read(space, b"inner/new") == b"1"
        assert staging(space) == []
        space.close()


def test_writers_of_one_name_come_one_after_the_other(space):
    first, _ = put(space, b"a", b"0")
    won, lost = [], []

    def writer(n):
        try:
            put(space, b"a", b"%d" % n, if_match={first.etag})
            won.append(n)
        except PreconditionFailed:
            lost.append(n)

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1 and len(lost) == 7
    assert read(space, b"a") == b"%d" % won[0]
    assert_right(space)


def test_many_writers_of_many_names(space):
    def writer(n):
        for turn in range(5):
            put(space, b"%d" % (n if turn % 2 else 0), b"%d" % turn)

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_right(space)
    assert tree.usage(space) == 6


@pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child")
def test_three_fsyncs_at_most(space):
    put(space, b"old")
    put(space, b"old", b"again")

    def ready():
        put(space, b"warm")
        put(space, b"warm", b"up")

    def syncs(operate):
        calls = killpoints.calls_made(ready, operate)
        return sum(call in ("fsync", "fdatasync", "syncfs") for call in calls)

    assert syncs(lambda _: put(space, b"new", b"x")) == 2
    assert syncs(lambda _: put(space, b"old", b"x")) == 3


@pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child")
def test_durability_can_be_waived(space):
    calls = killpoints.calls_made(
        lambda: put(space, b"w"), lambda _: put(space, b"n", b"x", durability=False)
    )
    assert "fsync" not in calls


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("then", ["deleted", "moved", "replaced", "changed", "its directory trashed"])
def test_what_happens_to_it_right_after_does_not_make_an_upload_fail(space, monkeypatch, then, taken):
    os.mkdir(on_disk(space, b"d"))
    if taken:
        put(space, b"d/a", b"old")
    make_known = content.make_known

    def overtaken(space, place, **new):
        here = on_disk(space, b"d/a")
        row = make_known(space, place, **new) if then == "its directory trashed" else None
        if then == "deleted":
            os.unlink(here)
        elif then == "moved":
            os.rename(here, on_disk(space, b"elsewhere"))
        elif then == "replaced":
            write(space, b"new", b"of somebody else")
            os.rename(on_disk(space, b"new"), here)
        elif then == "changed":
            write(space, b"d/a", b"of somebody else")
        else:
            operations.delete(space, b"d")
            return row
        return make_known(space, place, **new)

    monkeypatch.setattr(content, "make_known", overtaken)
    entry, created = put(space, b"d/a", b"12345", mtime_ns=10**18)
    assert created is not taken and (entry.size, entry.mtime_ns, entry.path) == (5, 10**18, b"d/a")
    if then == "moved":
        moved = tree.lookup(space, b"elsewhere")
        assert (moved.id, moved.etag) == (entry.id, entry.etag)
    if then in ("replaced", "changed"):
        assert tree.lookup(space, b"d/a").etag != entry.etag
    assert_right(space, outside=True)


def test_a_file_deleted_during_its_replacement_is_new(space):
    put(space, b"a", b"old")
    with Upload(space, b"a", length=3) as upload:
        upload.write(b"new")
        os.unlink(on_disk(space, b"a"))
        entry, created = upload.commit()
    assert created and entry.size == 3 and tree.lookup(space, b"a").etag == entry.etag
    assert_right(space, outside=True)
