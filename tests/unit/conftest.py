"""The spaces that most tests of the core begin with; a file that needs another one has its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import operations
from fsd.core.space import Space
from tests.support.worlds import make_space
from tests.unit.core_space import put


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    """An empty one."""
    made = make_space(tmp_path / "one")
    yield made
    made.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Space]:
    """Another one on the same filesystem."""
    made = make_space(tmp_path / "two")
    yield made
    made.close()


@pytest.fixture
def filled(space: Space) -> Space:
    """`space` with two directories and three files."""
    operations.make_directory(space, b"d")
    operations.make_directory(space, b"d/sub")
    put(space, b"d/one", b"1")
    put(space, b"d/sub/two", b"22")
    put(space, b"file", b"333")
    return space
