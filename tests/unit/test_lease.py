"""Leases: one host at a time, whatever is stopped, lost or late; what a host without one may not do."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import (
    handover,
    labels,
    lease,
    operations,
    partials,
    relabel,
    replay,
    restoring,
    tree,
    uploads,
)
from fsd.core.errors import Elsewhere
from fsd.core.lease import Host, Lease, Record
from fsd.core.locks import LockTable
from fsd.core.registry import Registry
from fsd.core.space import Space
from fsd.service import alarms
from tests.support.seeds import seed_of
from tests.support.worlds import drain, make_space
from tests.unit.core_space import on_disk, put, read, write

TTL = 4.0


class Clock:
    """A host's clock, which goes on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Box:
    """A host: a state directory of its own, its lease on the shared space, its clock."""

    def __init__(self, name: str, space: Space, clock: Clock) -> None:
        self.name, self.space, self.clock = name, space, clock
        self.followed: list[Record | None] = []
        self.host = Host(name, f"http://{name}", TTL)
        lease.use(space.state_dir, self.host)
        self.lease = self.reborn()

    def reborn(self) -> Lease:
        """The lease as a new process of this host has it: it remembers nothing."""
        self.lease = Lease(self.space, self.host, self.followed.append, clock=self.clock)
        return self.lease

    def may_write(self) -> bool:
        """What the other processes of this host are told."""
        return lease.may_write(self.space)


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Box, Box, Clock]]:
    """Two hosts that share a space, and the clock of both."""
    clock = Clock()
    monkeypatch.setattr(lease, "boottime", clock)
    first = make_space(tmp_path / "one")
    state = tmp_path / "two"
    state.mkdir()
    second = Space(first.record, state)
    yield Box("one", first, clock), Box("two", second, clock), clock
    for space in (first, second):
        space.close()
        lease.use(space.state_dir, None)


def test_the_first_has_it_and_the_second_sees_who(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, _ = boxes
    assert one.lease.step() and not two.lease.step()
    assert one.may_write() and not two.may_write()
    assert one.followed == [None] and two.followed == []
    seen = lease.holder(two.space)
    assert seen is not None and (seen.name, seen.address, seen.token) == ("one", "http://one", 1)
    with pytest.raises(Elsewhere, match="host one"):
        put(two.space, b"f")


def test_a_host_that_shares_nothing_asks_nobody(tmp_path: Path) -> None:
    space = make_space(tmp_path)
    put(space, b"f")
    assert not os.path.exists(on_disk(space, b".fsd/lease"))
    space.close()


def test_it_is_kept_by_renewing_and_taken_once_it_stands_still(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, clock = boxes
    one.lease.step()
    for _ in range(20):
        clock.now += TTL / 4
        assert one.lease.step() and not two.lease.step()
    for _ in range(5):  # the holder is stopped
        assert not two.lease.step()
        clock.now += TTL / 4
    assert not one.may_write(), "its own clock ends it before anybody else may begin"
    clock.now += TTL / 4
    assert two.lease.step() and two.may_write() and not one.may_write()
    assert [old.name for old in two.followed if old] == ["one"]
    assert not one.lease.step(), "it notices that a higher token is there"
    assert sorted(os.listdir(on_disk(two.space, b".fsd/lease"))) == [b"%016x" % 2, b"state-%016x" % 2]


def test_a_lease_that_ran_out_is_never_renewed(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, clock = boxes
    one.lease.step()
    two.lease.step()
    clock.now += TTL
    assert one.lease.step() and lease.token(one.space) == 2
    assert one.followed[1] is not None and one.followed[1].name == "one"
    clock.now += TTL / 2
    assert not two.lease.step(), "the new token is a sign of life"


def test_a_renewal_that_took_too_long_does_not_count(
    boxes: tuple[Box, Box, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, clock = boxes
    one.lease.step()
    clock.now += TTL / 2
    slow = os.fsync

    def stopped(fd: int) -> None:
        slow(fd)
        clock.now += TTL * 0.75

    with monkeypatch.context() as stalls:
        stalls.setattr(os, "fsync", stopped)
        one.lease._renew(clock.now)  # as `step` does it, but for taking a new one at once
    assert not one.lease.held and not one.may_write()


def test_of_two_that_take_it_at_once_one_has_it(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, clock = boxes
    real = two.lease._take

    def late(number: int, old: Record | None) -> None:
        one.lease.step()
        real(number, old)

    two.lease._take = late  # type: ignore[method-assign]
    two.lease.step()
    assert one.lease.held and not two.lease.held
    clock.now += TTL / 4
    assert one.lease.step()


def test_given_back_it_is_free_at_once(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, _ = boxes
    one.lease.step()
    two.lease.step()
    one.lease.release()
    assert not one.may_write() and two.lease.step()


def test_a_new_process_of_the_holder_goes_on_without_a_gap(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, clock = boxes
    one.lease.step()
    clock.now += 1
    one.reborn()
    assert one.may_write() and one.lease.step() and not two.lease.step()
    assert one.followed[1] is not None and one.followed[1].host == lease.host_id(one.space.state_dir)


def test_a_storage_that_fails_lets_it_run_out(
    boxes: tuple[Box, Box, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, clock = boxes
    one.lease.step()

    def fail(*_args: object, **_options: object) -> int:
        raise OSError(errno.EIO, "gone")

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", fail)
        clock.now += TTL / 2
        with pytest.raises(OSError, match="gone"):
            one.lease.step()
        assert one.may_write(), "what it had holds until its time is over"
        clock.now += TTL / 2
        assert not one.may_write()
        with pytest.raises(OSError, match="gone"):
            one.lease.step()
    assert one.lease.step()


def test_never_two_at_once_whoever_is_stopped_when(
    boxes: tuple[Box, Box, Clock], monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """Random stops between any two steps and in the middle of each: at every write and every look at the tokens a host
    may be stopped for long while the other goes on."""
    one, two, clock = boxes
    seed = seed_of(pytestconfig)
    print("seed", seed)
    chance = random.Random(seed)
    took: set[str] = set()
    at_work: list[Box] = []

    def check() -> None:
        holders = [each.name for each in (one, two) if each.may_write()]
        assert len(holders) <= 1
        took.update(holders)

    def step(box: Box) -> None:
        at_work.append(box)
        try:
            box.lease.step()
        except FileNotFoundError:
            pass  # while it stood still the next host has cleared away what it was writing
        finally:
            at_work.pop()
        check()

    def stopped() -> None:
        if at_work and chance.random() < 0.3:
            clock.now += chance.choice((0.1, TTL / 4, TTL, TTL * 2))
            other = two if at_work[0] is one else one
            for _ in range(chance.randrange(8) if len(at_work) == 1 else 0):
                clock.now += TTL / 4
                step(other)

    listdir = os.listdir
    monkeypatch.setattr(os, "fsync", lambda _fd: stopped())
    monkeypatch.setattr(os, "listdir", lambda place: (stopped(), listdir(place), stopped())[1])
    for _ in range(150):
        clock.now += chance.choice((0.1, TTL / 4, TTL / 4, TTL / 2, TTL * 2))
        box = chance.choice((one, two))
        if chance.random() < 0.05:
            box.lease.release()
        elif chance.random() < 0.05:
            box.reborn()
        else:
            step(box)
        check()
    assert took == {"one", "two"}


def twin(box: Box, of: Box) -> None:
    """Make a host a copy of another one: its id, and what it was told of the lease; booted on its own."""
    for name in ("host.id", f"{of.space.record.hex}.lease", f"{of.space.record.hex}.holder"):
        (box.space.state_dir / name).write_bytes((of.space.state_dir / name).read_bytes())
    box.lease = Lease(box.space, box.host, box.followed.append, clock=box.clock, boot="another")


def test_a_copy_of_the_holder_follows_and_says_so(boxes: tuple[Box, Box, Clock]) -> None:
    """A state directory that was copied, or a machine that was cloned, has the same host id."""
    one, two, clock = boxes
    assert one.lease.step()
    (two.space.state_dir / "host.id").unlink(missing_ok=True)
    twin(two, one)
    (
        two.space.state_dir / f"{one.space.record.hex}.lease"
    ).unlink()  # else it is told that it may for a moment
    for _ in range(12):
        clock.now += TTL / 4
        assert one.lease.step() and not two.lease.step() and not two.may_write()
    assert "host.id" in two.lease.trouble
    clock.now += TTL * lease.PATIENCE + 0.1
    assert two.lease.step() and not one.may_write()
    old = two.followed[-1]
    assert old is not None and not lease.is_ours(two.space, old, "another"), "its index is not the holder's"


def test_of_two_copies_that_go_on_with_one_lease_one_gives_up(boxes: tuple[Box, Box, Clock]) -> None:
    """A machine that was cloned with all that runs: both believe that they have it."""
    one, two, clock = boxes
    assert one.lease.step()
    twin(two, one)
    two.lease._boot = one.lease._boot
    two.lease._token, two.lease._marks = one.lease._token, one.lease._marks
    two.lease.until, two.lease._turn = one.lease.until, one.lease._turn
    clock.now += TTL / 4
    assert one.lease.step()
    assert not two.lease._renew(clock.now) and "copies" in two.lease.trouble


def test_a_lease_whose_files_are_lost_is_not_free_at_once(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, clock = boxes
    assert one.lease.step() and not two.lease.step()
    for _ in range(3):
        clock.now += 0.5
        assert one.lease.step() and not two.lease.step()
    place = os.path.join(os.fsdecode(one.space.root), ".fsd", "lease")
    for name in os.listdir(place):
        os.unlink(os.path.join(place, name))
    for reborn in (False, True):
        if reborn:
            two.reborn()
        assert not two.lease.step(), "who had it believes in it still"
        assert not (one.may_write() and two.may_write())
    before = lease.token(one.space)
    assert not one.lease.step() and not one.may_write()
    clock.now += TTL * lease.PATIENCE + 0.1
    assert two.lease.step() and not one.may_write()
    assert lease.token(two.space) > before, "tokens only rise"


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1, 2]", b"\xff" * 5000, b'[1,"x","y","z",1,false,"",1,2]'])
def test_a_damaged_record_is_given_up_and_taken_anew(boxes: tuple[Box, Box, Clock], damage: bytes) -> None:
    one, two, clock = boxes
    assert one.lease.step() and not two.lease.step()
    place = os.path.join(os.fsdecode(one.space.root), ".fsd", "lease")
    (name,) = (each for each in os.listdir(place) if len(each) == 16)
    with open(os.path.join(place, name), "wb") as file:
        file.write(damage)
    for _ in range(40):
        clock.now += TTL / 4
        for box in (one, two):
            box.lease.step()
            assert not (one.may_write() and two.may_write())
    assert one.may_write() or two.may_write()


def test_without_it_nothing_is_changed_labelled_or_settled(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, clock = boxes
    one.lease.step()
    two.lease.step()
    put(one.space, b"f", b"1")
    write(one.space, b"outside", b"22")
    assert tree.lookup(two.space, b"f").id == tree.lookup(one.space, b"f").id
    assert {entry.path for entry in tree.listing(two.space, b"")[1]} == {b"f", b"outside"}
    for change in (
        lambda: put(two.space, b"f", b"2"),
        lambda: operations.make_directory(two.space, b"d"),
        lambda: operations.delete(two.space, b"f"),
        lambda: operations.move(two.space, b"f", two.space, b"g", overwrite=True),
    ):
        with pytest.raises(Elsewhere):
            change()
    with two.space.index.write() as db:
        db.execute("UPDATE pending SET due=0, force=1")
    relabel.label_due(two.space)
    relabel.publish_trees(two.space)
    drain(two.space)
    replay.replay(two.space)
    for name in (b"outside", b""):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(on_disk(two.space, name), labels.TREE_ATTRIBUTE)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(on_disk(two.space, b"outside"), labels.ID_ATTRIBUTE)
    assert read(two.space, b"f") == b"1"
    clock.now += TTL * 2
    with pytest.raises(Elsewhere):
        put(one.space, b"f", b"3")
    assert read(one.space, b"f") == b"1"


def test_a_space_that_was_taken_over_says_no_etag_again_and_is_not_taken_for_restored(
    tmp_path: Path,
) -> None:
    from fsd.core.installation import Installation

    one = Installation.initialise(tmp_path / "state", tmp_path / "data")
    registry = Registry(one.state_dir)
    record = registry.create("shared")
    space = registry.open(record.id)
    put(space, b"f")
    before = tree.lookup(space, b"")
    restoring.raise_epoch(space, one)
    for _ in range(7):  # another host works on it, for long
        with open(space.root + b"/.fsd/epoch", "r+b") as file:
            number = int(file.read())
            file.seek(0)
            file.write(b"%d\n" % (number + 1))
    restoring.take_over(space, one)
    assert not restoring.went_back(space, one)
    after = tree.lookup(space, b"")
    assert after.etag != before.etag and after.id == before.id
    assert tree.lookup(space, b"f").etag
    space.close()


def test_locks_and_uploads_under_way_go_over_to_the_next_host(boxes: tuple[Box, Box, Clock]) -> None:
    one, two, clock = boxes
    one.lease.step()
    two.lease.step()
    gone = LockTable(two.space).acquire(b"of old", principal="x")
    lock = LockTable(one.space).acquire(b"\xff", principal="x", owner=b"<me/>")
    begun = uploads.begin(one.space, "user", path=b"f\xff", length=5)
    tail = uploads.Tail(one.space, begun, 0)
    tail.write(memoryview(b"123"))
    tail.close()
    one.lease.step()
    for _ in range(8):  # it is not heard of any more
        two.lease.step()
        clock.now += TTL / 4
    assert two.lease.held
    held = LockTable(two.space).covering(b"\xff")
    assert [(each.token, each.owner) for each in held] == [(lock.token, b"<me/>")]
    assert not LockTable(two.space).covering(gone.path)
    again = partials.get(two.space, "user", ident=begun.id)
    assert again == begun
    tail = uploads.Tail(two.space, again, 3)
    tail.write(memoryview(b"45"))
    assert tail.close()


def test_what_a_holder_hands_down_is_written_when_it_changed(
    boxes: tuple[Box, Box, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, clock = boxes
    written: list[bytes] = []
    real = handover.write
    monkeypatch.setattr(handover, "write", lambda *args: (written.append(args[2]), real(*args)))
    for _ in range(3):
        one.lease.step()
        clock.now += TTL / 4
    LockTable(one.space).acquire(b"f", principal="x")
    one.lease.step()
    one.lease.step()
    assert len(written) == 2


def test_a_host_that_does_not_share_what_another_works_on_is_told(
    boxes: tuple[Box, Box, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = boxes
    lease.use(two.space.state_dir, None)
    assert lease.kept_by_others(two.space) is None and not os.path.exists(on_disk(one.space, b".fsd/lease"))
    one.lease.step()
    assert lease.kept_by_others(two.space) == "one" and lease.kept_by_others(one.space) is None
    old = os.stat(on_disk(one.space, b".fsd/lease/%016x" % 1)).st_mtime - 2 * lease.RECENT
    os.utime(on_disk(one.space, b".fsd/lease/%016x" % 1), (old, old))
    assert lease.kept_by_others(two.space) is None
    one.lease.step()
    one.lease.release()
    assert lease.kept_by_others(two.space) is None


def test_a_host_that_follows_does_not_take_the_epoch_for_a_restore(tmp_path: Path) -> None:
    from fsd.core.installation import Installation

    Installation.initialise(tmp_path / "state", tmp_path / "data").close()
    registry = Registry(tmp_path / "state")
    record = registry.create("shared")
    space = registry.open(record.id)
    put(space, b"f")
    restoring.raise_epoch(space, registry.installation)
    Path(os.fsdecode(space.root + b"/.fsd/epoch")).write_text(
        "9\n"
    )  # as the host that works on it has it by now
    assert "rolled-back" in alarms.of(registry, record)
    lease.use(registry.state_dir, Host("two", "", TTL))
    try:
        assert alarms.of(registry, record) == {}
    finally:
        lease.use(registry.state_dir, None)
        space.close()
