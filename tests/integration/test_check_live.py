"""`fsd check` beside a running server: what is being changed is no finding, what nobody heard of is."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsd.core.index import WRITING
from fsd.core.ready import CLOSED_S
from fsd.core.registry import Registry
from tests.support.oracle import settled
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for


@contextmanager
def busy(root: Path) -> Iterator[None]:
    """Somebody who writes, renames and deletes all the time, directly in the tree."""
    over = threading.Event()

    def work() -> None:
        dice = random.Random(5)
        turn = 0
        while not over.is_set():
            turn += 1
            where = root / f"d{dice.randrange(20)}"
            where.mkdir(exist_ok=True)
            (where / f"f{dice.randrange(50)}").write_text("x" * dice.randrange(1000))
            if turn % 7 == 0:
                os.replace(where / os.listdir(where)[0], root / f"moved{dice.randrange(9)}")
            if turn % 31 == 0:
                where.rename(root / f"e{turn}")
            if turn % 43 == 0:
                shutil.rmtree(root / f"d{dice.randrange(20)}", ignore_errors=True)
            elif turn % 17 == 0 and where.exists():
                where.rename(root / f"e{turn}")
            if turn % 101 == 0 and (root / "d7").exists():
                shutil.copytree(root / "d7", root / f"copy{turn}", dirs_exist_ok=True)
            over.wait(0.002)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_check_beside_a_server_that_is_busy(shared_server: Server) -> None:
    server = shared_server
    record = server.json("space", "create", "busy")
    root = Path(record["path"])
    dav = server.space_dav(record)
    with busy(root):
        wait_for(lambda: len(os.listdir(root)) > 20, what="a tree that is being changed")
        for _ in range(2):
            dav.put(b"over-http", b"x" * 1000)
            done = server.run("check", "busy", "--json")
            assert (done.returncode, json.loads(done.stdout)) == (0, []), done
    settled(os.fsencode(root), dav, wait=agree)
    space = Registry(server.state).open(record["id"])

    def at_rest() -> bool:
        """Nobody has a reason to look at the file by himself any more."""
        with space.index.read() as db:
            (flags,) = db.execute("SELECT flags FROM node WHERE name=?", (b"over-http",)).fetchone()
            waiting = [
                db.execute(f"SELECT * FROM {table} LIMIT 3").fetchall() for table in ("dirty", "pending")
            ]
        quiet = time.time() - os.stat(root / "over-http").st_ctime
        assert not flags & WRITING and waiting == [[], []] and quiet > 2 * CLOSED_S + 2, (
            flags,
            waiting,
            quiet,
        )
        return True

    wait_for(at_rest, timeout=150, what="rest")

    def found() -> list[tuple[str, str]]:
        """What `check` says of a wrong row. On a slow machine the server itself may look first, and mend it."""
        with space.index.write() as db:
            db.execute("UPDATE node SET size=size+1, ctime_ns=0 WHERE name=?", (b"over-http",))
            db.execute("UPDATE dir SET own=own+1, total=total+1 WHERE n=1")
        done = server.run("check", "busy", "--json")
        told = [(each["code"], each["path"]) for each in json.loads(done.stdout)]
        assert done.returncode == (3 if told else 0)
        return told

    assert wait_for(found, what="a finding") == [("row-stale", "over-http")]
    space.close()
    done = server.run("check", "busy", "--repair", "--json")
    assert done.returncode == 0 and all(each["repaired"] for each in json.loads(done.stdout))
    assert server.run("check").returncode == 0
    settled(os.fsencode(root), dav, wait=agree)


def test_an_alarm_is_seen_and_ends_when_it_is_mended(shared_server: Server) -> None:
    server = shared_server
    server.allow_log("grants")
    record = server.json("space", "create", "alarmed")

    def problems() -> str:
        return " ".join(json.loads(server.run("status", "--json").stdout)["problems"])

    def metric() -> float:
        lines = server.ops("/metrics")[1].decode().splitlines()
        wanted = f'fsd_space_alarm{{kind="grants",space="{record["id"]}"}}'
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted)), -1.0)

    wait_for(lambda: metric() == 0.0, what="the metric of a sound space")
    (Path(record["path"]) / ".fsd/acl.json").unlink()
    wait_for(lambda: "grants of 'alarmed' are missing" in problems() and metric() == 1.0, what="the alarm")
    assert b"grants of 'alarmed'" in server.ops("/healthz")[1]
    server.fsd("check", "alarmed", "--repair")
    wait_for(lambda: "alarmed" not in problems() and metric() == 0.0, what="the end of the alarm")
