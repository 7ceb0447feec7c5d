"""`scripts/bench [NAME…]`: run the named figures (or a group of them) and print one markdown table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks import (
    clients,
    dav,
    dav_crowd,
    dav_puts,
    disk,
    kafka,
    main,
    million,
    mount,
    remote,
    snapshots,
    synthetic,
    watcher,
)
from scripts.benchmarks.table import Row, render

GROUPS = {
    "main": [
        main.direct_write,
        main.copy_and_remove,
        disk.first_sweep,
        main.large_directory,
        dav_puts.small_puts,
        main.memory,
        disk.index_and_blocks,
        dav_puts.syncs_per_put,
    ],
    "watcher": [
        watcher.reader_cost,
        watcher.hint_to_reconciled,
        watcher.busy_directory,
        watcher.first_sweep_write,
        watcher.storms,
    ],
    "kafka": [kafka.kafka_into_dirty_set, kafka.kafka_backlog],
    "million": [million.million_files, synthetic.ten_million_rows],
    "dav": [dav.dav_requests, dav.dav_puts_unsynced, dav_crowd.dav_crowd, dav_puts.syncs_per_put],
    "clients": [clients.rclone_copies, clients.first_sync, clients.polls],
    "mount": [mount.mount_figures],
    "snapshots": [snapshots.snapshots, snapshots.snapshots_mounted],
    "remote": [remote.remote_figures],
    "dav-parts": [dav.dav_reads, dav.dav_puts, dav.dav_large],
}


def run() -> int:
    """Parse, run, print; exit 1 when a figure misses its goal, 2 on a name that doesn't exist."""
    known = {figure.__name__: [figure] for group in GROUPS.values() for figure in group} | GROUPS
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("names", nargs="*", default=["main"], help=", ".join(known))
    parser.add_argument("--base", type=Path, help="directory to work in (default: a temporary one)")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no figure named {unknown[0]} (there are: {', '.join(known)})")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fsd-bench-", dir=options.base) as base:
        for figure in dict.fromkeys(figure for name in options.names for figure in known[name]):
            started = time.monotonic()
            print(f"{figure.__name__} …", end=" ", file=sys.stderr, flush=True)
            work = Path(base) / figure.__name__
            work.mkdir()
            rows += figure(work)
            print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    print(f"\n{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}\n")
    print(render(rows))
    return 1 if any(row.met is False for row in rows) else 0


sys.exit(run())
