"""What the index said of a file comes back without it: SIGKILL before each system call of a look, then the index is
deleted as well. Whatever a reader could have been told (id, etag) by then must be told again, as no content changed.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsd.core import entries, index, labels, populate, ready, relabel
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.tree import open_file
from tests.faults.world import contents
from tests.support import killpoints
from tests.support.worlds import differences, drain, grow_quiet, make_space, sweep

pytestmark = pytest.mark.skipif(not killpoints.available(), reason="needs ptrace of a child")

Told = dict[bytes, tuple[str, str]]


def told(space: Space) -> Told:
    """(id, etag) of every file of which the index says what the disk says."""
    found: Told = {}
    with space.index.read() as db:
        for fields in db.execute("SELECT * FROM node WHERE kind=0 AND parent IS NOT NULL").fetchall():
            row = index.NodeRow._make(fields)
            path = index.path_of(db, row.n)
            if path is None:
                continue
            try:
                now = os.lstat(os.path.join(space.root, path))
            except FileNotFoundError:
                continue
            if entries.fits(row, now):
                found[path] = (row.id.hex(), entries.file_entry(path, row).etag)
    return found


def lose_index(space: Space) -> None:
    space.index.close()
    for suffix in ("", "-wal", "-shm"):
        space.index.path.with_name(space.index.path.name + suffix).unlink(missing_ok=True)


def older(path: bytes) -> None:
    """An mtime that goes back: only a risen `rev` tells the two contents apart."""
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 10**9))


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def look(space: Space) -> None:
    """What hints of every name cause."""
    for top, dirs, names in os.walk(space.root):
        if b".fsd" in dirs:
            dirs.remove(b".fsd")
        here = os.path.relpath(top, space.root)
        reconcile(space, b"" if here == b"." else here, dirs + names)


def settle_all(space: Space) -> None:
    """What the watcher does each second, as if all had been quiet for a moment."""
    look(space)
    drain(space)
    readiness = ready.Readiness(space)
    readiness._quiet = lambda row: ready.CLOSED_S
    readiness.settle(1.0)
    relabel.label_due(space)


@dataclass(frozen=True)
class Case:
    """`before` is known and settled; `change` is made on disk while nobody looks; `operate` looks."""

    name: str
    change: Callable[[bytes], object]
    before: Callable[[bytes], object] | None = None
    reader: bool = False


def same_size_and_time(root: bytes) -> None:
    found = os.stat(root + b"/d/a")
    write(root + b"/d/a", b"AAAA")
    os.utime(root + b"/d/a", ns=(found.st_atime_ns, found.st_mtime_ns))


def saved_by_rename(root: bytes) -> None:
    write(root + b"/d/a.tmp", b"saved")
    os.rename(root + b"/d/a.tmp", root + b"/d/a")


def saved_beside_a_backup(root: bytes) -> None:
    os.rename(root + b"/d/a", root + b"/d/a~")
    write(root + b"/d/a", b"saved anew")


def backup_elsewhere(root: bytes) -> None:
    os.rename(root + b"/d/a", root + b"/e/a~")
    write(root + b"/d/a", b"saved anew")


def linked(root: bytes) -> None:
    os.link(root + b"/d/a", root + b"/d/second")
    os.link(root + b"/d/a", root + b"/e/third")


def linked_and_older(root: bytes) -> None:
    linked(root)
    older(root + b"/d/a")


def unlinked(root: bytes) -> None:
    os.unlink(root + b"/d/a")
    os.unlink(root + b"/e/third")


def exchanged(root: bytes) -> None:
    os.rename(root + b"/d/a", root + b"/d/x")
    os.rename(root + b"/d/b", root + b"/d/a")
    os.rename(root + b"/d/x", root + b"/d/b")


CASES = [
    Case("an older mtime", lambda root: older(root + b"/d/a")),
    Case("the same size and mtime", same_size_and_time),
    Case("saved by rename", saved_by_rename),
    Case("saved beside a backup", saved_beside_a_backup),
    Case("saved, the backup elsewhere", backup_elsewhere),
    Case("linked", linked),
    Case("linked, an older mtime", linked_and_older),
    Case("links go", unlinked, before=linked_and_older),
    Case("a link's content changes", lambda root: older(root + b"/d/second"), before=linked),
    Case("exchanged", exchanged),
    Case("new", lambda root: write(root + b"/d/new", b"new")),
    Case("ready", lambda root: None, reader=True),
]


@pytest.fixture
def make() -> Iterator[Callable[[Case], Space]]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-lost-") as base:
        made: list[Space] = []

        def fresh(case: Case) -> Space:
            while made:
                made.pop().close()
            space = make_space(Path(tempfile.mkdtemp(dir=base)))
            made.append(space)
            root = space.root
            for name in (b"/d", b"/e"):
                os.mkdir(root + name)
            for name in (b"/d/a", b"/d/b", b"/e/c"):
                write(root + name, name[-1:] * 4)
            sweep(space)
            grow_quiet(space)
            if case.before is not None:
                case.before(root)
                sweep(space)
                grow_quiet(space)
            if case.reader:
                _read_while_written(space)
            case.change(root)
            space.close()
            return space

        yield fresh
        while made:
            made.pop().close()


def _read_while_written(space: Space) -> None:
    """Served while it had a writer, which is through now."""
    path = space.root + b"/d/a"
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"w")
        look(space)
        os.close(open_file(space, b"d/a")[0])
    finally:
        os.close(fd)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-").replace(",", ""))
def test_a_look_is_killed_and_the_index_deleted(case: Case, make: Callable[[Case], Space]) -> None:
    space: list[Space] = []

    def fresh() -> None:
        space[:] = [make(case)]
        served.update(told(space[0]))
        space[0].close()

    def opened() -> Space:
        space[0].state.incarnation()
        with space[0].index.read():
            return space[0]

    stops, served = 0, {}
    for stop in killpoints.kill_at_each(opened, settle_all, fresh=fresh):
        assert stop.error is None, stop
        here = space[0]
        on_disk = contents(here.root)
        before = told(here)
        lose_index(here)
        sweep(here)
        after = told(here)
        where = f"{case.name}, killed before call {stop.index} ({stop.call})"
        assert contents(here.root) == on_disk
        assert {path: after.get(path) for path in before} == before, where
        # and for good: whoever looks again, and whatever waits until all is quiet
        settle_all(here)
        later = told(here)
        for path, known in before.items():
            # What was read while it had a writer changes its etag once, when it is ready.
            may_rise = case.reader and path == b"d/a" and known == served[path]
            assert later[path] == known or (may_rise and later[path][0] == known[0]), (
                f"{where}: {path!r} later"
            )
        stops += 1
    assert stops > 3


class _Shell:
    """What programs do to a few files, at random."""

    def __init__(self, root: bytes, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.names = [top + name for top in (b"/d/", b"/e/") for name in (b"a", b"b", b"c", b"a~")]

    def step(self) -> None:
        one, other = (self.root + name for name in self.random.sample(self.names, 2))
        with suppress(FileNotFoundError, FileExistsError):
            self.random.choice(
                [self.write, self.append, self.back, self.save, self.move, self.link, self.unlink]
            )(one, other)

    def write(self, one: bytes, _: bytes) -> None:
        write(one, self.random.randbytes(4))

    def append(self, one: bytes, _: bytes) -> None:
        with open(one, "r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(b"more")

    def back(self, one: bytes, _: bytes) -> None:
        with open(one, "r+b") as file:
            file.write(self.random.randbytes(1))
        older(one)

    def save(self, one: bytes, _: bytes) -> None:
        write(one + b".tmp", self.random.randbytes(4))
        os.rename(one + b".tmp", one)

    def move(self, one: bytes, other: bytes) -> None:
        os.rename(one, other)

    def link(self, one: bytes, other: bytes) -> None:
        os.link(one, other)

    def unlink(self, one: bytes, _: bytes) -> None:
        os.unlink(one)


@pytest.mark.parametrize("seed", [*range(8), 31, 116])
@pytest.mark.parametrize("label", ["now", "lazy", "none"])
def test_random_changes_and_an_index_that_is_lost(
    seed: int, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels fail at random, files are looked at by name or not at all, become ready or not: what the index says comes
    back without it, each time."""
    real = labels.set_on_entry
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-lost-") as base:
        space = make_space(Path(base), label=label)
        shell = _Shell(space.root, seed)
        chance = shell.random

        def put(dir_fd: int, name: bytes, value: bytes) -> bool:
            return chance.random() > 0.2 and real(dir_fd, name, value)

        monkeypatch.setattr(labels, "set_on_entry", put)
        monkeypatch.setattr(populate.labels, "set_on_entry", put)
        for name in (b"/d", b"/e"):
            os.mkdir(space.root + name)
        sweep(space)
        for turn in range(60):
            for _ in range(chance.randrange(1, 6)):
                shell.step()
            chance.choice([look, settle_all, grow_quiet, lambda _: None])(space)
            if turn % 3:
                continue
            before = told(space)
            lose_index(space)
            sweep(space)
            assert {path: told(space).get(path) for path in before} == before, f"turn {turn}"
            assert differences(space) == []
        space.close()
