"""The supervisor with children of the test's own: restarts, signals, locks, addresses."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fsd.core.errors import BUSY, UserError
from fsd.service import supervisor
from fsd.service.process import restart_wait
from fsd.service.status import process_runs, read_json
from tests.support.waiting import wait_for


def patient() -> None:
    """A child that ends on SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGTERM})


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


class Run:
    """A supervisor in a process of its own."""

    def __init__(self, base: Path) -> None:
        self.dir = base / "run"
        self.pids: list[int] = []
        self.marks = base / "marks"
        self.marks.mkdir()

    def start(self, children: Callable[[], Mapping[str, Callable[[], None]]], **more: Any) -> int:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                held = supervisor.lock(self.dir)
                plan = supervisor.Plan(
                    self.dir, children, notify=lambda state: self.mark(state.partition("\n")[0]), **more
                )
                code = supervisor.Supervisor(plan, [held]).run()
            except UserError as error:
                code = error.exit_code
            finally:
                os._exit(code)
        self.pids.append(pid)
        return pid

    def mark(self, name: str) -> None:
        (self.marks / f"{name}.{os.getpid()}.{time.monotonic_ns()}").touch()

    def marked(self, name: str) -> list[str]:
        return [path.name for path in self.marks.glob(f"{name}.*")]

    def told(self) -> dict[str, Any]:
        return read_json(self.dir / "supervisor.json")

    def child(self, name: str) -> int:
        pid = self.told().get("children", {}).get(name, {}).get("pid", 0)
        return pid if pid and process_runs(pid) else 0

    def wait(self, pid: int, timeout: float = 20.0) -> int:
        found: list[int] = []

        def ended() -> bool:
            done, code = os.waitpid(pid, os.WNOHANG)
            found.append(code)
            return done == pid

        wait_for(ended, timeout=timeout)
        self.pids.remove(pid)
        return os.waitstatus_to_exitcode(found[-1])

    def close(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.close()


def test_a_killed_child_is_started_again(run: Run):
    pid = run.start(lambda: {"a": patient, "b": patient})
    first = wait_for(lambda: run.child("a"))
    other = wait_for(lambda: run.child("b"))
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: run.child("a") not in (0, first))
    told = run.told()["children"]["a"]
    assert (told["restarts"], told["last_exit"]) == (1, "signal SIGKILL")
    assert run.child("b") == other, "one crash never takes another along"
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0


def test_a_child_that_always_fails_is_not_started_without_end(run: Run):
    def failing() -> None:
        run.mark("began")
        raise SystemExit(7)

    pid = run.start(lambda: {"a": failing, "b": patient})
    wait_for(lambda: len(run.marked("began")) >= 4)
    starts = sorted(int(name.rpartition(".")[2]) for name in run.marked("began"))
    gaps = [(b - a) / 1e9 for a, b in zip(starts, starts[1:], strict=False)]
    for failures, gap in enumerate(gaps, 1):
        assert gap >= restart_wait(failures), "each pause is longer"
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_leaves_nothing_behind(run: Run, number: signal.Signals):
    pid = run.start(lambda: {f"c{i}": patient for i in range(4)})
    children = wait_for(lambda: [run.child(f"c{i}") for i in range(4)] if run.child("c3") else [])
    os.kill(pid, number)
    assert run.wait(pid) == 0
    assert not any(process_runs(child) for child in children)
    assert run.told()["running"] is False
    assert run.marked("STOPPING=1")


def test_what_does_not_end_in_time_is_killed(run: Run):
    pid = run.start(lambda: {"a": stubborn}, drain_seconds=0.3)
    child = wait_for(lambda: run.child("a"))
    wait_for(lambda: "Ign" not in Path(f"/proc/{child}/status").read_text() or run.marked("READY=1"))
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0
    assert not process_runs(child)


def test_told_twice_it_does_not_wait(run: Run):
    pid = run.start(lambda: {"a": stubborn}, drain_seconds=1000.0)
    child = wait_for(lambda: run.child("a"))
    wait_for(lambda: run.marked("READY=1"))
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: run.marked("STOPPING=1"))
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0
    assert not process_runs(child)


def test_children_die_with_it(run: Run):
    pid = run.start(lambda: {"a": stubborn, "b": stubborn})
    children = wait_for(lambda: [run.child("a"), run.child("b")] if run.child("b") else [])
    os.kill(pid, signal.SIGKILL)
    assert run.wait(pid) == -signal.SIGKILL
    wait_for(lambda: not any(process_runs(child) for child in children))
    again = run.start(lambda: {"a": patient})
    wait_for(lambda: run.child("a"))
    os.kill(again, signal.SIGTERM)
    assert run.wait(again) == 0


def test_there_is_one_for_each_state_directory(run: Run):
    pid = run.start(lambda: {"a": patient})
    wait_for(lambda: run.child("a"))
    with pytest.raises(UserError, match=f"process {pid}") as refused:
        supervisor.lock(run.dir)
    assert refused.value.exit_code == BUSY
    assert run.wait(run.start(lambda: {"a": patient})) == BUSY
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0
    os.close(supervisor.lock(run.dir))


def test_reload_replaces_every_child(run: Run):
    reloads = run.marks / "reloads"

    def reload() -> None:
        reloads.touch()

    def children() -> dict[str, Callable[[], None]]:
        return {"web-0": patient, "b": patient} | ({"new": patient} if reloads.exists() else {"old": patient})

    pid = run.start(children, reload=reload)
    before = wait_for(
        lambda: [run.child("web-0"), run.child("b"), run.child("old")] if run.child("old") else []
    )
    os.kill(pid, signal.SIGHUP)
    wait_for(lambda: run.child("web-0") not in (0, before[0]))
    wait_for(lambda: run.child("b") not in (0, before[1]))
    wait_for(lambda: run.child("new"))
    wait_for(lambda: len(run.marked("READY=1")) == 2)
    wait_for(lambda: not any(process_runs(child) for child in before))
    assert run.told()["children"]["b"]["restarts"] == 0
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0


def test_settings_that_do_not_load_change_nothing(run: Run):
    def reload() -> None:
        run.mark("asked")
        raise UserError("bad settings")

    pid = run.start(lambda: {"a": patient}, reload=reload)
    child = wait_for(lambda: run.child("a"))
    os.kill(pid, signal.SIGHUP)
    wait_for(lambda: run.marked("asked"))
    assert run.child("a") == child
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0


def test_the_watchdog_is_fed(run: Run):
    pid = run.start(lambda: {"a": patient}, watchdog=0.3)
    wait_for(lambda: len(run.marked("WATCHDOG=1")) >= 2)
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0


def test_a_taken_address_is_one_clear_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"Cannot listen on 127\.0\.0\.1:{port}: Address already in use\."
        ):
            supervisor.reserve("127.0.0.1", port)
    with pytest.raises(UserError, match="Cannot listen"):
        supervisor.reserve("192.0.2.1", 0)
    with pytest.raises(UserError, match="Cannot listen"):
        supervisor.reserve("no such host.invalid", 0)


def test_a_reserved_address_lets_the_workers_in_and_nobody_else():
    kept = supervisor.reserve("127.0.0.1", 0)
    address = kept.getsockname()
    try:
        with socket.socket() as worker, socket.socket() as stranger, socket.socket() as client:
            with pytest.raises(OSError, match="in use"):
                stranger.bind(address)
            assert client.connect_ex(address) != 0, "nobody listens yet"
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(address)
            worker.listen(5)
            for _ in range(5):
                socket.create_connection(address, timeout=2).close()
                worker.accept()[0].close()
    finally:
        kept.close()


def test_the_status_file_is_whole_at_any_time(run: Run):
    pid = run.start(lambda: {f"c{i}": patient for i in range(3)})
    wait_for(lambda: run.child("c2"))
    json.loads((run.dir / "supervisor.json").read_text())
    assert run.told()["pid"] == pid
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 0
