"""Arguments that nobody can have meant."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys

import pytest

from tests.unit.test_cli import fsd, ready

__all__ = ["fsd", "ready"]


@pytest.mark.parametrize(
    "words",
    [
        ["space", "adopt", ""],
        ["mount", "--all", ""],
        ["space", "set", "admin", "--uid", "-1"],
        ["space", "set", "admin", "--gid", "4294967295"],
        ["space", "set", "admin", "--uid", "9" * 20],
        ["space", "set", "admin", "--quota", "9" * 400],
        ["space", "set", "admin", "--quota", "999999P"],
        ["status", "--timeout", "nan"],
        ["status", "--timeout", "-1"],
        ["doctor", "--timeout", "inf"],
        ["token", "create", "admin", "--name", "x", "--expires", "nan"],
        ["token", "create", "admin", "--name", "x", "--expires", "1e300"],
        ["link", "create", "admin", "--expires", "inf"],
        ["trash", "empty", "admin", "--older-than", "-inf"],
        ["user", "set", "admin", "--display-name", "a\nb"],
        ["user", "set", "admin", "--display-name", "a\x1b[2Jb"],
        ["user", "set", "admin", "--display-name", "\udcff"],
        ["user", "set", "admin", "--email", "x" * 201],
    ],
    ids=" ".join,
)
def test_what_can_not_be_meant_is_refused_in_one_sentence(ready, words, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        code, out, err = ready(*words)
    except SystemExit as error:  # argparse's own
        code, out, err = error.code, "", "fsd: "
    assert code in (1, 2) and out == "" and "Traceback" not in err
    assert os.listdir(".") == []


@pytest.mark.parametrize(
    "words",
    [
        ["user", "add", "admin", "--password-stdin"],
        ["user", "add", "ANN", "--password-stdin", "--take-over"],
        ["user", "set", "admin", "--display-name", "Changed", "--email", "x@y", "--role", "user"],
        ["group", "join", "team", "ann", "nobody"],
        ["group", "leave", "crew", "ann", "nobody"],
        ["space", "set", "proj", "--quota", "5M", "--name", "x/y"],
        ["space", "set", "proj", "--quota", "5M", "--source", "poll", "--name", "other"],
        ["space", "set", "proj", "--alias", "moved", "--yes", "--name", "other"],
        ["space", "set", "proj", "--alias", "moved", "--yes", "--group", "no such group"],
        ["space", "set", "proj", "--alias", "moved", "--yes", "--quota", "much"],
        ["space", "set", "proj", "--mount-trash", "off", "--alias", "other"],
        ["space", "set", "proj", "--name", "New", "--alias", "a b"],
        ["space", "set", "ro", "--name", "New", "--quota", "5M", "--label", "now"],
        ["space", "members", "proj", "--add", "ann:viewer", "--add", "nobody:viewer"],
        ["space", "members", "proj", "--add", "ann:viewer", "--remove", "nobody"],
    ],
    ids=" ".join,
)
def test_what_fails_has_changed_nothing(ready, words, tmp_path):
    (tmp_path / "ro").mkdir()
    for made in (
        ["user", "add", "ann", "--password-stdin"],
        ["group", "add", "team"],
        ["group", "add", "crew"],
        ["group", "join", "crew", "ann"],
        ["space", "create", "Proj"],
        ["space", "create", "Other"],
        ["space", "adopt", str(tmp_path / "ro"), "--read-only"],
    ):
        assert ready(*made, stdin="secret\n")[0] == 0

    def everything():
        with sqlite3.connect(tmp_path / "state" / "fsd.db") as db:
            settings = db.execute("SELECT key, value FROM settings ORDER BY key").fetchall()
        return settings, [
            ready(*listed, "--json")[1] for listed in (["user", "list"], ["group", "list"], ["space", "list"])
        ]

    before = everything()
    code, out, err = ready(*words, stdin="secret\n")
    assert code in (1, 2) and out == "" and len(err.splitlines()) == 1
    assert everything() == before


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.usefixtures("ready")
def test_closed_standard_files_are_no_databases(closed, tmp_path):
    """What is printed must not go into the next file that is opened."""
    listed = f"{sys.executable} -m fsd.cli.main user list {closed}; echo $?"
    done = subprocess.run(["bash", "-c", listed], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["0"] and done.stderr == ""
    refused = f"{sys.executable} -m fsd.cli.main user passwd admin {closed}; echo $?"
    done = subprocess.run(["bash", "-c", refused], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout == "2\n" and "Traceback" not in done.stderr
    with sqlite3.connect(tmp_path / "state" / "fsd.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_name_that_is_taken_is_the_reason(ready):
    code, _, err = ready("user", "add", "Admin", "--password-stdin", stdin="secret\n")
    assert (code, err) == (1, "fsd: There is a user 'admin' already.\n")
    code, _, err = ready("space", "create", "X", "--alias", "a b")
    assert code == 1 and err.startswith("fsd: An alias has letters")


def test_an_error_can_not_move_the_cursor(ready):
    code, _, err = ready("trash", "restore", "admin", "a\x1b[31m\nfsd: all is well\x9b")
    assert code == 1
    assert err.splitlines() == [r"fsd: There is no 'a\u001b[31m\nfsd: all is well\u009b' in the trash"]


def test_doctor_says_what_keeps_the_registry_closed(ready, tmp_path, monkeypatch):
    """A state directory that is read-only, or a registry that is damaged: that is what it is asked for."""

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "state" / "fsd.lock"))

    with monkeypatch.context() as patched:
        patched.setattr("fsd.core.registry.Registry.__init__", refused)
        code, out, err = ready("doctor")
    assert code == 3 and "fsd.lock can't be opened: Read-only file system" in out and "Traceback" not in err
    (tmp_path / "state" / "fsd.db").write_bytes(b"junk" * 5000)
    code, out, err = ready("doctor")
    assert code == 3 and "is damaged" in out and "FUSE" in out and "Traceback" not in err
