"""A snapshot holds exactly as long as a new listing would say the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.core import snapshot, tree
from fsd.core.space import Space
from tests.support.worlds import make_space
from tests.unit.core_space import put


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path)
    yield made
    made.close()


@pytest.fixture
def taken(space: Space) -> snapshot.Snapshot:
    root = Path(os.fsdecode(space.root))
    (root / "d" / "sub").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (root / "d" / name).write_bytes(name.encode())
    _, _, made = snapshot.take(space, b"d")
    assert made is not None and made.holds(space)
    return made


CHANGES: dict[str, Callable[[Path, Space], object]] = {
    "content": lambda d, space: (d / "a").write_bytes(b"longer"),
    "times": lambda d, space: os.utime(d / "a", ns=(1, 1)),
    "mode": lambda d, space: (d / "a").chmod(0o600),
    "a link more": lambda d, space: os.link(d / "a", d.parent / "other"),
    "new": lambda d, space: (d / "n").touch(),
    "gone": lambda d, space: (d / "a").unlink(),
    "replaced": lambda d, space: os.replace(d / "b", d / "a"),
    "another kind": lambda d, space: ((d / "a").unlink(), (d / "a").mkdir()),
    "inside a folder": lambda d, space: ((d / "sub/f").write_bytes(b"1"), tree.listing(space, b"d/sub")),
    "our own": lambda d, space: put(space, b"d/a", b"A"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_visible_change_ends_it(space: Space, taken: snapshot.Snapshot, change: str) -> None:
    CHANGES[change](Path(os.fsdecode(space.root)) / "d", space)
    assert not taken.holds(space)
    _, entries, again = snapshot.take(space, b"d")
    assert again is not None and again.holds(space)
    assert again.entries == entries == tree.listing(space, b"d")[1]


def test_changes_elsewhere_do_not_end_it(space: Space, taken: snapshot.Snapshot) -> None:
    (Path(os.fsdecode(space.root)) / "elsewhere").write_bytes(b"x")
    tree.listing(space, b"")
    assert taken.holds(space)


def test_a_directory_that_is_gone_is_an_error(space: Space, taken: snapshot.Snapshot) -> None:
    (Path(os.fsdecode(space.root)) / "d").rename(Path(os.fsdecode(space.root)) / "e")
    with pytest.raises(FileNotFoundError):
        taken.holds(space)
