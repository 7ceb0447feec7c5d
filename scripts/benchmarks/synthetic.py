"""Ten million rows: does anything cost more than with a thousand? The rows are made, the directory that is worked in is
real. Takes five minutes and 3 GB."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from fsd.core import index, tree
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from scripts.benchmarks.table import Row
from tests.support.worlds import make_space, sweep

ROWS = 10_000_000
EACH = 100
ROUNDS = 300
_ROOM = 1 << 40
"""Row numbers from here on are the made ones."""


def ten_million_rows(base: Path) -> list[Row]:
    """Each kind of work in the same real directory, before and after ten million rows came into the index."""
    space = make_space(base)
    top = Path(os.fsdecode(space.root))
    for number in range(20):
        place = top / f"a/b/c/d{number}"
        place.mkdir(parents=True)
        for file in range(EACH):
            (place / f"f{file}").write_bytes(b"x")
    sweep(space)
    small = _measure(space)
    _inflate(space)
    space.close()
    large = _measure(space)
    space.close()
    size = space.index.path.stat().st_size / ROWS
    rows = [
        Row(f"{what}, 2,000 rows → 10,000,000", "does not grow", f"{small[what]:.0f} → {large[what]:.0f} µs",
            large[what] < 2 * small[what] + 20)
        for what in small
    ]  # fmt: skip
    return [
        *rows,
        Row("index of ten million rows", "< 400 bytes a file", f"{size:.0f} bytes a file", size < 400),
    ]


def _measure(space: Space) -> dict[str, float]:
    """Median µs of each kind of work."""
    path = b"a/b/c/d7"
    file = os.path.join(space.root, path, b"f7")
    turn = [0]

    def by_name() -> None:
        turn[0] += 1
        os.utime(file, ns=(turn[0], time.time_ns()))
        reconcile(space, path, [b"f7"])

    with space.index.read() as db:
        row = index.find(db, path + b"/f7")
        assert row is not None

        def path_of() -> None:
            assert index.path_of(db, row.n) == path + b"/f7"

        def by_id() -> None:
            assert index.by_id(db, row.id) is not None

        def find() -> None:
            assert index.find(db, path + b"/f7") is not None

        found = {"path of an id": _median(lambda: (by_id(), path_of())), "row of a path": _median(find)}
    found["listing of 100"] = _median(lambda: tree.listing(space, path))
    found["one change by name, to the root's etag"] = _median(by_name)
    return found


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)[ROUNDS // 2] * 1e6


def _inflate(space: Space) -> None:
    """Rows of directories of a hundred files each, a hundred directories in each directory above them."""
    dirs = ROWS // EACH
    with space.index.read() as db:
        db.execute("PRAGMA cache_size=-500000")
        for start in range(0, dirs, 1000):
            db.execute("BEGIN IMMEDIATE")
            nodes, parts = [], []
            for number in range(start, start + 1000):
                n = _ROOM + number * (EACH + 1)
                above = index.ROOT if number < 100 else _ROOM + (number // 100) * (EACH + 1)
                nodes.append(_node(n, above, b"made%d" % number, index.DIRECTORY))
                parts.append((n, 0, 0, 0, number, 0, 0, 0, 0, 0, 1, number))
                nodes += [_node(n + 1 + file, n, b"file %d" % file, index.FILE) for file in range(EACH)]
            db.executemany(f"INSERT INTO node VALUES ({'?,' * 16}?)", nodes)
            db.executemany(f"INSERT INTO dir VALUES ({'?,' * 11}?)", parts)
            db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA cache_size=-2000")


def _node(n: int, parent: int, name: bytes, kind: int) -> tuple[object, ...]:
    binding = blake2b(b"%d" % n, digest_size=16).digest()
    made = blake2b(binding, digest_size=16).digest()
    when = 1_700_000_000_000_000_000 + n
    return (n, made, parent, name, kind, binding, n & 0xFFFFFFFF, 0, when, when, 0o100644, 0, 0, 1, 0, 3, 0)
