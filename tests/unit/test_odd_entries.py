"""Entries that are no plain files: each is shown or hidden as docs/entries.md says, counted as it says, and disturbs
nobody. Everything that goes through a tree goes through this one, against the clock of the test run: what opens a FIFO
would wait for ever."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.core import check, dirty, disk, operations, relabel, trash, tree
from fsd.core.content import Upload
from fsd.core.errors import Forbidden, NameRefused
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.syscalls import clamp_ns
from tests.support.worlds import differences, drain, grow_quiet, make_space, sweep

NAMES = [
    b"new\nline", b"\xff\xfe", b"n" * 255, b" ", b"-rf", b"Cargo.lock", b"x.flock", b"x.mlock", b".Trash", b"~$owner",
    b".~lock.f#", b"%2e%2e", b"con", b"a\\b", "e\u0301".encode(), "\u00e9".encode(), b"\xed\xa0\x80", b".fsd.old",
]  # fmt: skip
LINKS = {
    b"out": b"/etc",
    b"up": b"..",
    b"self": b".",
    b"loop": b"loop",
    b"dangling": b"nowhere",
    b"to": b"plain",
}


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path)
    odd = root(made) / "odd"
    odd.mkdir()
    (odd / "plain").write_text("plain")
    for name in NAMES:
        (odd / os.fsdecode(name)).write_text("1")
    for name, target in LINKS.items():
        os.symlink(target, odd / os.fsdecode(name))
    os.mkfifo(odd / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(odd / "socket"))
    if os.geteuid() == 0:
        os.mknod(odd / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        os.mknod(odd / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    sweep(made)
    yield made
    made.close()


FAR = {"1600": -11676096000, "1901": -2177452800, "1969": -1, "2107": 4323369600, "2300": 10413792000}


@pytest.mark.parametrize("year", FAR)
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "in Python"])
def test_times_beyond_64_bits_of_nanoseconds_are_as_good_as_others(
    space: Space, monkeypatch: pytest.MonkeyPatch, year: str, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(disk, "compiled", None)
    drain(space)
    (root(space) / "odd" / "other").hardlink_to(root(space) / "odd" / "plain")
    drain(space)
    before = {entry.path: entry for entry in tree.listing(space, b"odd")[1]}
    for name in ("odd/plain", "odd/" + os.fsdecode(NAMES[0]), "odd"):
        os.utime(root(space) / name, (FAR[year], FAR[year]))
    for settle in (lambda: None, lambda: drain(space), lambda: sweep(space)):
        settle()
        after = {entry.path: entry for entry in tree.listing(space, b"odd")[1]}
        assert {path: entry.id for path, entry in after.items()} == {
            path: entry.id for path, entry in before.items()
        }
        changed = {path for path in before if after[path].etag != before[path].etag}
        assert changed == {b"odd/plain", b"odd/other", b"odd/" + NAMES[0]}
        assert after[b"odd/plain"].mtime_ns == clamp_ns(os.stat(root(space) / "odd/plain").st_mtime_ns)
    assert differences(space) == []
    etag = after[b"odd/plain"].etag
    (root(space) / "odd/plain").write_text("PLAIN")
    os.utime(root(space) / "odd/plain", (FAR[year], FAR[year] + 1))
    reconcile(space, b"odd", [b"plain"])
    assert tree.lookup(space, b"odd/plain").etag != etag


def root(space: Space) -> Path:
    return Path(os.fsdecode(space.root))


def kinds(space: Space, path: bytes = b"odd") -> dict[bytes, str]:
    return {entry.name: entry.kind for entry in tree.listing(space, path)[1]}


def test_each_is_shown_as_what_it_is(space: Space) -> None:
    found = kinds(space)
    assert found.keys() == {os.fsencode(name) for name in os.listdir(root(space) / "odd")}
    assert {found[name] for name in NAMES} == {"f"} and {found[name] for name in LINKS} == {"l"}
    special = found.keys() & {b"fifo", b"socket", b"device", b"disk"}
    assert {found[name] for name in special} == {"o"} and len(special) in (2, 4)
    assert tree.lookup(space, b"odd").size == len("plain") + len(NAMES) == tree.usage(space)
    sizes = {entry.name: entry.size for entry in tree.listing(space, b"odd")[1]}
    assert not any(sizes[name] for name in (*LINKS, *special))


def test_none_is_opened_or_followed(space: Space) -> None:
    for name in (*LINKS, b"fifo", b"socket"):
        with pytest.raises(Forbidden):
            tree.open_file(space, b"odd/" + name)
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            tree.lookup(space, b"odd/" + name + b"/passwd")


def test_nothing_waits_and_nothing_is_lost(space: Space) -> None:
    """Labels, checks, copies, moves, the trash and back."""
    before = kinds(space)
    grow_quiet(space)
    relabel.label_due(space)
    assert list(check.check(space)) == []
    operations.copy(space, b"odd", space, b"copy", overwrite=False)
    assert {name for name, kind in kinds(space, b"copy").items() if kind == "f"} == {b"plain", *NAMES}
    operations.move(space, b"odd", space, b"moved", overwrite=False)
    assert kinds(space, b"moved") == before
    operations.delete(space, b"moved")
    (item,) = trash.items(space)
    trash.restore(space, item.key)
    assert kinds(space, b"moved") == before
    operations.delete(space, b"moved")
    for item in trash.items(space):
        trash.remove(space, item.key)
    sweep(space)
    assert differences(space) == []


def test_a_file_that_becomes_a_fifo_meanwhile(space: Space) -> None:
    """Known as a file, replaced unheard: whoever opens it by its row does not wait."""
    with space.index.write() as db:
        db.execute("UPDATE pending SET due=0")
    os.unlink(root(space) / "odd/plain")
    os.mkfifo(root(space) / "odd/plain")
    relabel.label_due(space)
    with pytest.raises(Forbidden):
        tree.open_file(space, b"odd/plain")


@pytest.mark.parametrize("error", [5, 13, 116], ids=["EIO", "EACCES", "ESTALE"])
def test_an_entry_that_cannot_be_read_disturbs_no_neighbour(
    space: Space, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """It is listed with what is known of it; it keeps its row, its id and its size."""
    before = {entry.name: (entry.id, entry.size) for entry in tree.listing(space, b"odd")[1]}
    real: Callable[..., os.stat_result] = os.stat

    def failing(path: object, *arguments: object, **keywords: object) -> os.stat_result:
        if path == b"plain":
            raise OSError(error, os.strerror(error))
        return real(path, *arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        (root(space) / "odd/new").write_text("new")
        reconcile(space, b"odd", [b"plain", b"new"])
    after = {entry.name: (entry.id, entry.size) for entry in tree.listing(space, b"odd")[1]}
    assert after.pop(b"new")[1] == 3
    assert after == before


def test_internals_of_others_are_hidden_wherever_they_stand(space: Space, tmp_path: Path) -> None:
    """A snapshot or a backup of a space inside a space brings its `.fsd`, with the key that proves labels."""
    shutil.copytree(root(space) / ".fsd", tmp_path / "kept")
    (root(space) / "backup").mkdir()
    (tmp_path / "kept").rename(root(space) / "backup/.fsd")
    (root(space) / "plain-dir").mkdir()
    (root(space) / "plain-dir/.fsd").mkdir(mode=0o755)
    sweep(space)
    assert (root(space) / "backup/.fsd/space.json").exists()
    assert b".fsd" not in kinds(space, b"backup")
    assert kinds(space, b"plain-dir") == {b".fsd": "d"}, "somebody's own directory of that name is shown"
    for path in (b"backup/.fsd", b"backup/.fsd/space.json"):
        with pytest.raises(FileNotFoundError):
            tree.lookup(space, path)
    with pytest.raises(FileNotFoundError):
        tree.listing(space, b"backup/.fsd")
    with pytest.raises((NameRefused, Forbidden)):
        operations.make_directory(space, b"odd/.fsd")
    assert differences(space) == []


def test_a_tree_deeper_than_any_path(tmp_path: Path) -> None:
    """System calls take paths of 4095 bytes; directories may lie deeper (limits.h PATH_MAX)."""
    made = make_space(tmp_path)
    here, parts = os.open(made.root, os.O_RDONLY), []
    for number in range(30):
        parts.append(b"%02d" % number + b"x" * 198)
        os.mkdir(parts[-1], dir_fd=here)
        below = os.open(parts[-1], os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        with open(os.open(b"f", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
            file.write(b"12345")
    os.close(here)
    deepest = b"/".join(parts)
    assert {entry.name for entry in tree.listing(made, deepest)[1]} == {b"f"}
    sweep(made)
    assert tree.lookup(made, b"").size == 150
    with Upload(made, deepest + b"/new", length=1) as upload:
        upload.write(b"1")
        upload.commit()
    assert tree.lookup(made, b"").size == 151
    with pytest.raises(FileNotFoundError):
        tree.lookup(made, deepest + b"/nothing")
    operations.move(made, deepest, made, b"moved", overwrite=False)
    operations.delete(made, parts[0])
    assert tree.lookup(made, b"").size == 6
    assert list(check.check(made)) == []
    made.close()


@pytest.mark.root
def test_a_directory_that_is_covered_by_another_of_the_tree_while_it_waits(space: Space) -> None:
    for name in ("seen", "covered"):
        (root(space) / name).mkdir()
    (root(space) / "covered/x").write_text("1")
    sweep(space)
    dirty.mark(space, [(b"covered", None)])
    subprocess.run(["mount", "--bind", root(space) / "seen", root(space) / "covered"], check=True)
    try:
        drain(space)
        assert tree.lookup(space, b"covered").kind == "o"
    finally:
        subprocess.run(["umount", root(space) / "covered"], check=True)
    drain(space)
    sweep(space)
    assert differences(space) == [] and kinds(space, b"covered") == {b"x": "f"}
