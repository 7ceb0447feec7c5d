"""What is learnt through one name of a node holds for its others: told, not looked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import dirty, hardlinks, index, reconcile
from fsd.core.index import NodeRow
from fsd.core.space import Space
from fsd.core.tree import lookup
from tests.support.worlds import differences, drain, make_space, sweep

SNAPSHOTS = 6


@pytest.fixture(params=["few", "many"])
def space(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Space]:
    if request.param == "many":
        monkeypatch.setattr(hardlinks, "MANY", 2)
    made = make_space(tmp_path)
    for number in range(4):
        (root(made) / f"base/d{number % 2}").mkdir(parents=True, exist_ok=True)
        (root(made) / f"base/d{number % 2}/f{number}").write_text(f"content {number}")
    sweep(made)
    yield made
    made.close()


def root(space: Space) -> Path:
    return Path(os.fsdecode(space.root))


def snapshot(space: Space, number: int) -> None:
    shutil.copytree(root(space) / "base", root(space) / f"s{number}", copy_function=os.link)
    dirty.mark(space, [(b"", [b"s%d" % number])])


def rows_of(space: Space) -> dict[str, NodeRow]:
    """The rows of all files that hang somewhere, by path."""
    with space.index.read() as db:
        query = "SELECT * FROM node WHERE kind=0 AND parent IS NOT NULL"
        found = [NodeRow._make(row) for row in db.execute(query)]
        return {os.fsdecode(path): row for row in found if (path := index.path_of(db, row.n)) is not None}


def untrue(space: Space) -> list[str]:
    """Names whose row says another ctime or number of names than the disk."""
    wrong = []
    for path, row in rows_of(space).items():
        found = (root(space) / path).lstat()
        if (row.ctime_ns, row.nlink) != (found.st_ctime_ns, found.st_nlink):
            wrong.append(path)
    return wrong


def waiting(space: Space) -> int:
    return len(dirty.pending(space, 1000, sweep=False))


def snapshots(space: Space) -> None:
    for number in range(SNAPSHOTS):
        snapshot(space, number)
        drain(space, together=True)


def test_a_snapshot_is_no_look_at_those_before_it(space: Space) -> None:
    served = []
    for number in range(SNAPSHOTS):
        snapshot(space, number)
        served.append(drain(space, together=True))
        assert not untrue(space)
    if hardlinks.MANY > SNAPSHOTS:
        assert len(set(served)) == 1
    assert not differences(space)


def test_etags_and_ids_of_the_others_stay_when_names_come_and_go(space: Space) -> None:
    snapshots(space)
    before = {path: lookup(space, os.fsencode(path)) for path in rows_of(space)}
    snapshot(space, SNAPSHOTS)
    drain(space)
    shutil.rmtree(root(space) / "s1/d0")
    for name in (b"f0", b"f2"):
        reconcile.reconcile(space, b"s1/d0", [name])
    drain(space)
    after = {path: lookup(space, os.fsencode(path)) for path in rows_of(space)}
    assert not untrue(space) and not differences(space)
    kept = [path for path in before if not path.startswith("s1/d0")]
    assert [(after[path].id, after[path].etag) for path in kept] == [
        (before[path].id, before[path].etag) for path in kept
    ]


def test_a_write_through_one_name_changes_all_etags_up_to_the_root(space: Space) -> None:
    snapshots(space)
    places = [b"base", *(b"s%d" % number for number in range(SNAPSHOTS))]
    paths = [place + below for place in places for below in (b"", b"/d1", b"/d1/f1")]
    before = {path: lookup(space, path).etag for path in [b"", *paths]}
    stays = lookup(space, b"s3/d1/f3").etag
    with (root(space) / "s2/d1/f1").open("a") as file:
        file.write("more")
    reconcile.reconcile(space, b"s2/d1", [b"f1"])
    drain(space)
    assert not [path for path in before if lookup(space, path).etag == before[path]]
    assert lookup(space, b"s3/d1/f3").etag == stays
    assert not untrue(space) and not differences(space)


def test_a_write_that_shows_in_the_ctime_alone_changes_all_etags(space: Space) -> None:
    snapshots(space)
    paths = [b"base/d1/f1", *(b"s%d/d1/f1" % number for number in range(SNAPSHOTS))]
    before = {path: lookup(space, path).etag for path in paths}
    file = root(space) / "s2/d1/f1"
    times, text = file.stat(), file.read_text()
    file.write_text(text.upper())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    reconcile.reconcile(space, b"s2/d1", [b"f1"])
    drain(space)
    assert not [path for path in before if lookup(space, path).etag == before[path]]
    assert not untrue(space)


def test_of_names_that_go_together_the_rest_is_told(space: Space) -> None:
    snapshots(space)
    for number in range(SNAPSHOTS - 1):
        (root(space) / f"s{number}/d0/f0").unlink()
        dirty.mark(space, [(b"s%d/d0" % number, [b"f0"])])
    drain(space, together=True)
    assert not untrue(space) and not differences(space)
    (root(space) / f"s{SNAPSHOTS - 1}/d0/f0").unlink()
    reconcile.reconcile(space, b"s%d/d0" % (SNAPSHOTS - 1), [b"f0"])
    drain(space, together=True)
    assert not untrue(space) and not differences(space)


def test_a_look_that_is_overtaken_tells_nothing_old(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked at; before it is taken in, another one comes and is taken in by somebody else."""
    base, other = root(space) / "base", Space(space.record, space.state_dir)
    os.link(base / "d0/f0", base / "d0/x")
    look, turns = reconcile.look_closer, []

    def overtaken(*arguments: object) -> object:
        seen = look(*arguments)  # type: ignore[arg-type]
        if not turns:
            turns.append(1)
            os.link(base / "d0/f0", base / "d1/y")
            reconcile.reconcile(other, b"base/d1", [b"y"])
        return seen

    monkeypatch.setattr(reconcile, "look_closer", overtaken)
    reconcile.reconcile(space, b"base/d0", [b"x"])
    drain(space)
    assert turns and not untrue(space) and not differences(space)
    other.close()


def test_all_have_the_same_ids_when_the_index_is_lost(space: Space) -> None:
    snapshots(space)
    os.rename(root(space) / "s1/d0/f0", root(space) / "s2/d1/moved")
    reconcile.reconcile_moved(space, b"s1/d0/f0", b"s2/d1/moved")
    drain(space)
    before = {path: row.id for path, row in rows_of(space).items()}
    assert not untrue(space)
    space.index.path.unlink()
    sweep(space)
    assert {path: row.id for path, row in rows_of(space).items()} == before and not differences(space)


def test_of_the_last_name_no_place_is_remembered(space: Space) -> None:
    """What the others were called would give it their ids when the index is lost."""
    base = root(space) / "base"
    os.link(base / "d1/f1", base / "d0/y")
    reconcile.reconcile(space, b"base/d0", [b"y"])
    drain(space)
    (base / "d0/new").write_text("new")
    os.rename(base / "d0/new", base / "d0/y")
    reconcile.reconcile(space, b"base/d1", [b"f1"])
    reconcile.reconcile(space, b"base/d0", [b"y"])
    drain(space)
    last = rows_of(space)["base/d1/f1"]
    assert space.state.bound_names(last.binding) == {b"": (last.id, last.rev)}
