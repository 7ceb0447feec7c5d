"""Replay beside living processes: what is under way is left alone, what is left over goes, strangers stay."""

import errno
import os
import signal

import pytest

from fsd.core import intents, operations, publish, tree
from fsd.core.content import Upload
from fsd.core.operations import replay
from tests.support.worlds import make_space
from tests.unit.core_space import assert_right, on_disk, put, read, staging, write


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    yield made
    made.close()


def test_a_living_change_of_another_process_is_left_alone(space):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with intents.of(space).begin() as ticket:
            write(space, b".fsd/staging/" + ticket.name)
            ticket.record("put", {"path": b"a".hex(), "new": "00", "old": "00", "size": 0, "mtime_ns": 0})
            os.write(write_end, ticket.name)
            signal.pause()
    name = os.read(read_end, 16)
    os.close(read_end)
    os.close(write_end)
    replay(space)
    assert staging(space) == [name]
    assert len(intents.of(space).pending()) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_an_upload_of_this_process_is_left_alone(space, monkeypatch):
    from fsd.core import content

    monkeypatch.setattr(content, "O_TMPFILE", os.O_DIRECTORY)
    with Upload(space, b"a", length=1) as upload:
        upload.write(b"1")
        replay(space)
        assert len(staging(space)) == 1
        upload.commit()
    assert read(space, b"a") == b"1"
    assert_right(space)


def test_what_fsd_did_not_stage_stays(space):
    write(space, b".fsd/staging/a stranger's")
    write(space, b".fsd/staging/" + intents.staged_name(7))
    replay(space)
    assert staging(space) == [b"a stranger's"]


def test_a_finished_intent_is_harmless_for_ever(space):
    """Rows stay until the next one is written; whatever happens to the tree meanwhile, replay must not touch it."""
    put(space, b"a", b"1")
    put(space, b"b", b"2")
    put(space, b"a", b"3")
    operations.move(space, b"a", space, b"b", overwrite=True)
    operations.make_directory(space, b"d")
    operations.copy(space, b"d", space, b"b", overwrite=True)
    left = intents.of(space).pending()
    assert left
    put(space, b"a", b"4")
    kept = {path: tree.lookup(space, path).id for path in (b"a", b"b", b"d")}
    for _ in range(2):
        with space.state.write() as db:
            db.executemany(
                "INSERT OR REPLACE INTO intent VALUES (?, ?, ?)",
                [(i.number, i.kind, intents.json.dumps(i.body)) for i in left],
            )
        replay(space)
    assert {path: tree.lookup(space, path).id for path in kept} == kept
    assert read(space, b"a") == b"4"
    assert_right(space)


def test_one_that_fails_keeps_no_other_from_being_settled(space, monkeypatch, allow_log):
    allow_log("could not be settled|unknown kind")
    with intents.of(space).begin() as broken:
        broken.record("put", {"path": "not hexadecimal"})
    with intents.of(space).begin() as later:
        later.record("from the future", {})
    with intents.of(space).begin() as good:
        write(space, b".fsd/staging/" + good.name)
        binding = publish.binding_at(os.open(on_disk(space, b".fsd/staging"), os.O_RDONLY), good.name)
        good.record("put", {"path": b"a".hex(), "new": binding.hex(), "old": "00", "size": 0, "mtime_ns": 0})
    replay(space)
    assert staging(space) == []
    assert {intent.number for intent in intents.of(space).pending()} == {broken.number, later.number}


def test_a_stranger_at_both_ends_is_kept_in_the_trash(space, allow_log):
    """The exchange happened, then somebody replaced the new file: what came out is unknown and must not be lost."""
    allow_log("two writers met")
    put(space, b"a", b"the third writer's")
    with intents.of(space).begin() as ticket:
        write(space, b".fsd/staging/" + ticket.name, b"the second writer's")
        ticket.record("put", {"path": b"a".hex(), "new": "00", "old": "11", "size": 0, "mtime_ns": 0})
    replay(space)
    assert read(space, b"a") == b"the third writer's"
    (key,) = os.listdir(on_disk(space, b".fsd/trash/files"))
    assert read(space, b".fsd/trash/files/" + key) == b"the second writer's"
    assert_right(space)


def test_a_move_to_a_space_that_cannot_be_asked_waits(space, tmp_path):
    put(space, b"a")
    body = {
        "src": b"a".hex(),
        "old": "00",
        "copied": True,
        "copy": "11",
        "space": "s",
        "dst": b"b".hex(),
        "ctime_ns": 0,
    }
    with intents.of(space).begin() as ticket:
        ticket.record("out", body)
    replay(space)
    assert len(intents.of(space).pending()) == 1

    def gone(_space_id):
        raise FileNotFoundError(errno.ENOENT, "no such space")

    replay(space, gone)
    assert intents.of(space).pending() == []
    assert read(space, b"a") == b"content"


def test_two_replays_at_once(space):
    for n in range(5):
        put(space, b"%d" % n, b"old")
    numbers = []
    for n in range(20):
        with intents.of(space).begin() as ticket:
            write(space, b".fsd/staging/" + ticket.name)
            numbers.append(ticket.number)
    space.close()
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                replay(space)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert_right(space)
