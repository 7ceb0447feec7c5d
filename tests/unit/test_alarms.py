"""What `fsd status` says of a space that needs somebody, with a server and without."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from fsd.cli.status import report
from fsd.core import restoring, tree
from fsd.core.installation import Installation
from fsd.core.operations import make_directory
from fsd.core.registry import Registry
from fsd.service import alarms, status


@pytest.fixture
def registry(tmp_path):
    Installation.initialise(tmp_path / "state", tmp_path / "data").close()
    made = Registry(tmp_path / "state")
    made.create("team")
    return made


def root(registry: Registry) -> Path:
    return Path(os.fsdecode(registry.find("team").path))


def storage(registry):
    root(registry).rename(root(registry).with_name("away"))


def displaced(registry):
    assert registry.open(registry.find("team").id).secret
    (root(registry) / ".fsd").rename(root(registry) / "hidden")


def grants(registry):
    (root(registry) / ".fsd/acl.json").unlink()


def rolled_back(registry):
    space = registry.open(registry.find("team").id)
    tree.lookup(space, b"")
    for name in (b"x", b"y", b"z"):
        make_directory(space, name)
        restoring.raise_epoch(space, registry.installation)
    (root(registry) / ".fsd/epoch").write_text("0\n")


def restored(registry):
    space = registry.open(registry.find("team").id)
    restoring.restore(space, registry.installation)


@pytest.mark.parametrize("damage", [storage, displaced, grants, rolled_back, restored])
def test_each_alarm(registry, damage, tmp_path):
    record = registry.find("team")
    assert alarms.of(registry, record) == {}
    damage(registry)
    kind = damage.__name__.replace("_", "-")
    # A '.fsd' that is away can't be told from one that was never there, by who has not seen it before.
    assert set(alarms.of(registry, record)) == {"storage" if kind == "displaced" else kind}
    told = report(registry, status.read(tmp_path / "state/run"))
    assert any("team" in problem for problem in told["problems"]), told["problems"]
    assert "alarms" not in told["spaces"][0]


def test_what_the_jobs_say_is_believed_while_they_run(tmp_path):
    def write(**more):
        base = {
            "pid": os.getpid(),
            "running": True,
            "written": time.time(),
            "alarms": {"aa": {"grants": "G."}},
        }
        (tmp_path / "jobs.json").write_text(json.dumps(base | more))
        return status.read(tmp_path).problems()

    assert "G." in write()
    assert "G." not in write(written=time.time() - 60) and "G." not in write(running=False)
    assert any("storage hangs" in text for text in write(at_work=["grants", "team", time.time() - 100]))
    assert not any("storage hangs" in text for text in write(at_work=["grants", "team", time.time() - 1]))


def test_what_the_watcher_says_already_is_not_said_twice(tmp_path):
    now = time.time()
    space = {"id": "i", "name": "team", "state": "unavailable", "why": "gone"}
    watcher = {"pid": os.getpid(), "running": True, "written": now, "spaces": {"aa": space}}
    (tmp_path / "watcher.json").write_text(json.dumps(watcher))
    told = {
        "pid": os.getpid(),
        "running": True,
        "written": now,
        "alarms": {"aa": {"storage": "S.", "grants": "G."}},
    }
    (tmp_path / "jobs.json").write_text(json.dumps(told))
    problems = status.read(tmp_path).problems()
    assert "G." in problems and "S." not in problems and any("gone" in text for text in problems)
