"""How directories lie to one another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsd.core import hosts
from fsd.core.hosts import Place, relation, within


def at(path: str, *regions: tuple[str, str], number: int = 0) -> Place:
    raw = os.fsencode(path)
    own = regions or (("1:1", path),)
    # A chain of invented inodes that no other place shares.
    return Place(
        raw, ((9, hash((path, number))),), tuple((dev, os.fsencode(root)) for dev, root in own), "ext4"
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (at("/a"), at("/a"), "same"),
        (at("/a/b"), at("/a"), "inside"),
        (at("/a"), at("/a/b"), "contains"),
        (at("/ab"), at("/a"), None),
        (at("/view", ("1:1", "/a/b")), at("/a"), "inside"),
        (at("/view", ("1:1", "/a")), at("/a/b"), "contains"),
        (at("/view", ("1:1", "/a")), at("/a"), "same"),
        (at("/view", ("2:1", "/a")), at("/a"), None),
        (at("/x", ("2:2", "/"), ("1:1", "/a")), at("/a"), "contains"),
        (at("/a"), at("/x", ("2:2", "/"), ("1:1", "/")), "inside"),
        (at("/x", ("2:2", "/"), ("3:3", "/shared")), at("/y", ("4:4", "/"), ("3:3", "/shared")), None),
    ],
)
def test_relation(one: Place, other: Place, expected: str | None) -> None:
    assert relation(one, other) == expected


def test_a_place_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    one, other = (hosts.place(os.fsencode(tmp_path / part)) for part in ("a", "a/b"))
    assert relation(one, other) == "contains" and relation(other, one) == "inside"
    found = (tmp_path / "a").stat()
    assert one.chain[0] == (found.st_dev, found.st_ino) == other.chain[1]
    assert one.fstype


def test_mountinfo_with_odd_names(monkeypatch: pytest.MonkeyPatch) -> None:
    line = rb"41 25 8:1 /with\040blank /mnt/t\011ab rw - ext4 /dev/sda1 rw"
    assert hosts._parse(line) == hosts.Mount(41, "8:1", b"/with blank", b"/mnt/t\tab", "ext4", b"/dev/sda1")
    line = rb"41 25 8:1 / /x rw shared:1 master:2 - fuse.sshfs host: rw"
    assert hosts._parse(line).fstype == "fuse.sshfs"


def test_the_mount_of_a_path() -> None:
    table = [
        hosts.Mount(1, "1:1", b"/", b"/", "ext4"),
        hosts.Mount(2, "2:1", b"/", b"/srv", "xfs"),
        hosts.Mount(3, "3:1", b"/", b"/srv/a", "nfs"),
        hosts.Mount(4, "4:1", b"/", b"/srv/a", "tmpfs"),
    ]
    expected = {b"/srv": 2, b"/srv/ab": 2, b"/srv/a/b": 4, b"/srvx": 1}
    assert {path: hosts.mount_of(path, table).id for path in expected} == expected


def test_within() -> None:
    assert within(b"/a/b", b"/a") and within(b"/a", b"/a") and within(b"/a", b"/")
    assert not within(b"/ab", b"/a") and not within(b"/", b"/a")
