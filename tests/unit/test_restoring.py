"""Trees and states that went back in time are noticed, and only those."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fsd.core import restoring, tree
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.core.space import Space
from fsd.service import config
from fsd.service.jobs import Jobs
from tests.support.waiting import wait_for


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    return Registry(tmp_path / "state")


@pytest.fixture
def space(registry: Registry) -> Space:
    space = registry.open(registry.create("x").id)
    change(space)
    restoring.raise_epoch(space, registry.installation)
    return space


def change(space: Space, name: str = "file") -> None:
    Path(os.fsdecode(space.root), name).write_text("x")
    tree.listing(space, b"")


def epoch(space: Space) -> Path:
    return Path(os.fsdecode(space.internal_path), "epoch")


def facts(space: Space) -> tuple[str, str]:
    return tree.data_fingerprint(space), tree.lookup(space, b"").etag


def test_it_rises_only_with_changes(registry: Registry, space: Space) -> None:
    assert epoch(space).read_text() == "1\n"
    restoring.raise_epoch(space, registry.installation)
    assert epoch(space).read_text() == "1\n"
    change(space, "other")
    generation = registry.generation()
    restoring.raise_epoch(space, registry.installation)
    assert epoch(space).read_text() == "2\n" and registry.generation() == generation
    assert not restoring.check_epoch(space, registry.installation)


def test_a_space_that_was_never_stamped_is_fine(registry: Registry) -> None:
    assert not restoring.check_epoch(registry.open(registry.create("y").id), registry.installation)


def test_a_crash_between_the_two_is_no_restore(registry: Registry, space: Space) -> None:
    before = facts(space)
    epoch(space).write_text("2\n")
    assert not restoring.check_epoch(space, registry.installation)
    restoring.raise_epoch(space, registry.installation)
    assert epoch(space).read_text() == "3\n" and facts(space) == before


@pytest.mark.parametrize("found", [None, "0\n", "", "rubbish", "99\n"])
def test_going_back_in_time_is_noticed_once(
    registry: Registry, space: Space, found: str | None, allow_log: Callable[[str], None]
) -> None:
    allow_log("was restored")
    before = facts(space)
    epoch(space).unlink()
    if found is not None:
        epoch(space).write_text(found)
    assert restoring.check_epoch(space, registry.installation)
    after = facts(space)
    assert after[0] not in ("", before[0]) and after[1] != before[1]
    assert not restoring.check_epoch(space, registry.installation)
    assert facts(space) == after


def test_the_start_notices(
    registry: Registry, space: Space, tmp_path: Path, allow_log: Callable[[str], None]
) -> None:
    allow_log("was restored")
    shutil.copytree(os.fsdecode(space.root), tmp_path / "backup")
    change(space, "later")
    restoring.raise_epoch(space, registry.installation)
    before = facts(space)
    for path in (*Path(os.fsdecode(space.root)).iterdir(), epoch(space)):
        if path.name != ".fsd":
            path.unlink()
    shutil.copy(tmp_path / "backup" / ".fsd" / "epoch", epoch(space))
    shutil.copy(tmp_path / "backup" / "file", os.fsdecode(space.root))
    registry.recover()
    assert tree.data_fingerprint(space) not in ("", before[0])
    assert [entry.name for entry in tree.listing(space, b"")[1]] == [b"file"]


def test_the_jobs_process_notices_and_verifies(
    registry: Registry, space: Space, tmp_path: Path, allow_log: Callable[[str], None]
) -> None:
    allow_log("was restored")
    jobs = Jobs(config.load({"data": str(tmp_path / "data"), "state": str(tmp_path / "state")}, {}))
    stop = threading.Event()
    jobs.turn(time.monotonic(), stop)
    epoch(space).write_text("0\n")
    jobs.turn(time.monotonic() + 100, stop)
    assert jobs._restored or tree.data_fingerprint(space)
    wait_for(lambda: (jobs.turn(time.monotonic() + 100, stop), not jobs._restored)[1], what="verified")
    assert tree.data_fingerprint(space)


def test_a_missing_storage_is_no_restore(registry: Registry, space: Space) -> None:
    home = Path(os.fsdecode(space.root))
    home.rename(home.with_name("away"))
    registry.recover()
    home.with_name("away").rename(home)
    assert not tree.data_fingerprint(space)


def test_displaced_internals_are_no_restore(registry: Registry, space: Space) -> None:
    before = facts(space)
    internals = Path(os.fsdecode(space.internal_path))
    internals.rename(internals.with_name("displaced"))
    for _ in range(2):
        with pytest.raises(OSError):
            restoring.check_epoch(Space(space.record, registry.state_dir), registry.installation)
    internals.with_name("displaced").rename(internals)
    assert facts(space) == before


def test_a_disk_that_takes_no_file_changes_nothing(
    registry: Registry, space: Space, monkeypatch: pytest.MonkeyPatch, allow_log: Callable[[str], None]
) -> None:
    allow_log("was restored")
    before = facts(space)
    epoch(space).write_text("0\n")

    def full(*_: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "write_file", full)
        with pytest.raises(OSError):
            restoring.check_epoch(space, registry.installation)
    assert facts(space) == before
    assert restoring.check_epoch(space, registry.installation) and facts(space)[0] != before[0]


def test_a_crash_while_renewing_is_found_again(
    registry: Registry, space: Space, monkeypatch: pytest.MonkeyPatch, allow_log: Callable[[str], None]
) -> None:
    allow_log("was restored")
    epoch(space).write_text("0\n")

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "renew", crash)
        with pytest.raises(Crash):
            restoring.check_epoch(space, registry.installation)
    assert restoring.check_epoch(space, registry.installation)
    assert not restoring.check_epoch(space, registry.installation)
