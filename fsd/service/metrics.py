"""Numbers for /metrics: a board of counters in memory shared by all processes, and what the status files say.

The board is an anonymous shared mapping made before the fork, one row for each worker, so counting is an addition
without system calls, and a worker that was killed loses nothing. `observe_request` does nothing where no board was
made (commands, tests).
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsd.service import status
from fsd.service.alarms import KINDS

if TYPE_CHECKING:
    from prometheus_client.core import Metric

METHODS = (
    "GET", "HEAD", "PUT", "DELETE", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "OPTIONS",
    "REPORT", "POST", "PATCH", "other",
)  # fmt: skip
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_NUMBER = {method: number for number, method in enumerate(METHODS)}
_COUNTS = len(METHODS) * len(CLASSES)
_BUCKETS_AT = _COUNTS
_SUM_AT = _BUCKETS_AT + len(BUCKETS) + 1
_WIDTH = _SUM_AT + 1  # 64-bit cells of a row; the sum is in microseconds


class Board:
    """Counters of `rows` processes. A process writes only its own row; anyone reads all."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._map = mmap.mmap(-1, rows * _WIDTH * 8)
        self._cells = memoryview(self._map).cast("Q")
        self._base = 0
        self._guard = threading.Lock()

    def use(self, row: int) -> None:
        """Count in this row from now on; after the fork."""
        self._base = (row % self.rows) * _WIDTH
        self._guard = threading.Lock()

    def request(self, method: str, code: int, seconds: float) -> None:
        """Count one answered request."""
        kind = min(max(code // 100, 1), 5) - 1
        bucket = next((number for number, edge in enumerate(BUCKETS) if seconds <= edge), len(BUCKETS))
        base, cells = self._base, self._cells
        with self._guard:
            cells[base + _NUMBER.get(method, len(METHODS) - 1) * len(CLASSES) + kind] += 1
            cells[base + _BUCKETS_AT + bucket] += 1
            cells[base + _SUM_AT] += max(0, int(seconds * 1_000_000))

    def totals(self) -> list[int]:
        """The sum of all rows, cell by cell."""
        return [sum(self._cells[row * _WIDTH + cell] for row in range(self.rows)) for cell in range(_WIDTH)]


board: Board | None = None


def prepare(rows: int) -> None:
    """Make the board; before the fork."""
    global board
    board = Board(rows)


def use(row: int) -> None:
    """This process counts in row `row`."""
    if board is not None:
        board.use(row)


def observe_request(method: str, code: int, seconds: float) -> None:
    """Count one answered request of this process."""
    if board is not None:
        board.request(method, code, seconds)


class Exporter:
    """A collector for prometheus_client: reads everything anew at each scrape."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def describe(self) -> Sequence[Metric]:
        """Nothing ahead of time: a scrape says what there is."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        found = status.read(self._run_dir)
        yield from _processes(found)
        yield from _watching(found)
        yield from _logs(found)
        yield from _alarms(found)
        if board is not None:
            yield from _requests(board.totals())


def _processes(found: status.Status) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    up = GaugeMetricFamily("fsd_up", "1 if the process runs", labels=["process"])
    restarts = CounterMetricFamily("fsd_restarts", "Unexpected ends of a process", labels=["process"])
    for name, child in found.supervisor.get("children", {}).items():
        up.add_metric([name], float(status.process_runs(child.get("pid", 0))))
        restarts.add_metric([name], child.get("restarts", 0))
    yield up
    yield restarts
    yield GaugeMetricFamily("fsd_watch_up", "1 if the watcher answers", value=float(found.watcher_runs))


_GAUGES = (
    ("fsd_watch_lag_seconds", "Age of the oldest change that is not handled", "lag"),
    ("fsd_watch_oldest_dirty_seconds", "Age of the oldest directory that waits", "oldest_dirty"),
    ("fsd_watch_hung_seconds", "Since when the storage has not answered the watcher", "hung"),
    ("fsd_watch_dirty_directories", "Directories that wait for a reconcile", "dirty"),
    ("fsd_watch_watched_directories", "Directories with a watch", "watched"),
    ("fsd_watch_unwatched_directories", "Directories that have no watch and are polled", "unwatched"),
    ("fsd_space_bytes", "Tree size of the space", "bytes"),
)


def _watching(found: status.Status) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    spaces = found.spaces.values()
    for name, text, key in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["space"])
        for space in spaces:
            gauge.add_metric([space["id"]], float(space.get(key) or 0))
        yield gauge
    available = GaugeMetricFamily("fsd_space_available", "0 while the storage is not there", labels=["space"])
    overflows = CounterMetricFamily("fsd_watch_overflows", "Times that events were lost", labels=["space"])
    passes = CounterMetricFamily("fsd_reconciled", "Reconciles by kind", labels=["space", "kind"])
    errors = CounterMetricFamily(
        "fsd_reconcile_errors", "Failed reconciles by errno", labels=["space", "error"]
    )
    watch_errors = CounterMetricFamily(
        "fsd_watch_errors", "Directories that could not be heard, by error", labels=["space", "error"]
    )
    source = GaugeMetricFamily(
        "fsd_watch_source", "1 for the sources that hear a space", labels=["space", "source"]
    )
    polled = GaugeMetricFamily(
        "fsd_watch_polled_seconds",
        "Age of the oldest look, where a space is polled",
        labels=["space", "what"],
    )
    verified = GaugeMetricFamily(
        "fsd_scan_verified_seconds", "Age of the last full verification", labels=["space"]
    )
    left = GaugeMetricFamily(
        "fsd_scan_left_directories", "Directories the sweep has not reached", labels=["space"]
    )
    for space in spaces:
        ident = [space["id"]]
        available.add_metric(ident, float(space.get("state") != "unavailable"))
        overflows.add_metric(ident, space.get("overflows", 0))
        for kind, count in space.get("passes", {}).items():
            passes.add_metric([*ident, kind], count)
        for kind, count in space.get("errors", {}).items():
            errors.add_metric([*ident, kind], count)
        for kind, count in space.get("watch_errors", {}).items():
            watch_errors.add_metric([*ident, kind], count)
        for kind in str(space.get("source", "none")).split("+"):
            source.add_metric([*ident, kind], 1.0)
        for what, age in (space.get("poll") or {}).items():
            polled.add_metric([*ident, what], age)
        if space.get("verified_at"):
            verified.add_metric(ident, max(0.0, time.time() - space["verified_at"]))
        sweep: dict[str, Any] = space.get("sweep") or {}
        left.add_metric(ident, float(max(0, sweep.get("total", 0) - sweep.get("done", 0))))
    yield from (available, overflows, passes, errors, watch_errors, source, polled, verified, left)


def _logs(found: status.Status) -> Iterator[Metric]:
    """The logs that storages write: one of each kind for all spaces, so the first space that tells of it is asked."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    streams: dict[str, dict[str, Any]] = {}
    for space in found.spaces.values():
        if space.get("stream"):
            streams.setdefault(str(space.get("source")), space["stream"])
    if not streams:
        return
    kind = ["source"]
    reading = GaugeMetricFamily("fsd_log_reading", "1 if the whole log is read", labels=kind)
    lag = GaugeMetricFamily(
        "fsd_log_lag", "Messages, or bytes of a file, to be read", labels=[*kind, "partition"]
    )
    age = GaugeMetricFamily(
        "fsd_log_message_age_seconds", "Age of the newest message that was read", labels=kind
    )
    messages = CounterMetricFamily("fsd_log_messages", "Messages read, repeats included", labels=kind)
    rebalances = CounterMetricFamily("fsd_log_rebalances", "Assignments of partitions", labels=kind)
    jumps = CounterMetricFamily("fsd_log_sequence_jumps", "Sequence numbers that were left out", labels=kind)
    gaps = CounterMetricFamily(
        "fsd_log_gaps", "Sweeps begun as something may be missed", labels=[*kind, "reason"]
    )
    rejected = CounterMetricFamily("fsd_log_rejected", "Messages not understood", labels=[*kind, "reason"])
    for name, stream in streams.items():
        reading.add_metric([name], float(bool(stream.get("reading"))))
        for partition, place in stream.get("partitions", {}).items():
            lag.add_metric([name, partition], place.get("lag") or 0)
        if stream.get("last_message"):
            age.add_metric([name], max(0.0, time.time() - stream["last_message"]))
        messages.add_metric([name], stream.get("messages", 0))
        rebalances.add_metric([name], stream.get("rebalances", 0))
        jumps.add_metric([name], stream.get("jumps", 0))
        for reason, count in stream.get("gaps", {}).items():
            gaps.add_metric([name, reason], count)
        for reason, count in stream.get("rejected", {}).items():
            rejected.add_metric([name, reason], count)
    yield from (reading, lag, age, messages, rebalances, jumps, gaps, rejected)


def _alarms(found: status.Status) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    gauge = GaugeMetricFamily("fsd_space_alarm", "1 while a space needs somebody", labels=["space", "kind"])
    for key, alarms in found.alarms.items():
        ident = found.spaces.get(key, {}).get("id", key)
        for kind in KINDS:
            gauge.add_metric([ident, kind], float(kind in alarms))
    yield gauge


def _requests(cells: list[int]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    counter = CounterMetricFamily("fsd_http_requests", "Answered requests", labels=["method", "class"])
    for row, method in enumerate(METHODS):
        for column, kind in enumerate(CLASSES):
            if count := cells[row * len(CLASSES) + column]:
                counter.add_metric([method, kind], count)
    yield counter
    total, buckets = 0, []
    for number, edge in enumerate((*BUCKETS, float("inf"))):
        total += cells[_BUCKETS_AT + number]
        buckets.append(("+Inf" if edge == float("inf") else str(edge), float(total)))
    yield HistogramMetricFamily(
        "fsd_http_requests_seconds", "Time to answer", buckets=buckets, sum_value=cells[_SUM_AT] / 1e6
    )
