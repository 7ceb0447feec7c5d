"""Answers of a database that hold until something is committed to it: caches that are exact.

`PRAGMA data_version` on a connection that is used for nothing else changes with every commit by any other connection of
any process (sqlite.org/pragma.html). That is one cheap question instead of several queries and what is made of them.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any

_MOST = 20_000
Value = tuple[int, int, int, int]


class Stamp:
    """Whether anything was committed since. Thread-safe; has a connection of its own, made when first asked."""

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._guard = threading.Lock()
        self._ident: tuple[int, int, int] | None = None
        self._db: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []

    def value(self) -> Value | None:
        """Another one after any commit, and after the file was replaced; None if that can't be told."""
        try:
            found = os.stat(self._path)
            ident = (found.st_dev, found.st_ino, os.getpid())
            with self._guard:
                if ident != self._ident:
                    self._open(ident)
                assert self._db is not None
                (version,) = self._db.execute("PRAGMA data_version").fetchone()
        except (OSError, sqlite3.Error):
            return None
        return *ident, version

    def _open(self, ident: tuple[int, int, int]) -> None:
        self._shut(ident[2])
        self._db = sqlite3.connect(
            f"{Path(self._path).as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._ident = ident

    def _shut(self, pid: int) -> None:
        db, self._db = self._db, None
        if db is not None and self._ident is not None:
            if self._ident[2] == pid:
                db.close()
            else:
                # SQLite connections must not cross a fork: it is the parent's.
                self._inherited.append(db)
        self._ident = None

    def close(self) -> None:
        """Close its connection; the next question opens another."""
        with self._guard:
            self._shut(os.getpid())


class Answers:
    """A dictionary that is empty again after each commit. Thread-safe: a race only asks twice."""

    def __init__(self, path: Path) -> None:
        self._stamp = Stamp(path)
        self._held: tuple[Value | None, dict[Hashable, Any]] = (None, {})

    def now(self) -> dict[Hashable, Any]:
        """The answers that hold now. Take it before asking the database, and put the answer in: should a commit come in
        between, nobody gets this dictionary again. It is a fresh one each time where commits can't be noticed."""
        value = self._stamp.value()
        held = self._held
        if value is None or held[0] != value or len(held[1]) > _MOST:
            held = self._held = (value, {})
        return held[1]

    def close(self) -> None:
        """Forget everything and close the connection."""
        self._held = (None, {})
        self._stamp.close()
