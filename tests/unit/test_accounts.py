"""Users, groups, passwords, epochs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from fsd.core import passwords
from fsd.core.accounts import Accounts, check_account_name, fold
from fsd.core.errors import NameRefused
from fsd.core.installation import Installation
from fsd.core.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    return Registry(tmp_path / "state")


@pytest.fixture
def accounts(registry: Registry) -> Accounts:
    return registry.accounts


def test_a_password_is_verified_and_never_stored(accounts: Accounts, tmp_path: Path) -> None:
    accounts.add("ann", "correct horse")
    assert accounts.verify("ann", "correct horse") == accounts.get("ann")
    assert accounts.verify("ANN", "correct horse") == accounts.get("ann")
    assert accounts.verify("ann", "wrong") is None
    assert accounts.verify("bob", "correct horse") is None
    assert b"correct horse" not in (tmp_path / "state" / "fsd.db").read_bytes()
    with accounts.installation.db.read() as db:
        (stored,) = db.execute("SELECT password FROM users").fetchone()
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_unknown_names_are_hashed_too(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    hasher, asked = passwords._hasher(), []

    class Watching:
        def verify(self, stored: str, password: bytes) -> bool:
            asked.append(stored)
            return hasher.verify(stored, password)

    monkeypatch.setattr(passwords, "_cached", Watching())
    assert accounts.verify("nobody", "x") is None
    assert len(asked) == 1 and asked[0].startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_dated_hash_is_renewed_at_login(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(passwords, "_cached", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        accounts.add("ann", "pw")
    user = accounts.get("ann")
    assert passwords.is_dated(accounts._password(user.id))
    assert accounts.verify("ann", "pw") is not None
    assert not passwords.is_dated(accounts._password(user.id))
    assert accounts.epoch("ann") == user.epoch and accounts.verify("ann", "pw") is not None


def test_without_password_nobody_gets_in(accounts: Accounts) -> None:
    accounts.add("ann", None)
    assert accounts.verify("ann", "") is None
    assert accounts.verify("ann", "nobody's password") is None


@pytest.mark.parametrize("password", ["", "x" * 5000])
def test_bad_passwords(accounts: Accounts, password: str) -> None:
    with pytest.raises(NameRefused):
        accounts.add("ann", password)
    assert accounts.users() == []
    assert accounts.verify("ann", password) is None


def test_any_bytes_make_a_password(accounts: Accounts) -> None:
    password = os.fsdecode(b"\xff\xfe caf\xc3\xa9 \xf0\x9f\x98\x80")
    accounts.add("ann", password)
    assert accounts.verify("ann", password) is not None


def test_the_epoch_changes_with_what_ends_sessions(accounts: Accounts) -> None:
    accounts.add("root", None, role="admin")
    accounts.add("ann", None)
    seen = {accounts.epoch("ann")}
    for change in (
        lambda: accounts.set_password("ann", "new"),
        lambda: accounts.set("ann", role="admin"),
        lambda: (accounts.disable("ann"), accounts.enable("ann")),
        lambda: (accounts.remove("ann"), accounts.add("ann", None)),
    ):
        change()
        epoch = accounts.epoch("ann")
        assert epoch is not None and epoch not in seen
        seen.add(epoch)
    accounts.set("ann", display_name="Ann")
    assert accounts.epoch("ann") in seen


def test_disabled_users_stay_out(accounts: Accounts) -> None:
    accounts.add("ann", "pw")
    accounts.disable("ann")
    assert accounts.epoch("ann") is None and accounts.get("ann").disabled
    assert accounts.verify("ann", "pw") is None
    accounts.enable("ann")
    assert accounts.verify("ann", "pw") is not None


def test_the_last_admin_stays(accounts: Accounts) -> None:
    accounts.add("root", None, role="admin")
    for attempt in (
        lambda: accounts.disable("root"),
        lambda: accounts.remove("root"),
        lambda: accounts.set("root", role="user"),
    ):
        with pytest.raises(NameRefused, match="last administrator"):
            attempt()
        assert accounts.get("root").role == "admin" and not accounts.get("root").disabled
    accounts.add("second", None, role="admin")
    accounts.remove("root")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-flag",
        "a/b",
        "a b",
        "a\0",
        "a:b",
        "x" * 65,
        "ü" * 33,
        "a\n",
        "\udcff",
        "@x",
    ],
)
def test_refused_names(accounts: Accounts, name: str) -> None:
    with pytest.raises(NameRefused):
        accounts.add(name, None)
    assert accounts.users() == []


@pytest.mark.parametrize("name", ["a", "Ann", "ann.b-c_d", "ann@example.org", "Øystein", "田中", "4you"])
def test_allowed_names(accounts: Accounts, name: str) -> None:
    assert accounts.add(name, None).name == name


@given(st.text(max_size=80))
def test_an_accepted_name_is_one_plain_path_segment(text: str) -> None:
    try:
        name = check_account_name(text)
    except NameRefused:
        return
    assert "/" not in name and name not in (".", "..") and 0 < len(name.encode()) <= 64
    assert check_account_name(name) == name and fold(fold(name)) == fold(name)


def test_names_that_look_the_same_are_the_same(accounts: Accounts) -> None:
    accounts.add("Straße", None)
    for other in ("STRASSE", "strasse", "straße"):
        with pytest.raises(FileExistsError):
            accounts.add(other, None)


def test_groups(accounts: Accounts) -> None:
    accounts.add_group("team")
    accounts.add("ann", None, groups=["Team"])
    accounts.add("bob", None)
    accounts.join("team", "bob")
    accounts.join("team", "bob")
    assert [(group.name, group.members) for group in accounts.groups()] == [("team", ("ann", "bob"))]
    assert accounts.get("ann").groups == {"team"}
    accounts.leave("team", "ann")
    assert accounts.get("ann").groups == frozenset()
    accounts.remove("bob")
    assert accounts.groups()[0].members == ()
    with pytest.raises(FileExistsError):
        accounts.add_group("TEAM")
    accounts.remove_group("team")
    assert accounts.groups() == []


def test_a_group_that_is_not_there_is_made_with_its_first_member(accounts: Accounts) -> None:
    accounts.add("ann", None, groups=["lab", "Lab"])
    accounts.add("bob", None, groups=["LAB"])
    assert [(group.name, group.members) for group in accounts.groups()] == [("lab", ("ann", "bob"))]


def test_a_bad_name_of_a_group_makes_no_user(accounts: Accounts) -> None:
    with pytest.raises(NameRefused):
        accounts.add("ann", None, groups=["lab", "a/b"])
    assert accounts.users() == [] and accounts.groups() == []


def test_other_processes_see_changes(accounts: Accounts, tmp_path: Path) -> None:
    other = Accounts(tmp_path / "state")
    assert other.users() == []
    accounts.add("ann", None)
    assert [user.name for user in other.users()] == ["ann"]


def test_a_user_gets_a_space_and_a_guest_none(registry: Registry, tmp_path: Path) -> None:
    ann, gast = registry.add_user("ann", None), registry.add_user("gast", None, role="guest")
    record = registry.personal(ann)
    assert record is not None and record.path == os.fsencode((tmp_path / "data" / "users" / "ann").resolve())
    assert (record.type, record.owner, record.alias) == ("personal", "ann", "ann")
    assert registry.personal(gast) is None


def test_deleting_a_user_deletes_no_bytes(registry: Registry, tmp_path: Path) -> None:
    registry.add_user("root", None, role="admin")
    record = registry.personal(registry.add_user("ann", None))
    assert record is not None
    file = tmp_path / "data" / "users" / "ann" / "file"
    file.write_text("mine")
    registry.delete_user("ann")
    assert file.read_text() == "mine"
    assert registry.get(record.id).state == "disabled" and registry.get(record.id).owner is None


def test_a_new_user_of_an_old_name_inherits_nothing_unasked(registry: Registry, tmp_path: Path) -> None:
    old = registry.add_user("ann", None)
    project = registry.create("p", managers=[old])
    (tmp_path / "data" / "users" / "ann" / "file").write_text("old")
    registry.delete_user("ann")
    with pytest.raises(FileExistsError, match="--take-over"):
        registry.add_user("ann", None)
    assert registry.accounts.find("ann") is None
    new = registry.add_user("ann", None, take_over=True)
    assert registry.grants.role_of(project, new) is None
    record = registry.personal(new)
    assert record is not None and record.state == "active" and registry.open(record.id).root_fd() >= 0


def test_a_missing_personal_space_is_made_up_for(registry: Registry) -> None:
    user = registry.accounts.add("ann", None)
    assert registry.personal(user) is None
    made = registry.ensure_personal(user)
    assert registry.ensure_personal(user) == made == registry.personal(user)


def test_a_failed_space_makes_no_user(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "data" / "users").write_text("in the way")
    with pytest.raises(OSError):
        registry.add_user("ann", None, role="admin")
    assert registry.accounts.users() == []
