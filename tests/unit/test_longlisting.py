"""Listings of large directories: the same as any other, in little memory, at one moment."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import longlisting, tree
from fsd.core.space import Space
from tests.support.worlds import make_space, sweep


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path)
    yield made
    made.close()


@pytest.fixture
def directory(space: Space) -> Path:
    path = Path(os.fsdecode(space.root)) / "d"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "deep").write_bytes(b"12345")
    for name in (b"b", b"a", b"\xff", b"z z", b"0"):
        (path / os.fsdecode(name)).write_bytes(name)
    (path / "link").symlink_to("a")
    os.mkfifo(path / "fifo")
    return path


def test_it_says_what_a_listing_says(space: Space, directory: Path) -> None:
    sweep(space)
    own, entries = tree.listing(space, b"d")
    long = longlisting.read(space, b"d")
    assert (long.own, list(long), len(long)) == (own, entries, len(entries))
    assert list(long) == entries, "it can be read again"


def test_changes_are_taken_in_first(space: Space, directory: Path) -> None:
    sweep(space)
    (directory / "a").write_bytes(b"changed")
    (directory / "new").touch()
    (directory / "b").unlink()
    assert [entry.name for entry in longlisting.read(space, b"d")] == sorted(
        os.fsencode(n) for n in os.listdir(directory)
    )
    assert list(longlisting.read(space, b"d")) == tree.listing(space, b"d")[1]


def test_what_the_index_cannot_take_in_is_shown_from_the_disk(
    space: Space, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(space)
    before = list(longlisting.read(space, b"d"))
    for name in ("0a", "c", "zz"):
        (directory / name).write_bytes(b"n")
    (directory / "b").unlink()
    monkeypatch.setattr(tree, "take_in", lambda space, path, names: False)
    after = list(longlisting.read(space, b"d"))
    assert [entry.name for entry in after] == sorted(os.fsencode(name) for name in os.listdir(directory))
    assert set(before) - set(after) == {entry for entry in before if entry.name == b"b"}


def test_large_is_known_from_the_index_or_the_disk(
    space: Space, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(os.listdir(directory))
    for swept in (False, True):
        if swept:
            sweep(space)
        monkeypatch.setattr(longlisting, "LARGE", count - 1)
        assert longlisting.is_large(space, b"d")
        monkeypatch.setattr(longlisting, "LARGE", count)
        assert not longlisting.is_large(space, b"d")


def test_a_directory_nobody_has_looked_at_waits_for_the_watcher(
    space: Space, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longlisting, "LARGE", 3)
    tree.lookup(space, b"d")
    assert sorted(entry.name for entry in longlisting.read(space, b"d")) == sorted(
        os.fsencode(name) for name in os.listdir(directory)
    )


def test_an_entry_takes_little_memory(space: Space, directory: Path) -> None:
    for number in range(3000):
        (directory / f"file number {number:06d}").touch()
    sweep(space)
    tracemalloc.start()
    try:
        long = longlisting.read(space, b"d")
        held = tracemalloc.get_traced_memory()[0]
        assert sum(1 for _ in long) == len(long) > 3000
    finally:
        tracemalloc.stop()
    assert held / len(long) < 400


def test_a_file_and_nothing(space: Space, directory: Path) -> None:
    with pytest.raises(NotADirectoryError):
        longlisting.read(space, b"d/a")
    with pytest.raises(FileNotFoundError):
        longlisting.read(space, b"none")
