"""A space for unit tests of the core, and plain helpers to fill and read it."""

from __future__ import annotations

import os
from pathlib import Path

from fsd.core import operations, tree
from fsd.core.content import Upload
from fsd.core.space import Space
from fsd.core.tree import Entry
from tests.support.worlds import differences, sweep


def put(space: Space, path: bytes, content: bytes = b"content", **options: object) -> tuple[Entry, bool]:
    with Upload(space, path, length=len(content), **options) as upload:
        upload.write(content)
        return upload.commit()


def move(
    space: Space,
    src: bytes,
    dst: bytes,
    *,
    to: Space | None = None,
    overwrite: bool = False,
    **options: object,
) -> object:
    return operations.move(space, src, to or space, dst, overwrite=overwrite, **options)  # type: ignore[arg-type]


def on_disk(space: Space, path: bytes) -> bytes:
    return os.path.join(space.root, path)


def read(space: Space, path: bytes) -> bytes:
    return Path(os.fsdecode(on_disk(space, path))).read_bytes()


def write(space: Space, path: bytes, content: bytes = b"from outside") -> None:
    Path(os.fsdecode(on_disk(space, path))).write_bytes(content)


def root_etag(space: Space) -> str:
    return tree.lookup(space, b"").etag


def staging(space: Space) -> list[bytes]:
    return os.listdir(on_disk(space, b".fsd/staging"))


def assert_right(space: Space, *, outside: bool = False) -> None:
    """The rows are what the disk says, and nothing is left over. `outside`: others wrote too, so look first."""
    if outside:
        sweep(space)
    assert differences(space) == []
    assert staging(space) == []
