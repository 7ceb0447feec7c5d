"""The operations that are stopped at each of their system calls, and the trees that may be left."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from fsd.core import arrivals, commit, moving, operations, populate, properties, steps, trash, tree
from fsd.core.content import Upload
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.sweep import Sweep
from tests.faults.world import BIG, TREE, Files, below, changed

NEW = b"the new content, longer than the old one"


@dataclass(frozen=True)
class Case:
    """`trees`: the new tree of each space. `old` is always allowed too; `preserved` contents must be findable."""

    name: str
    operate: Callable[[list[Space]], object]
    trees: tuple[Files, ...]
    old: tuple[Files, ...] = (TREE,)
    between: tuple[Files, ...] = ()
    """Trees of the only space that may be left as well, unless the operation goes through."""

    preserved: tuple[bytes, ...] = ()
    before: Callable[[bytes], object] | None = None
    elsewhere: bool = False
    """The second space is on another filesystem."""

    long: bool = False
    """Made of steps that other cases take too; by default only every third call of it is stopped at."""

    def step(self, big: bool) -> int:
        """From one stop to the next."""
        return 3 if self.long and not big else 1

    @property
    def allowed(self) -> list[list[Files]]:
        return [list(self.old), list(self.trees), *([tree] for tree in self.between)]

    @property
    def visible(self) -> bool:
        """Whether the operation changes the tree."""
        return self.old != self.trees


def put(path: bytes, **options: object) -> Callable[[list[Space]], object]:
    def operate(spaces: list[Space]) -> object:
        with Upload(spaces[0], path, length=len(NEW), **options) as upload:  # type: ignore[arg-type]
            upload.write(NEW)
            return upload.commit()

    return operate


def put_together(*paths: bytes) -> Callable[[list[Space]], object]:
    """New files that go to the disk and to the index at the same time, as those that a server gathers."""

    def operate(spaces: list[Space]) -> object:
        errors: list[BaseException] = []
        with ExitStack() as stack:
            waiting: list[tuple[steps.Steps[object], steps.Need]] = []

            def go_on(each: steps.Steps[object], outcome: arrivals.Outcome) -> None:
                try:
                    waiting.append((each, steps.resume(each, outcome)))
                except StopIteration:
                    pass
                except OSError as error:
                    errors.append(error)

            for path in paths:
                try:
                    upload = stack.enter_context(Upload(spaces[0], path, length=len(NEW)))
                    upload.write(NEW)
                except OSError as error:
                    errors.append(error)
                else:
                    go_on(upload.steps(), None)
            while waiting:
                outcomes = steps.serve([need for _, need in waiting])
                served, waiting[:] = waiting[:], []
                for (each, _), outcome in zip(served, outcomes, strict=True):
                    go_on(each, outcome)
        if errors:
            raise errors[0]
        return None

    return operate


def put_if_match(spaces: list[Space]) -> object:
    return put(b"file", if_match={tree.lookup(spaces[0], b"file").etag})(spaces)


def move(src: bytes, dst: bytes, *, to: int = 0) -> Callable[[list[Space]], object]:
    return lambda spaces: operations.move(spaces[0], src, spaces[to], dst, overwrite=True)


def copy(src: bytes, dst: bytes) -> Callable[[list[Space]], object]:
    return lambda spaces: operations.copy(spaces[0], src, spaces[0], dst, overwrite=True)


def set_properties(spaces: list[Space]) -> object:
    return properties.update(spaces[0], b"file", {"{n}a": b"1", "{n}b": b"2", "{n}c": b"3" * 3000})


def change_on_disk(root: bytes) -> None:
    """What programs do behind the server's back: create, write, replace by rename, move a directory, delete."""
    here = os.path.join(root, b"dir")
    for name, content in ((b"added", b"added"), (b"one.tmp", b"saved by rename")):
        with open(os.path.join(here, name), "wb") as file:
            file.write(content)
    os.rename(os.path.join(here, b"one.tmp"), os.path.join(here, b"one"))
    os.rename(os.path.join(here, b"sub"), os.path.join(here, b"moved"))
    os.unlink(os.path.join(here, b"moved/two"))


def first_sweep(spaces: list[Space]) -> None:
    """Of a tree whose nodes have lain there for long, so that they are labelled at sight."""
    populate.QUIET_S = commit.QUIET_S = -1.0  # in this process only, which is about to be killed
    spaces[0].index.close()
    spaces[0].index.path.unlink()
    run_sweep(spaces[0])


def run_sweep(space: Space) -> None:
    """A whole one, in steps as small as can be."""
    sweep = Sweep(space)
    sweep.begin()
    while not sweep.step(0.0).finished:
        pass


CHANGED = changed(
    gone=(b"dir/sub",),
    add={
        b"dir/added": b"added",
        b"dir/one": b"saved by rename",
        b"dir/moved": None,
        b"dir/moved/big": BIG,
    },
)


def leave_rubbish(root: bytes) -> None:
    """Staged things and trash info that nobody owns, a deep tree among them."""
    staging = os.path.join(root, b".fsd/staging")
    os.makedirs(os.path.join(staging, b"00000000000000aa", b"d" * 200, b"e" * 200))
    for path in (b"00000000000000ab", b"00000000000000aa/file", b"../trash/info/00000000000000ac.trashinfo"):
        with open(os.path.join(staging, path), "wb") as file:
            file.write(b"left over")


def put_into_trash(root: bytes) -> None:
    """A deleted file."""
    for path, content in (
        (b"files/00000000000000ad", b"came back"),
        (b"info/00000000000000ad.trashinfo", b"[Trash Info]\nPath=gone\n"),
    ):
        with open(os.path.join(root, b".fsd/trash", path), "wb") as file:
            file.write(content)


ONE = (
    Case("put new", put(b"new"), (changed(add={b"new": NEW}),)),
    Case(
        "put two together",
        put_together(b"new", b"dir/new"),
        (changed(add={b"new": NEW, b"dir/new": NEW}),),
        between=(changed(add={b"new": NEW}), changed(add={b"dir/new": NEW})),
    ),
    Case("put over", put(b"file"), (changed(add={b"file": NEW}),), preserved=(b"the old content",)),
    Case(
        "put if-match",
        put_if_match,
        (changed(add={b"file": NEW}),),
        preserved=(b"the old content",),
        long=True,
    ),
    Case("mkcol", lambda s: operations.make_directory(s[0], b"dir/new"), (changed(add={b"dir/new": None}),)),
    Case(
        "move file", move(b"file", b"dir/file"), (changed(gone=(b"file",), add={b"dir/file": TREE[b"file"]}),)
    ),
    Case(
        "move over file",
        move(b"file", b"other"),
        (changed(gone=(b"file",), add={b"other": TREE[b"file"]}),),
        preserved=(b"another file", b"the old content"),
    ),
    Case("move dir", move(b"dir", b"full/dir"), (changed(gone=(b"dir",), add=below(b"dir", b"full/dir")),)),
    Case(
        "move dir over dir",
        move(b"dir", b"full"),
        (changed(gone=(b"dir", b"full"), add=below(b"dir", b"full")),),
        preserved=(b"must not get lost", BIG, b"22"),
    ),
    Case(
        "move file over dir",
        move(b"file", b"full"),
        (changed(gone=(b"file", b"full"), add={b"full": TREE[b"file"]}),),
        preserved=(b"must not get lost",),
        long=True,
    ),
    Case(
        "delete file",
        lambda s: operations.delete(s[0], b"file"),
        (changed(gone=(b"file",)),),
        preserved=(b"the old content",),
    ),
    Case(
        "delete dir",
        lambda s: operations.delete(s[0], b"dir"),
        (changed(gone=(b"dir",)),),
        preserved=(BIG, b"22"),
    ),
    Case(
        "restore",
        lambda s: trash.restore(s[0], "00000000000000ad", b"back"),
        (changed(add={b"back": b"came back"}),),
        preserved=(b"came back",),
        before=put_into_trash,
        long=True,
    ),
    Case(
        "restore over file",
        lambda s: moving.out_of_trash(s[0], "00000000000000ad", b"file"),
        (changed(add={b"file": b"came back"}),),
        preserved=(b"the old content", b"came back"),
        before=put_into_trash,
    ),
    Case("copy file", copy(b"dir/sub/big", b"new"), (changed(add={b"new": BIG}),), long=True),
    Case("copy dir", copy(b"dir", b"new"), (changed(add=below(b"dir", b"new")),), long=True),
    Case(
        "copy dir over dir",
        copy(b"dir", b"full"),
        (changed(gone=(b"full",), add=below(b"dir", b"full")),),
        preserved=(b"must not get lost",),
        long=True,
    ),
    Case("properties", set_properties, (TREE,), long=True),
    Case(
        "reconcile names",
        lambda s: reconcile(s[0], b"dir", [b"one", b"added", b"sub", b"moved"]),
        (CHANGED,),
        old=(CHANGED,),
        before=change_on_disk,
    ),
    Case(
        "reconcile full", lambda s: reconcile(s[0], b"dir"), (CHANGED,), old=(CHANGED,), before=change_on_disk
    ),
    Case("first sweep", first_sweep, (TREE,), long=True),
    Case(
        "sweep after downtime",
        lambda s: run_sweep(s[0]),
        (CHANGED,),
        old=(CHANGED,),
        before=change_on_disk,
        long=True,
    ),
    Case("replay", lambda s: operations.replay(s[0]), (TREE,), before=leave_rubbish),
)

TWO = (
    Case(
        "move file across",
        move(b"file", b"arrived", to=1),
        (changed(gone=(b"file",)), changed(add={b"arrived": TREE[b"file"]})),
        old=(TREE, TREE),
    ),
    Case(
        "move dir across over dir",
        move(b"dir", b"full", to=1),
        (changed(gone=(b"dir",)), changed(gone=(b"full",), add=below(b"dir", b"full"))),
        old=(TREE, TREE),
        preserved=(b"must not get lost", BIG, b"22"),
        long=True,
    ),
    Case(
        "move file to another disk",
        move(b"file", b"other", to=1),
        (changed(gone=(b"file",)), changed(add={b"other": TREE[b"file"]})),
        old=(TREE, TREE),
        preserved=(b"the old content", b"another file"),
        elsewhere=True,
        long=True,
    ),
    Case(
        "move dir to another disk",
        move(b"dir", b"arrived", to=1),
        (changed(gone=(b"dir",)), changed(add=below(b"dir", b"arrived"))),
        old=(TREE, TREE),
        preserved=(BIG, b"22"),
        elsewhere=True,
        long=True,
    ),
)
