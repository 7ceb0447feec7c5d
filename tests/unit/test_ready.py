"""Ready means closed and quiet: real writers, what is told of their files, and when."""

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fsd.core import dirty, index, journal, ready, tree, writers
from fsd.core.errors import NotYetKnown
from fsd.core.reconcile import reconcile
from tests.support.waiting import wait_for
from tests.support.worlds import drain, grow_quiet, make_space, sweep
from tests.support.writers import Writer
from tests.unit.core_space import assert_right, on_disk, put, root_etag, write


@pytest.fixture
def space():
    """In memory: on a disk a page that is written back has its next store counted as a change of the file."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-ready-") as base:
        made = make_space(Path(base))
        sweep(made)
        yield made
        made.close()


@pytest.fixture
def writer():
    with Writer() as made:
        yield made


def seen(space, path):
    """A look as after a hint."""
    reconcile(space, os.path.dirname(path), [os.path.basename(path)])
    return tree.lookup(space, path)


def settle(space):
    """What the watcher does each second, as if CLOSED_S had passed since the last change."""
    readiness = ready.Readiness(space)
    readiness._quiet = lambda row: ready.CLOSED_S
    readiness.settle(1.0)


def told(space, after=0):
    return [each.path for each in ready.news(space, after).ready]


def test_a_file_is_told_when_it_is_closed_and_not_before(space, writer):
    writer.do("open", on_disk(space, b"log"))
    for turn in range(1, 4):
        writer.do("append", "x" * 10)
        assert (seen(space, b"log").size, seen(space, b"log").writing) == (10 * turn, True)
        settle(space)
        assert told(space) == [] and ready.waiting(space) == 1
        with pytest.raises(NotYetKnown), ready.reading(space, b"log"):
            pass
    writer.do("close")
    settle(space)
    assert told(space) == [b"log"] and ready.waiting(space) == 0
    with ready.reading(space, b"log") as (fd, entry):
        assert os.read(fd, 100) == b"x" * 30 and not entry.writing
    assert_right(space)


def test_a_killed_writer_leaves_a_ready_file(space, writer):
    writer.do("open", on_disk(space, b"log"))
    writer.do("append", "half")
    seen(space, b"log")
    settle(space)
    assert told(space) == []
    writer.kill()
    settle(space)
    assert told(space) == [b"log"]


def test_each_content_is_told_again(space, writer):
    writer.do("open", on_disk(space, b"log"))
    writer.do("append", "one")
    writer.do("close")
    seen(space, b"log")
    settle(space)
    first = ready.news(space, 0)
    assert ready.news(space, first.last) == ready.News([], first.last, True)
    writer.do("open", on_disk(space, b"log"))
    writer.do("append", "two")
    seen(space, b"log")
    assert told(space, first.last) == []
    writer.do("close")
    settle(space)
    assert told(space, first.last) == [b"log"]


def test_stores_through_a_mapping_change_the_etag_of_what_was_served(space, writer):
    write(space, b"db", b"0" * 8192)
    writer.do("open", on_disk(space, b"db"))
    writer.do("map")
    writer.do("close")  # the mapping alone keeps the file open
    writer.do("store", 0, "first")
    seen(space, b"db")
    fd, served = tree.open_file(space, b"db")
    os.close(fd)
    before = root_etag(space)
    writer.do("store", 0, "second")
    assert os.stat(on_disk(space, b"db")).st_mtime_ns == served.mtime_ns, "the reason for all this"
    settle(space)
    assert tree.lookup(space, b"db").etag == served.etag and told(space) == []
    writer.do("unmap")
    settle(space)
    after = tree.lookup(space, b"db")
    assert after.etag != served.etag and root_etag(space) != before and after.mtime_ns == served.mtime_ns
    assert [each.path for each in ready.news(space, 0).ready] == [b"db"]
    assert [each.kind for each in journal.since(space, 0)][-1] == "changed"
    grow_quiet(space)
    assert tree.lookup(space, b"db").etag == after.etag, "once"
    assert_right(space)


def test_what_was_served_is_known_after_the_index_was_lost(space, writer):
    write(space, b"db", b"0" * 8192)
    writer.do("open", on_disk(space, b"db"))
    writer.do("map")
    writer.do("store", 0, "first")
    seen(space, b"db")
    fd, served = tree.open_file(space, b"db")
    os.close(fd)
    space.close()
    for path in Path(space.state_dir).glob("*.index.db*"):
        path.unlink()
    sweep(space)
    writer.do("store", 0, "second")
    writer.do("unmap")
    writer.do("close")
    settle(space)
    assert tree.lookup(space, b"db").etag != served.etag


def test_what_was_not_served_keeps_its_etag(space, writer):
    write(space, b"plain", b"0" * 100)
    before = seen(space, b"plain")
    fd, _ = tree.open_file(space, b"plain")  # nobody writes it now
    os.close(fd)
    settle(space)
    after = tree.lookup(space, b"plain")
    assert (before.writing, after.writing, after.etag) == (True, False, before.etag)


def test_both_names_of_a_linked_file_change(space, writer):
    write(space, b"a", b"0" * 8192)
    os.link(on_disk(space, b"a"), on_disk(space, b"b"))
    writer.do("open", on_disk(space, b"a"))
    writer.do("map")
    writer.do("store", 0, "first")
    reconcile(space, b"")
    drain(space)
    old = {}
    for name in (b"a", b"b"):
        fd, old[name] = tree.open_file(space, name)
        os.close(fd)
    writer.do("store", 0, "second")
    writer.do("unmap")
    writer.do("close")
    settle(space)
    assert all(tree.lookup(space, name).etag != old[name].etag for name in old)
    grow_quiet(space)
    sweep(space)
    assert all(tree.lookup(space, name).etag != old[name].etag for name in old)


def test_stores_that_nobody_tells_of_are_found_while_it_waits(space, writer):
    write(space, b"db", b"0" * 8192)
    os.utime(on_disk(space, b"db"), ns=(0, 0))
    writer.do("open", on_disk(space, b"db"))
    writer.do("map")
    seen(space, b"db")
    writer.do("store", 0, "first")  # changes the times, without an event
    settle(space)
    assert [item.names for item in dirty.pending(space, 9, sweep=False)] == [frozenset([b"db"])]
    drain(space)
    assert_right(space)


def test_what_fsd_publishes_is_ready_at_once(space):
    entry, _ = put(space, b"a", b"12345")
    assert not tree.lookup(space, b"a").writing and told(space) == [b"a"]
    with ready.reading(space, b"a") as (_, found):
        assert found.etag == entry.etag
    put(space, b"a", b"123456")
    assert ready.waiting(space) == 0 and told(space)[-1] == b"a"


def test_metadata_and_renames_leave_it_ready(space):
    put(space, b"a", b"12345")
    os.chmod(on_disk(space, b"a"), 0o600)
    assert not seen(space, b"a").writing
    os.rename(on_disk(space, b"a"), on_disk(space, b"b"))
    reconcile(space, b"", [b"a", b"b"])
    assert not tree.lookup(space, b"b").writing


def test_a_change_under_the_readers_hands_is_told(space, writer):
    put(space, b"a", b"12345")
    with pytest.raises(NotYetKnown, match="changed while"), ready.reading(space, b"a"):
        write(space, b"a", b"54321")
    seen(space, b"a")
    settle(space)
    with pytest.raises(NotYetKnown, match="changed while"), ready.reading(space, b"a"):
        writer.do("open", on_disk(space, b"a"))


def test_where_writers_cannot_be_seen_it_takes_longer(space, writer, monkeypatch):
    writer.do("open", on_disk(space, b"a"))
    writer.do("append", "x")
    writer.do("close")
    seen(space, b"a")
    monkeypatch.setattr(writers, "_BLIND", {writers.fs_type(space.root_fd())})
    fd, served = tree.open_file(space, b"a")
    os.close(fd)
    settle(space)
    assert told(space) == []
    readiness = ready.Readiness(space)
    readiness._quiet = lambda row: ready.QUIET_S
    readiness.settle(1.0)
    assert told(space) == [b"a"] and tree.lookup(space, b"a").etag != served.etag, (
        "there may have been a writer"
    )


def test_a_clock_that_is_ahead_of_ours(space):
    write(space, b"a", b"x")
    seen(space, b"a")
    with space.index.write() as db:
        db.execute("UPDATE node SET ctime_ns=?", (time.time_ns() + 10**13,))
        row = index.find(db, b"a")
    readiness = ready.Readiness(space)
    assert readiness._quiet(row) == 0
    wait_for(lambda: readiness._quiet(row) > 0.01, what="our own clock")


def test_a_reader_that_is_far_behind_is_told_so(space):
    for name in (b"a", b"b", b"c"):
        put(space, name)
    last = journal.last(space)
    first = ready.news(space, 0, limit=1)
    assert first.ready[0].path == b"a" and told(space, first.last) == [b"b", b"c"]
    with space.index.write() as db:
        db.execute("DELETE FROM journal WHERE number<?", (last,))
    assert not ready.news(space, first.last).whole and ready.news(space, last).whole


def test_a_state_database_of_an_earlier_release(space):
    with space.state.write() as db:
        db.execute("DROP TABLE handed")
        db.execute("CREATE TABLE served (binding BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID")
        db.execute("INSERT INTO served VALUES (?, ?)", (b"x", time.time()))
    space.close()
    assert writers.served(space, [(b"x", "some etag"), (b"y", "another")]) == {"some etag"}
    writers.forget(space, [(b"x", "some etag")])
    assert writers.served(space, [(b"x", "some etag")]) == set()


def test_a_full_state_disk_does_not_keep_anybody_from_reading(space, writer, monkeypatch, allow_log):
    allow_log("read unnoted")
    writer.do("open", on_disk(space, b"a"))
    writer.do("append", "x")
    seen(space, b"a")

    def full():
        raise OSError(errno.ENOSPC, "state.db: database or disk is full")

    monkeypatch.setattr(space.state, "write", full)
    fd, _ = tree.open_file(space, b"a")
    assert os.read(fd, 9) == b"x"
    os.close(fd)


def test_a_broken_lease_does_not_end_the_process(tmp_path):
    """Who opens the file for writing while a lease is being tried breaks it; the kernel then signals its holder."""
    place = tmp_path / "f"
    place.write_bytes(b"x")
    prober = (
        "import os, sys\nfrom fsd.core.syscalls import read_lease\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\nprint(flush=True)\nwhile True: read_lease(fd)"
    )
    process = subprocess.Popen([sys.executable, "-c", prober, place], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        for _ in range(20_000):
            os.close(os.open(place, os.O_WRONLY))
            if process.poll() is not None:
                break
        assert process.poll() is None, f"ended by signal {-process.returncode}"
    finally:
        process.kill()
        process.communicate()


def test_without_labels_a_ready_file_keeps_its_id_when_it_is_moved_over_another(tmp_path):
    space = make_space(tmp_path, label="none")
    sweep(space)
    for name in (b"moved", b"target"):
        write(space, name, name)
    moved = seen(space, b"moved").id
    assert seen(space, b"target").id != moved
    settle(space)
    os.rename(on_disk(space, b"moved"), on_disk(space, b"target"))
    reconcile(space, b"", [b"moved", b"target"])
    assert tree.lookup(space, b"target").id == moved
    assert_right(space)
    space.close()
