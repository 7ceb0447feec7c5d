"""Mounts inside spaces, from the text of mountinfo."""

from __future__ import annotations

from pathlib import Path

from watcher.mounts import Mounts, below

TABLE = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /srv/a/inner rw - tmpfs tmpfs rw
31 22 0:26 / /srv/ab rw - tmpfs tmpfs rw
32 22 0:27 / /srv/with\040space/m rw - tmpfs tmpfs rw
"""


def test_only_mounts_at_or_below_a_root_count():
    found = below([b"/srv/a", b"/srv/ab", b"/srv/with space"], TABLE)
    assert found[b"/srv/a"] == {(b"30", b"/srv/a/inner")}
    assert found[b"/srv/ab"] == {(b"31", b"/srv/ab")}
    assert found[b"/srv/with space"] == {(b"32", b"/srv/with space/m")}


def test_a_root_that_is_the_root_directory():
    assert len(below([b"/"], TABLE)[b"/"]) == 4


def test_damaged_lines_are_passed_over():
    assert below([b"/srv/a"], b"junk\n\n" + TABLE)[b"/srv/a"]


def test_new_roots_only_begin():
    mounts = Mounts()
    assert mounts.changed([b"/"]) == []
    assert mounts.changed([b"/", b"/tmp"]) == []
    mounts.close()
    assert mounts.changed([b"/"]) == []


def test_without_proc_nothing_changes(tmp_path: Path):
    assert Mounts(str(tmp_path / "none")).changed([b"/"]) == []
