"""Remembered answers: exact across connections, processes, crashes and replaced files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsd.core.stamp import Answers
from fsd.core.store import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "a?b.db", "CREATE TABLE t (a)", synchronous="NORMAL", lock=tmp_path / "lock")
    with made.read():
        pass
    yield made
    made.close()


@pytest.fixture
def other(database: Database) -> Iterator[Database]:
    """As another process has it: connections and a mapped page of its own."""
    made = Database(database.path, "", synchronous="NORMAL", lock=database.path.with_name("lock"))
    yield made
    made.close()


def insert(database: Database) -> None:
    with database.write() as db:
        db.execute("INSERT INTO t VALUES (1)")


def in_child(do: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(1 if do() is False else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_kept_until_a_commit(database: Database, other: Database) -> None:
    held = other.answers()
    held["x"] = 1
    assert other.answers() is held
    for _ in range(100):
        insert(database)
        assert other.answers() is not held
        held = other.answers()
        assert other.answers() is held
    with database.write() as db:
        db.execute("INSERT INTO t VALUES (0)")
        assert other.answers() is held, "what is not committed does not count"
    assert other.answers() is not held


def test_another_process_commits(database: Database) -> None:
    held = database.answers()
    assert in_child(lambda: insert(database)) == 0
    assert database.answers() is not held


def test_a_child_has_answers_of_its_own(database: Database) -> None:
    held = database.answers()
    held["x"] = 1
    assert in_child(lambda: database.answers() == {}) == 0
    assert database.answers() is held


def test_nothing_is_remembered_while_a_commit_is_under_way_or_was_cut_off(database: Database) -> None:
    stamp = Answers(database.path).stamp
    held = database.answers()

    def killed_in_commit() -> None:
        with stamp.committing():
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed_in_commit) == -signal.SIGKILL
    assert database.answers() is not held
    assert database.answers() is not database.answers(), "it may or may not have been committed"
    insert(database)
    held = database.answers()
    assert database.answers() is held


def test_who_opens_the_database_clears_up_after_a_crash(database: Database, other: Database) -> None:
    stamp = Answers(database.path).stamp
    cut_off = stamp.committing()
    cut_off.__enter__()
    assert database.answers() is not database.answers()
    with other.read():
        pass
    assert database.answers() is database.answers()


def test_a_removed_page_forgets(database: Database, other: Database) -> None:
    held = database.answers()
    other.answers()
    (page,) = database.path.parent.glob("*-commits")
    page.unlink()
    assert database.answers() is not held
    held = database.answers()
    insert(other)
    assert database.answers() is not held


def test_a_replaced_file_forgets(database: Database, tmp_path: Path) -> None:
    held = database.answers()
    (tmp_path / "other.db").touch()
    os.replace(tmp_path / "other.db", database.path)
    assert database.answers() is not held


def test_without_a_database_nothing_is_kept(tmp_path):
    answers = Answers(tmp_path / "none.db")
    answers.now()["x"] = 1
    assert answers.now() == {}
    answers.close()
