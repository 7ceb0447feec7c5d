"""Remembered answers: exact across connections, processes and replaced files."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from fsd.core.stamp import Answers


@pytest.fixture
def database(tmp_path: Path):
    path = tmp_path / "a?b.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (a)")
    yield path, db
    db.close()


@pytest.fixture
def answers(database):
    made = Answers(database[0])
    yield made
    made.close()


def test_kept_until_a_commit(database, answers):
    _, db = database
    held = answers.now()
    held["x"] = 1
    assert answers.now() is held
    for number in range(100):
        db.execute("INSERT INTO t VALUES (?)", (number,))
        assert answers.now() is not held
        held = answers.now()
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (0)")
    assert answers.now() is held, "what is not committed does not count"
    db.execute("COMMIT")
    assert answers.now() is not held


def test_another_process_commits(database, answers):
    path, _ = database
    held = answers.now()
    pid = os.fork()
    if pid == 0:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("INSERT INTO t VALUES (1)")
        os._exit(0)
    os.waitpid(pid, 0)
    assert answers.now() is not held


def test_a_child_has_answers_of_its_own(database, answers):
    held = answers.now()
    held["x"] = 1
    pid = os.fork()
    if pid == 0:
        os._exit(0 if answers.now() == {} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert answers.now() is held


def test_a_replaced_file_forgets(database, answers, tmp_path):
    path, _ = database
    held = answers.now()
    other = tmp_path / "other.db"
    sqlite3.connect(other).close()
    os.replace(other, path)
    assert answers.now() is not held


def test_without_a_database_nothing_is_kept(tmp_path):
    answers = Answers(tmp_path / "none.db")
    answers.now()["x"] = 1
    assert answers.now() == {}
    answers.close()
