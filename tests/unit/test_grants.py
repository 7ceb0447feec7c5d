"""acl.json: signed, numbered, compared; what is in force survives whatever happens to the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsd.core.errors import FsdError, NameRefused, StorageUnavailable
from fsd.core.grants import Acl, Member, Role, decode, encode, parse_role
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.core.space import SpaceRecord
from fsd.service import config
from fsd.service.jobs import Jobs

KEY = b"k" * 32


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    return Registry(tmp_path / "state")


@pytest.fixture
def record(registry: Registry) -> SpaceRecord:
    return registry.create("space")


def acl_path(record: SpaceRecord) -> Path:
    return Path(os.fsdecode(record.path)) / ".fsd" / "acl.json"


members = st.builds(
    Member,
    st.sampled_from(["user", "group"]),
    st.text(max_size=40),
    st.text(max_size=40),
    st.sampled_from(Role),
)
acls = st.builds(
    Acl,
    st.text(max_size=40),
    st.integers(0, 2**60),
    st.lists(members, max_size=5).map(tuple),
    st.none() | st.integers(0),
)


@given(acls)
def test_what_is_signed_is_read_back(acl: Acl) -> None:
    assert decode(encode(acl, KEY), KEY) == acl


@given(acls, st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
def test_another_key_is_noticed(acl: Acl, key: bytes) -> None:
    with pytest.raises(FsdError, match="not signed"):
        decode(encode(acl, KEY), key)


@given(acls, st.data())
def test_any_change_is_noticed(acl: Acl, data: st.DataObject) -> None:
    document = json.loads(encode(acl, KEY))
    field = data.draw(st.sampled_from(["space", "number", "quota", "members", "added"]))
    document[field] = {"space": "other", "number": acl.number + 1, "quota": -1, "members": [], "added": 1}[
        field
    ]
    if field == "members" and not acl.members:
        return
    with pytest.raises(FsdError):
        decode(json.dumps(document), KEY)


@given(st.binary(max_size=200))
def test_rubbish_is_an_error_of_ours(raw: bytes) -> None:
    with pytest.raises(FsdError):
        decode(raw, KEY)


@pytest.mark.parametrize(
    "text", ["[]", "1", "{}", '{"mac":1}', '{"mac":"","members":[1],"quota":1,"version":1,"number":1}']
)
def test_wrong_shapes_are_errors_of_ours(text: str) -> None:
    with pytest.raises(FsdError):
        decode(text, KEY)


def test_unknown_fields_are_kept(registry: Registry, record: SpaceRecord) -> None:
    acl = Acl("s", 3, (), None, {"later": [{"token": "x"}]})
    assert decode(encode(acl, KEY), KEY).extra == {"later": [{"token": "x"}]}


def test_roles(registry: Registry, record: SpaceRecord) -> None:
    ann, bob = registry.accounts.add("ann", None), registry.accounts.add("bob", None)
    assert registry.grants.role_of(record, ann) is None
    registry.grants.grant(record, "user", ann.id, "ann", Role.VIEWER)
    assert registry.grants.role_of(record, ann) is Role.VIEWER
    registry.accounts.add_group("team")
    (team,) = registry.accounts.groups()
    registry.grants.grant(record, "group", team.id, "team", Role.EDITOR)
    registry.accounts.join("team", "ann")
    assert registry.grants.role_of(record, registry.accounts.get("ann")) is Role.EDITOR
    assert registry.grants.role_of(record, bob) is None
    registry.grants.revoke(record, "group", team.id)
    assert registry.grants.role_of(record, registry.accounts.get("ann")) is Role.VIEWER
    with pytest.raises(FileNotFoundError):
        registry.grants.revoke(record, "group", team.id)
    assert not Role.VIEWER.can_write and Role.EDITOR.can_write
    assert parse_role("Manager") is Role.MANAGER
    with pytest.raises(NameRefused):
        parse_role("god")


def test_disabled_users_and_spaces_have_no_roles(registry: Registry, record: SpaceRecord) -> None:
    ann = registry.accounts.add("ann", None)
    registry.grants.grant(record, "user", ann.id, "ann", Role.MANAGER)
    registry.accounts.disable("ann")
    assert registry.grants.role_of(record, registry.accounts.get("ann")) is None
    registry.accounts.enable("ann")
    registry.disable(record.id)
    assert registry.grants.role_of(registry.get(record.id), registry.accounts.get("ann")) is None


def test_the_owner_manages_a_personal_space(registry: Registry) -> None:
    ann, bob = registry.add_user("ann", None), registry.add_user("bob", None)
    space = registry.personal(ann)
    assert space is not None
    assert registry.grants.role_of(space, ann) is Role.MANAGER
    assert registry.grants.role_of(space, bob) is None


def test_quota(registry: Registry, record: SpaceRecord) -> None:
    assert registry.grants.quota(record) is None
    registry.grants.set_quota(record, 1 << 40)
    assert registry.grants.quota(record) == 1 << 40
    with pytest.raises(NameRefused):
        registry.grants.set_quota(record, -1)
    registry.grants.set_quota(record, None)
    assert registry.grants.quota(record) is None


def test_numbers_rise_and_the_file_matches(registry: Registry, record: SpaceRecord) -> None:
    first = registry.grants.acl(record).number
    registry.grants.set_quota(record, 1)
    registry.grants.set_quota(record, 1)
    assert registry.grants.acl(record).number == first + 1
    assert decode(acl_path(record).read_text(), registry.installation.key) == registry.grants.acl(record)
    assert acl_path(record).stat().st_mode & 0o777 == 0o600
    assert registry.grants.verify(record) is None


def damage(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_text(""), "damaged"),
        (lambda path: path.write_bytes(b"\xff" * 100), "damaged"),
        (lambda path: damage(path, members=[]), "not signed"),
        (lambda path: damage(path, number=99), "not signed"),
    ],
)
def test_harm_is_an_alarm_and_changes_nothing(
    registry: Registry, record: SpaceRecord, harm: Callable[[Path], None], word: str
) -> None:
    ann = registry.accounts.add("ann", None)
    registry.grants.grant(record, "user", ann.id, "ann", Role.EDITOR)
    harm(acl_path(record))
    found = registry.grants.verify(record)
    assert found is not None and word in found and "in force" in found
    assert registry.grants.role_of(record, ann) is Role.EDITOR
    registry.grants.mend(record)
    assert registry.grants.verify(record) is None


def test_an_older_file_is_an_alarm(registry: Registry, record: SpaceRecord, tmp_path: Path) -> None:
    registry.grants.set_quota(record, 1)
    shutil.copy(acl_path(record), tmp_path / "old")
    registry.grants.set_quota(record, 2)
    shutil.copy(tmp_path / "old", acl_path(record))
    found = registry.grants.verify(record)
    assert found is not None and "older" in found
    assert registry.grants.quota(record) == 2


def test_anothers_file_is_an_alarm(registry: Registry, record: SpaceRecord) -> None:
    other = registry.create("other")
    registry.grants.set_quota(other, 5)
    shutil.copy(acl_path(other), acl_path(record))
    found = registry.grants.verify(record)
    assert found is not None and "another space" in found
    assert registry.grants.quota(record) is None


def test_a_newer_file_of_ours_is_a_change_cut_off_by_a_crash(registry: Registry, record: SpaceRecord) -> None:
    acl = registry.grants.acl(record)
    made = Acl(acl.space, acl.number + 1, acl.members, 123)
    acl_path(record).write_text(encode(made, registry.installation.key))
    assert registry.grants.verify(record) is None
    assert registry.grants.quota(record) == 123


def test_nothing_is_granted_while_the_storage_is_away(registry: Registry, record: SpaceRecord) -> None:
    home = Path(os.fsdecode(record.path))
    home.rename(home.with_name("away"))
    with pytest.raises(StorageUnavailable):
        registry.grants.set_quota(record, 1)
    home.mkdir()
    with pytest.raises(StorageUnavailable):
        registry.grants.set_quota(record, 1)
    assert registry.grants.quota(record) is None and not list(home.iterdir())


def test_a_key_import_signs_everything_anew(registry: Registry, record: SpaceRecord) -> None:
    registry.grants.set_quota(record, 9)
    assert registry.replace_key(b"n" * 32) == []
    assert registry.installation.key == b"n" * 32
    assert registry.grants.verify(record) is None and registry.grants.quota(record) == 9
    with pytest.raises(FsdError):
        registry.replace_key(b"short")


def test_a_missing_key_says_what_to_do(registry: Registry, record: SpaceRecord) -> None:
    (registry.state_dir / "service.key").unlink()
    with pytest.raises(FsdError, match="fsd key import"):
        registry.grants.set_quota(record, 1)


def test_the_jobs_process_raises_the_alarm_once(
    registry: Registry,
    record: SpaceRecord,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    allow_log: Callable[[str], None],
) -> None:
    allow_log("job grants .* missing in the space")
    jobs = Jobs(config.load({"data": str(tmp_path / "data"), "state": str(tmp_path / "state")}, {}))
    (job,) = [each for each in jobs._jobs if each.name == "grants"]
    jobs._do(job, record, 0.0)
    assert not caplog.records
    acl_path(record).unlink()
    for turn in range(2):
        jobs._do(job, record, 1.0 + turn)
    assert [each.levelname for each in caplog.records] == ["ERROR"] and "missing" in caplog.text
    jobs._registry.open(record.id).close()
