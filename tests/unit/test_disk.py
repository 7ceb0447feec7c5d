"""Looking at many entries at once: what was compiled and what is done in Python say the same."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core import disk, labels, xattrs
from fsd.core.observe import look, look_many
from fsd.core.space import Space
from tests.support.worlds import make_space


def test_it_is_compiled_where_that_is_possible() -> None:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which("cc") and headers.exists():
        assert disk.compiled is not None


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = make_space(tmp_path)
    yield made
    made.close()


@pytest.fixture
def odd(space: Space) -> list[bytes]:
    """Names of entries of all kinds at the root of a space, one that is not there among them."""
    root = Path(os.fsdecode(space.root))
    (root / "file").write_bytes(b"four")
    (root / "empty").touch()
    (root / ("n" * 255)).touch()
    Path(os.fsdecode(space.root + b"/\xff\n")).write_bytes(b"not UTF-8")
    (root / "directory" / "below").mkdir(parents=True)
    (root / "link").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    socket.socket(socket.AF_UNIX).bind(str(root / "socket"))
    os.link(root / "file", root / "second name")
    for name in ("foreign", "many", "labelled", "both", "forged"):
        (root / name).write_text(name)
    os.setxattr(root / "foreign", "user.other", b"x")
    for number in range(60):
        os.setxattr(root / "many", f"user.a-rather-long-name.{number}", b"")
    fd = os.open(root, os.O_RDONLY)
    for name in (b"labelled", b"both"):
        binding = look(space, fd, name).binding
        labels.set_on_entry(fd, name, labels.encode(space.secret, bytes(range(16)), binding, 3))
    os.close(fd)
    os.setxattr(root / "both", "user.other", b"y")
    os.setxattr(root / "forged", labels.ID_ATTRIBUTE, b"1:" + b"0" * 200)
    os.utime(root / "empty", ns=(1, -5_000_000_001))
    os.chmod(root / "file", 0o6741)
    return [*sorted(os.listdir(os.fsencode(root))), b"gone"]


def told(space: Space, fd: int, names: list[bytes]) -> list[object]:
    return [
        (type(each), each.errno) if isinstance(each, OSError) else each
        for each in look_many(space, fd, names)
    ]


def test_both_see_the_same(space: Space, odd: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(space.root, os.O_RDONLY)
    try:
        compiled = told(space, fd, odd), disk.lstat_all(fd), disk.lstat_all(fd, sizes_of_all=False)
        monkeypatch.setattr(disk, "compiled", None)
        assert compiled == (told(space, fd, odd), disk.lstat_all(fd), disk.lstat_all(fd, sizes_of_all=False))
    finally:
        os.close(fd)


def test_what_it_says_is_what_lstat_says(space: Space, odd: list[bytes]) -> None:
    fd = os.open(space.root, os.O_RDONLY)
    try:
        found = disk.lstat_all(fd)
        assert sorted(found) == odd[:-1]
        for name, packed in found.items():
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            assert disk.PACKED.unpack(packed) == (
                status.st_mode,
                status.st_ino,
                status.st_nlink,
                status.st_uid,
                status.st_gid,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
            assert disk.inode_of(packed) == status.st_ino
        small = disk.lstat_all(fd, sizes_of_all=False)
        for name, packed in small.items():
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            assert packed == disk.packed(status, sizes_of_all=False)
            assert disk.PACKED.unpack(packed)[5] == (status.st_size if stat.S_ISREG(status.st_mode) else 0)
    finally:
        os.close(fd)


def test_labels_are_read_at_once_and_otherwise(space: Space, odd: list[bytes]) -> None:
    fd = os.open(space.root, os.O_RDONLY)
    try:
        seen = dict(zip(odd, look_many(space, fd, odd), strict=True))
        for name in (b"labelled", b"both"):
            each = seen[name]
            assert not isinstance(each, OSError) and each.label is not None and each.label.proven
        assert xattrs.list_names(fd, b"labelled") == [labels.ID_ATTRIBUTE.encode()]
        assert isinstance(seen[b"gone"], FileNotFoundError)
    finally:
        os.close(fd)


def test_more_entries_than_go_into_one_block(tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"{number:04d}-{'x' * (number % 200)}").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert sorted(disk.lstat_all(fd)) == sorted(os.listdir(os.fsencode(tmp_path)))
        assert disk.lstat_all(fd) == disk.lstat_all(fd), "the descriptor's position does not matter"
    finally:
        os.close(fd)


def test_bad_calls_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        disk.lstat_all(fd)
    os.close(fd)
    if disk.compiled is not None:
        with pytest.raises(ValueError):
            disk.compiled.facts(0, (b"a\0b",))
        with pytest.raises(TypeError):
            disk.compiled.facts(0, ("text",))  # type: ignore[arg-type]
