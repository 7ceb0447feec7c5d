"""New files in one transaction: what reconcile would have said of them, or left to it; many at once, errors for all."""

import errno
import os
import stat
import threading
from contextlib import closing

import pytest

from fsd.core import arrivals, index, journal, operations, relabel, tree
from fsd.core.content import Upload
from tests.support.waiting import wait_for
from tests.support.worlds import make_space
from tests.unit.core_space import assert_right, on_disk, put, read, root_etag


def rows(space, path):
    with space.index.read() as db:
        return index.find(db, path), index.directory_at(space.index, db, path.rpartition(b"/")[0])


@pytest.mark.parametrize("path", [b"new", b"d/new", b"d/sub/new"])
def test_it_says_what_reconcile_would_say(filled, monkeypatch, path):
    put(filled, path + b"-before")  # the directory is one the index remembers
    told = []
    for shortcut in (True, False):
        before, number = rows(filled, path)[1][1], journal.last(filled)
        with monkeypatch.context() as patch:
            if not shortcut:
                patch.setattr(arrivals, "settle_all", lambda some: [None] * len(some))
            put(filled, path, b"12345")
        row, (parent, parts, _) = rows(filled, path)
        changes = journal.since(filled, number)
        assert [(change.node, change.parent) for change in changes] == [(row.id, parent.id)]
        assert {rows(filled, above + b"/x")[1][1].counter for above in (b"", path.rpartition(b"/")[0])} == {
            changes[0].number
        }
        told.append((
            row._replace(n=0, id=b"", binding=b"", ino=0, mtime_ns=0, ctime_ns=0),
            (parts.own - before.own, parts.total - before.total, parts.seq - before.seq, parts.published),
            [(change.kind, change.node_kind, change.name) for change in changes],
        ))  # fmt: skip
        assert_right(filled)
        operations.delete(filled, path)
    assert told[0] == told[1]


def outcome(space, monkeypatch, path, between=lambda: None):
    """Whether the shortcut was gone; `between` happens when the name is there and nobody knows it."""
    gone = []
    settle_all = arrivals.settle_all

    def noted(some):
        between()
        rows = settle_all(some)
        gone.extend(row is not None for row in rows)
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(arrivals, "settle_all", noted)
        put(space, path, b"12345")
    assert_right(space, outside=True)
    return gone


def test_what_others_did_in_between_is_left_to_reconcile(filled, monkeypatch):
    put(filled, b"d/first")
    assert outcome(filled, monkeypatch, b"d/plain") == [True]

    def write():
        with open(on_disk(filled, b"d/written"), "ab") as file:
            file.write(b"more")

    assert outcome(filled, monkeypatch, b"d/written", write) == [False]
    assert tree.lookup(filled, b"d/written").size == 9
    other = on_disk(filled, b"d/other")
    link = lambda: os.link(on_disk(filled, b"d/linked"), other)  # noqa: E731
    assert outcome(filled, monkeypatch, b"d/linked", link) == [False]
    assert tree.lookup(filled, b"d/linked").nlink == 2
    look = lambda: tree.lookup(filled, b"d/seen")  # noqa: E731
    assert outcome(filled, monkeypatch, b"d/seen", look) == [False]
    mark = lambda: os.setxattr(on_disk(filled, b"d/marked"), "user.theirs", b"1")  # noqa: E731
    assert outcome(filled, monkeypatch, b"d/marked", mark) == [False]
    assert rows(filled, b"d/marked")[0].xattrs


def test_a_directory_that_the_index_does_not_know_is_made_known(filled, monkeypatch):
    os.makedirs(on_disk(filled, b"new/deep"))
    assert outcome(filled, monkeypatch, b"new/deep/a") == [False]
    assert outcome(filled, monkeypatch, b"new/deep/b") == [True]
    operations.move(filled, b"new", filled, b"newer", overwrite=False)
    assert outcome(filled, monkeypatch, b"newer/deep/c") == [False]
    assert outcome(filled, monkeypatch, b"newer/deep/d") == [True]
    assert tree.lookup(filled, b"newer").size == 20


def test_without_labels_reconcile_looks(tmp_path, monkeypatch):
    with closing(make_space(tmp_path, label="none")) as space:
        put(space, b"a")
        assert outcome(space, monkeypatch, b"b") == [False]


def together(space, paths):
    """Put files from as many threads, so that all of them share one batch; the errors by path."""
    errors: dict[bytes, OSError | None] = {}
    group = arrivals._group_of(space)

    def one(path):
        try:
            put(space, path, path)
            errors[path] = None
        except OSError as error:
            errors[path] = error

    threads = [threading.Thread(target=one, args=(path,)) for path in paths]
    with group._under_way:
        for thread in threads:
            thread.start()
        wait_for(
            lambda: group._open is not None and len(group._open.arrivals) == len(paths), what="everybody"
        )
    for thread in threads:
        thread.join()
    return errors


PATHS = [b"one", b"two", b"d/three", b"d/four", b"d/sub/five"]


@pytest.fixture
def known(filled):
    for directory in (b"", b"d/", b"d/sub/"):
        put(filled, directory + b"before")
    return filled


def test_many_at_once_are_one_transaction_and_one_fsync_for_a_directory(known, monkeypatch):
    commits, syncs = [], []
    commit, fsync = known.index.commit, os.fsync
    monkeypatch.setattr(known.index, "commit", lambda db: (commits.append(1), commit(db)))

    def noted(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            syncs.append(fd)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    before, usage = root_etag(known), tree.usage(known)
    assert set(together(known, PATHS).values()) == {None}
    assert (len(commits), len(syncs)) == (1, 3)
    assert root_etag(known) != before
    assert tree.usage(known) == usage + sum(map(len, PATHS))
    assert_right(known)


def test_a_directory_that_fails_fails_its_own(known, monkeypatch):
    failing = os.stat(on_disk(known, b"d")).st_ino
    fsync = os.fsync

    def broken(fd):
        fsync(fd)
        if os.fstat(fd).st_ino == failing:
            raise OSError(errno.EIO, "broken")

    usage = tree.usage(known)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        errors = together(known, PATHS)
    assert {path for path, error in errors.items() if error is not None} == {b"d/three", b"d/four"}
    assert not os.path.exists(on_disk(known, b"d/three"))
    assert read(known, b"one") == b"one"
    assert tree.usage(known) == usage + len(b"onetwod/sub/five")
    assert_right(known)


def test_an_index_that_fails_fails_all(known, monkeypatch):
    def full(_db):
        raise OSError(errno.ENOSPC, "full")

    usage = tree.usage(known)
    with monkeypatch.context() as patch:
        patch.setattr(known.index, "commit", full)
        errors = together(known, PATHS)
    assert {getattr(error, "errno", None) for error in errors.values()} == {errno.ENOSPC}
    assert_right(known, outside=True)
    assert tree.usage(known) == usage
    assert {os.path.exists(on_disk(known, path)) for path in PATHS} == {False}


def test_without_durability_nobody_waits_for_anybody(known, monkeypatch):
    monkeypatch.setattr(arrivals, "_group_of", None)
    with Upload(known, b"d/quick", length=1, durability=False) as upload:
        upload.write(b"1")
        upload.commit()
    assert_right(known)


def test_an_index_of_an_earlier_release_says_anew_what_is_published(filled):
    relabel.publish_trees(filled)
    with filled.index.write() as db:
        db.execute("UPDATE dir SET epoch=1")  # as after a sweep
    relabel.publish_trees(filled)
    put(filled, b"d/changed")  # the root and `d` have something to publish, `d/sub` has not
    with filled.index.write() as db:
        db.execute("UPDATE dir SET published=iif(published, counter, counter-1)")
        db.execute("DROP INDEX dir_untold")
        db.execute("CREATE INDEX dir_unpublished ON dir (n) WHERE published <> counter")
    filled.index.close()
    told = {
        path: rows(filled, path + b"/x" if path else b"x")[1][1].published for path in (b"", b"d", b"d/sub")
    }
    assert told == {b"": 0, b"d": 0, b"d/sub": 1}
    assert relabel.publish_trees(filled) == 2
    assert relabel.publish_trees(filled) == 0
    assert_right(filled)


def test_what_changes_while_it_is_published_is_published_again(filled, monkeypatch):
    with filled.index.write() as db:
        db.execute("UPDATE dir SET epoch=1")
    relabel.publish_trees(filled)
    put(filled, b"d/one-more")
    publish = relabel._publish_one

    def late(space, path, *more):
        found = publish(space, path, *more)
        if path == b"d":
            put(space, b"d/late")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(relabel, "_publish_one", late)
        assert relabel.publish_trees(filled) == 2
    assert relabel.publish_trees(filled) == 2
    assert relabel.publish_trees(filled) == 0
