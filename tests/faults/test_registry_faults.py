"""Killed before, or failed at, each system call of what changes the registry: a second try is always whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsd.core.errors import FsdError
from fsd.core.grants import Role
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from tests.support import killpoints

pytestmark = pytest.mark.skipif(not killpoints.available(), reason="ptrace of a child is not possible here")


class Site:
    """An installation with two users, a space, and a directory that could be adopted; made anew for each run."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.state, self.data, self.there = base / "state", base / "data", base / "there"

    def fresh(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)
        self.there.mkdir(parents=True)
        (self.there / "file").write_text("theirs")
        Installation.initialise(self.state, self.data).close()
        registry = self.open()
        registry.add_user("root", None, role="admin")
        registry.add_user("ann", None)
        registry.create("team", managers=[registry.accounts.get("root")])
        registry.installation.close()

    def open(self) -> Registry:
        return Registry(self.state)

    def check(self, *, mend: bool = False) -> Registry:
        """What must hold after any crash: each active space proves itself, its grants are in force and agree.

        `mend`: a failed fsync of the registry's log leaves open whether the commit counts; the alarm is right then.
        """
        registry = self.open()
        registry.recover()
        for record in registry.spaces():
            if record.state == "active":
                space = registry.open(record.id)
                assert len(space.secret) == 32 and space.root_fd() >= 0
                space.close()
                if mend and registry.grants.verify(record) is not None:
                    registry.grants.mend(record)
                assert registry.grants.verify(record) is None
        for user in registry.accounts.users():
            if user.role != "guest":
                assert registry.ensure_personal(user).state == "active"
        assert any(user.role == "admin" for user in registry.accounts.users())
        assert (self.there / "file").read_text() == "theirs"
        for path in (self.state / "service.key", self.state / "fsd.db"):
            assert path.stat().st_mode & 0o777 == 0o600
        return registry


@pytest.fixture
def site() -> Iterator[Site]:
    """In memory where that is possible: hundreds of installations are made."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield Site(base / "site")
    shutil.rmtree(base)


@dataclass(frozen=True)
class Case:
    name: str
    operate: Callable[[Registry, Site], object]
    done: Callable[[Registry, Site], bool]


def _names(registry: Registry) -> set[str]:
    return {record.name for record in registry.spaces()}


def _grant(registry: Registry, _: Site) -> None:
    ann = registry.accounts.get("ann")
    registry.grants.grant(registry.find("team"), "user", ann.id, "ann", Role.EDITOR)


CASES = (
    Case("add user", lambda r, s: r.add_user("bob", None), lambda r, s: r.accounts.find("bob") is not None),
    Case("delete user", lambda r, s: r.delete_user("ann"), lambda r, s: r.accounts.find("ann") is None),
    Case("create", lambda r, s: r.create("new"), lambda r, s: "new" in _names(r)),
    Case("adopt", lambda r, s: r.adopt(os.fsencode(s.there), "there"), lambda r, s: "there" in _names(r)),
    Case(
        "adopt read-only",
        lambda r, s: r.adopt(os.fsencode(s.there), "there", read_only=True),
        lambda r, s: "there" in _names(r),
    ),
    Case(
        "grant",
        _grant,
        lambda r, s: r.grants.role_of(r.find("team"), r.accounts.get("ann")) is Role.EDITOR,
    ),
    Case(
        "alias",
        lambda r, s: r.set_alias(r.find("team").id, "crew"),
        lambda r, s: r.find("team").alias == "crew",
    ),
    Case(
        "purge",
        lambda r, s: r.delete(r.find("team", deleted=True).id, purge=True),
        lambda r, s: "team" not in _names(r),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_killed_at_each_call(case: Case, site: Site, request: pytest.FixtureRequest) -> None:
    """Every call with `--big`, every third without: each run makes a whole installation."""
    seen = []
    step = 1 if request.config.getoption("--big") else 3
    for stop in killpoints.kill_at_each(
        site.open, lambda r: case.operate(r, site), fresh=site.fresh, step=step
    ):
        assert stop.error is None, stop
        registry = site.check()
        seen.append(case.done(registry, site))
        if not seen[-1]:
            case.operate(registry, site)
            assert case.done(site.check(), site), stop
        registry.installation.close()
    assert seen[-1] and not seen[0] and len(seen) > 2


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "purge"], ids=lambda case: case.name)
def test_failed_at_each_call(case: Case, site: Site) -> None:
    """An operation that says it failed has changed nothing that counts, and works when tried again."""
    errors = (errno.ENOSPC, errno.EIO, errno.EACCES)
    failed = 0
    for stop in killpoints.fail_at_each(site.open, lambda r: case.operate(r, site), errors, fresh=site.fresh):
        assert stop.error is None or not stop.error.startswith("CRASH"), stop
        registry = site.check(mend=stop.error is not None)
        if stop.error is not None:
            failed += 1
            if case.done(registry, site):
                continue  # the registry's commit was through, and what failed came after it
            case.operate(registry, site)
        assert case.done(site.check(), site), stop
        registry.installation.close()
    assert failed > 3


def test_a_first_start_killed_at_each_call_is_finished_by_the_next(site: Site) -> None:

    def start(_: object) -> None:
        Installation.initialise(site.state, site.data)
        registry = site.open()
        registry.recover()
        if not registry.accounts.users():
            registry.add_user("root", None, role="admin")

    def fresh() -> None:
        shutil.rmtree(site.base, ignore_errors=True)
        site.there.mkdir(parents=True)
        (site.there / "file").write_text("theirs")

    for stop in killpoints.kill_at_each(lambda: None, start, fresh=fresh):
        assert stop.error is None, stop
        start(None)
        registry = site.check()
        assert [user.name for user in registry.accounts.users()] == ["root"]
        registry.installation.close()


def test_a_full_state_disk_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.fresh()
    registry = site.open()
    before = registry.grants.acl(registry.find("team"))

    def full(*_: object) -> None:
        raise FsdError("disk full")

    monkeypatch.setattr("fsd.core.grants.write_file", full)
    with pytest.raises(FsdError):
        registry.grants.set_quota(registry.find("team"), 1)
    monkeypatch.undo()
    assert (
        registry.grants.acl(registry.find("team")) == before
        and registry.grants.verify(registry.find("team")) is None
    )
