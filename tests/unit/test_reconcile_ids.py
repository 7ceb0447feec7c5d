"""Identity through the ways people and programs save, copy, link and move, reconciled after every single
step."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.core import check, commit, dirty, index, labels, limbo, relabel, tree
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.tree import Entry, listing, lookup
from tests.support.worlds import differences, drain, make_space, sweep

Step = Callable[[Path], object]


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    opened = make_space(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def ripe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes count as closed and quiet at once, as if they had lain there for a minute."""
    monkeypatch.setattr(commit, "QUIET_S", -1.0)


def root(space: Space) -> Path:
    return Path(os.fsdecode(space.root))


def ids_in(space: Space) -> dict[bytes, str]:
    return {entry.path: entry.id for entry in listing(space, b"")[1]}


def settle_old(space: Space, path: Path, text: str = "old") -> str:
    """A file that has been there for long: indexed, ready and labelled."""
    path.write_text(text)
    reconcile(space, b"")
    with space.index.write() as db:
        db.execute("UPDATE node SET flags=flags|? WHERE name=?", (index.READY, os.fsencode(path.name)))
        db.execute("UPDATE pending SET due=0, force=1")
    relabel.label_due(space)
    return lookup(space, os.fsencode(path.name)).id


def after_each(space: Space, steps: list[Step], *, every: bool) -> None:
    for step in steps:
        step(root(space))
        if every:
            reconcile(space, b"")
    reconcile(space, b"")
    assert differences(space) == []


def write(name: str, text: str) -> Step:
    return lambda base: (base / name).write_text(text)


def rename(old: str, new: str) -> Step:
    return lambda base: os.replace(base / old, base / new)


def unlink(name: str) -> Step:
    return lambda base: (base / name).unlink()


def touch_mode(name: str) -> Step:
    """chmod to the mode it has: only its ctime changes, as far as anybody can tell its content may have."""
    return lambda base: (base / name).chmod(stat.S_IMODE((base / name).stat().st_mode))


SAVES: dict[str, list[Step]] = {
    "sed -i, os.replace": [write("sedXYZ", ""), write("sedXYZ", "new"), rename("sedXYZ", "f")],
    "vim, backup by rename": [rename("f", "f~"), write("f", ""), write("f", "new"), unlink("f~")],
    "emacs": [rename("f", "f~"), write("f", "new")],
    "office": [write("tmp1", "new"), rename("f", "f.bak"), rename("tmp1", "f"), unlink("f.bak")],
    "unlink and create": [unlink("f"), write("f", "new")],
    "sed -i, mode set": [
        write("sedXYZ", ""),
        touch_mode("sedXYZ"),
        write("sedXYZ", "new"),
        rename("sedXYZ", "f"),
    ],
    "patch -b": [write("f.o", "new"), touch_mode("f.o"), rename("f", "f.orig"), rename("f.o", "f")],
    "in place": [write("f", ""), write("f", "new")],
}


@pytest.mark.parametrize("every", [True, False], ids=["each-step", "at-the-end"])
@pytest.mark.parametrize("how", SAVES)
def test_id_survives_saving(space: Space, how: str, every: bool) -> None:
    before = settle_old(space, root(space) / "f")
    etag = lookup(space, b"f").etag
    after_each(space, SAVES[how], every=every)
    entry = lookup(space, b"f")
    assert entry.id == before
    assert entry.etag != etag
    assert len(set(ids_in(space).values())) == len(ids_in(space))


@pytest.mark.parametrize("how", SAVES)
def test_id_survives_saving_again_and_again(space: Space, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next save comes before anybody had the time to write a label."""
    before = settle_old(space, root(space) / "f")
    monkeypatch.setattr(relabel, "write_labels", lambda *_: None)
    for turn in range(4):
        after_each(space, SAVES[how], every=True)
        assert lookup(space, b"f").id == before, f"lost in round {turn}"


def test_a_temporary_name_that_is_used_again_is_nobody(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, given up, written again: what is then renamed over a file still takes that file's id."""
    before = settle_old(space, root(space) / "f")
    monkeypatch.setattr(relabel, "write_labels", lambda *_: None)
    for _ in range(3):
        steps = [write("f.tmp", "half"), unlink("f.tmp"), write("f.tmp", "new"), rename("f.tmp", "f")]
        after_each(space, steps, every=True)
        assert lookup(space, b"f").id == before


@pytest.mark.parametrize("how", SAVES)
def test_ids_survive_the_index(space: Space, how: str) -> None:
    settle_old(space, root(space) / "f")
    after_each(space, SAVES[how], every=True)
    before = {entry.path: (entry.id, entry.etag, entry.size) for entry in listing(space, b"")[1]}
    space.index.path.unlink()
    sweep(space)
    assert {entry.path: (entry.id, entry.etag, entry.size) for entry in listing(space, b"")[1]} == before


def test_a_moved_ready_file_over_another_keeps_its_own_id(space: Space) -> None:
    settle_old(space, root(space) / "f")
    mine = settle_old(space, root(space) / "g")
    after_each(space, [rename("g", "f")], every=True)
    assert lookup(space, b"f").id == mine


def test_a_copy_with_attributes_gets_its_own_id(space: Space, ripe: None) -> None:
    mine = settle_old(space, root(space) / "f")
    os.system(f"cp -a '{root(space)}/f' '{root(space)}/copy'")  # noqa: S605
    reconcile(space, b"")
    assert lookup(space, b"f").id == mine != lookup(space, b"copy").id
    kept = ids_in(space)
    space.index.path.unlink()
    sweep(space)
    assert ids_in(space) == kept


def test_a_restored_file_gets_its_id_back(space: Space, tmp_path: Path, ripe: None) -> None:
    mine = settle_old(space, root(space) / "f")
    shutil.copy2(root(space) / "f", tmp_path / "backup")
    (root(space) / "f").unlink()
    reconcile(space, b"", [b"f"])
    limbo.settle(space, now=4e9)
    shutil.copy2(tmp_path / "backup", root(space) / "f")
    reconcile(space, b"", [b"f"])
    assert lookup(space, b"f").id == mine


def test_hard_links_have_stable_ids_and_survive_the_index(space: Space, ripe: None) -> None:
    mine = settle_old(space, root(space) / "a")
    os.link(root(space) / "a", root(space) / "b")
    reconcile(space, b"", [b"b"])
    second = lookup(space, b"b").id
    assert second != mine == lookup(space, b"a").id
    (root(space) / "a").unlink()
    reconcile(space, b"", [b"a"])
    relabel.label_due(space)
    assert lookup(space, b"b").id == second
    space.index.path.unlink()
    sweep(space)
    assert lookup(space, b"b").id == second


@pytest.mark.root
def test_a_forged_label_is_not_believed(space: Space, ripe: None) -> None:
    mine = settle_old(space, root(space) / "f")
    (root(space) / "f").unlink()
    reconcile(space, b"", [b"f"])
    limbo.settle(space, now=4e9)
    (root(space) / "other").write_text("forged")
    os.chown(root(space) / "other", 12345, 12345)
    os.setxattr(root(space) / "other", labels.ID_ATTRIBUTE, f"1:{mine}:{'0' * 16}:0".encode())
    reconcile(space, b"", [b"other"])
    assert lookup(space, b"other").id != mine


def test_a_swap_of_two_names_keeps_both_ids(space: Space) -> None:
    first, second = settle_old(space, root(space) / "a", "1"), settle_old(space, root(space) / "b", "22")
    after_each(space, [rename("a", "t"), rename("b", "a"), rename("t", "b")], every=False)
    assert (lookup(space, b"a").id, lookup(space, b"b").id) == (second, first)


def entries(space: Space, path: bytes = b"") -> dict[bytes, Entry]:
    return {entry.name: entry for entry in listing(space, path)[1]}


def test_etags_leave_renames_modes_and_attributes_alone(space: Space) -> None:
    settle_old(space, root(space) / "f")
    etag = lookup(space, b"f").etag
    os.chmod(root(space) / "f", 0o600)
    reconcile(space, b"", [b"f"])
    os.setxattr(root(space) / "f", "user.comment", b"hello")
    reconcile(space, b"", [b"f"])
    os.rename(root(space) / "f", root(space) / "g")
    reconcile(space, b"", [b"f", b"g"])
    assert lookup(space, b"g").etag == etag


def test_etag_changes_with_content_at_equal_size_and_time(space: Space) -> None:
    settle_old(space, root(space) / "f", "one")
    entry = lookup(space, b"f")
    seen = {entry.etag}
    for text in ("two", "six", "ten"):
        (root(space) / "f").write_text(text)
        os.utime(root(space) / "f", ns=(entry.mtime_ns, entry.mtime_ns))
        reconcile(space, b"", [b"f"])
        etag = lookup(space, b"f").etag
        assert etag not in seen
        seen.add(etag)
    space.index.path.unlink()
    sweep(space)
    assert lookup(space, b"f").etag == etag


def test_only_the_ancestors_of_a_change_get_new_etags(space: Space) -> None:
    for place in ("a/b/c", "a/x", "y/z"):
        (root(space) / place).mkdir(parents=True)
    sweep(space)
    paths = [b"", b"a", b"a/b", b"a/b/c", b"a/x", b"y", b"y/z"]
    before = {path: lookup(space, path).etag for path in paths}
    (root(space) / "a/b/f").write_text("new")
    dirty.mark(space, [(b"a/b", [b"f"])])
    drain(space)
    changed = {path for path in paths if lookup(space, path).etag != before[path]}
    assert changed == {b"", b"a", b"a/b"}


def test_a_first_sweep_changes_no_etag_of_what_was_there(tmp_path: Path) -> None:
    space = make_space(tmp_path)
    (root(space) / "a/b").mkdir(parents=True)
    (root(space) / "a/b/f").write_text("text")
    try:
        before = lookup(space, b"").etag
        while (
            os.stat(root(space) / "a/b/f").st_ctime_ns >= lookup(space, b"").ctime_ns
            and space.index.path.exists()
        ):
            break
        sweep(space)
        space.index.path.unlink()
        etag = lookup(space, b"").etag
        assert etag != before
        sweep(space)
        assert lookup(space, b"").etag == etag
        assert lookup(space, b"").size == 4
    finally:
        space.close()


def test_sizes_stay_while_a_lost_index_is_rebuilt(space: Space) -> None:
    (root(space) / "a/b").mkdir(parents=True)
    (root(space) / "a/b/f").write_text("12345")
    sweep(space)
    relabel.publish_trees(space)
    space.index.path.unlink()
    assert lookup(space, b"").size == 5
    assert entries(space)[b"a"].size == 5
    sweep(space)
    assert lookup(space, b"").size == 5


def test_names_of_one_file_come_to_rest(space: Space) -> None:
    settle_old(space, root(space) / "a")
    for name in ("b", "c"):
        os.link(root(space) / "a", root(space) / name)
    sweep(space)
    entry = lookup(space, b"a")
    (root(space) / "b").write_text("new")
    os.utime(root(space) / "b", ns=(entry.mtime_ns, entry.mtime_ns))
    dirty.mark(space, [(b"", [b"b"])])
    assert drain(space, most=50) > 0
    assert {other.size for other in listing(space, b"")[1]} == {3}
    assert differences(space) == []


def test_of_two_names_the_one_that_moved_goes_on_not_the_one_that_went_before(space: Space) -> None:
    settle_old(space, root(space) / "a")
    os.link(root(space) / "a", root(space) / "b")
    reconcile(space, b"")
    kept = ids_in(space)[b"b"]
    after_each(space, [unlink("a"), rename("b", "c")], every=True)
    assert ids_in(space) == {b"c": kept}


def test_a_name_that_went_with_its_directory_is_not_the_one_that_moved(space: Space) -> None:
    (root(space) / "d").mkdir()
    os.mkfifo(root(space) / "d/a")
    sweep(space)
    os.link(root(space) / "d/a", root(space) / "b")
    reconcile(space, b"")
    kept = ids_in(space)[b"b"]
    shutil.rmtree(root(space) / "d")
    reconcile(space, b"")
    os.rename(root(space) / "b", root(space) / "c")
    reconcile(space, b"", [b"b"])
    reconcile(space, b"", [b"c"])
    assert ids_in(space) == {b"c": kept}


def test_the_last_name_keeps_its_id_elsewhere_while_another_waits_in_limbo(space: Space) -> None:
    (root(space) / "d").mkdir()
    os.mkfifo(root(space) / "d/a")
    sweep(space)
    os.link(root(space) / "d/a", root(space) / "b")
    reconcile(space, b"")
    kept = ids_in(space)[b"b"]
    shutil.rmtree(root(space) / "d")
    reconcile(space, b"", [b"d", b"b"])
    os.rename(root(space) / "b", root(space) / "c")
    reconcile(space, b"", [b"b", b"c"])
    assert ids_in(space) == {b"c": kept}
    assert list(check.check(space)) == []
    limbo.settle(space, now=4e9)
    space.index.path.unlink()
    sweep(space)
    assert ids_in(space) == {b"c": kept}


def edit_unseen(path: Path, text: str) -> None:
    """Other content of the same length, with the same mtime."""
    before = path.stat()
    assert before.st_size == len(text)
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_name_that_comes_back_has_another_etag_if_the_file_went_on_without_it(space: Space) -> None:
    settle_old(space, root(space) / "a", "one")
    os.link(root(space) / "a", root(space) / "z")
    reconcile(space, b"")
    before = lookup(space, b"z")
    (root(space) / "z").unlink()
    reconcile(space, b"", [b"a", b"z"])
    edit_unseen(root(space) / "a", "two")
    reconcile(space, b"", [b"a"])
    os.rename(root(space) / "a", root(space) / "z")
    (root(space) / "a").write_text("new")
    reconcile(space, b"", [b"a", b"z"])
    after = lookup(space, b"z")
    assert (after.id, after.size, after.mtime_ns) == (before.id, before.size, before.mtime_ns)
    assert after.etag != before.etag
    assert list(check.check(space)) == []


def test_an_id_that_comes_back_to_a_file_has_no_etag_of_before(space: Space) -> None:
    (root(space) / "b").write_text("old")
    reconcile(space, b"")
    (root(space) / "tmp").write_text("one")
    reconcile(space, b"", [b"tmp"])
    before = lookup(space, b"tmp")
    os.rename(root(space) / "tmp", root(space) / "b")
    reconcile(space, b"", [b"tmp", b"b"])
    edit_unseen(root(space) / "b", "two")
    reconcile(space, b"", [b"b"])
    os.rename(root(space) / "b", root(space) / "b~")
    (root(space) / "b").write_text("new")
    reconcile(space, b"", [b"b", b"b~"])
    after = lookup(space, b"b~")
    assert after.id == before.id and after.etag != before.etag
    drain(space)
    assert list(check.check(space)) == []
    space.index.path.unlink()
    sweep(space)
    assert lookup(space, b"b~").etag == after.etag


def test_each_unseen_edit_has_an_etag_of_its_own_also_where_no_label_is_written(space: Space) -> None:
    settle_old(space, root(space) / "a", "one")
    os.link(root(space) / "a", root(space) / "b")
    reconcile(space, b"")
    etags = [lookup(space, b"a").etag]
    for text in ("two", "six", "ten"):
        edit_unseen(root(space) / "a", text)
        reconcile(space, b"", [b"a"])
        drain(space)
        etags.append(lookup(space, b"a").etag)
    assert len(set(etags)) == 4


@pytest.mark.parametrize("temporary_known", [False, True])
def test_a_save_by_rename_keeps_its_id_also_where_it_is_not_yet_taken_in(
    space: Space, monkeypatch: pytest.MonkeyPatch, temporary_known: bool
) -> None:
    """In a directory that changes faster than it is listed, or while the state disk is full."""
    mine = settle_old(space, root(space) / "a", "one")
    before = lookup(space, b"a")
    (root(space) / "a.tmp").write_text("two")
    if temporary_known:
        reconcile(space, b"")
    os.rename(root(space) / "a.tmp", root(space) / "a")
    with monkeypatch.context() as patch:
        patch.setattr(tree, "take_in", lambda space, path, names: False)
        (listed,) = listing(space, b"")[1]
        told = lookup(space, b"a")
    assert listed == told and told.id == mine and told.etag != before.etag
    reconcile(space, b"")
    assert (lookup(space, b"a").id, lookup(space, b"a").etag) == (told.id, told.etag)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_backup_that_is_put_back_with_its_mode_is_no_change_of_the_mode_alone(
    space: Space, tmp_path: Path, unlabelled: bool
) -> None:
    settle_old(space, root(space) / "a", "one")
    shutil.copy2(root(space) / "a", tmp_path / "backup")
    etags = [lookup(space, b"a").etag]
    edit_unseen(root(space) / "a", "two")
    reconcile(space, b"", [b"a"])
    etags.append(lookup(space, b"a").etag)
    if unlabelled:
        os.removexattr(tmp_path / "backup", "user.fsd.id")
        os.removexattr(root(space) / "a", "user.fsd.id")
    (tmp_path / "backup").chmod(0o600)
    shutil.copy2(tmp_path / "backup", root(space) / "a")
    reconcile(space, b"", [b"a"])
    etags.append(lookup(space, b"a").etag)
    assert len(set(etags)) == 3
