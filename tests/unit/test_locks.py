"""The lock table: RFC 4918's rules of conflict, paths as bytes, time as an argument."""

from types import SimpleNamespace

import pytest

from fsd.core import locks
from fsd.core.errors import Locked, QuotaExceeded
from fsd.core.locks import LockTable, LockUnknown, PathLocked
from fsd.core.state import State


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def table(now, tmp_path):
    state = State(tmp_path / "state.db", tmp_path / "state-lock")
    yield LockTable(SimpleNamespace(state=state, record=SimpleNamespace(id="s")), clock=lambda: now[0])
    state.close()


def lock(table, path, **options):
    return table.acquire(path, principal=options.pop("principal", "alice"), **options)


def test_no_lock_costs_one_look(table):
    assert not table.any()
    table.check(b"a/b", (), "alice", subtree=True, binding=True)
    assert table.drop(b"") == 0


def test_one_person_holds_so_many(table, now, monkeypatch):
    monkeypatch.setattr(locks, "MOST_HELD", 3)
    for name in (b"a", b"b", b"c"):
        lock(table, name)
    with pytest.raises(QuotaExceeded, match="You hold 3 locks"):
        lock(table, b"d")
    lock(table, b"d", principal="bob")
    now[0] += locks.DEFAULT_TIMEOUT_S + 1
    lock(table, b"e")


def test_a_refusal_says_where(table):
    lock(table, b"d/a")
    with pytest.raises(PathLocked) as caught:
        table.check(b"d", (), "alice", subtree=True)
    assert (caught.value.space_id, caught.value.path) == ("s", b"d/a")


def test_an_exclusive_lock_excludes_and_its_holder_passes(table):
    held = lock(table, b"a")
    with pytest.raises(Locked, match="'a' is locked"):
        lock(table, b"a", principal="bob")
    with pytest.raises(Locked):
        table.check(b"a", (), "alice")
    table.check(b"a", {held.token}, "alice")
    with pytest.raises(Locked):
        table.check(b"a", {held.token}, "bob")


def test_shared_locks_share(table):
    one = lock(table, b"a", exclusive=False)
    lock(table, b"a", exclusive=False, principal="bob")
    with pytest.raises(Locked):
        lock(table, b"a")
    table.check(b"a", {one.token}, "alice")


@pytest.mark.parametrize(
    ("first", "depth", "second", "second_depth", "free"),
    [
        (b"d", "infinity", b"d/x", "0", False),
        (b"d", "infinity", b"d/x/y", "0", False),
        (b"d", "0", b"d/x", "0", True),
        (b"d/x", "0", b"d", "infinity", False),
        (b"d/x", "0", b"d", "0", True),
        (b"d", "infinity", b"dd", "0", True),
        (b"", "infinity", b"anything", "0", False),
        (b"x\xff", "0", b"", "infinity", False),
        (b"d", "0", b"d", "0", False),
    ],
)
def test_depth_decides(table, first, depth, second, second_depth, free):
    lock(table, first, depth=depth)
    if free:
        lock(table, second, depth=second_depth)
    else:
        with pytest.raises(Locked):
            lock(table, second, depth=second_depth)


def test_a_parent_of_depth_0_protects_its_names_only(table):
    held = lock(table, b"d", depth="0")
    table.check(b"d/x", (), "alice")
    with pytest.raises(Locked):
        table.check(b"d/x", (), "alice", binding=True)
    table.check(b"d/x", {held.token}, "alice", binding=True)


def test_a_subtree_change_needs_every_token_below(table):
    one, two = lock(table, b"d/1"), lock(table, b"d/e/2")
    table.check(b"d", (), "alice")
    with pytest.raises(Locked, match="d/e/2"):
        table.check(b"d", {one.token}, "alice", subtree=True)
    table.check(b"d", {one.token, two.token}, "alice", subtree=True)


def test_locks_end(table, now):
    held = lock(table, b"a", timeout=60)
    now[0] += 59
    assert table.refresh(held.token, b"a").expires == now[0] + 60
    now[0] += 61
    assert table.get(held.token) is None
    assert table.covering(b"a") == []
    with pytest.raises(LockUnknown):
        table.refresh(held.token, b"a")
    lock(table, b"a", principal="bob")
    now[0] += 10**6
    assert table.expire() == 1
    assert not table.any()


def test_timeouts_are_bounded(table):
    assert lock(table, b"a", timeout=10**12).timeout == locks.MAX_TIMEOUT_S
    assert lock(table, b"b", timeout=-5).timeout == 1
    assert lock(table, b"c").timeout == locks.DEFAULT_TIMEOUT_S


def test_release_wants_a_path_that_the_lock_covers(table):
    held = lock(table, b"d")
    with pytest.raises(LockUnknown):
        table.release(held.token, b"e")
    assert table.release(held.token, b"d/below").path == b"d"
    with pytest.raises(LockUnknown):
        table.release(held.token, b"d")


def test_drop_takes_the_subtree_and_nothing_beside_it(table):
    for path in (b"d", b"e", b"d-", b"d0"):
        lock(table, path, depth="0")
    lock(table, b"d/x/\xff\xfe")
    assert table.drop(b"d") == 2
    assert {k.path for p in (b"e", b"d-", b"d0") for k in table.covering(p)} == {b"e", b"d-", b"d0"}
    assert table.drop(b"") == 3


def test_the_generation_tells_changes(table):
    seen = {table.generation()}
    held = lock(table, b"a")
    seen.add(table.generation())
    table.refresh(held.token, b"a")
    seen.add(table.generation())
    table.release(held.token, b"a")
    seen.add(table.generation())
    assert len(seen) == 4


def test_what_was_granted_can_be_read(table):
    held = lock(table, b"a", owner=b"<D:href>me</D:href>", depth="0")
    assert table.get(held.token) == held
    assert table.inside(b"") == [held]
    assert held.token.startswith("urn:uuid:")
