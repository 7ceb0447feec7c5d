"""A file with very many names: a change of one is not work for each, and all of them are right in the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from fsd.core import announced, hardlinks, limbo
from fsd.core.announced import Announcer
from fsd.core.reconcile import reconcile, reconcile_moved
from fsd.core.space import Space
from fsd.core.tree import lookup
from tests.support.worlds import differences, drain, grow_quiet, make_space, rows, sweep

DEEP = b"/".join(b"d%d" % level for level in range(20))
MANY = 3 * hardlinks.MANY


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path)
    place(made).mkdir(parents=True)
    (place(made) / "f").write_bytes(b"one")
    sweep(made)
    yield made
    made.close()


def place(space: Space) -> Path:
    return Path(os.fsdecode(space.root)) / os.fsdecode(DEEP)


def _link(space: Space, first: int, beyond: int) -> None:
    for number in range(first, beyond):
        os.link(place(space) / "f", place(space) / f"n{number}")
    reconcile(space, DEEP, [b"n%d" % number for number in range(first, beyond)])


def _calls(work: Callable[[], object]) -> int:
    """How many functions, Python's and C's, are called: a measure of work that no load disturbs."""
    called = 0

    def count(frame: FrameType, event: str, what: object) -> None:
        nonlocal called
        called += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return called


def _announced(space: Space, announcer: Announcer, number: int) -> Callable[[], object]:
    def work() -> None:
        os.link(place(space) / "f", place(space) / f"n{number}")
        announcer.changed(DEEP, b"n%d" % number)
        announced.settle(space)

    return work


def test_one_more_name_is_as_much_work_as_the_one_before(space: Space) -> None:
    other = Space(space.record, space.state_dir)
    announcer = Announcer(other)
    _link(space, 0, MANY)
    few = min(_calls(_announced(space, announcer, MANY + number)) for number in range(5))
    _link(space, 1000, 1000 + 5 * MANY)
    many = min(_calls(_announced(space, announcer, 2 * MANY + number)) for number in range(5))
    assert many < 1.5 * few
    announcer.close()
    other.close()


def test_what_is_written_through_one_name_is_seen_at_all(space: Space) -> None:
    _link(space, 0, MANY)
    drain(space)
    ids = {path: node_id for path, (node_id, _, _) in rows(space).items()}
    (place(space) / "n7").write_bytes(b"longer than before")
    reconcile(space, DEEP, [b"n7"])
    drain(space)
    assert not differences(space)
    assert lookup(space, b"").size == (MANY + 1) * len(b"longer than before")
    assert {path: node_id for path, (node_id, _, _) in rows(space).items()} == ids


@pytest.mark.parametrize("order", ["old first", "new first", "by fsd"])
def test_a_name_that_moves_keeps_its_id_and_the_others_their_etags(space: Space, order: str) -> None:
    _link(space, 0, MANY)
    drain(space)
    os.mkdir(place(space) / "e")
    reconcile(space, DEEP, [b"e"])
    drain(space)
    mine = lookup(space, DEEP + b"/n5").id
    others = [lookup(space, DEEP + b"/n%d" % number).etag for number in range(6, MANY)]
    os.rename(place(space) / "n5", place(space) / "e/moved")
    steps = [lambda: reconcile(space, DEEP, [b"n5"]), lambda: reconcile(space, DEEP + b"/e", [b"moved"])]
    if order == "by fsd":
        reconcile_moved(space, DEEP + b"/n5", DEEP + b"/e/moved")
    else:
        for step in steps if order == "old first" else reversed(steps):
            step()
    drain(space)
    assert lookup(space, DEEP + b"/e/moved").id == mine
    assert [lookup(space, DEEP + b"/n%d" % number).etag for number in range(6, MANY)] == others
    assert not differences(space)


def test_names_go_one_after_the_other_and_the_last_keeps_its_id(space: Space) -> None:
    _link(space, 0, MANY)
    drain(space)
    last = lookup(space, DEEP + b"/n0").id
    for number in reversed(range(1, MANY)):
        (place(space) / f"n{number}").unlink()
        if number % 20 == 0:
            reconcile(space, DEEP, [b"n%d" % gone for gone in range(number, min(number + 20, MANY))])
    (place(space) / "f").unlink()
    reconcile(space, DEEP)
    drain(space)
    limbo.settle(space, now=4e9)
    assert not differences(space) and lookup(space, DEEP + b"/n0").id == last
    grow_quiet(space)
    assert lookup(space, DEEP + b"/n0").id == last


def test_all_have_the_same_ids_when_the_index_is_lost(space: Space) -> None:
    for first in range(0, MANY, 10):
        _link(space, first, min(first + 10, MANY))
    drain(space)
    before = rows(space)
    space.index.path.unlink()
    sweep(space)
    assert rows(space) == before and not differences(space)
