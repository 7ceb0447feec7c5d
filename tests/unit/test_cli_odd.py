"""Arguments that nobody can have meant."""

from __future__ import annotations

import errno
import os

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
