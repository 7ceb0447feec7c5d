"""Figures of the sweep, the index and the labels on disk."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import time
from pathlib import Path

from scripts.benchmarks.table import Row
from tests.support.serving import Server

FILES = 30_000
SETTLE = 40.0
"""Seconds until a new file counts as closed and quiet without asking; only then is it labelled at sight."""


def _make_tree(tree: Path, files: int) -> None:
    for number in range(files):
        if number % 100 == 0:
            directory = tree / f"d{number // 10_000}/e{number // 100}"
            directory.mkdir(parents=True)
        (directory / f"f{number}").write_bytes(b"x" * (number % 50))


_BARE_TABLE = (
    "create table node(n integer primary key, id blob, parent integer, name blob, handle blob, size, mtime, ctime,"
    " mode, uid, gid, nlink)"
)
_BARE_KEYS = ("create unique index id on node(id)", "create unique index place on node(parent, name)")


def bare_loop(tree: Path, database: Path, *, keys: int = 2) -> float:
    """Files a second of a loop that does the calls and nothing else: lstat, name_to_handle_at, setxattr, insert.

    It is not handicapped: transactions of 2000 rows, nothing is hashed, looked up, read back or summed. Its rows hold
    what a file is found by and compared with; `keys`: by id, and by parent and name.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(8 + 128)
    mount = ctypes.c_int()
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=normal")
    connection.execute("pragma cache_size=-16000")
    for statement in (_BARE_TABLE, *_BARE_KEYS[:keys]):
        connection.execute(statement)
    count, started = 0, time.perf_counter()
    rows: list[tuple[object, ...]] = []

    def insert() -> None:
        connection.execute("begin immediate")
        connection.executemany(f"insert into node values(null{',?' * 11})", rows)
        connection.execute("commit")
        rows.clear()

    for parent, (directory, _, names) in enumerate(os.walk(os.fsencode(tree))):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        for name in names:
            status = os.lstat(name, dir_fd=descriptor)
            ctypes.memset(buffer, 0, 8)
            buffer[0:4] = (128).to_bytes(4, "little")
            if libc.name_to_handle_at(descriptor, name, buffer, ctypes.byref(mount), 0):
                raise OSError(ctypes.get_errno(), "name_to_handle_at")
            handle = buffer[8 : 8 + int.from_bytes(buffer[0:4], "little")]
            os.setxattr(directory + b"/" + name, "user.bench", b"1:" + b"0" * 58)
            rows.append((os.urandom(16), parent, name, handle, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                         status.st_mode, status.st_uid, status.st_gid, status.st_nlink))  # fmt: skip
            count += 1
        os.close(descriptor)
        if len(rows) >= 2000:
            insert()
    insert()
    took = time.perf_counter() - started
    connection.close()
    return count / took


def _labelled(tree: Path) -> int:
    return sum("user.fsd.id" in os.listxattr(path) for path in tree.rglob("f*"))


def scan_seconds(server: Server, name: str) -> float:
    """How long `fsd scan` takes, the start of the command included."""
    started = time.perf_counter()
    server.fsd("scan", name, timeout=600)
    return time.perf_counter() - started


def _prepared(base: Path, files: int) -> tuple[Server, Path]:
    server = Server(base / "fsd")
    server.fsd("init", str(server.data))
    (base / "empty").mkdir()
    server.fsd("space", "adopt", str(base / "empty"), "--name", "empty")
    tree = base / "tree"
    _make_tree(tree, files)
    return server, tree


def first_sweep(base: Path) -> list[Row]:
    """The first sweep of a warm tree, labels written, against a bare loop of the same calls; best of three
    each."""
    server, _ = _prepared(base, 0)
    for turn in range(3):
        _make_tree(base / f"reference{turn}", FILES)
        _make_tree(base / f"tree{turn}", FILES)
    time.sleep(SETTLE)
    bare, ours = [], []
    for turn in range(3):
        bare.append(bare_loop(base / f"reference{turn}", base / f"bare{turn}.db"))
        server.fsd("space", "adopt", str(base / f"tree{turn}"), "--name", f"tree{turn}", "--label", "now")
        nothing = scan_seconds(server, "empty")
        ours.append(FILES / (scan_seconds(server, f"tree{turn}") - nothing))
    labelled = _labelled(base / "tree0")
    ratio = max(ours) / max(bare)
    measured = (
        f"{max(ours):,.0f} files/s = {ratio:.2f} × the bare loop's {max(bare):,.0f}; {labelled} labelled"
    )
    return [
        Row("first sweep of a warm tree", "≥ 0.6 × a bare loop", measured, ratio >= 0.6 and labelled == FILES)
    ]


def _blocks(tree: Path) -> int:
    return sum(path.lstat().st_blocks for path in tree.rglob("f*") if path.is_file())


def index_and_blocks(base: Path) -> list[Row]:
    """Bytes of index for each file, and blocks that the label costs on this filesystem."""
    server, tree = _prepared(base, FILES)
    time.sleep(SETTLE)
    os.sync()  # blocks are allocated when data is written back
    before = _blocks(tree)
    server.fsd("space", "adopt", str(tree), "--name", "tree", "--label", "now")
    server.fsd("scan", "tree", timeout=600)
    os.sync()
    after = _blocks(tree)
    labelled = _labelled(tree)
    key = server.space("tree")["id"].rpartition("$")[2]
    with sqlite3.connect(server.state / f"{key}.index.db") as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        (pages,), (page,) = (
            connection.execute(f"pragma {what}").fetchone() for what in ("page_count", "page_size")
        )
    each = pages * page / FILES
    return [
        Row("index", "< 400 bytes a file", f"{each:.0f} bytes a file", each < 400),
        Row(
            "blocks a label costs (ext4, no ACL)",
            "0",
            f"{(after - before) / FILES:.3f} a file, {labelled} of {FILES} labelled",
            after == before and labelled == FILES,
        ),
    ]
