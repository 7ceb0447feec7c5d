"""The databases under deletion, damage and full disks; the reading tree with odd entries and lost mounts."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsd.core import check, dirty, index, longlisting, relabel, store, tree
from fsd.core import reconcile as core_reconcile
from fsd.core.errors import DatabaseDamaged, Forbidden, NameRefused, NotYetKnown, StorageUnavailable
from fsd.core.names import check_new_name, quote_path, to_text, unquote_path
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from fsd.core.store import Database
from tests.support.worlds import differences, drain, make_space, sweep


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    opened = make_space(tmp_path)
    yield opened
    opened.close()


def root(space: Space) -> Path:
    return Path(os.fsdecode(space.root))


def names(space: Space, path: bytes = b"") -> list[bytes]:
    return [entry.name for entry in tree.listing(space, path)[1]]


def test_writers_take_turns(tmp_path: Path) -> None:
    base = Database(
        tmp_path / "x.db", "CREATE TABLE t (v INTEGER)", synchronous="NORMAL", lock=tmp_path / "x.lock"
    )
    with base.write() as db:
        db.execute("INSERT INTO t VALUES (0)")

    def add() -> None:
        for _ in range(50):
            with base.write() as db:
                (v,) = db.execute("SELECT v FROM t").fetchone()
                db.execute("UPDATE t SET v=?", (v + 1,))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with base.read() as db:
        assert db.execute("SELECT v FROM t").fetchone() == (200,)
    base.close()


@pytest.mark.parametrize("beside", [True, False], ids=["copied beside", "copied by commits"])
def test_a_log_stays_bounded_under_writers_and_readers(tmp_path: Path, beside: bool) -> None:
    base = Database(
        tmp_path / "x.db", "CREATE TABLE t (v INTEGER PRIMARY KEY, w BLOB)", synchronous="NORMAL",
        lock=tmp_path / "x.lock", checkpointed=True,
    )  # fmt: skip
    over = threading.Event()
    rows = 40 * store._LATE_CHECKPOINT_PAGES // 10  # of half a page each, so about two logs full

    def write() -> None:
        for start in range(0, rows, 100):
            with base.write() as db:
                db.executemany(
                    "INSERT INTO t VALUES (?,zeroblob(2000))", [(n,) for n in range(start, start + 100)]
                )
        over.set()

    def look() -> None:
        while beside and not over.is_set():
            with base.read() as db:
                (count,) = db.execute("SELECT count(*) FROM t").fetchone()
            assert count % 100 == 0

    threads = [threading.Thread(target=write), threading.Thread(target=look)]
    for thread in threads:
        thread.start()
    most = 0
    while not over.is_set():
        if beside:
            most = max(most, base.checkpoint())
    for thread in threads:
        thread.join()
    assert os.stat(tmp_path / "x.db-wal").st_size // 4096 < store._LATE_CHECKPOINT_PAGES * 1.5
    assert not beside or most > 0
    with base.read() as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (rows,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()


def test_an_exception_rolls_back(tmp_path: Path) -> None:
    base = Database(
        tmp_path / "x.db", "CREATE TABLE t (v INTEGER)", synchronous="FULL", lock=tmp_path / "x.lock"
    )
    with pytest.raises(ValueError, match="no"), base.write() as db:
        db.execute("INSERT INTO t VALUES (1)")
        raise ValueError("no")
    with base.read() as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
    base.close()


def test_a_deleted_index_is_rebuilt_below_a_running_process(space: Space) -> None:
    (root(space) / "f").write_text("text")
    sweep(space)
    before = tree.listing(space, b"")
    for suffix in ("", "-wal", "-shm"):
        space.index.path.with_name(space.index.path.name + suffix).unlink(missing_ok=True)
    after = tree.listing(space, b"")
    assert after[1] == before[1]
    assert after[0].id == before[0].id
    assert after[0].etag != before[0].etag


def test_a_damaged_index_is_set_aside(space: Space, allow_log: object) -> None:
    allow_log("is damaged")  # type: ignore[operator]
    (root(space) / "f").write_text("text")
    sweep(space)
    before = tree.listing(space, b"")[1]
    space.close()
    with open(space.index.path, "r+b") as file:
        file.write(b"garbage!" * 512)
    with pytest.raises(NotYetKnown):
        tree.listing(space, b"")
    assert tree.listing(space, b"")[1] == before
    assert space.index.path.with_name(space.index.path.name + ".damaged").exists()


@pytest.mark.parametrize("begin", [0, 4096], ids=["header", "pages"])
def test_a_damaged_state_database_is_said_and_left_alone(space: Space, begin: int) -> None:
    (root(space) / "f").write_text("text")
    sweep(space)
    space.close()
    size = space.state.path.stat().st_size
    with open(space.state.path, "r+b") as file:
        file.seek(begin)
        file.write(b"garbage!" * ((size - begin) // 8))
    damaged = space.state.path.read_bytes()
    for _ in range(2):
        with (
            pytest.raises(DatabaseDamaged, match="state.db is damaged"),
            space.index.write(),
            space.state.read() as db,
        ):
            db.execute("SELECT * FROM binding").fetchall()
    assert [finding.code for finding in check.check(space)] == ["state-damaged"]
    assert (root(space) / "f").read_text() == "text"
    assert space.state.path.read_bytes() == damaged
    assert not space.index.path.with_name(space.index.path.name + ".damaged").exists()


def test_journal_numbers_skip_ahead_after_a_boot(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    (root(space) / "f").write_text("text")
    sweep(space)
    with space.index.read() as db:
        (before,) = db.execute("SELECT number FROM head").fetchone()
    monkeypatch.setattr(index, "_BOOT", "another boot")
    (root(space) / "g").write_text("text")
    reconcile(space, b"", [b"g"])
    with space.index.read() as db:
        assert db.execute("SELECT number FROM head").fetchone()[0] > before + 50_000


def test_odd_entries_are_listed_and_never_followed(space: Space) -> None:
    base = root(space)
    (base / "sub").mkdir()
    os.symlink("/etc", base / "out")
    os.symlink("out", base / "loop")
    os.symlink("nowhere", base / "dangling")
    os.mkfifo(base / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(base / "sock"))
    odd = [b"new\nline", b"\xff\xfe", b"x" * 255, b"sp ace", b"f.lock", b".fsd2"]
    for name in odd:
        (root(space) / os.fsdecode(name)).write_bytes(b"1")
    listed = {entry.name: entry for entry in tree.listing(space, b"")[1]}
    assert set(listed) == {b"sub", b"out", b"loop", b"dangling", b"pipe", b"sock", *odd}
    assert [listed[name].kind for name in (b"out", b"pipe", b"sub", b"sp ace")] == ["l", "o", "d", "f"]
    assert tree.lookup(space, b"").size == len(odd)
    for name in (b"out", b"pipe", b"dangling", b"sock"):
        with pytest.raises(Forbidden):
            tree.open_file(space, name)
    for path in (b"out/passwd", b"../root", b"out", b"loop/passwd"):
        with pytest.raises(OSError) as caught:
            os.close(space.open_dir(path))
        assert caught.value.errno in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        tree.lookup(space, b"out/passwd")
    for name in (b"out", b"loop", b"dangling", b"pipe", b"sp ace"):
        with pytest.raises(NotADirectoryError):
            tree.listing(space, name)
        assert not longlisting.is_large(space, name)
    with pytest.raises(FileNotFoundError):
        tree.listing(space, b"out/ssl")


def test_the_internals_do_not_exist(space: Space) -> None:
    assert b".fsd" not in names(space)
    for path in (b".fsd", b".fsd/space.json", b".fsd/trash"):
        with pytest.raises(FileNotFoundError):
            tree.lookup(space, path)
    (root(space) / "below").mkdir()
    (root(space) / "below/.fsd").mkdir()
    assert names(space, b"below") == [b".fsd"]
    os.rename(root(space) / ".fsd", root(space) / "moved")
    assert b"moved" not in names(space)
    with pytest.raises(FileNotFoundError):
        tree.lookup(space, b"moved/space.json")
    os.rename(root(space) / "moved", root(space) / ".fsd")


def test_a_swapped_root_is_unavailable_not_empty(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsd.core.space._PROOF_S", 0.0)
    (root(space) / "f").write_text("text")
    sweep(space)
    os.rename(root(space), root(space).with_name("aside"))
    root(space).mkdir()
    for call in (
        lambda: tree.listing(space, b""),
        lambda: tree.lookup(space, b"f"),
        lambda: reconcile(space, b""),
    ):
        with pytest.raises(StorageUnavailable):
            call()
    root(space).rmdir()
    with pytest.raises(StorageUnavailable):
        tree.lookup(space, b"gone")
    os.rename(root(space).with_name("aside"), root(space))
    assert names(space) == [b"f"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_lost_inner_mount_deletes_nothing(space: Space) -> None:
    inner = root(space) / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "fsd-test", inner], check=True)
    try:
        (inner / "deep").mkdir()
        (inner / "deep/f").write_text("12345")
        sweep(space)
        before = tree.lookup(space, b"inner/deep/f")
        assert tree.lookup(space, b"").size == 5
        subprocess.run(["umount", "-l", inner], check=True)
        with pytest.raises(StorageUnavailable):
            sweep(space)
        for path in (b"inner", b"inner/deep", b"inner/deep/f"):
            with pytest.raises(StorageUnavailable):
                tree.lookup(space, path)
        with pytest.raises(StorageUnavailable):
            tree.listing(space, b"inner")
        assert tree.lookup(space, b"").size == 5
        assert before.size == 5
    finally:
        subprocess.run(["umount", "-l", inner], check=False, stderr=subprocess.DEVNULL)


def test_paths_of_ids_are_proven(space: Space) -> None:
    (root(space) / "a").mkdir()
    (root(space) / "a/f").write_text("text")
    sweep(space)
    with space.index.write() as db:
        db.execute("UPDATE head SET complete=1")
    entry = tree.lookup(space, b"a/f")
    assert tree.path_of(space, entry.id) == b"a/f"
    os.rename(root(space) / "a", root(space) / "b")
    reconcile(space, b"", [b"a", b"b"])
    assert tree.path_of(space, entry.id) == b"b/f"
    with pytest.raises(FileNotFoundError):
        tree.path_of(space, "0" * 32)
    space.index.path.unlink()
    with pytest.raises(NotYetKnown):
        tree.path_of(space, "0" * 32)


def test_labels_fit_into_the_inode(space: Space) -> None:
    (root(space) / "f").write_text("text")
    blocks = os.stat(root(space) / "f").st_blocks
    sweep(space)
    with space.index.write() as db:
        db.execute("UPDATE pending SET due=0, force=1")
    relabel.label_due(space)
    assert "user.fsd.id" in os.listxattr(root(space) / "f")
    assert os.stat(root(space) / "f").st_blocks == blocks
    assert len(os.getxattr(root(space) / "f", "user.fsd.id")) <= 64


def test_labelling_is_not_a_change(space: Space) -> None:
    (root(space) / "d").mkdir()
    (root(space) / "d/f").write_text("text")
    sweep(space)
    before = [tree.lookup(space, path) for path in (b"", b"d", b"d/f")]
    with space.index.write() as db:
        db.execute("UPDATE pending SET due=0, force=1")
    relabel.label_due(space)
    relabel.publish_trees(space)
    assert not reconcile(space, b"", [b"d"]).changed
    assert not reconcile(space, b"d", [b"f"]).changed
    sweep(space)
    after = [tree.lookup(space, path) for path in (b"", b"d", b"d/f")]
    assert [entry.etag for entry in after] == [entry.etag for entry in before]
    assert list(check.check(space)) == []


def test_check_finds_and_repairs_a_wrong_sum(space: Space) -> None:
    (root(space) / "d").mkdir()
    (root(space) / "d/f").write_text("text")
    sweep(space)
    with space.index.write() as db:
        db.execute("UPDATE dir SET total=total+7")
    assert "sum-wrong" in {finding.code for finding in check.check(space)}
    list(check.check(space, repair=True))
    assert list(check.check(space)) == []
    assert differences(space) == []


def test_a_full_index_disk_leaves_reading_whole(
    space: Space, monkeypatch: pytest.MonkeyPatch, allow_log: object
) -> None:
    allow_log("could not be recorded")  # type: ignore[operator]
    (root(space) / "f").write_text("text")
    sweep(space)
    (root(space) / "g").write_text("more")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(space.index, "write", full)
    listed = {entry.name: entry.size for entry in tree.listing(space, b"")[1]}
    assert listed == {b"f": 4, b"g": 4}
    assert tree.lookup(space, b"g").size == 4


def test_a_big_untouched_directory_is_shown_from_the_disk(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_INLINE", 5)
    for i in range(10):
        (root(space) / f"f{i}").write_text("x" * i)
    shown = {entry.name: (entry.id, entry.etag, entry.size) for entry in tree.listing(space, b"")[1]}
    assert len(shown) == 10
    assert dirty.pending(space, 5, sweep=False)
    drain(space)
    assert {entry.name: (entry.id, entry.etag, entry.size) for entry in tree.listing(space, b"")[1]} == shown


@given(st.binary(max_size=300))
def test_urls_carry_any_bytes(raw: bytes) -> None:
    assert unquote_path(quote_path(raw)) == raw
    assert quote_path(raw).isascii()


@given(st.binary(min_size=1, max_size=300))
def test_new_names_are_clean(raw: bytes) -> None:
    try:
        check_new_name(raw)
    except NameRefused:
        return
    assert raw.decode() and len(raw) <= 255 and b"/" not in raw and b"\0" not in raw


@given(st.binary(max_size=50))
def test_text_is_fit_for_xml(raw: bytes) -> None:
    assert all(c in "\t\n\r" or ord(c) >= 32 for c in to_text(raw))


def test_sqlite_is_new_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 35)


def test_an_index_of_another_release_is_rebuilt(space: Space) -> None:
    (root(space) / "f").write_text("text")
    before = tree.listing(space, b"")[1]
    with space.index.read() as db:
        db.execute("PRAGMA user_version=77")
    space.close()
    assert tree.listing(space, b"")[1] == before


def test_a_state_of_another_release_is_left_alone(space: Space) -> None:
    space.state.fingerprint()
    with space.state.read() as db:
        db.execute("PRAGMA user_version=77")
    space.close()
    with pytest.raises(OSError, match="format 77"):
        space.state.fingerprint()


def test_a_writer_in_the_middle_of_a_large_directory_restarts_nothing(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        (root(space) / f"f{i:02}").write_text("x" * i)
    scans = 0
    real_scan = core_reconcile.scan_all

    def counted(*arguments: Any) -> Any:
        nonlocal scans
        scans += 1
        return real_scan(*arguments)

    class Clock:
        """Asked once before each transaction; the third time somebody else is faster."""

        calls = 0

        def time(self) -> float:
            self.calls += 1
            if self.calls == 3:
                (root(space) / "f30").unlink()
                (root(space) / "f31").write_text("longer than it was before")
                (root(space) / "new").write_text("new")
                reconcile(space, b"", [b"f30", b"f31", b"new"])
            return time.time()

    monkeypatch.setattr(core_reconcile, "_CHUNK", 5)
    monkeypatch.setattr(core_reconcile, "scan_all", counted)
    monkeypatch.setattr(core_reconcile, "time", Clock())
    reconcile(space, b"")
    assert scans == 1
    drain(space)
    assert differences(space) == []
