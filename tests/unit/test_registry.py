"""Spaces: created, adopted, refused, disabled, restored, deleted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from fsd.core import relabel
from fsd.core.errors import Forbidden, FsdError, NameRefused, SpaceDisabled, StorageUnavailable
from fsd.core.grants import Role
from fsd.core.installation import Installation
from fsd.core.making import slug
from fsd.core.reconcile import reconcile
from fsd.core.registry import Adoption, Ownership, Registry
from fsd.core.space import Space
from fsd.core.sweep import Sweep
from fsd.core.tree import data_fingerprint, listing, lookup
from tests.support.waiting import wait_for


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def registry(tmp_path: Path, data: Path) -> Registry:
    Installation.initialise(tmp_path / "state", data)
    return Registry(tmp_path / "state")


def tree(path: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(path)): (p.lstat().st_ino, p.lstat().st_ctime_ns)
        for p in path.rglob("*")
        if ".fsd" not in p.parts
    }


def test_create_makes_a_served_directory(registry: Registry, data: Path) -> None:
    record = registry.create("Team Files")
    assert record.path == os.fsencode(data.resolve() / "projects" / "team-files")
    assert (record.name, record.alias, record.type, record.state) == (
        "Team Files",
        "team-files",
        "project",
        "active",
    )
    space = registry.open(record.id)
    assert space.root_fd() >= 0
    assert len(space.secret) == 32
    assert stat.S_IMODE(os.stat(os.path.join(record.path, b".fsd")).st_mode) == 0o700


def test_ids_carry_the_storage_id(registry: Registry) -> None:
    one, two = registry.create("one"), registry.create("two")
    assert one.id.partition("$")[0] == two.id.partition("$")[0] == registry.installation.storage_id
    assert one.id.partition("$")[2] == one.hex != two.hex


def test_aliases_stay_unique_and_names_too(registry: Registry) -> None:
    assert registry.create("a b").alias == "a-b"
    assert registry.create("a-b").alias == "a-b-2"
    with pytest.raises(FileExistsError):
        registry.create("A B")
    with pytest.raises(FileExistsError):
        registry.create("c", alias="a-B")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x\0y", "new\nline", " edge", "z" * 256])
def test_bad_names_change_nothing(registry: Registry, data: Path, name: str) -> None:
    with pytest.raises(NameRefused):
        registry.create(name)
    assert registry.spaces() == [] and not (data / "projects").exists()


@pytest.mark.parametrize(
    ("name", "alias"), [("Ünïcode Ñame", "ünïcode-ñame"), ("...", "space"), ("a__b", "a-b"), ("é" * 90, None)]
)
def test_slug(name: str, alias: str | None) -> None:
    made = slug(name)
    assert alias in (None, made) and 0 < len(made.encode()) <= 64


def test_what_the_service_may_not_do_is_said(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service without capabilities, as the kernel answers it."""

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    with pytest.raises(Forbidden, match="CAP_CHOWN"):
        registry.create("x", owner=Ownership(uid=12345))
    with pytest.raises(Forbidden, match="CAP_CHOWN"):
        registry.create("x", owner=Ownership(gid=12345), shared=True)
    monkeypatch.undo()
    assert registry.create("x").name == "x", "what the failed tries left is no obstacle"
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(Forbidden, match="may not write into .*theirs: .*--read-only"):
        registry.adopt(os.fsencode(tmp_path / "theirs"), "theirs")


def test_create_refuses_a_used_directory(registry: Registry, data: Path) -> None:
    (data / "projects" / "x").mkdir(parents=True)
    (data / "projects" / "x" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="adopt"):
        registry.create("x")
    assert (data / "projects" / "x" / "file").read_text() == "mine"


def test_adopt_moves_and_touches_nothing(registry: Registry, tmp_path: Path) -> None:
    home = tmp_path / "there"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "f").write_text("x")
    before = tree(home)
    record = registry.adopt(os.fsencode(home), "There")
    assert record.path == os.fsencode(home.resolve())
    assert tree(home) == before
    assert registry.open(record.id).root_fd() >= 0


def test_adopt_read_only_writes_nothing_there(registry: Registry, tmp_path: Path) -> None:
    home = tmp_path / "ro"
    home.mkdir()
    (home / "f").write_text("x")
    record = registry.adopt(os.fsencode(home), "ro", read_only=True)
    assert os.listdir(home) == ["f"]
    assert record.read_only and record.label == "none"
    assert len(registry.open(record.id).secret) == 32
    registry.grants.set_quota(record, 5)
    assert os.listdir(home) == ["f"] and registry.grants.verify(record) is None


@pytest.mark.parametrize("where", [".", "inner", "inner/deep", ".."])
def test_overlaps_are_refused(registry: Registry, tmp_path: Path, where: str) -> None:
    home = tmp_path / "top" / "home"
    (home / "inner" / "deep").mkdir(parents=True)
    registry.adopt(os.fsencode(home), "home")
    with pytest.raises((NameRefused, FileExistsError)):
        registry.adopt(os.fsencode(home / where), "again")
    assert len(registry.spaces()) == 1


def test_overlap_through_a_symlink_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "home" / "inner").mkdir(parents=True)
    registry.adopt(os.fsencode(tmp_path / "home"), "home")
    (tmp_path / "link").symlink_to(tmp_path / "home" / "inner")
    with pytest.raises(NameRefused, match="inside"):
        registry.adopt(os.fsencode(tmp_path / "link"), "again")


def test_state_and_data_directories_are_refused(registry: Registry, tmp_path: Path, data: Path) -> None:
    (tmp_path / "state" / "x").mkdir()
    (data / "users").mkdir()
    for bad in (
        tmp_path / "state",
        tmp_path / "state" / "x",
        tmp_path,
        data,
        data / "users",
        Path("/"),
        Path("/proc"),
    ):
        with pytest.raises(NameRefused):
            registry.adopt(os.fsencode(bad), "bad")
    assert registry.spaces() == []


@pytest.mark.parametrize("what", ["missing", "file"])
def test_only_directories(registry: Registry, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        registry.adopt(os.fsencode(tmp_path / what), "x")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts need root")
@pytest.mark.parametrize(("bound", "spot"), [("home", ""), ("home/inner", ""), ("", "home"), ("", "")])
def test_bind_mounts_are_seen_through(registry: Registry, tmp_path: Path, bound: str, spot: str) -> None:
    top, view = tmp_path / "top", tmp_path / "view"
    (top / "home" / "inner").mkdir(parents=True)
    view.mkdir()
    registry.adopt(os.fsencode(top / "home"), "home")
    subprocess.run(["mount", "--bind", top / bound, view], check=True)
    try:
        with pytest.raises((NameRefused, FileExistsError)):
            registry.adopt(os.fsencode(view / spot), "again")
    finally:
        subprocess.run(["umount", view], check=True)
    assert len(registry.spaces()) == 1


def test_a_copied_space_needs_a_word(registry: Registry, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    first = registry.adopt(os.fsencode(one), "one")
    shutil.copytree(one, tmp_path / "two")
    with pytest.raises(FileExistsError, match="--as-copy"):
        registry.adopt(os.fsencode(tmp_path / "two"), "two")
    second = registry.adopt(os.fsencode(tmp_path / "two"), "two", how=Adoption(as_copy=True))
    assert second.id != first.id
    assert registry.open(second.id).secret != registry.open(first.id).secret


def test_replace_takes_the_place(registry: Registry, tmp_path: Path) -> None:
    user = registry.add_user("ann", None)
    one = tmp_path / "one"
    one.mkdir()
    first = registry.adopt(os.fsencode(one), "one", managers=[user])
    one.rename(tmp_path / "moved")
    with pytest.raises(StorageUnavailable):
        registry.open(first.id).root_fd()
    again = registry.adopt(os.fsencode(tmp_path / "moved"), "one", how=Adoption(replace=True))
    assert again.id == first.id and again.path == os.fsencode((tmp_path / "moved").resolve())
    assert registry.open(first.id).root_fd() >= 0
    assert registry.grants.role_of(again, user) is Role.MANAGER


def test_a_restored_personal_space_stays_its_owners(registry: Registry, tmp_path: Path) -> None:
    ann = registry.add_user("ann", None, display_name="Ann")
    record = registry.personal(ann)
    assert record is not None
    home = Path(os.fsdecode(record.path))
    subprocess.run(["cp", "-a", home, tmp_path / "backup"], check=True)
    shutil.rmtree(home)
    (tmp_path / "backup").rename(home)
    again = registry.adopt(os.fsencode(home), None, how=Adoption(replace=True))
    assert (again.id, again.type, again.owner, again.alias, again.name) == (
        record.id,
        "personal",
        "ann",
        "ann",
        "Ann",
    )
    assert registry.grants.role_of(again, ann) is Role.MANAGER and registry.open(again.id).root_fd() >= 0


def test_a_replaced_space_keeps_what_is_not_given(registry: Registry, tmp_path: Path) -> None:
    one, boss = tmp_path / "one", registry.add_user("boss", None)
    one.mkdir()
    first = registry.adopt(os.fsencode(one), "First", alias="odd", owner=Ownership(file_mode=0o640))
    one.rename(tmp_path / "two")
    again = registry.adopt(os.fsencode(tmp_path / "two"), None, managers=[boss], how=Adoption(replace=True))
    assert (again.id, again.name, again.alias, again.file_mode) == (first.id, "First", "odd", 0o640)
    assert registry.grants.members(again) == ()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_restored_tree_keeps_its_ids_and_says_that_it_was_restored(
    registry: Registry, tmp_path: Path, in_place: bool
) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    (home / "sub" / "deep").mkdir(parents=True)
    for name in ("f", "sub/g", "sub/deep/h"):
        (home / name).write_text(name)
    record = registry.adopt(os.fsencode(home), "home")
    before = whole(registry, record.id)
    fingerprint, etag = data_fingerprint(registry.open(record.id)), lookup(registry.open(record.id), b"").etag
    subprocess.run(["cp", "-a", home, backup], check=True)
    home.rename(tmp_path / "gone")
    if in_place:
        backup.rename(home)
        backup = home
    with pytest.raises(FileExistsError):
        registry.adopt(os.fsencode(backup), "home")
    registry.adopt(os.fsencode(backup), "home", how=Adoption(replace=True))
    space = registry.open(record.id)
    assert whole(registry, record.id) == before
    assert data_fingerprint(space) not in ("", fingerprint) and lookup(space, b"").etag != etag
    (backup / "sub" / "new").write_text("12345")
    reconcile(space, b"sub")
    assert lookup(space, b"").size == sum(len(name) for name in ("f", "sub/g", "sub/deep/h")) + 5


def all_labelled(space: Space) -> bool:
    paths = [path for path in Path(os.fsdecode(space.root)).rglob("*") if ".fsd" not in path.parts]
    return all("user.fsd.id" in os.listxattr(path) for path in paths)


def whole(registry: Registry, space_id: str) -> dict[bytes, str]:
    """Path to id of everything, after a sweep that wrote all labels."""
    space = registry.open(space_id)
    Sweep(space).begin()
    while not Sweep(space).step(5.0).finished:
        pass
    wait_for(lambda: relabel.label_due(space) == 0 and all_labelled(space), what="labels")
    found = {}
    todo = [b""]
    while todo:
        for entry in listing(space, todo.pop())[1]:
            found[entry.path] = entry.id
            todo += [entry.path] if entry.kind == "d" else []
    return found


def test_a_foreign_space_needs_its_members_accepted(registry: Registry, tmp_path: Path) -> None:
    Installation.initialise(tmp_path / "other-state", tmp_path / "other")
    other = Registry(tmp_path / "other-state")
    ann = other.add_user("ann", None)
    home = tmp_path / "home"
    home.mkdir()
    record = other.adopt(os.fsencode(home), "home", managers=[ann], quota=77)
    with pytest.raises(FsdError, match="--accept-acl"):
        registry.adopt(os.fsencode(home), "home")
    mine = registry.add_user("ann", None)
    taken = registry.adopt(os.fsencode(home), "home", how=Adoption(accept_acl=True))
    assert taken.id == record.id
    assert registry.grants.role_of(taken, mine) is Role.MANAGER
    assert registry.grants.quota(taken) == 77
    assert registry.grants.verify(taken) is None


def test_damaged_identity(registry: Registry, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".fsd").mkdir(parents=True)
    (home / ".fsd" / "space.json").write_text("{")
    with pytest.raises(FsdError, match="damaged"):
        registry.adopt(os.fsencode(home), "home")
    assert registry.adopt(os.fsencode(home), "home", how=Adoption(as_copy=True)).state == "active"


def test_crash_before_the_registry_is_continued_with_the_same_id(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(registry.installation, "write", lambda: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError):
            registry.adopt(os.fsencode(home), "home")
    assert registry.spaces() == []
    ident = json.loads((home / ".fsd" / "space.json").read_text())["id"]
    assert registry.adopt(os.fsencode(home), "home").id == ident


def test_disable_restore_delete(registry: Registry) -> None:
    record = registry.create("x")
    (Path(os.fsdecode(record.path)) / "file").write_text("keep")
    registry.disable(record.id)
    with pytest.raises(SpaceDisabled):
        registry.open(record.id)
    registry.restore(record.id)
    registry.open(record.id)
    registry.delete(record.id)
    assert registry.spaces() == []
    with pytest.raises(FileNotFoundError):
        registry.open(record.id)
    assert (Path(os.fsdecode(record.path)) / "file").read_text() == "keep"
    assert registry.restore(record.id).state == "active"


def test_restore_proves_the_directory(registry: Registry) -> None:
    record = registry.create("x")
    registry.disable(record.id)
    home = Path(os.fsdecode(record.path))
    home.rename(home.with_name("away"))
    home.mkdir()
    with pytest.raises(StorageUnavailable):
        registry.restore(record.id)
    assert registry.get(record.id).state == "disabled"


def test_a_deleted_space_can_be_adopted_again(registry: Registry) -> None:
    record = registry.create("x")
    registry.delete(record.id)
    assert registry.adopt(record.path, "y").id == record.id


def test_purge(registry: Registry, tmp_path: Path) -> None:
    record = registry.create("x")
    outside = tmp_path / "outside"
    outside.write_text("keep")
    home = Path(os.fsdecode(record.path))
    (home / "link").symlink_to(outside)
    (home / "d").mkdir()
    registry.open(record.id).state.incarnation()
    registry.delete(record.id, purge=True)
    assert not home.exists() and outside.exists()
    assert registry.spaces(deleted=True) == []
    assert not list(registry.state_dir.glob(f"{record.hex}*"))


def test_purge_of_an_adopted_one_keeps_the_directory(registry: Registry, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    record = registry.adopt(os.fsencode(home), "home")
    registry.delete(record.id, purge=True)
    assert home.is_dir() and not list(home.iterdir())


def test_set_and_generation(registry: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "state")
    record = registry.create("x")
    before = other.generation()
    assert other.get(record.id).name == "x"
    registry.set(record.id, name="New Name", owner=Ownership(uid=5, file_mode=0o640))
    assert other.generation() != before
    changed = other.get(record.id)
    assert (changed.name, changed.uid, changed.file_mode, changed.path) == ("New Name", 5, 0o640, record.path)


def test_alias_moves_the_directory(registry: Registry, data: Path) -> None:
    record = registry.create("x")
    space = registry.open(record.id)
    moved = registry.set_alias(record.id, "z")
    assert moved.path == os.fsencode(data.resolve() / "projects" / "z")
    assert not os.path.exists(record.path)
    assert registry.open(record.id) is not space and registry.open(record.id).root_fd() >= 0


@pytest.mark.parametrize("renamed", [False, True])
def test_an_interrupted_alias_change_is_finished(registry: Registry, data: Path, renamed: bool) -> None:
    record = registry.create("x")
    target = data.resolve() / "projects" / "z"
    plan = json.dumps({"alias": "z", "from": os.fsdecode(record.path), "to": str(target)})
    registry.installation.set_setting("move:" + record.id, plan)
    if renamed:
        os.rename(record.path, target)
    registry.recover()
    assert registry.get(record.id).path == os.fsencode(target)
    assert registry.open(record.id).root_fd() >= 0
    registry.recover()


def test_the_data_root_may_move(registry: Registry, tmp_path: Path, data: Path) -> None:
    record = registry.create("x")
    data.rename(tmp_path / "elsewhere")
    Installation.initialise(tmp_path / "state", tmp_path / "elsewhere")
    assert registry.get(record.id).path == os.fsencode((tmp_path / "elsewhere").resolve() / "projects" / "x")
    assert registry.open(record.id).root_fd() >= 0
    with pytest.raises(FsdError, match="belongs to"):
        Installation.initialise(tmp_path / "state", tmp_path / "third")


def test_find(registry: Registry) -> None:
    ann = registry.add_user("ann", None)
    personal, project = registry.personal(ann), registry.create("ann")
    assert personal is not None
    assert registry.find(project.id) == registry.find("project/ann") == project
    assert registry.find("personal/ann") == personal
    with pytest.raises(NameRefused, match="more than one"):
        registry.find("ann")
    with pytest.raises(FileNotFoundError):
        registry.find("nobody")


def test_open_keeps_the_space_when_only_names_change(registry: Registry) -> None:
    record = registry.create("x")
    space = registry.open(record.id)
    registry.set(record.id, name="y")
    assert registry.open(record.id) is space and space.record.name == "y"


def test_a_lost_registry_is_never_replaced_by_an_empty_one(registry: Registry, tmp_path: Path) -> None:
    registry.create("x")
    registry.installation.close()
    for path in (tmp_path / "state").glob("fsd.db*"):
        path.unlink()
    with pytest.raises(FsdError, match="backup"):
        Registry(tmp_path / "state").spaces()


def test_nothing_is_made_in_a_data_root_whose_storage_is_away(registry: Registry, data: Path) -> None:
    registry.add_user("ann", "secret")
    data.rename(data.with_name("away"))
    data.mkdir()  # the mount point
    for make in (lambda: registry.create("new"), lambda: registry.add_user("bob", "secret")):
        with pytest.raises(StorageUnavailable, match="mount its storage first"):
            make()
    assert list(data.iterdir()) == [] and registry.accounts.find("bob") is None
    data.rmdir()
    data.with_name("away").rename(data)
    assert registry.create("new").alias == "new"
