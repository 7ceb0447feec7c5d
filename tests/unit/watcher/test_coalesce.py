"""Hints become a bounded set of waiting directories."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from watcher.coalesce import Coalescer, below
from watcher.hint import Hint, Kind


def entries(directory: bytes, *names: bytes, soft: bool = False, heard: float = 1.0) -> Hint:
    return Hint("s", Kind.ENTRIES, directory, frozenset(names), soft=soft, heard=heard)


def whole(directory: bytes) -> Hint:
    return Hint("s", Kind.DIRECTORY, directory, heard=1.0)


def test_names_of_one_directory_gather():
    batch = Coalescer()
    assert batch.add(entries(b"a", b"x", heard=1.0))
    assert not batch.add(entries(b"a", b"y", heard=3.0))
    item = batch.waiting[b"a"]
    assert item.names == {b"x", b"y"}
    assert (item.first, item.last) == (1.0, 3.0)


def test_the_whole_directory_swallows_names():
    batch = Coalescer()
    batch.add(entries(b"a", b"x"))
    batch.add(whole(b"a"))
    batch.add(entries(b"a", b"y"))
    assert batch.waiting[b"a"].names is None


def test_too_many_names_become_the_whole_directory():
    batch = Coalescer(max_names=3)
    batch.add(entries(b"a", b"1", b"2"))
    batch.add(entries(b"a", b"3", b"4"))
    assert batch.waiting[b"a"].names is None
    batch.add(entries(b"b", *[b"%d" % i for i in range(9)]))
    assert batch.waiting[b"b"].names is None


def test_too_many_directories_become_a_gap():
    batch = Coalescer(max_dirs=2)
    for directory in (b"a", b"b", b"c"):
        batch.add(entries(directory, b"x"))
    assert batch.gap
    assert not batch.waiting
    assert batch.collapsed == 1
    batch.add(entries(b"d", b"x"))
    assert set(batch.waiting) == {b"d"}, "what is heard after a gap may lie behind the sweep"


def test_soft_becomes_hard_and_says_so():
    batch = Coalescer()
    assert batch.add(entries(b"a", b"x", soft=True))
    assert not batch.add(entries(b"a", b"x", soft=True))
    assert batch.add(entries(b"a", b"x"))
    assert not batch.waiting[b"a"].soft
    batch.add(entries(b"a", b"y", soft=True))
    assert not batch.waiting[b"a"].soft


def test_subtree_stays_deep():
    batch = Coalescer()
    batch.add(Hint("s", Kind.SUBTREE, b"a"))
    batch.add(entries(b"a", b"x"))
    assert batch.waiting[b"a"].deep
    assert batch.waiting[b"a"].names is None


def test_a_moved_directory_takes_what_waits_below_it_along():
    batch = Coalescer()
    batch.add(entries(b"old/deep", b"x"))
    batch.add(entries(b"older", b"y"))
    batch.add(Hint("s", Kind.MOVED, b"new", peer=b"old"))
    assert batch.waiting[b"new/deep"].names == {b"x"}
    assert b"new" not in batch.waiting
    assert b"newer" not in batch.waiting
    batch.waiting[b"new/deep"].names.add(b"z")
    assert batch.waiting[b"old/deep"].names == {b"x"}, "copies do not share"
    assert batch.moves() == [(b"old", b"new")]
    assert batch.moves() == []


def test_two_directories_at_one_path_are_kept_apart():
    """The second came there after the first had been moved away."""
    batch = Coalescer()
    batch.add(Hint("s", Kind.ENTRIES, b"a", frozenset({b"x"}), binding=b"1"))
    batch.add(Hint("s", Kind.ENTRIES, b"a", frozenset({b"y"}), binding=b"2"))
    batch.add(Hint("s", Kind.ENTRIES, b"a", frozenset({b"z"}), binding=b"2"))
    assert (batch.waiting[b"a"].names, batch.waiting[b"a"].binding) == ({b"x"}, b"1")
    path, item = batch.elsewhere[b"2"]
    assert (path, item.names) == (b"a", {b"y", b"z"})


def test_what_could_not_be_kept_is_taken_over():
    first, later = Coalescer(), Coalescer()
    first.add(entries(b"old/a", b"x"))
    later.add(Hint("s", Kind.MOVED, b"new", peer=b"old"))
    later.add(entries(b"old/a", b"y"))
    first.take_over(later)
    assert first.waiting[b"old/a"].names == {b"x", b"y"}
    assert first.waiting[b"new/a"].names == {b"x"}
    assert first.moves() == [(b"old", b"new")]


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"a!", b"a0"]), min_size=1, max_size=3)))
def test_paths_at_or_below_one(parts: list[list[bytes]]):
    paths = sorted({b"/".join(each) for each in parts})
    for top in paths:
        assert set(below(paths, top)) == {each for each in paths if (each + b"/").startswith(top + b"/")}


def test_a_gap_forgets_single_directories():
    batch = Coalescer()
    batch.add(entries(b"a", b"x"))
    batch.add(Hint("s", Kind.GAP))
    assert batch.gap
    assert not batch.waiting


_HINTS = st.builds(
    Hint,
    space=st.just("s"),
    kind=st.sampled_from([Kind.ENTRIES, Kind.DIRECTORY, Kind.SUBTREE, Kind.GAP]),
    dir=st.sampled_from([b"", b"a", b"a/b", b"c"]),
    names=st.frozensets(st.sampled_from([b"1", b"2", b"3", b"4"]), min_size=1),
    soft=st.booleans(),
    heard=st.floats(0, 100),
)


@given(st.lists(_HINTS, max_size=30), st.integers(1, 4), st.integers(1, 3))
def test_nothing_is_lost_and_everything_is_bounded(hints: list[Hint], max_names: int, max_dirs: int):
    batch = Coalescer(max_names, max_dirs)
    for hint in hints:
        batch.add(hint)
        assert len(batch.waiting) <= max_dirs
        assert all(item.names is None or len(item.names) <= max_names for item in batch.waiting.values())
    if batch.gap:
        return
    for hint in hints:
        item = batch.waiting[hint.dir]
        assert item.names is None or hint.names <= item.names
        assert item.first <= hint.heard <= item.last
