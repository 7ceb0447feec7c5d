"""Filesystems and spaces for the tests of identity."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core.space import Space
from tests.model.old import fill
from tests.support.mounts import KINDS, disk
from tests.support.worlds import make_space

WAYS = [(kind, True) for kind in KINDS] + [(KINDS[0], False)]
"""Filesystem, and whether to look after each call of a program or at its end only."""


@pytest.fixture(
    scope="module", params=WAYS, ids=lambda way: f"{way[0]}-{'each-call' if way[1] else 'at-the-end'}"
)
def way(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, bool]]:
    """A mounted filesystem of each kind, and how to look."""
    kind, every = request.param
    with disk(tmp_path_factory.mktemp("disk"), "fs", megabytes=64, kind=kind) as made:
        yield made.place, every


@pytest.fixture
def every(way: tuple[Path, bool]) -> bool:
    """Look after each call."""
    return way[1]


@pytest.fixture
def space(way: tuple[Path, bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Space]:
    """A file, another, and two trees that have been there for long."""
    base = way[0] / "base"
    monkeypatch.setenv("HOME", str(tmp_path))
    opened = make_space(base)
    fill(opened)
    yield opened
    opened.close()
    shutil.rmtree(base)
