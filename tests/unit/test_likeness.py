"""The registry of one host on another one: taken over whole, and a copy that is old is noticed."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import lease, likeness
from fsd.core.accounts import User
from fsd.core.errors import FsdError
from fsd.core.installation import Installation
from fsd.core.lease import Host, Lease
from fsd.core.registry import Registry
from fsd.core.tokens import Tokens
from fsd.service import alarms


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Registry]:
    Installation.initialise(tmp_path / "one", tmp_path / "data").close()
    registry = Registry(tmp_path / "one")
    registry.accounts.add("ann", "first")
    registry.accounts.add_group("team")
    registry.accounts.join("team", "ann")
    registry.create("p")
    yield registry
    registry.installation.close()


@pytest.fixture
def two(one: Registry, tmp_path: Path) -> Iterator[Registry]:
    """A host that joined."""
    likeness.Copy(likeness.export(one.installation)).found(tmp_path / "two")
    registry = Registry(tmp_path / "two")
    yield registry
    registry.installation.close()


def follow(one: Registry, two: Registry) -> None:
    likeness.Copy(likeness.export(one.installation)).replace(two.installation)


def alike(one: Registry, two: Registry) -> bool:
    return likeness.digest(one.installation) == likeness.digest(two.installation)


def names(registry: Registry) -> list[str]:
    return sorted(user.name for user in registry.accounts.users())


def test_a_host_that_joins_knows_what_the_first_one_knows(
    one: Registry, two: Registry, tmp_path: Path
) -> None:
    assert alike(one, two)
    assert two.accounts.verify("ann", "first") is not None
    assert [group.members for group in two.accounts.groups()] == [("ann",)]
    (space,) = two.spaces()
    assert (space.id, space.path) == (one.spaces()[0].id, one.spaces()[0].path)
    assert two.installation.key == one.installation.key
    assert two.grants.verify(space) is None
    assert sorted(path.name for path in (tmp_path / "two").iterdir() if path.suffix != ".lock")[:1] == [
        "fsd.db"
    ]
    for name in ("fsd.db", "service.key"):
        assert (tmp_path / "two" / name).stat().st_mode & 0o777 == 0o600
    assert lease.host_id(tmp_path / "one") != lease.host_id(tmp_path / "two")


def test_each_change_tells_them_apart_and_following_makes_them_alike(one: Registry, two: Registry) -> None:
    tokens = Tokens(one.accounts)
    changes = (
        lambda: one.accounts.add("bob", "secret"),
        lambda: one.accounts.set_password("ann", "second"),
        lambda: one.accounts.add_group("others"),
        lambda: one.accounts.join("others", "bob"),
        lambda: tokens.create("ann", "laptop"),
        lambda: one.create("q"),
        lambda: one.installation.set_setting("source:x", "poll"),
        lambda: one.accounts.remove("bob"),
    )
    for change in changes:
        change()
        assert not alike(one, two)
        generation = two.generation()
        follow(one, two)
        assert alike(one, two)
        assert two.generation() != generation, "who remembers something looks again"
        assert names(two) == names(one)
    assert two.accounts.verify("ann", "second") is not None
    assert two.accounts.verify("ann", "first") is None


def test_what_is_a_hosts_own_makes_no_difference(one: Registry, two: Registry) -> None:
    record = one.spaces()[0]
    one.grants.set_quota(record, 1 << 30)
    with one.installation.write() as db:
        db.execute("UPDATE settings SET value=value+5 WHERE key='epoch'")
    for own in ("epoch:x", "filesystem:x", "move:x"):
        one.installation.set_setting(own, "one")
        two.installation.set_setting(own, "two")
    assert alike(one, two)
    follow(one, two)
    assert [two.installation.setting(own) for own in ("epoch:x", "filesystem:x", "move:x")] == ["two"] * 3


def test_a_login_that_was_remembered_ends_where_the_password_is_another_one(
    one: Registry, two: Registry
) -> None:
    """Also if both hosts gave the same number."""

    def user(registry: Registry) -> User:
        return next(user for user in registry.accounts.users() if user.name == "ann")

    one.accounts.set_password("ann", "on one")
    two.accounts.set_password("ann", "on two")
    with two.installation.write() as db:
        db.execute("UPDATE users SET epoch=? WHERE name='ann'", (user(one).epoch,))
    before = user(two).epoch
    assert before == user(one).epoch
    follow(one, two)
    assert user(two).epoch != before
    after = user(two).epoch
    follow(one, two)
    assert alike(one, two)
    two.accounts.set_password("ann", "again")
    assert user(two).epoch not in (before, after)


def test_newer_grants_stay(one: Registry, two: Registry) -> None:
    text = likeness.export(one.installation)
    record = two.spaces()[0]
    two.grants.set_quota(record, 12345)
    likeness.Copy(text).replace(two.installation)
    assert two.grants.quota(record) == 12345
    assert two.grants.verify(record) is None


def test_what_would_be_lost_is_told(one: Registry, two: Registry) -> None:
    two.accounts.add("only-here", "secret")
    two.create("mine")
    copy = likeness.Copy(likeness.export(one.installation))
    assert copy.lost(two.installation) == (["only-here"], ["mine"])


def test_what_is_no_copy_or_anothers_changes_nothing(one: Registry, two: Registry, tmp_path: Path) -> None:
    good = json.loads(likeness.export(one.installation))
    for wrong in (
        "", "{}", "[]", "null", "nonsense", json.dumps(good | {"fsd-cluster": 2}),
        json.dumps(good | {"registry": "AAAA"}), json.dumps(good | {"key": "x"}), json.dumps(good | {"registry": 1}),
    ):  # fmt: skip
        with pytest.raises(FsdError, match="is not what"):
            likeness.Copy(wrong)
    Installation.initialise(tmp_path / "three", tmp_path / "elsewhere").close()
    stranger = Registry(tmp_path / "three")
    before = likeness.digest(two.installation)
    with pytest.raises(FsdError, match="another installation"):
        follow(stranger, two)
    assert likeness.digest(two.installation) == before
    stranger.installation.close()


def test_a_failure_in_the_middle_changes_nothing(one: Registry, two: Registry, monkeypatch) -> None:
    one.accounts.add("bob", "secret")
    before = likeness.digest(two.installation)
    copy = likeness.Copy(likeness.export(one.installation))
    copy.rows["spaces"].append(copy.rows["spaces"][0])
    with pytest.raises((sqlite3.Error, OSError)):
        copy.replace(two.installation)
    assert likeness.digest(two.installation) == before


def test_who_follows_with_an_old_copy_is_told(one: Registry, two: Registry, tmp_path: Path) -> None:
    spaces = [registry.open(registry.spaces()[0].id) for registry in (one, two)]
    leases = []
    for registry, space, name in zip((one, two), spaces, ("one", "two"), strict=True):
        host = Host(name, "", 4.0)
        lease.use(space.state_dir, host)
        told = likeness.Told(registry.installation)
        told._until = -1.0
        leases.append(
            Lease(space, host, lambda _old: None, registry=lambda r=registry: likeness.digest(r.installation))
        )
    try:
        assert leases[0].step()
        assert not leases[1].step()
        assert likeness.differs(two.installation, spaces[1]) is None
        assert "registry" not in alarms.of(two, spaces[1].record)
        one.accounts.add("bob", "secret")
        leases[0].step()
        leases[1].step()
        said = alarms.of(two, spaces[1].record)["registry"]
        assert "not those of one" in said and "fsd cluster join" in said
        assert likeness.differs(one.installation, spaces[0]) is None
        follow(one, two)
        assert likeness.differs(two.installation, spaces[1]) is None
    finally:
        for space in spaces:
            lease.use(space.state_dir, None)
            space.close()


def test_the_digest_is_asked_for_once_a_second(one: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    told = likeness.Told(one.installation)
    asked = []
    monkeypatch.setattr(likeness, "digest", lambda installation: asked.append(1) or "x")
    assert {told() for _ in range(50)} == {"x"}
    assert len(asked) <= 2


def test_the_digest_is_computed_again_only_when_it_may_be_another(
    one: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.accounts.add("bob", "secret")
    first = likeness.digest(one.installation)
    with monkeypatch.context() as patch:
        patch.setattr(one.installation.db, "read", lambda: pytest.fail("computed again"))
        assert likeness.digest(one.installation) == first
    token, _ = Tokens(one.accounts).create("bob", "laptop", expires=int(time.time()) + 1000)
    second = likeness.digest(one.installation)
    assert second != first
    monkeypatch.setattr(likeness.time, "time", lambda: token.expires + 1.0)
    assert likeness.digest(one.installation) == first, "the token is no more"
