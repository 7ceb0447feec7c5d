"""A space whose nodes have been there for long (indexed, ready, labelled), and programs that are run in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fsd.core import claims, index, limbo, relabel
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.tree import lookup
from tests.support.stepping import step_through
from tests.support.worlds import differences, rows, sweep

OLD, NEW = b"the old text\nand more\n", b"the newer text\nand more\n"
FILES = ("f", "g", "d/one", "d/deep/leaf", "e/two")


def here(space: Space) -> Path:
    """Its root."""
    return Path(os.fsdecode(space.root))


def fill(space: Space) -> None:
    """Files and trees; beside the space `new`, to be brought in, and `pack`, a directory for this and that."""
    (here(space).parent / "pack").mkdir()
    (here(space).parent / "new").write_bytes(NEW)
    for name in FILES:
        (here(space) / name).parent.mkdir(parents=True, exist_ok=True)
        (here(space) / name).write_bytes(OLD)
    sweep(space)
    grow_old(space)


def grow_old(space: Space) -> None:
    """As if everything had lain there for a while: closed, quiet and labelled."""
    with space.index.write() as db:
        db.execute("UPDATE node SET flags=flags|?", (index.READY,))
        db.execute("UPDATE pending SET due=0, force=1")
    while relabel.label_due(space):
        pass


def pass_time(space: Space) -> None:
    """As if a minute had gone by since the last change: what vanished was deleted, open claims are decided."""
    while limbo.settle(space, now=time.time() + 60.0):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "GRACE_S", -1.0)
        look(space)
        patch.setattr(claims, "PLACE_FIRST_S", -1e6)
        look(space)
    with space.index.read() as db:
        assert not db.execute("SELECT 1 FROM node WHERE flags & ?", (index.CLAIMING,)).fetchone()
    grow_old(space)


def look(space: Space) -> None:
    """What a watcher does, but for all directories: some may be new, some moved."""
    for path, _, _ in os.walk(space.root):
        below = path[len(space.root) + 1 :]
        if below.partition(b"/")[0] != b".fsd":
            reconcile(space, below)


def run(space: Space, command: list[str], *, every: bool) -> list[str]:
    """Run a program in the space; with `every`, look after each of its system calls. The names of the calls."""

    def after(call: str) -> None:
        look(space)
        wrong = differences(space)
        assert not wrong, (call, wrong)

    calls = step_through(command, after if every else lambda call: None, cwd=space.root)
    assert calls, "the program changed nothing"
    sweep(space)
    assert differences(space) == []
    return calls


def ids(space: Space) -> dict[bytes, str]:
    """By path, as the index has them."""
    return {path: row[0] for path, row in rows(space).items()}


def assert_survives_the_index(space: Space) -> None:
    """Ids, sizes and file etags are the same from an index that is built anew."""
    pass_time(space)
    sweep(space)
    before = ids(space), lookup(space, b"").size, etags(space)
    space.index.path.unlink()
    sweep(space)
    assert (ids(space), lookup(space, b"").size, etags(space)) == before


def etags(space: Space) -> dict[bytes, str]:
    """Of all files."""
    return {path: lookup(space, path).etag for path, row in rows(space).items() if row[1] == "f"}
