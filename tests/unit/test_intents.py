"""Intents: durable before the change shows, owned while it runs, taken over only when its owner is gone."""

import errno
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from fsd.core import intents
from fsd.core.state import State


class FakeSpace(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.fixture
def space(tmp_path):
    state = State(tmp_path / "00.state.db", tmp_path / "00.state-lock")
    yield FakeSpace(state=state, state_dir=tmp_path, record=SimpleNamespace(hex="00"))
    state.close()


def test_an_intent_is_there_until_another_is_written(space):
    mine = intents.of(space)
    with mine.begin() as ticket:
        ticket.record("put", {"path": "61", "n": 1, "flag": None})
        assert mine.pending() == [(ticket.number, "put", {"path": "61", "n": 1, "flag": None})]
        ticket.finish()
    first = ticket.number
    assert mine.get(first)
    with mine.begin() as ticket:
        ticket.record("put", {})
    assert [i.number for i in mine.pending()] == [ticket.number]
    mine.delete([ticket.number])
    assert mine.pending() == []


def test_a_ticket_under_way_is_not_taken_over(space):
    mine = intents.of(space)
    with mine.begin() as ticket:
        with mine.take_over(ticket.number) as got:
            assert not got
        with mine.take_over(ticket.number ^ 1) as got:
            assert got
    with mine.take_over(ticket.number) as got:
        assert got
        with mine.take_over(ticket.number) as twice:
            assert not twice


def test_an_error_in_the_change_releases_the_number_and_keeps_the_intent(space):
    mine = intents.of(space)
    with pytest.raises(RuntimeError):
        with mine.begin() as ticket:
            ticket.record("put", {})
            raise RuntimeError
    assert mine.get(ticket.number)
    with mine.take_over(ticket.number) as got:
        assert got


def test_a_killed_process_loses_its_tickets(space):
    mine = intents.of(space)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with intents.of(space).begin() as ticket:
            os.write(write, b"%d" % ticket.number)
            signal.pause()
    number = int(os.read(read, 100))
    with mine.take_over(number) as got:
        assert not got
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with mine.take_over(number) as got:
        assert got
    os.close(read)
    os.close(write)


def test_a_refused_write_keeps_what_was_to_be_deleted(space, monkeypatch):
    mine = intents.of(space)
    with mine.begin() as ticket:
        ticket.record("put", {})
        ticket.finish()

    def full():
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(space.state, "write", full)
        with mine.begin() as second, pytest.raises(OSError):
            second.record("put", {})
    with mine.begin() as third:
        third.record("put", {})
    assert [i.number for i in mine.pending()] == [third.number]


def test_names_carry_the_number():
    assert intents.number_of(intents.staged_name(0xABC)) == 0xABC
    assert intents.number_of(intents.staged_name(7) + b".trashinfo") == 7
    assert intents.number_of(b"zz") is None
    assert intents.number_of(b"0123456789abcdefg") is None
    assert intents.number_of(b"photo of last summer") is None


def test_paths_are_changed_one_after_the_other(space):
    mine = intents.of(space)
    order = []
    inside, leave = threading.Event(), threading.Event()

    def first():
        with mine.alone(b"a", b"b"):
            inside.set()
            leave.wait(10)
            order.append("first")

    def second():
        with mine.alone(b"c", b"b"):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    with mine.alone(b"d"):
        pass
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]


def test_opposite_moves_do_not_wait_for_each_other(space, tmp_path):
    (tmp_path / "two").mkdir()
    other = FakeSpace(state=space.state, state_dir=tmp_path / "two", record=SimpleNamespace(hex="01", id="1"))
    space.record.id = "0"

    def go(ends):
        for _ in range(200):
            with intents.alone_in_both(*ends):
                pass

    ends = (space, b"a", other, b"b")
    threads = [threading.Thread(target=go, args=(e,)) for e in (ends, ends[2:] + ends[:2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
