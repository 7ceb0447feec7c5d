"""Hints to reconcile, with a clock of our own and a real index."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsd.core import dirty
from fsd.core.errors import StorageUnavailable
from fsd.core.installation import Installation
from fsd.core.reconcile import reconcile
from fsd.core.registry import Registry
from fsd.core.space import Space
from fsd.core.sweep import Sweep
from watcher.drain import Drain
from watcher.hint import Hint, Kind


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def space(tmp_path: Path) -> Space:
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    registry = Registry(tmp_path / "state")
    space = registry.open(registry.create("p").id)
    assert Sweep(space).step(5.0).finished
    yield space
    space.close()
    registry.installation.close()


def hear(
    drain: Drain, directory: bytes, *names: bytes, soft: bool = False, kind: Kind = Kind.ENTRIES
) -> None:
    drain.hear(Hint("s", kind, directory, frozenset(names), soft=soft, heard=drain._clock()))
    drain.flush()


def write(space: Space, path: bytes, data: bytes = b"x") -> None:
    Path(space.root.decode(), path.decode()).write_bytes(data)


def verify(space: Space) -> None:
    sweep = Sweep(space)
    sweep.begin()
    assert sweep.step(5.0).finished


def usage(space: Space) -> int:
    with space.index.read() as db:
        return db.execute("SELECT total FROM dir WHERE n=1").fetchone()[0]


def test_a_hint_is_durable_before_it_is_handled(space: Space):
    drain = Drain(space, clock=Clock())
    write(space, b"f", b"12345")
    hear(drain, b"", b"f")
    (item,) = dirty.pending(space, 10, sweep=False)
    assert item.names == {b"f"}
    assert not drain.run(1.0)
    assert usage(space) == 5
    assert dirty.counts(space).hinted == 0
    assert drain.waiting() == 0
    assert drain.next_due() is None


def test_after_a_crash_the_next_drain_finds_what_waited(space: Space):
    write(space, b"f", b"12345")
    hear(Drain(space, clock=Clock()), b"", b"f")
    again = Drain(space, clock=Clock())
    again.refill(100.0)
    again.run(1.0)
    assert usage(space) == 5


def test_a_directory_under_fire_waits_and_a_quiet_one_does_not(space: Space):
    clock = Clock()
    passes: list[bytes] = []

    def slow(space: Space, path: bytes, names: object = None, **more: object):
        passes.append(path)
        clock.now += 0.1
        return reconcile(space, path, names, **more)

    for name in (b"fire", b"quiet"):
        Path(space.root.decode(), name.decode()).mkdir()
    verify(space)
    drain = Drain(space, clock=clock, work=slow)
    hear(drain, b"fire", kind=Kind.DIRECTORY)
    drain.run(1.0)
    hear(drain, b"fire", kind=Kind.DIRECTORY)
    hear(drain, b"quiet", b"a")
    drain.run(1.0)
    assert passes == [b"fire", b"quiet"]
    clock.now += 1.0
    drain.run(1.0)
    assert passes == [b"fire", b"quiet", b"fire"]


def failing(bad: bytes, error: Exception) -> Callable:
    def work(space: Space, path: bytes, names: object = None, **more: object):
        if path == bad:
            raise error
        return reconcile(space, path, names, **more)

    return work


def test_one_failing_directory_holds_up_nobody(space: Space, allow_log):
    allow_log("reconciling b'bad' failed")
    for name in ("bad", "good"):
        Path(space.root.decode(), name).mkdir()
    verify(space)
    clock = Clock()
    drain = Drain(space, clock=clock, work=failing(b"bad", OSError(errno.EIO, "broken disk")))
    write(space, b"good/f", b"123")
    hear(drain, b"bad", kind=Kind.DIRECTORY)
    hear(drain, b"good", b"f")
    drain.run(1.0)
    assert usage(space) == 3
    assert drain.errors["EIO"] == 1
    assert "broken disk" in drain.last_error
    assert drain.waiting() == 1
    drain.run(1.0)
    assert drain.errors["EIO"] == 1, "not before its time"
    clock.now += 0.3
    drain.run(1.0)
    assert drain.errors["EIO"] == 2
    assert drain.next_due() > clock.now + 0.4
    drain.forget_failures()
    assert drain.next_due() == clock.now


def test_defects_are_contained_too(space: Space, allow_log):
    allow_log("failed")
    drain = Drain(space, clock=Clock(), work=failing(b"", ZeroDivisionError("oops")))
    hear(drain, b"", b"f")
    drain.run(1.0)
    assert drain.errors["ZeroDivisionError"] == 1
    assert drain.waiting() == 1


def test_unavailable_storage_is_told_and_everything_still_waits(space: Space):
    drain = Drain(space, clock=Clock())
    hear(drain, b"", b"f")
    os.rename(space.root, space.root + b".away")
    space.close()  # the next use proves the root anew
    with pytest.raises(StorageUnavailable):
        drain.run(1.0)
    assert drain.waiting() == 1
    assert dirty.counts(space).hinted == 1
    os.rename(space.root + b".away", space.root)


def test_storage_that_is_away_inside_the_space_is_one_failing_directory(space: Space, allow_log):
    allow_log("reconciling b'' failed: ENODEV")
    drain = Drain(space, clock=Clock(), work=failing(b"", StorageUnavailable("an inner mount is away")))
    hear(drain, b"", b"f")
    drain.run(1.0)
    assert (drain.waiting(), drain.errors["ENODEV"]) == (1, 1)
    assert "inner mount" in drain.last_error


def test_a_new_directory_waits_for_its_parent(space: Space):
    drain = Drain(space)
    Path(space.root.decode(), "a/b/c").mkdir(parents=True)
    write(space, b"a/b/c/f", b"1234")
    for directory in (b"a/b/c", b"a/b", b"a"):
        hear(drain, directory, kind=Kind.DIRECTORY)
    hear(drain, b"", b"a")
    deadline = drain._clock() + 10
    while drain.waiting() and drain._clock() < deadline:
        drain.run(0.1)
    assert usage(space) == 4
    assert dirty.counts(space).hinted == 0


def test_what_waits_follows_a_renamed_directory(space: Space):
    root = Path(space.root.decode())
    (root / "old/deep").mkdir(parents=True)
    drain = Drain(space)
    hear(drain, b"", kind=Kind.SUBTREE)
    while drain.waiting():
        drain.run(0.1)
    drain._pacer.failed(b"old/deep", drain._clock())
    write(space, b"old/deep/f", b"12")
    hear(drain, b"old/deep", b"f")
    (root / "old").rename(root / "new")
    hear(drain, b"", b"old", b"new")
    drain.hear(Hint("s", Kind.MOVED, b"new", peer=b"old", heard=drain._clock()))
    drain.flush()
    while drain.waiting():
        drain.run(0.1)
    assert usage(space) == 2


def test_subtree_goes_all_the_way_down(space: Space):
    root = Path(space.root.decode())
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/link").symlink_to(root)
    drain = Drain(space)
    hear(drain, b"", kind=Kind.SUBTREE)
    while drain.waiting():
        drain.run(0.1)
    (root / "a/b/c/f").write_bytes(b"123456")
    hear(drain, b"a", kind=Kind.SUBTREE)
    while drain.waiting():
        drain.run(0.1)
    assert usage(space) == 6


def test_the_schedule_is_bounded_and_the_rest_comes_from_the_dirty_set(space: Space):
    root = Path(space.root.decode())
    for number in range(8):
        (root / f"d{number}").mkdir()
    verify(space)
    drain = Drain(space, max_scheduled=3)
    for number in range(8):
        (root / f"d{number}/f").write_bytes(b"1")
        hear(drain, b"d%d" % number, b"f")
    drain.run(0.0)
    assert drain.waiting() <= 3
    for _ in range(10):
        drain.run(1.0)
        drain.refill(drain._clock(), force=True)
    assert usage(space) == 8


def test_what_fails_does_not_hide_what_comes_behind_it(
    space: Space, monkeypatch: pytest.MonkeyPatch, allow_log
):
    """The dirty set is read on from where the last reading ended, not again and again from its oldest."""
    allow_log("failed")
    monkeypatch.setattr("watcher.drain.REFILL", 4)
    root = Path(space.root.decode())
    for number in range(12):
        (root / f"d{number:02d}").mkdir()
    verify(space)

    def work(space: Space, path: bytes, names: object = None, **more: object):
        if path < b"d06":
            raise OSError(errno.EIO, "broken disk")
        return reconcile(space, path, names, **more)

    for number in range(12):
        (root / f"d{number:02d}/f").write_bytes(b"1")
        dirty.mark(space, [(b"d%02d" % number, [b"f"])])
    drain = Drain(space, work=work, max_scheduled=6)
    for _ in range(6):
        drain.refill(drain._clock(), force=True)
        drain.run(1.0)
    assert usage(space) == 6


def test_a_directory_is_marked_by_what_it_is_not_by_where_it_was(space: Space):
    """Heard at its old place, moved, and its new place known already, because somebody listed it."""
    root = Path(space.root.decode())
    (root / "old").mkdir()
    verify(space)
    with space.index.read() as db:
        (binding,) = db.execute("SELECT binding FROM node WHERE name=?", (b"old",)).fetchone()
    drain = Drain(space)
    (root / "old/f").write_bytes(b"12345")
    (root / "old").rename(root / "new")
    reconcile(space, b"", [b"new"])
    drain.hear(Hint("s", Kind.ENTRIES, b"old", frozenset({b"f"}), heard=drain._clock(), binding=binding))
    drain.flush()
    (item,) = dirty.pending(space, 10, sweep=False)
    assert (item.path, item.names) == (b"new", {b"f"})
    drain.run(1.0)
    drain.refill(drain._clock(), force=True)
    drain.run(1.0)
    assert usage(space) == 5


def test_a_directory_whose_name_was_taken_is_served_where_it_is(space: Space):
    """The dirty row of the one that was renamed must outlive a pass over the one that has its name now."""
    root = Path(space.root.decode())
    (root / "d").mkdir()
    verify(space)
    drain = Drain(space)
    write(space, b"d/f", b"12345")
    hear(drain, b"d", b"f")
    (root / "d").rename(root / "e")
    (root / "d").mkdir()
    (item,) = dirty.pending(space, 10, sweep=False)
    reconcile(space, b"d", item.names, item=item)
    reconcile(space, b"", [b"d", b"e"])
    waiting = {each.path: each.names for each in dirty.pending(space, 10, sweep=False)}
    assert waiting[b"e"] == {b"f"}
    while drain.waiting() or dirty.counts(space).hinted:
        drain.run(0.1)
        drain.refill(drain._clock(), force=True)
    assert usage(space) == 5


def names_came_first(space: Space) -> None:
    assert usage(space) == 5
    assert not dirty.pending(space, 10, sweep=False)
    (item,) = dirty.pending(space, 10, sweep=True)
    assert (item.path, item.names) == (b"d", None), "the sweep still owes it a whole look"
    Sweep(space).step(5.0)
    assert usage(space) == 6


def test_a_hinted_name_does_not_wait_for_the_sweep_of_its_directory(space: Space):
    (Path(space.root.decode()) / "d").mkdir()
    verify(space)
    write(space, b"d/f", b"12345")
    (Path(space.root.decode()) / "d/unheard").write_bytes(b"1")
    dirty.mark(space, [(b"d", None)], sweep=True)
    drain = Drain(space)
    hear(drain, b"d", b"f")
    (item,) = dirty.pending(space, 10, sweep=False)
    assert item.names == {b"f"}
    drain.run(1.0)
    names_came_first(space)


def test_a_sweep_that_wants_a_directory_does_not_delay_the_names_that_wait_in_it(space: Space):
    (Path(space.root.decode()) / "d").mkdir()
    verify(space)
    write(space, b"d/f", b"12345")
    (Path(space.root.decode()) / "d/unheard").write_bytes(b"1")
    drain = Drain(space)
    hear(drain, b"d", b"f")
    dirty.mark(space, [(b"d", None)], sweep=True)
    (item,) = dirty.pending(space, 10, sweep=False)
    assert item.names == {b"f"}
    drain.run(1.0)
    names_came_first(space)


def test_what_a_sweep_finds_during_a_whole_pass_is_looked_at_again(space: Space):
    root = Path(space.root.decode())
    (root / "d").mkdir()
    verify(space)
    dirty.mark(space, [(b"d", None)])
    (item,) = dirty.pending(space, 10, sweep=False)
    dirty.begin(space, item)
    dirty.mark(space, [(b"d", None)], sweep=True)
    reconcile(space, b"d", None, item=item)
    (left,) = dirty.pending(space, 10, sweep=False)
    assert left.names is None


def test_names_that_come_during_a_whole_pass_don_t_ask_for_another_one(space: Space):
    root = Path(space.root.decode())
    (root / "d").mkdir()
    verify(space)
    drain = Drain(space)
    dirty.mark(space, [(b"d", None)])
    (item,) = dirty.pending(space, 10, sweep=False)
    dirty.begin(space, item)
    assert dirty.pending(space, 10, sweep=False)[0].names is None, "after a crash it is a whole one again"
    write(space, b"d/f", b"12345")
    dirty.mark(space, [(b"d", [b"f"])])
    reconcile(space, b"d", None, item=item)
    (left,) = dirty.pending(space, 10, sweep=False)
    assert left.names == {b"f"}
    dirty.mark(space, [(b"d", None)])
    assert dirty.pending(space, 10, sweep=False)[0].names is None
    drain.refill(drain._clock(), force=True)
    drain.run(1.0)
    assert dirty.counts(space).hinted == 0


def test_thousands_in_one_place_hold_up_nobody_elsewhere(space: Space):
    root = Path(space.root.decode())
    for number in range(40):
        (root / f"storm/d{number:02d}").mkdir(parents=True)
    (root / "calm").mkdir()
    verify(space)
    order: list[bytes] = []

    def work(space: Space, path: bytes, names: object = None, **more: object):
        order.append(path)
        return reconcile(space, path, names, **more)

    drain = Drain(space, work=work, max_scheduled=20)
    for number in range(40):
        hear(drain, b"storm/d%02d" % number, kind=Kind.DIRECTORY)
        drain.run(0.0)
    hear(drain, b"calm", b"f")
    drain.run(10.0)
    assert b"calm" in order[:3]


def test_echoes_of_our_own_labels_are_never_marked(space: Space):
    clock = Clock()
    drain = Drain(space, clock=clock)
    write(space, b"f", b"1")
    hear(drain, b"", b"f")
    drain.run(1.0)

    def echo() -> None:
        drain.hear(Hint("s", Kind.ENTRIES, b"", frozenset({b"f"}), heard=clock.now, meta=True))
        drain.flush()
        assert drain.next_due() > clock.now, "the labelling transaction gets its time"
        for _ in range(2):
            clock.now += 1.0
            drain.run(1.0)

    echo()
    assert (drain.echoes.dropped, drain.counts["names"]) == (1, 1)
    assert dirty.counts(space).hinted == 0
    os.chmod(space.root + b"/f", 0o600)
    echo()
    assert (drain.echoes.dropped, drain.counts["names"]) == (1, 2), "a foreign change of attributes is none"


def test_echoes_that_were_not_looked_at_are_kept_at_the_end(space: Space):
    drain = Drain(space, clock=Clock())
    drain.hear(Hint("s", Kind.ENTRIES, b"", frozenset({b"f"}), heard=100.0, meta=True))
    drain.close()
    assert dirty.counts(space).hinted == 1


def test_too_many_changed_attributes_are_marked_at_once(space: Space):
    drain = Drain(space, clock=Clock())
    for part in range(3):
        names = frozenset(b"%d" % number for number in range(part * 500, part * 500 + 500))
        drain.hear(Hint("s", Kind.ENTRIES, b"", names, heard=100.0, meta=True))
    drain.flush()
    assert dirty.counts(space).hinted == 1
    drain.close()
    (item,) = dirty.pending(space, 10, sweep=False)
    assert item.names is None or len(item.names) == 1500


def test_many_marks_at_once_merge_with_what_waits(space: Space):
    root = Path(space.root.decode())
    for name in ("named", "whole", "swept", "fresh"):
        (root / name).mkdir()
    verify(space)
    dirty.mark(space, [(b"named", [b"a"]), (b"whole", None)])
    dirty.mark(space, [(b"swept", None)], sweep=True)
    before = {item.path: item.stamp for item in dirty.pending(space, 10, sweep=False)}
    names = (b"named", b"whole", b"swept", b"fresh", b"no/such")
    dirty.mark(space, [(path, [b"b"]) for path in (*names, b"fresh")], by_path=True)
    items = {item.path: item for item in dirty.pending(space, 10, sweep=False)}
    assert {path: item.names for path, item in items.items()} == {
        b"named": {b"a", b"b"}, b"whole": None, b"swept": {b"b"}, b"fresh": {b"b"}, b"": {b"no"},
    }  # fmt: skip
    assert all(items[path].stamp > stamp for path, stamp in before.items()), (
        "a pass under way must not delete it"
    )


def test_a_directory_known_by_its_path_is_not_taken_for_the_one_that_was_there(space: Space):
    root = Path(space.root.decode())
    (root / "d").mkdir()
    verify(space)
    dirty.mark(space, [(b"d", [b"f"])], by_path=True)
    (item,) = dirty.pending(space, 10, sweep=False)
    (root / "d").rename(root / "e")
    (root / "d").mkdir()
    reconcile(space, b"", [b"d", b"e"])
    dirty.mark(space, [(b"d", [b"g"])], by_path=True)
    waiting = {each.path: (each.n, each.names) for each in dirty.pending(space, 10, sweep=False)}
    assert waiting[b"e"] == (item.n, {b"f"}) and waiting[b"d"][0] != item.n
