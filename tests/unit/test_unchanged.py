"""A change of ctime that nothing explains: what has the same content keeps its etag, what may have another does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.core import ids, unchanged
from fsd.core.index import NodeRow
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.sums import of_bytes
from fsd.core.tree import lookup
from tests.support.worlds import differences, drain, make_space

Quiet = Callable[[Path], object]


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    opened = make_space(tmp_path)
    yield opened
    opened.close()


def root(space: Space) -> Path:
    return Path(os.fsdecode(space.root))


def hashed(space: Space, name: str, content: bytes = b"content") -> str:
    """A file whose checksums are known; its etag."""
    (root(space) / name).write_bytes(content)
    reconcile(space, b"")
    entry = lookup(space, os.fsencode(name))
    space.sums.note(entry.etag, entry.id, of_bytes(content))
    return entry.etag


def keep_times(path: Path, change: Quiet) -> None:
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def there_and_back(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.with_name("elsewhere").rename(path)


def linked_for_a_moment(path: Path) -> None:
    path.with_name("second").hardlink_to(path)
    path.with_name("second").unlink()


METADATA: dict[str, Quiet] = {
    "chmod to the mode it has": lambda path: path.chmod(path.stat().st_mode & 0o7777),
    "chown to the owner it has": lambda path: os.chown(path, path.stat().st_uid, path.stat().st_gid),
    "utime to the time it has": lambda path: keep_times(path, lambda _: None),
    "renamed there and back": there_and_back,
    "linked for a moment": linked_for_a_moment,
    "written again with what it holds": lambda path: keep_times(path, lambda p: p.write_bytes(b"content")),
}


@pytest.mark.parametrize("how", METADATA)
@pytest.mark.parametrize("named", [True, False], ids=["by name", "whole"])
def test_metadata_leaves_the_etag_alone(space: Space, how: str, named: bool) -> None:
    etag = hashed(space, "f")
    METADATA[how](root(space) / "f")
    reconcile(space, b"", [b"f"] if named else None)
    assert lookup(space, b"f").etag == etag
    assert differences(space) == []


def test_an_empty_file_has_one_content(space: Space) -> None:
    (root(space) / "f").touch()
    reconcile(space, b"")
    etag = lookup(space, b"f").etag
    METADATA["chmod to the mode it has"](root(space) / "f")
    reconcile(space, b"")
    assert lookup(space, b"f").etag == etag


@pytest.mark.parametrize("named", [True, False], ids=["by name", "whole"])
def test_another_content_behind_the_same_times_has_another_etag(space: Space, named: bool) -> None:
    etag = hashed(space, "f")
    keep_times(root(space) / "f", lambda path: path.write_bytes(b"CONTENT"))
    reconcile(space, b"", [b"f"] if named else None)
    assert lookup(space, b"f").etag != etag


def test_what_was_never_hashed_has_another_etag(space: Space) -> None:
    (root(space) / "f").write_bytes(b"content")
    reconcile(space, b"")
    etag = lookup(space, b"f").etag
    METADATA["chmod to the mode it has"](root(space) / "f")
    reconcile(space, b"")
    assert lookup(space, b"f").etag != etag


def test_only_so_much_is_read_at_once(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "MOST", 10)
    before = {name: hashed(space, name) for name in ("a", "b")}
    for name in before:
        METADATA["chmod to the mode it has"](root(space) / name)
    reconcile(space, b"")
    kept = [name for name, etag in before.items() if lookup(space, os.fsencode(name)).etag == etag]
    assert len(kept) == 1


def test_what_changes_while_it_is_read_is_not_proven(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = hashed(space, "f")
    path = root(space) / "f"
    METADATA["chmod to the mode it has"](path)
    real = unchanged.same_content

    def and_then_it_changes(fd: int, size: int, known: object) -> bool:
        said = real(fd, size, known)  # type: ignore[arg-type]
        keep_times(path, lambda p: p.write_bytes(b"CONTENT"))
        return said

    monkeypatch.setattr(unchanged, "same_content", and_then_it_changes)
    reconcile(space, b"")
    monkeypatch.undo()
    reconcile(space, b"")
    assert lookup(space, b"f").etag != etag


def test_renaming_one_name_of_a_file_leaves_the_etags_of_the_others(space: Space) -> None:
    (root(space) / "a").mkdir()
    (root(space) / "f").write_bytes(b"content")
    (root(space) / "a/second").hardlink_to(root(space) / "f")
    drain(space)
    reconcile(space, b"")
    reconcile(space, b"a")
    drain(space)
    etag = lookup(space, b"f").etag
    (root(space) / "a/second").rename(root(space) / "a/third")
    reconcile(space, b"a", [b"second", b"third"])
    drain(space)
    assert lookup(space, b"f").etag == etag
    keep_times(root(space) / "f", lambda path: path.write_bytes(b"CONTENT"))
    reconcile(space, b"", [b"f"])
    assert lookup(space, b"f").etag != etag
    assert differences(space) == []


def test_etags_are_of_rows(space: Space) -> None:
    """What is proven is proven of one etag: a row that somebody else has changed meanwhile has another."""
    etag = hashed(space, "f")
    with space.index.read() as db:
        row = NodeRow._make(db.execute("SELECT * FROM node WHERE name=?", (b"f",)).fetchone())
    assert etag == ids.file_etag(row.id, row.size, row.mtime_ns, row.rev)
