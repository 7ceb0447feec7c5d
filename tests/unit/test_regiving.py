"""A tree that came back without attributes gets its ids back when a person says so, and only then."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.cli.main import main
from fsd.core import limbo, regiving
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.core.space import Space
from tests.model.old import FILES, OLD, assert_survives_the_index, fill, here, ids
from tests.support.worlds import differences, make_space, sweep


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path / "world")
    fill(made)
    yield made
    made.close()


def lose(space: Space, tmp_path: Path) -> dict[bytes, str]:
    """The tree `d` goes and comes back as a tool without attributes brings it; the ids before."""
    before = ids(space)
    backup = tmp_path / "backup"
    shutil.copytree(here(space) / "d", backup, copy_function=shutil.copyfile)
    for path in [backup, *backup.rglob("*")]:
        for name in os.listxattr(path):
            os.removexattr(path, name)
    shutil.rmtree(here(space) / "d")
    sweep(space)
    while limbo.settle(space, now=4e9):
        pass
    shutil.copytree(backup, here(space) / "d", copy_function=shutil.copyfile)
    (here(space) / "d/new").write_text("was never there")
    sweep(space)
    return before


TREE = {b"d", b"d/one", b"d/deep", b"d/deep/leaf"}


def test_a_tree_without_labels_is_found_and_given_back(space: Space, tmp_path: Path) -> None:
    before = lose(space, tmp_path)
    assert not {before[path] for path in TREE} & set(ids(space).values()), "nothing is given by itself"
    found = regiving.lost(space)
    assert {item.path for item in found} == TREE
    new = ids(space)[b"d/new"]
    assert regiving.give_back(space, found) == len(TREE)
    after = ids(space)
    assert {path: after[path] for path in TREE} == {path: before[path] for path in TREE}
    assert after[b"d/new"] == new and differences(space) == []
    assert regiving.lost(space) == []
    assert_survives_the_index(space)


def test_what_changed_meanwhile_is_left_alone(space: Space, tmp_path: Path) -> None:
    before = lose(space, tmp_path)
    found = regiving.lost(space)
    os.rename(here(space) / "d/one", here(space) / "d/two")
    sweep(space)
    assert regiving.give_back(space, found) == len(TREE) - 1
    assert before[b"d/one"] not in ids(space).values()
    assert differences(space) == []


def test_a_living_tree_has_lost_nothing(space: Space) -> None:
    assert regiving.lost(space) == []


def test_the_command_lists_and_gives_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fsd scan --relabel`: what it would do is shown, then done; a second time there is nothing left."""
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    registry = Registry(tmp_path / "state")
    space = registry.open(registry.create("x").id)
    (here(space) / "d").mkdir()
    for name in FILES[2:4]:
        (here(space) / name).parent.mkdir(parents=True, exist_ok=True)
        (here(space) / name).write_bytes(OLD)
    sweep(space)
    before = lose(space, tmp_path)
    space.close()
    command = [
        "--data",
        str(tmp_path / "data"),
        "--state",
        str(tmp_path / "state"),
        "scan",
        "x",
        "--relabel",
        "--yes",
    ]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "d/deep/leaf" in shown.err and "4 entries have their earlier ids" in shown.out
    assert {path: ids(space)[path] for path in TREE} == {path: before[path] for path in TREE}
    assert main(command) == 0
    assert "nothing stands" in capsys.readouterr().out
    space.close()
