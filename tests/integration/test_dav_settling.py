"""Uploads that are there together: one transaction and few syncs for their files, an answer for each."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dav.front.connection import State
from dav.front.loop import Loop
from fsd.core import arrivals, index, journal, quota, tree
from tests.support.waiting import wait_for
from tests.unit.dav.served import Served, Wire, serving

FILES = "/dav/files/alice"


@pytest.fixture(params=["none", "fsync"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    with serving(tmp_path, durability=request.param) as made:
        assert made.ask("PUT", f"{FILES}/known", body=b"x").status == 201
        yield made


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each transaction had."""
    sizes: list[int] = []
    take_in = arrivals.take_in

    def noted(space, some):
        sizes.append(len(some))
        return take_in(space, some)

    monkeypatch.setattr(arrivals, "take_in", noted)
    return sizes


def gather(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The leader waits for so many files before it settles any; from then on as ever."""
    usual = Loop._gather
    full = []

    def patient(loop: Loop) -> None:
        if full or len(loop._gathering) >= count:
            full.append(True)
            usual(loop)
        else:
            loop._ready.extend([fd for fd, _ in loop._epoll.poll(1)])

    monkeypatch.setattr(Loop, "_gather", patient)


def put(served: Served, names: list[str]) -> list[Wire]:
    return [
        served.wire().send(
            served.head("PUT", f"{FILES}/{name}", f"Content-Length: {len(name)}") + name.encode()
        )
        for name in names
    ]


def statuses(wires: list[Wire]) -> list[int]:
    found = [wire.answer() for wire in wires]
    return [answer.status for answer in found if answer is not None]


def test_files_that_are_there_together_share_a_transaction(served, monkeypatch, batches):
    space = served.space(served.personal())
    before, number = tree.lookup(space, b""), journal.last(space)
    gather(monkeypatch, 5)
    names = [f"new {n}".replace(" ", "-") for n in range(5)]
    wires = put(served, names)
    answers = [wire.answer() for wire in wires]
    assert [answer.status for answer in answers if answer] == [201] * 5
    assert batches == [5]
    after = tree.lookup(space, b"")
    assert after.etag != before.etag and after.size == before.size + sum(map(len, names))
    assert sorted(change.name for change in journal.since(space, number)) == sorted(map(str.encode, names))
    for name, answer in zip(names, answers, strict=True):
        assert (served.root() / name).read_text() == name
        assert answer.headers["etag"] == f'"{tree.lookup(space, name.encode()).etag}"'
    assert len({answer.headers["x-request-id"] for answer in answers}) == 5
    served.ask("GET", f"{FILES}/{names[0]}")  # and the connections go on
    assert statuses([wire.send(served.head("GET", f"{FILES}/known")) for wire in wires]) == [200] * 5


def test_each_file_and_their_directory_are_synced_before_any_answer(tmp_path, monkeypatch, batches):
    with serving(tmp_path) as served:
        assert served.ask("PUT", f"{FILES}/known", body=b"x").status == 201
        batches.clear()
        synced: list[int] = []
        fsync, take_in = os.fsync, arrivals.take_in

        def noted(fd):
            fsync(fd)
            synced.append(os.fstat(fd).st_ino)

        def all_durable(space, some):
            assert {os.fstat(new.fd).st_ino for new in some} <= set(synced)
            assert os.stat(served.root()).st_ino == synced[-1]
            return take_in(space, some)

        gather(monkeypatch, 4)
        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr(arrivals, "take_in", all_durable)
        assert statuses(put(served, ["a", "b", "c", "d"])) == [201] * 4
        assert len(synced) == 5 and batches == [4]


def test_one_that_cannot_be_written_is_refused_alone(tmp_path, monkeypatch, batches):
    with serving(tmp_path) as served:
        assert served.ask("PUT", f"{FILES}/known", body=b"x").status == 201
        batches.clear()
        fsync = os.fsync

        def broken(fd):
            if os.fstat(fd).st_size == 3:
                raise OSError(errno.EIO, "broken")
            fsync(fd)

        gather(monkeypatch, 3)
        monkeypatch.setattr(os, "fsync", broken)
        found = statuses(put(served, ["a", "bad", "c"]))
        assert found[0] == found[2] == 201 and found[1] >= 500 and batches == [2]
        assert not (served.root() / "bad").exists()


def test_the_next_request_of_a_connection_waits_for_the_answer(served, batches):
    wire = served.wire()
    for n in range(4):
        wire.send(served.head("PUT", f"{FILES}/p{n}", "Content-Length: 1") + b"x")
        wire.send(served.head("GET", f"{FILES}/p{n}"))
    assert [wire.answer().status for _ in range(8)] == [201, 200] * 4
    assert sum(batches) == 4


def test_two_for_one_path_do_not_wait_for_each_other_for_ever(served, monkeypatch, batches):
    usual, come = Loop._gather, []
    connections = served.server.loop._connections
    first, second = served.wire(), served.wire()

    def is_second(fd: int) -> bool:
        return fd in connections and connections[fd].socket.getpeername() == second.socket.getsockname()

    def until_both(loop: Loop) -> None:
        if come:
            usual(loop)
            return
        ready = [fd for fd, _ in loop._epoll.poll(1)]
        come.extend(filter(is_second, ready))
        loop._ready.extend(ready)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_gather", until_both)
        head = served.head("PUT", f"{FILES}/same", "Content-Length: 3")
        first.send(head + b"one")
        wait_for(lambda: any(c.state is State.GATHER for c in list(connections.values())))
        second.send(head + b"two")
        assert statuses([first, second]) == [201, 204]
    assert (served.root() / "same").read_bytes() == b"two"


def test_what_one_finds_changed_is_its_own_affair(served, monkeypatch, batches):
    space = served.space(served.personal())
    insert = arrivals._insert

    def changed(db, head, parent, new):
        if new.place.name == b"b":
            with open(served.root() / "b", "ab") as file:
                file.write(b"more")
        return insert(db, head, parent, new)

    monkeypatch.setattr(arrivals, "_insert", changed)
    gather(monkeypatch, 3)
    assert statuses(put(served, ["a", "b", "c"])) == [201] * 3
    assert batches == [3]
    assert [tree.lookup(space, name).size for name in (b"a", b"b", b"c")] == [1, 5, 1]


def test_an_index_that_is_full_takes_all_back(served, monkeypatch, batches):
    space = served.space(served.personal())
    usage = tree.usage(space)

    def full(_db):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(space.index, "commit", full)
        gather(patch, 3)
        assert statuses(put(served, ["a", "b", "c"])) == [507] * 3
    assert batches == [3]
    assert not any((served.root() / name).exists() for name in "abc")
    assert tree.usage(space) == usage
    assert statuses(put(served, ["a"])) == [201]


def test_near_the_quota_one_waits_for_the_other(served, monkeypatch, batches):
    space = served.space(served.personal())
    room = 4
    monkeypatch.setattr(quota, "_limit", lambda space, taken=tree.usage(space): taken + room)
    found = statuses(put(served, ["aaa", "bbb"]))
    assert sorted(found) == [201, 507]
    with space.index.read() as db:
        assert len([name for name in (b"aaa", b"bbb") if index.find(db, name)]) == 1


def test_a_stop_answers_those_that_wait(tmp_path, monkeypatch, batches):
    with serving(tmp_path, durability="none") as served:
        assert served.ask("PUT", f"{FILES}/known", body=b"x").status == 201
        monkeypatch.setattr(
            Loop, "_gather", lambda loop: os.sched_yield() if not loop._draining else loop._go_on()
        )
        wires = put(served, ["late"])
        wait_for(lambda: any(c.state is State.GATHER for c in served.server.loop._connections.values()))
        served.server.stop()
        assert statuses(wires) == [201]
