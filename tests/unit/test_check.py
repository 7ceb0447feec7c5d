"""Every invariant is broken by hand once: `check` finds exactly that, repairs what can be, and finds nothing
then."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fsd.core import check, dirty, journal, operations, partials, properties
from fsd.core.check import Finding
from fsd.core.checks import finding as judging
from fsd.core.operations import delete
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.sweep import Sweep
from tests.support.breaks import BREAKS, HOPELESS
from tests.support.worlds import grow_quiet, make_space, sweep
from tests.unit.core_space import assert_right, on_disk, put, write
from tests.unit.test_check_registry import REGISTRY_BREAKS


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    for name in (b"d", b"d/e", b"empty"):
        os.mkdir(on_disk(made, name))
    write(made, b"d/f", b"12345")
    write(made, b"d/e/g", b"123")
    write(made, b"one", b"1")
    os.link(on_disk(made, b"one"), on_disk(made, b"two"))
    os.symlink(b"nowhere", on_disk(made, b"link"))
    os.mkfifo(on_disk(made, b"pipe"))
    sweep(made)
    put(made, b"put", b"1234567")
    put(made, b"put", b"12345678")
    properties.update(made, b"d/f", {"{x:}large": b"<l>" + b"x" * 5000 + b"</l>"})
    put(made, b"gone", b"gone")
    properties.update(made, b"gone", {"{x:}large": b"<l>" + b"x" * 5000 + b"</l>"})
    delete(made, b"gone")
    grow_quiet(made)
    partials.create(made, "somebody", path=b"d/large", reserve=100)
    scan = Sweep(made)
    scan.begin()
    assert scan.step(9.0).finished
    yield made
    made.close()


def codes(found: list[Finding]) -> set[str]:
    return {each.code for each in found}


def test_a_sound_space_has_no_findings(space):
    assert list(check.check(space)) == []
    assert list(check.check(space, served=True)) == []
    assert list(check.check(space, repair=True)) == []
    (note,) = check.notes(space)
    assert "2 names" in note and "2 bytes" in note


def test_what_a_busy_hour_wrote_is_no_finding(space, monkeypatch):
    monkeypatch.setattr(journal, "KEEP", 2)
    for number in range(10):
        operations.make_directory(space, b"busy%d" % number)
    assert len(journal.since(space, 0)) > 5
    assert list(check.check(space)) == []


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        pytest.param(code, each, id=f"{code}-{n}")
        for code, all_ in BREAKS.items()
        for n, each in enumerate(all_)
    ],
)
def test_each_code(space, code, damage, allow_log, monkeypatch):
    allow_log("is damaged: set aside")
    monkeypatch.setattr(journal, "KEEP", 10 if code == "journal-long" else journal.KEEP)
    damage(space)
    served = code.endswith("-late") or code in ("lock-expired", "tombstone-old")
    options = {"served": served, "grace_s": 0.0}
    found = list(check.check(space, **options))
    assert codes(found) == {code}, found
    hopeless = code in HOPELESS
    assert all(each.repairable is not hopeless and not each.repaired for each in found)
    before = {path: Path(os.fsdecode(on_disk(space, path))).read_bytes() for path in (b"put", b"d/f") if
              os.path.isfile(on_disk(space, path))}  # fmt: skip
    mended = list(check.check(space, repair=True, **options))
    assert code in codes(mended) and all(each.repaired is not hopeless for each in mended), mended
    for path, content in before.items():
        assert Path(os.fsdecode(on_disk(space, path))).read_bytes() == content
    left = list(check.check(space, **options))
    assert codes(left) == ({code} if hopeless else set()), left
    if not hopeless:
        assert_right(space)


@pytest.mark.root
def test_what_cannot_be_read_is_said(open_place):
    tmp_path = open_place
    made = make_space(tmp_path)
    os.mkdir(on_disk(made, b"d"))
    write(made, b"f")
    sweep(made)
    for each in (tmp_path, tmp_path / "root", tmp_path / "state", *(tmp_path / "state").iterdir()):
        os.chmod(each, 0o777)
    for top, dirs, files in os.walk(tmp_path / "root/.fsd"):
        for name in (top, *(os.path.join(top, each) for each in dirs + files)):
            os.chown(name, 65534, 65534)
    made.close()
    os.chmod(on_disk(made, b"d"), 0)
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        found = {(each.code, each.path) for each in check.check(Space(made.record, made.state_dir))}
        os._exit(0 if ("unreadable", b"d") in found and not any(path == b"f" for _, path in found) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_root_that_is_another_directory(space):
    space.close()
    os.rename(space.root, space.root + b".old")
    os.mkdir(space.root)
    assert codes(list(check.check(space))) == {"storage-unavailable"}


def test_what_waits_is_late_and_not_wrong(space):
    write(space, b"d/f", b"123456")
    dirty.mark(space, [(b"d", [b"f"])])
    assert list(check.check(space)) == []
    assert list(check.check(space, repair=True)) == []
    assert_right(space)


def test_a_tree_that_was_never_looked_at_is_not_full_of_findings(tmp_path):
    made = make_space(tmp_path)
    os.mkdir(on_disk(made, b"d"))
    write(made, b"d/f")
    assert list(check.check(made)) == []
    assert list(check.check(made, repair=True)) == []
    assert_right(made)
    made.close()


def test_what_changes_meanwhile_is_no_finding(space):
    """A direct write is reconciled by a watcher a moment later: the check looks again before it says
    anything."""
    write(space, b"d/f", b"123456")
    write(space, b"d/new", b"1")
    pending = check.check(space, served=True, grace_s=0.2)
    looked = iter(check._suspects(space, True, None))
    assert {next(looked).code, next(looked).code} == {"row-stale", "row-missing"}
    reconcile(space, b"d")
    assert list(pending) == []


def test_the_queue_of_suspicions_is_bounded(monkeypatch):
    monkeypatch.setattr(judging, "_MOST", 3)
    asked: list[int] = []

    def suspects():
        for n in range(10):
            yield judging.Suspect("x", b"", "", n, lambda n=n: asked.append(n) or n)
            assert n - len(asked) <= 3

    found = list(judging.Judge(repair=False, grace_s=0.01).findings(suspects()))
    assert len(found) == 10


def test_a_fact_that_keeps_changing_is_alive():
    turns = iter(range(100))
    suspect = judging.Suspect("x", b"", "", -1, lambda: next(turns))
    assert list(judging.Judge(repair=True, grace_s=0.0).findings([suspect])) == []


def test_a_repair_that_fails_says_why():
    def fail() -> None:
        raise OSError(28, "No space left on device")

    suspect = judging.Suspect("x", b"", "Wrong.", 1, lambda: 1, fail)
    (found,) = judging.Judge(repair=True, grace_s=0.0).findings([suspect])
    assert not found.repaired and "No space left" in found.text


def test_each_code_has_a_test_and_a_line_in_the_handbook():
    handbook = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    table = handbook.partition("### Findings of `fsd check`")[2].partition("\n## ")[0]
    documented = {
        code for line in re.findall(r"^\| (`.*?) \|", table, re.M) for code in re.findall(r"`([\w-]+)`", line)
    }
    tested = set(BREAKS) | set(REGISTRY_BREAKS) | {"storage-unavailable", "unreadable"}
    sources = Path(check.__file__).parent.glob("checks/*.py")
    text = "".join(path.read_text() for path in (*sources, Path(check.__file__)))
    written = {
        code
        for code in re.findall(r'"([a-z]+(?:-[a-z]+)*)"', text)
        if code in tested
        or re.fullmatch(r"(row|label|meta|trash|upload|lock|intent|internals|registry|state|index)-.*", code)
    }
    assert documented == tested == written
