"""Several hinted directories in one transaction: the same as one by one, in less; who was faster or fails is apart."""

from __future__ import annotations

import math
import os
import time
from contextlib import contextmanager

import pytest

from fsd.core import dirty, index, journal, relabel, together, tree
from fsd.core.commit import Commit
from fsd.core.reconcile import reconcile, reconcile_item
from fsd.core.space import Space
from tests.support import killpoints
from tests.support.worlds import differences, drain, grow_quiet, make_space, rows, sweep
from tests.unit.core_space import on_disk, read, write

COUNT = 20


@pytest.fixture
def many(space: Space) -> Space:
    """Directories two levels deep, each with a file `old` of two bytes; all of it known."""
    for number in range(COUNT):
        os.makedirs(on_disk(space, b"t%d/d%d" % (number % 3, number)))
        write(space, b"t%d/d%d/old" % (number % 3, number), b"22")
    sweep(space)
    grow_quiet(space)
    return space


def directory(number: int) -> bytes:
    return b"t%d/d%d" % (number % 3, number)


def hint(space: Space, *paths: bytes) -> list[dirty.Item]:
    """The waiting directories after hints for these entries, in this order."""
    parents = [path.rpartition(b"/")[0] for path in paths]
    dirty.mark(
        space, [(parent, [path.rpartition(b"/")[2]]) for parent, path in zip(parents, paths, strict=True)]
    )
    waiting = {item.path: item for item in dirty.pending(space, 1000, sweep=False)}
    return [waiting[parent] for parent in dict.fromkeys(parents)]


def hinted_news(space: Space) -> list[dirty.Item]:
    """A new file, a changed one and one that is gone in each directory."""
    paths = []
    for number in range(COUNT):
        here = directory(number)
        write(space, here + b"/new", b"4444")
        if number % 3 == 0:
            os.unlink(on_disk(space, here + b"/old"))
        elif number % 3 == 1:
            write(space, here + b"/old", b"333")
        paths += [here + b"/new", here + b"/old"]
    return hint(space, *paths)


@contextmanager
def commits(space: Space, monkeypatch: pytest.MonkeyPatch):
    """Counts the transactions of the index."""
    made = []
    commit = space.index.commit
    monkeypatch.setattr(space.index, "commit", lambda db: (made.append(1), commit(db)))
    yield made
    monkeypatch.setattr(space.index, "commit", commit)


def test_it_is_the_same_as_one_by_one_in_few_transactions(many: Space, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(together, "LOCKED_S", math.inf)
    items = hinted_news(many)
    number, etag = journal.last(many), tree.lookup(many, b"t0").etag
    with commits(many, monkeypatch) as made:
        outcomes = together.reconcile_together(many, items, math.inf)
    assert outcomes.keys() == {item.path for item in items}
    assert all(outcome.changed for outcome in outcomes.values())
    assert len(made) <= 2, "one for the rows, one for labels"
    assert dirty.counts(many).hinted == 0
    assert differences(many) == []
    told = [(change.kind, change.name) for change in journal.since(many, number)]
    assert told.count(("created", b"new")) == COUNT
    assert told.count(("deleted", b"old")) == len(range(0, COUNT, 3))
    assert told.count(("changed", b"old")) == len(range(1, COUNT, 3))
    assert tree.lookup(many, b"t0").etag != etag
    with many.index.read() as db:
        counters = {index.directory(db, n).counter for n in (index.ROOT, index.find(db, b"t0").n)}
        assert not db.execute("SELECT 1 FROM dir WHERE published AND n=?", (index.ROOT,)).fetchone()
    assert counters == {journal.last(many)}


def test_each_directory_says_what_reconcile_would_say(tmp_path):
    """The rows, sums and counts of commits of two equal trees, one served by each."""
    told = []
    for name in ("alone", "together"):
        space = make_space(tmp_path / name)
        for number in range(COUNT):
            os.makedirs(on_disk(space, directory(number)))
            write(space, directory(number) + b"/old", b"22")
        sweep(space)
        items = hinted_news(space)
        if name == "alone":
            for item in items:
                reconcile_item(space, item)
        else:
            assert len(together.reconcile_together(space, items, math.inf)) == len(items)
        with space.index.read() as db:
            query = (
                "SELECT node.name, size, nlink, rev, flags, own, total, seq, published FROM node"
                " LEFT JOIN dir USING (n) ORDER BY parent, name"
            )
            told.append((db.execute(query).fetchall(), db.execute("SELECT count(*) FROM pending").fetchall()))
        space.close()
    assert told[0] == told[1]


def test_what_does_not_differ_is_served_without_a_change(many: Space):
    items = hint(many, *(directory(number) + b"/old" for number in range(COUNT)))
    number = journal.last(many)
    outcomes = together.reconcile_together(many, items, math.inf)
    assert len(outcomes) == COUNT and not any(outcome.changed for outcome in outcomes.values())
    assert journal.last(many) == number and dirty.counts(many).hinted == 0


def test_who_was_faster_costs_only_that_directory(many: Space, monkeypatch: pytest.MonkeyPatch):
    """Another writer commits to one of them between the look and the transaction."""
    items = hinted_news(many)
    commit = together._commit

    def overtaken(space, looks, quiet):
        reconcile(space, directory(7), [b"new"])
        return commit(space, looks, quiet)

    monkeypatch.setattr(together, "_commit", overtaken)
    outcomes = together.reconcile_together(many, items, math.inf)
    assert {item.path for item in items} - outcomes.keys() == {directory(7)}
    assert [item.path for item in dirty.pending(many, 10, sweep=False)] == [directory(7)]
    drain(many)
    assert differences(many) == []


@pytest.mark.parametrize("order", [1, -1])
def test_what_moves_between_two_of_them_keeps_its_id_and_its_size(many: Space, order: int):
    """Files and whole directories, in which something changed as well, whichever side comes first."""
    os.mkdir(on_disk(many, b"t0/d0/sub"))
    write(many, b"t0/d0/sub/inside", b"55555")
    sweep(many)
    before = rows(many)
    os.rename(on_disk(many, b"t0/d0/old"), on_disk(many, b"t1/d1/moved"))
    write(many, b"t0/d0/sub/more", b"666666")
    os.rename(on_disk(many, b"t0/d0/sub"), on_disk(many, b"t2/d2/sub"))
    hinted = [b"t0/d0/old", b"t0/d0/sub", b"t1/d1/moved", b"t2/d2/sub"]
    items = hint(many, *hinted[::order])
    dirty.mark(many, [(b"t2/d2/sub", [b"more"])])  # known at its old place yet
    together.reconcile_together(many, items, math.inf)
    drain(many, together=True)
    assert differences(many) == []
    after = rows(many)
    assert after[b"t1/d1/moved"][0] == before[b"t0/d0/old"][0]
    assert after[b"t2/d2/sub"][0] == before[b"t0/d0/sub"][0]
    assert after[b"t2/d2/sub/inside"][0] == before[b"t0/d0/sub/inside"][0]


def test_changes_below_a_directory_that_moves_in_the_same_transaction(many: Space, monkeypatch):
    """Sums that are not yet carried up go where the directory is at the end."""
    monkeypatch.setattr(together, "LOCKED_S", math.inf)
    write(many, b"t0/d0/new", b"4444")
    inside = hint(many, b"t0/d0/new")
    commit = together._commit

    def moved(space, looks, quiet):
        os.rename(on_disk(space, b"t0/d0"), on_disk(space, b"t1/d0"))
        above = [
            look
            for item in hint(space, b"t1/d0", b"t0/d0")
            if item.path in (b"t0", b"t1") and (look := together._look(space, item, opened)) is not None
        ]
        assert len(above) == 2
        return commit(space, [*looks, *above], quiet)

    with together.ExitStack() as opened:
        monkeypatch.setattr(together, "_commit", moved)
        together.reconcile_together(many, inside, math.inf)
    monkeypatch.setattr(together, "_commit", commit)
    drain(many)
    assert differences(many) == []


def test_one_that_fails_holds_up_no_other_when_they_are_alone(many: Space, monkeypatch: pytest.MonkeyPatch):
    items = hinted_news(many)
    put = Commit.put

    def failing(work, seen):
        if work.path == directory(5):
            raise OSError(5, "refused")
        put(work, seen)

    with monkeypatch.context() as patch:
        patch.setattr(Commit, "put", failing)
        served = together.reconcile_together(many, items, math.inf)
        assert directory(5) not in served
        for item in items:
            if item.path not in served and item.path != directory(5):
                reconcile_item(many, item)
        assert [item.path for item in dirty.pending(many, 10, sweep=False)] == [directory(5)]
    drain(many)
    assert differences(many) == []


def test_who_waits_for_the_lock_is_let_in(many: Space, monkeypatch: pytest.MonkeyPatch):
    items = hinted_news(many)
    monkeypatch.setattr(many.index, "wanted", lambda: True)
    with commits(many, monkeypatch) as made:
        together.reconcile_together(many, items, math.inf)
    assert len(made) >= COUNT
    assert differences(many) == []


def test_it_ends_at_its_deadline(many: Space):
    items = hinted_news(many)
    served = together.reconcile_together(many, items, time.monotonic() - 1)
    assert len(served) == 1
    drain(many)
    assert differences(many) == []


def test_what_is_not_usual_is_left_to_reconcile(many: Space):
    """Another directory at the path, one that is gone, one that the index has not got."""
    items = hint(many, b"t0/d0/new", b"t1/d1/new", b"t2/d2/new", b"t0/d3/new")
    for number in (0, 1, 2, 3):
        write(many, directory(number) + b"/new")
    os.rename(on_disk(many, b"t0/d0"), on_disk(many, b"t0/elsewhere"))
    os.mkdir(on_disk(many, b"t0/d0"))
    os.rename(on_disk(many, b"t1/d1"), on_disk(many, b"outside"))
    served = together.reconcile_together(many, items, math.inf)
    assert served.keys() == {b"t2/d2", b"t0/d3"}
    drain(many)
    sweep(many)
    assert differences(many) == []


def test_labels_that_are_due_are_written_in_few_transactions(many: Space, monkeypatch: pytest.MonkeyPatch):
    together.reconcile_together(many, hinted_news(many), math.inf)
    with many.index.write() as db:
        db.execute("UPDATE pending SET due=0, force=1")
    with commits(many, monkeypatch) as made:
        relabel.label_due(many)
    assert len(made) <= 3, "labels, what is due, what is gone"
    for number in range(COUNT):
        assert os.getxattr(on_disk(many, directory(number) + b"/new"), "user.fsd.id")
    drain(many)
    assert differences(many) == []


@pytest.mark.skipif(not killpoints.available(), reason="needs ptrace(2) on x86-64")
def test_killed_at_each_step_it_is_done_or_waits(many: Space):
    """No hint is lost, whatever was written; the ids are the same in each life."""
    items = hinted_news(many)[:6]
    assert read(many, directory(0) + b"/new") == b"4444"
    many.index.close()
    many.state.close()

    def operate(_ready: object) -> None:
        waiting = [item for item in dirty.pending(many, 1000, sweep=False) if item.path in wanted]
        together.reconcile_together(many, waiting, math.inf)

    wanted = {item.path for item in items}
    for stop in killpoints.kill_at_each(lambda: None, operate):
        assert stop.error is None, stop
    drain(many)
    assert differences(many) == []


def test_a_new_tree_that_is_hinted_is_no_matter_of_sweeps(space: Space) -> None:
    """Also where a reader was faster than the hint, and went down into it."""
    sweep(space)
    os.makedirs(on_disk(space, b"d/e/f"))
    write(space, b"d/e/other", b"x")
    dirty.mark(space, [(b"d/e", [b"f"])])
    reconcile(space, b"d/e/f")
    drain(space)
    assert differences(space) == []
