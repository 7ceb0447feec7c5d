"""The registry against the disk: each invariant is broken by hand once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsd.core import check, restoring, tree
from fsd.core.check import Finding
from fsd.core.installation import Installation
from fsd.core.operations import make_directory
from fsd.core.registry import Registry
from tests.support.breaks import HOPELESS, damage_page


@pytest.fixture
def registry(tmp_path):
    Installation.initialise(tmp_path / "state", tmp_path / "data").close()
    made = Registry(tmp_path / "state")
    made.create("team")
    return made


def of_registry(registry: Registry, *, repair: bool = False) -> list[Finding]:
    found = list(check.check_installation(registry, repair))
    for record in registry.spaces():
        found += check.check_registered(registry, record, repair)
    return found


def codes(found: list[Finding]) -> set[str]:
    return {each.code for each in found}


def _execute(registry, text, *values):
    with registry.installation.write() as db:
        db.execute("PRAGMA foreign_keys=OFF")
        db.execute(text, values)


def _roll_back(registry):
    space = registry.open(registry.find("team").id)
    tree.lookup(space, b"")
    restoring.raise_epoch(space, registry.installation)
    before = Path(os.fsdecode(space.root + b"/.fsd/epoch")).read_bytes()
    for name in (b"x", b"y", b"z"):
        make_directory(space, name)
        restoring.raise_epoch(space, registry.installation)
    Path(os.fsdecode(space.root + b"/.fsd/epoch")).write_bytes(before)
    space.close()


def _cut_off_move(registry):
    record = registry.find("team")
    places = {"from": os.fsdecode(record.path), "to": os.fsdecode(os.path.dirname(record.path) + b"/crew")}
    registry.installation.set_setting(f"move:{record.id}", json.dumps({"alias": "crew", **places}))


def _nest(registry):
    inner = os.fsdecode(registry.find("team").path) + "/inner"
    other = registry.create("other")
    os.rename(other.path, inner)
    _execute(registry, "UPDATE spaces SET path=? WHERE id=?", os.fsencode(inner), other.id)


def _damage_registry(registry):
    registry.installation.db.close()
    damage_page(registry.installation.db.path, "membership")


REGISTRY_BREAKS: dict[str, Callable[[Registry], object]] = {
    "grants": lambda r: os.unlink(os.fsdecode(r.find("team").path) + "/.fsd/acl.json"),
    "rolled-back": _roll_back,
    "registry-move-left": _cut_off_move,
    "registry-leftover": lambda r: _execute(r, "INSERT INTO settings VALUES ('epoch:nobody', '1 1')"),
    "registry-damaged": _damage_registry,
    "space-nested": _nest,
    "space-ownerless": lambda r: _execute(r, "UPDATE spaces SET type='personal'"),
    "state-leftover": lambda r: (r.state_dir / f"{'ab' * 16}.state.db").write_bytes(b""),
    "space-unregistered": lambda r: _execute(r, "DELETE FROM spaces"),
}


def test_a_sound_registry(registry):
    assert of_registry(registry) == []


@pytest.mark.parametrize("code", REGISTRY_BREAKS)
def test_each_code_of_the_registry(registry, code, allow_log):
    allow_log("was restored")
    REGISTRY_BREAKS[code](registry)
    if code == "registry-damaged":
        found = list(check.check_installation(registry))
        assert codes(found) == {code} and not found[0].repairable
        return
    found = of_registry(registry)
    assert codes(found) == {code}, found
    hopeless = code in HOPELESS
    mended = of_registry(registry, repair=True)
    assert codes(mended) == {code} and all(each.repaired is not hopeless for each in mended)
    assert codes(of_registry(registry)) == ({code} if hopeless else set())
