"""Figures of WebDAV itself, as ratios against the peers in the same run: all with a password and an access log.

Each server has one worker on one core, wrk has another: requests a second compare what a core does. Beside the rate
stands the CPU that all processes of a server used for one request; it suffers least from what else the machine does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import dav_load as load
from scripts.benchmarks import peers
from scripts.benchmarks.dav_load import Rate, Request
from scripts.benchmarks.fsd_server import PASSWORD, USER, adopt, pss, quiet, served
from scripts.benchmarks.table import Row
from tests.support.serving import Server

SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))
CONNECTIONS = tuple(int(text) for text in os.environ.get("BENCH_CONNECTIONS", "1,8,64").split(","))
ONLY = [name for name in os.environ.get("BENCH_PEERS", "").split(",") if name]
BODY = b"\x5a" * 4096
LARGE = 256 << 20
ASKED = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop>'
    b"<d:resourcetype/><d:getlastmodified/><d:getcontentlength/><d:getetag/><d:getcontenttype/><d:displayname/>"
    b"<oc:id/><oc:fileid/><oc:permissions/><oc:size/><oc:checksums/></d:prop></d:propfind>"
)
"""What desktop clients ask for in a listing."""
XML = ("Content-Type", "application/xml")
SERVER_CORES, LOAD_CORES = ({0}, {1}) if (os.cpu_count() or 1) >= 2 else ({0}, {0})


@dataclass
class Target:
    """A server under load: where its tree is served and where it lies on disk."""

    name: str
    port: int
    pid: int
    prefix: str
    root: Path
    auth: tuple[str, str]
    fsd: Server | None = None


def _fill(root: Path) -> None:
    for count in (100, 1000):
        directory = root / f"d{count}"
        directory.mkdir()
        for number in range(count):
            (directory / f"document {number:04d}.txt").write_bytes(b"x" * number)
    (root / "f4k").write_bytes(BODY)
    (root / "put").mkdir()
    with open(root / "large", "wb") as file:
        for _ in range(LARGE >> 20):
            file.write(os.urandom(1 << 20))
    for path in (root, *root.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


@contextmanager
def fsd(base: Path, name: str, options: tuple[str, ...] = (), workers: int = 1) -> Iterator[Target]:
    """fsd with one worker, pinned, on a filled tree."""
    tree = base / "tree"
    tree.mkdir(parents=True)
    _fill(tree)
    with served(base / "fsd", workers=workers, options=options) as server:
        record = adopt(server, tree, "tree")
        quiet(server)
        assert server.process is not None
        pid = server.process.pid
        load.pin(load.family(pid), SERVER_CORES)
        yield Target(name, server.port, pid, f"/dav/spaces/{record['id']}", tree, (USER, PASSWORD), server)


@contextmanager
def _targets(base: Path) -> Iterator[list[Target]]:
    """fsd and every peer that is installed, all running at once; idle ones cost nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(fsd(base / "fsd", "fsd")), *_peers(stack, base)]


def _peers(stack: ExitStack, base: Path) -> Iterator[Target]:
    for name in peers.PEERS:
        if ONLY and name not in ONLY:
            continue
        running = stack.enter_context(peers.running(name, base / name))
        if running is not None:
            port, root, pid = running
            _fill(root)
            load.pin(load.family(pid), SERVER_CORES)
            yield Target(name, port, pid, "", root, (peers.USER, peers.PASSWORD))


def measure(base: Path, target: Target, request: Request, connections: int) -> Rate:
    """One run of wrk against a server."""
    full = Request(
        request.method, target.prefix + request.target, request.headers, request.body, request.numbered
    )
    return load.wrk(
        base,
        target.port,
        full,
        connections=connections,
        seconds=SECONDS,
        auth=target.auth,
        pid=target.pid,
        cores=LOAD_CORES,
    )


def _compared(
    base: Path, targets: list[Target], figure: str, request: Request, goals: dict[str, float]
) -> list[Row]:
    """One request against all servers at each number of connections; the goals count at 8."""
    rows = []
    for connections in CONNECTIONS:
        found = {target.name: measure(base, target, request, connections) for target in targets}
        ours = found["fsd"]
        others = {name: rate for name, rate in found.items() if name != "fsd"}
        ratios = {name: ours.per_second / max(rate.per_second, 0.1) for name, rate in others.items()}
        text = f"{ours.per_second:,.0f}/s, {ours.cpu_us:.0f} µs, p50 {ours.p50 * 1000:.2f} ms, "
        text += f"p99 {ours.p99 * 1000:.2f} ms; "
        text += ", ".join(
            f"{ratios[name]:.2f} × {name} ({rate.per_second:,.0f}/s, {rate.cpu_us:.0f} µs)"
            for name, rate in others.items()
        )
        failed = {name: rate.failed for name, rate in found.items() if rate.failed}
        if failed:
            text += f"; failed: {failed}"
        met = None
        if connections == 8 and goals:
            met = not ours.failed and all(
                ratios[name] >= goal for name, goal in goals.items() if name in ratios
            )
        goal = ", ".join(f"≥ {value:g} × {name}" for name, value in goals.items())
        rows.append(Row(f"{figure}, c = {connections}", goal if met is not None else "", text, met))
        if connections == 8:
            slow = ours.p99 / ours.p50
            rows.append(Row(f"{figure}: p99 / p50, c = 8", "≤ 5", f"{slow:.1f}", slow <= 5))
    return rows


def _propfind(directory: str, depth: int) -> Request:
    return Request("PROPFIND", f"/{directory}", (("Depth", str(depth)), XML), ASKED)


def dav_requests(base: Path) -> list[Row]:
    """Listings, GET and PUT of small files at 1, 8 and 64 connections, against all peers."""
    rows: list[Row] = []
    with _targets(base) as targets:
        for count in (100, 1000):
            goals = {"mod_dav": 1.0, "rclone": 2.0, "wsgidav": 30.0}
            request = _propfind(f"d{count}/", 1)
            rows += _compared(base, targets, f"PROPFIND Depth 1 of {count}", request, goals)
        goals = {"mod_dav": 0.5, "rclone": 1.5}
        rows += _compared(base, targets, "PROPFIND Depth 0", _propfind("d100/", 0), goals)
        goals = {"mod_dav": 0.5, "rclone": 2.0}
        rows += _compared(base, targets, "GET 4 KiB", Request("GET", "/f4k"), goals)
        request = Request("PUT", "/put/f", (), BODY, numbered=True)
        rows += _compared(base, targets, "PUT 4 KiB new, fsynced", request, {"rclone": 0.5})
        rows += _large(targets)
        rows.append(_memory(targets[0]))
    return rows


def dav_puts_unsynced(base: Path) -> list[Row]:
    """PUT with --durability none, against peers that never fsync either."""
    with fsd(base / "fsd", "fsd", ("--durability", "none")) as ours, ExitStack() as stack:
        targets = [ours, *_peers(stack, base)]
        request = Request("PUT", "/put/f", (), BODY, numbered=True)
        return _compared(base, targets, "PUT 4 KiB new, --durability none", request, {"mod_dav": 0.3})


def dav_puts(base: Path) -> list[Row]:
    """PUT alone, against the peers."""
    with _targets(base) as targets:
        request = Request("PUT", "/put/f", (), BODY, numbered=True)
        return _compared(base, targets, "PUT 4 KiB new, fsynced", request, {"rclone": 0.5})


def dav_reads(base: Path) -> list[Row]:
    """GET and PROPFIND alone, against the peers."""
    with _targets(base) as targets:
        rows = _compared(base, targets, "GET 4 KiB", Request("GET", "/f4k"), {"mod_dav": 0.5, "rclone": 2.0})
        goals = {"mod_dav": 0.5, "rclone": 1.5}
        rows += _compared(base, targets, "PROPFIND Depth 0", _propfind("d100/", 0), goals)
        for count in (100, 1000):
            goals = {"mod_dav": 1.0, "rclone": 2.0, "wsgidav": 30.0}
            request = _propfind(f"d{count}/", 1)
            rows += _compared(base, targets, f"PROPFIND Depth 1 of {count}", request, goals)
        return rows


def dav_large(base: Path) -> list[Row]:
    """256 MiB in one request, both ways."""
    with _targets(base) as targets:
        return _large(targets)


def _large(targets: list[Target]) -> list[Row]:
    get = {
        each.name: load.best(
            3, lambda each=each: load.large_get(each.port, f"{each.prefix}/large", LARGE, each.auth)
        )
        for each in targets
    }
    put = {
        each.name: load.best(
            3,
            lambda each=each: load.large_put(
                each.port, f"{each.prefix}/put/large", LARGE, each.auth, checksum=each.fsd is not None
            ),
        )
        for each in targets
    }
    return [
        _durations("256 MiB GET", get, {"mod_dav": 0.6}),
        _durations("256 MiB PUT, SHA-1 while streaming, fsynced", put, {"mod_dav": 0.8}),
    ]


def _durations(figure: str, found: dict[str, float], goals: dict[str, float]) -> Row:
    ours = found["fsd"]
    text = f"{LARGE / ours / 1e6:,.0f} MB/s; "
    text += ", ".join(
        f"{took / ours:.2f} × {name} ({LARGE / took / 1e6:,.0f} MB/s)"
        for name, took in found.items()
        if name != "fsd"
    )
    met = all(found[name] / ours >= goal for name, goal in goals.items() if name in found)
    return Row(figure, ", ".join(f"≥ {value:g} × {name}" for name, value in goals.items()), text, met)


def _memory(target: Target) -> Row:
    assert target.fsd is not None
    whole = pss(target.fsd, target.fsd.child("web"))
    return Row("PSS of the worker after all of the above", "< 80 MiB", f"{whole:.0f} MiB", whole < 80)
