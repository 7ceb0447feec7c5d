"""Work by the clock: what is due, for which spaces, and what a failure does."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fsd.core import journal, operations, trash, writers
from fsd.core.installation import Installation
from fsd.core.space import Space
from fsd.core.state import Tombstone
from fsd.core.sweep import Sweep
from fsd.service import checkpoints
from fsd.service.config import Settings
from fsd.service.jobs import Job, Jobs, forget_old, over_limit
from fsd.service.options import Address
from tests.support.waiting import wait_for


def item(key: str, deleted: float, size: int) -> trash.TrashItem:
    return trash.TrashItem(key, key.encode(), deleted, "f", size, 0, None)


def test_the_oldest_go_until_the_rest_fits():
    items = [item("new", 30.0, 10), item("old", 10.0, 10), item("middle", 20.0, 10)]
    assert [each.key for each in over_limit(items, 30)] == []
    assert [each.key for each in over_limit(items, 29)] == ["old"]
    assert [each.key for each in over_limit(items, 10)] == ["old", "middle"]
    assert [each.key for each in over_limit(items, 0)] == ["old", "middle", "new"]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    state, data = tmp_path / "state", tmp_path / "data"
    Installation.initialise(state, data)
    made = Jobs(Settings(data=data, state=state, ops_listen=Address("127.0.0.1", 0)))
    yield made
    made._registry.installation.close()


def add_space(jobs: Jobs, name: str) -> Space:
    space = jobs._registry.open(jobs._registry.create(name).id)
    Sweep(space).step(5.0)
    return space


def delete_file(space: Space, name: bytes, size: int) -> None:
    Path(os.fsdecode(space.root + b"/" + name)).write_bytes(b"x" * size)
    operations.delete(space, name)


def test_each_job_runs_when_it_is_due_for_each_space(jobs: Jobs):
    spaces = {add_space(jobs, name).record.name for name in ("a", "b")}
    done: list[str] = []
    jobs._jobs = [Job("j", 60.0, lambda space: done.append(space.record.name))]
    stop = threading.Event()
    jobs.turn(100.0, stop)
    assert sorted(done) == sorted(spaces)
    jobs.turn(159.0, stop)
    assert len(done) == 2
    jobs.turn(160.0, stop)
    assert len(done) == 4
    stop.set()
    jobs.turn(1000.0, stop)
    assert len(done) == 4


def test_a_failure_keeps_no_other_space_from_its_turn_and_is_said_once(jobs: Jobs, allow_log, caplog):
    allow_log("job j of space")
    for name in ("a", "b"):
        add_space(jobs, name)
    done: list[str] = []

    def work(space: Space) -> None:
        if space.record.name == "a":
            raise ValueError("bad")
        done.append(space.record.name)

    jobs._jobs = [Job("j", 0.0, work)]
    for turn in range(3):
        jobs.turn(float(turn), threading.Event())
    assert done == ["b", "b", "b"]
    assert len([record for record in caplog.records if "job j" in record.message]) == 1


def test_a_space_whose_storage_hangs_holds_up_its_own_jobs_alone(jobs: Jobs):
    add_space(jobs, "a"), add_space(jobs, "b")
    hang, done = threading.Event(), Counter[str]()

    def work(space: Space) -> None:
        if space.record.name == "a":
            hang.wait(60)
        done[space.record.name] += 1

    jobs._jobs = [Job("j", 0.0, work)]
    stop = threading.Event()
    thread = threading.Thread(target=jobs.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: done["b"] >= 2, timeout=30, what="the neighbour's turns")
        assert done["a"] == 0
        assert {(job, name) for job, name, _ in jobs._at_work.values()} >= {("j", "a")}
        hang.set()
        wait_for(lambda: done["a"] >= 2, timeout=30, what="its turns once it answers")
    finally:
        hang.set()
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def test_trash_is_kept_and_limited(jobs: Jobs):
    space = add_space(jobs, "a")
    for number in range(4):
        delete_file(space, b"f%d" % number, 100)
    jobs._trash(space)
    assert len(trash.items(space)) == 4
    jobs._settings = replace(jobs._settings, trash_limit=250)
    jobs._trash(space)
    assert sorted(each.name for each in trash.items(space)) == [b"f2", b"f3"]
    jobs._settings = replace(jobs._settings, trash_keep=0)
    time.sleep(0)
    jobs._trash(space)
    assert trash.items(space) == []


def test_the_operations_address_opens_and_closes(jobs: Jobs):
    stop = threading.Event()
    thread = threading.Thread(target=jobs.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_what_is_kept_for_a_while_is_not_kept_for_ever(jobs: Jobs, monkeypatch: pytest.MonkeyPatch):
    space = add_space(jobs, "a")
    monkeypatch.setattr(journal, "KEEP", 2)
    for name in (b"x", b"y", b"z"):
        operations.make_directory(space, name)
    now = time.time()
    space.state.bury(
        [Tombstone(b"o" * 16, b"", b"old", 0, 0, 1.0), Tombstone(b"n" * 16, b"", b"new", 0, 0, now)]
    )
    with space.state.write() as db:
        db.executemany("INSERT INTO handed VALUES (?, 'e', ?)", [(b"old", 1.0), (b"new", now)])
    forget_old(space)
    assert len(journal.since(space, 0)) == 2
    assert space.state.tombstone(b"o" * 16) is None and space.state.tombstone(b"n" * 16) is not None
    assert writers.served(space, [(b"old", "e")]) == set() and writers.served(space, [(b"new", "e")]) == {"e"}


def test_a_log_is_copied_the_sooner_the_faster_it_grows(jobs: Jobs, monkeypatch: pytest.MonkeyPatch):
    space = add_space(jobs, "one")
    now, pages, copied = [1000.0], [0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(space.index, "checkpoint", lambda: copied.append(now[0]) or pages[0])
    monkeypatch.setattr(space.index, "log_changed", lambda: pages[0] + 1)
    logs = checkpoints.Checkpoints()
    logs.step(space)
    for _ in range(300):  # 100 pages a second: every ten seconds
        now[0], pages[0] = now[0] + 1, pages[0] + 100
        logs.step(space)
    assert 28 <= len(copied) <= 32
    copied.clear()
    for _ in range(300):  # 10,000 a second: every second, once that is seen
        now[0], pages[0] = now[0] + 1, pages[0] + 10_000
        logs.step(space)
    assert len(copied) >= 290
    copied.clear()
    for _ in range(300):  # nothing written
        now[0] += 1
        logs.step(space)
    assert len(copied) <= 1
