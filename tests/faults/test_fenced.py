"""A host that is stopped in front of any call that others see, and goes on when another one has its lease: that one
call is made, and no more.

The second host takes over while the first stands still, by a clock that both share. What is looked at is the whole
tree with its attributes, `.fsd` as well, but for the leases, for what is staged, and for
what means nothing without the change that it prepares: the words on a deletion, properties under a name of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fsd.core import (
    dirty,
    moving,
    operations,
    partials,
    properties,
    relabel,
    together,
    trash,
    tree,
    uploads,
    versions,
)
from fsd.core.errors import Elsewhere
from fsd.core.partials import Partial
from fsd.core.space import Space
from tests.faults.two_hosts import SEEN, Clock, Stopped, World, changed
from tests.support import killpoints
from tests.support.worlds import differences, grow_quiet, sweep
from tests.unit.core_space import on_disk, put, read, write

pytestmark = pytest.mark.skipif(not killpoints.available(), reason="needs ptrace(2) on x86-64")


def many(space: Space) -> None:
    """A tree that is known, but for files that are new."""
    for number in range(3):
        os.makedirs(on_disk(space, b"d%d/sub" % number))
        write(space, b"d%d/old" % number, b"old %d" % number)
    sweep(space)
    for number in range(3):
        write(space, b"d%d/new" % number, b"new %d" % number)


def due(space: Space) -> None:
    """What has to be labelled is."""
    sweep(space)
    with space.index.write() as db:
        db.execute("UPDATE pending SET due=0, force=1")


def hinted(space: Space) -> None:
    """Names wait in each directory; the nodes are quiet, and so are labelled at once."""
    dirty.mark(space, [(b"d%d" % number, [b"new", b"old", b"a", b"b", b"c"]) for number in range(3)])


def fill(space: Space) -> None:
    """As `many`, with four names in each directory that are new."""
    for number in range(3):
        for name in (b"a", b"b", b"c"):
            write(space, b"d%d/%b" % (number, name), name)


def serve_hinted(space: Space) -> None:
    """As the watcher does."""
    together.reconcile_together(space, dirty.pending(space, 100, sweep=False), float("inf"))


def deleted(space: Space) -> None:
    put(space, b"gone", b"in the trash")
    operations.delete(space, b"gone")


def restore(space: Space) -> None:
    (item,) = trash.items(space)
    trash.restore(space, item.key)


def restore_over(space: Space) -> None:
    (item,) = trash.items(space)
    moving.out_of_trash(space, item.key, b"d0/old")


def remove(space: Space) -> None:
    (item,) = trash.items(space)
    trash.remove(space, item.key)


def versioned(space: Space) -> None:
    versions.use(space.state_dir, 1e9)
    for content in (b"1", b"2", b"3"):
        put(space, b"file", content)


def thin(space: Space) -> None:
    entry = tree.lookup(space, b"file")
    for version in versions.items(space, entry.id):
        versions.remove(space, entry.id, version.key)


def nothing(_space: Space) -> None:
    pass


def begun(space: Space) -> Partial:
    return uploads.begin(space, "u", name="up", path=b"uploaded", length=4)


def add_part(space: Space) -> None:
    with partials.opened(space, partials.get(space, "u", name="up")) as directory:
        part = partials.Part(space, directory, b"1")
        part.write(memoryview(b"part"))
        part.close()


def append(space: Space) -> None:
    """Twice, and what did not fit its checksum is taken back."""
    tail = uploads.Tail(space, partials.get(space, "u", name="up"), 0)
    tail.write(memoryview(b"12"))
    tail.close()
    tail = uploads.Tail(space, partials.get(space, "u", name="up"), 2, ("sha1", b"no"))
    tail.write(memoryview(b"34"))
    tail.close()


def appended(space: Space) -> None:
    tail = uploads.Tail(space, begun(space), 0)
    tail.write(memoryview(b"1234"))
    tail.close()


def finish(space: Space) -> None:
    uploads.finish(space, partials.get(space, "u", name="up"), space, b"uploaded", partials.Terms())


Step = Callable[[Space], object]
CASES: dict[str, tuple[Step, Step]] = {
    "put": (nothing, lambda space: put(space, b"d0/put", b"put")),
    "replace": (lambda space: put(space, b"file", b"1"), lambda space: put(space, b"file", b"22")),
    "delete": (nothing, lambda space: operations.delete(space, b"d0")),
    "mkdir": (nothing, lambda space: operations.make_directory(space, b"d0/made")),
    "move": (nothing, lambda space: operations.move(space, b"d0/old", space, b"d1/moved", overwrite=False)),
    "over": (nothing, lambda space: operations.move(space, b"d0/old", space, b"d1/old", overwrite=True)),
    "copy": (nothing, lambda space: operations.copy(space, b"d0", space, b"copy", overwrite=False)),
    "mtime": (nothing, lambda space: operations.set_mtime(space, b"d0/old", 10**18)),
    "properties": (
        nothing,
        lambda space: properties.update(space, b"d0/old", {"{n}a": b"1", "{n}b": b"2", "{n}c": b"3" * 3000}),
    ),
    "restore": (deleted, restore),
    "restore over": (deleted, restore_over),
    "remove": (deleted, remove),
    "thin": (versioned, thin),
    "begin": (nothing, lambda space: uploads.begin(space, "u", name="up", length=10)),
    "part": (begun, add_part),
    "tail": (begun, append),
    "finish": (appended, finish),
    "labels": (due, relabel.label_due),
    "sizes": (grow_quiet, relabel.publish_trees),
    "hinted": (lambda space: (fill(space), hinted(space)), serve_hinted),
    "sweep": (fill, sweep),
}


@pytest.mark.parametrize("name", CASES)
def test_the_call_it_was_stopped_at_is_the_last(tmp_path: Path, clock: Clock, name: str) -> None:
    prepare, operate = CASES[name]
    index, calls = 0, []
    while True:
        world = World(tmp_path / "world", clock)
        many(world.one)
        prepare(world.one)
        world.one.close()
        stopped = Stopped(world, index)

        def operated(_ready: object, world: World = world) -> None:
            with suppress(Elsewhere):
                operate(world.one)

        message = killpoints._run(lambda: None, operated, stopped, calls=sorted(SEEN))
        assert message is None, message
        if not stopped.call:
            world.close()
            break
        calls.append(stopped.call)
        after = world.seen()
        before, wrote = stopped.looks[0], stopped.looks[-1] if len(stopped.looks) > 1 else after
        assert changed(wrote, after) == [], (name, index, calls, changed(before, wrote))
        assert read(world.one, b"d2/old") == b"old 2"
        sweep(world.two)
        grow_quiet(world.two)
        assert differences(world.two) == []
        world.close()
        index += 1
    assert calls, "nothing was ever changed"
    print(f"{name}: stopped at {len(calls)} calls")


def test_a_host_that_follows_labels_nothing_in_its_sweep(tmp_path: Path, clock: Clock) -> None:
    world = World(tmp_path / "world", clock)
    many(world.one)
    fill(world.one)
    before = world.seen()
    sweep(world.two)
    assert changed(before, world.seen()) == []
    assert differences(world.two) == []
    world.close()
