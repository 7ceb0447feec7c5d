"""Status files, and what is concluded from them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from fsd.service import health, status


def space(**more: Any) -> dict[str, Any]:
    return {
        "id": "a$b",
        "name": "p",
        "state": "watching",
        "dirty": 0,
        "oldest_dirty": 0.0,
        "source": "inotify",
        **more,
    }


def write(
    run: Path, *, age: float = 0.0, pid: int | None = None, running: bool = True, **spaces: Any
) -> None:
    content = {"pid": pid or os.getpid(), "running": running, "written": time.time() - age, "spaces": spaces}
    status.replace_json(run / "watcher.json", content)


def supervise(run: Path, *, ready: bool = True, **pids: int) -> None:
    children = {name: {"pid": pid, "restarts": 0, "last_exit": ""} for name, pid in pids.items()}
    told = {"pid": os.getpid(), "running": True, "ready": ready, "listen": [], "children": children}
    status.replace_json(run / "supervisor.json", told)


def dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_nothing_there(tmp_path: Path):
    found = status.read(tmp_path)
    assert not found.server_runs
    assert not found.watcher_runs
    assert found.age is None
    assert not found.up_to_date()
    assert found.problems() == ["No watcher runs on this data: direct changes are not followed."]


def test_damaged_files_count_as_none(tmp_path: Path):
    (tmp_path / "watcher.json").write_text('{"pid": 1, "spa')
    (tmp_path / "supervisor.json").write_text("[]")
    assert status.read(tmp_path).watcher == {}


def test_an_old_file_or_a_dead_writer_is_not_the_present(tmp_path: Path):
    write(tmp_path)
    assert status.read(tmp_path).watcher_runs
    write(tmp_path, age=60.0)
    assert not status.read(tmp_path).watcher_runs
    write(tmp_path, pid=dead_pid())
    assert not status.read(tmp_path).watcher_runs
    write(tmp_path, running=False)
    assert not status.read(tmp_path).watcher_runs


def test_up_to_date_needs_every_space(tmp_path: Path):
    write(tmp_path, a=space(), b=space(state="polling"))
    assert status.read(tmp_path).up_to_date()
    for unfinished in (space(dirty=3), space(state="sweeping"), space(state="unavailable", why="gone")):
        write(tmp_path, a=space(), b=unfinished)
        assert not status.read(tmp_path).up_to_date()


def test_problems_are_sentences(tmp_path: Path):
    write(
        tmp_path,
        a=space(state="unavailable", why="gone"),
        b=space(unwatched=4, watch_errors={"ENOSPC": 4}),
        c=space(displaced=True),
        d=space(oldest_dirty=100.0, last_error="EIO: bad"),
        e=space(inner_away=["in/side"]),
        f=space(source="poll", poll={"directories": 10.0, "files": 36000.0}),
    )
    text = " ".join(status.read(tmp_path).problems())
    for part in (
        *(
            "gone",
            "4 directories",
            "ENOSPC 4",
            "max_user_watches",
            ".fsd is not where it belongs",
            "EIO: bad",
        ),
        *("mounted at in/side is not", "after 10.0 hours"),
    ):
        assert part in text


def test_a_watcher_that_does_not_come_round_is_a_problem(tmp_path: Path):
    write(tmp_path, a=space())
    assert not status.read(tmp_path).problems()
    told = status.read_json(tmp_path / "watcher.json")
    status.replace_json(tmp_path / "watcher.json", {**told, "turned": 40.0})
    assert status.read(tmp_path).problems() == ["The watcher has not come round for 40 s."]


def test_a_full_disk_does_not_stop_anybody(tmp_path: Path, allow_log):
    allow_log("was not written")
    status.replace_json(tmp_path / "missing" / "x.json", {})


def test_replacing_is_atomic_and_leaves_nothing_aside(tmp_path: Path):
    status.replace_json(tmp_path / "x.json", {"a": 1})
    status.replace_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 2}
    assert os.listdir(tmp_path) == ["x.json"]


def test_health_is_degraded_not_dead(tmp_path: Path):
    assert health.health(status.read(tmp_path))[0] == 503
    supervise(tmp_path, watcher=os.getpid())
    write(tmp_path, a=space(unwatched=4))
    code, told = health.health(status.read(tmp_path))
    assert (code, told["status"]) == (200, "degraded")
    write(tmp_path, a=space())
    assert health.health(status.read(tmp_path))[1]["status"] == "ok"


def test_ready_means_every_process(tmp_path: Path):
    me = os.getpid()
    write(tmp_path, a=space())
    supervise(tmp_path, watcher=me, **{"web-0": me})
    assert health.readiness(status.read(tmp_path))[0] == 200
    supervise(tmp_path, watcher=me, **{"web-0": dead_pid()})
    assert health.readiness(status.read(tmp_path)) == (
        503,
        {"ready": False, "missing": ["web-0"], "spaces": {"a$b": "watching"}},
    )
    supervise(tmp_path, ready=False, watcher=me)
    assert health.readiness(status.read(tmp_path))[1]["missing"] == ["listening"]
    supervise(tmp_path, **{"web-0": me})
    write(tmp_path, age=60.0)
    assert health.readiness(status.read(tmp_path))[0] == 200, (
        "a server without a watcher does not wait for one"
    )
