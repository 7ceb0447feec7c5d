"""Answers of a database that hold until something is committed to it: caches that are exact.

A page beside the database, mapped by every process that uses it, has a counter. Whoever commits makes it odd before and
even again afterwards, each time another number; an odd one says that a commit is under way, or that its process died in
it, and nothing is remembered until the next one. So asking costs two system calls, and no lock; SQLite's own question
(`PRAGMA data_version`) costs a read transaction. What is remembered belongs to one process and is gone with it, so the
counter need not survive a crash, nor the file's removal.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsd.core.syscalls import write_in_place

_MOST = 20_000
Value = tuple[int, int, int, int, int]


class _Page:
    """The mapped counter; its descriptor tells whether the file is still there. Closed with its last user."""

    __slots__ = ("count", "fd", "number")
    _numbers = itertools.count()

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            if os.fstat(self.fd).st_size < mmap.PAGESIZE:
                # Its block has to be there: a store into a hole of a full disk would be a SIGBUS.
                write_in_place(self.fd)
                os.pwrite(self.fd, bytes(mmap.PAGESIZE), 0)
            self.number = next(self._numbers)
            self.count = memoryview(mmap.mmap(self.fd, mmap.PAGESIZE)).cast("Q")
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Stamp:
    """Whether anything was committed since. Thread-safe; shared with all processes through `NAME-commits`."""

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._guard = threading.Lock()
        self._mapped: _Page | None = None

    def value(self) -> Value | None:
        """Another one after any commit, and after the database was replaced; None if that can't be told."""
        try:
            found = os.stat(self._path)
            page = self._page()
        except OSError:
            return None
        count = page.count[0]
        return None if count & 1 else (found.st_dev, found.st_ino, os.getpid(), page.number, count)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Around a commit, under the lock that keeps other writers out. OSError, before anything is done, if the page
        can't be had: then nobody could be told."""
        page = self._page()
        odd = page.count[0] | 1
        page.count[0] = odd
        try:
            yield
        finally:
            page.count[0] = odd + 1

    def settle(self) -> None:
        """Under the same lock: a commit that is said to be under way ended with its process."""
        page = self._page()
        page.count[0] += page.count[0] & 1

    def _page(self) -> _Page:
        page = self._mapped
        if page is not None and os.fstat(page.fd).st_nlink:
            return page
        with self._guard:
            if self._mapped is page or self._mapped is None:
                self._mapped = _Page(self._path + "-commits")
            return self._mapped

    def close(self) -> None:
        """Let go of the page; the next question maps it again."""
        with self._guard:
            self._mapped = None


class Answers:
    """A dictionary that is empty again after each commit. Thread-safe: a race only asks twice."""

    def __init__(self, path: Path) -> None:
        self.stamp = Stamp(path)
        self._held: tuple[Value | None, dict[Hashable, Any]] = (None, {})

    def now(self) -> dict[Hashable, Any]:
        """The answers that hold now. Take it before asking the database, and put the answer in: should a commit come in
        between, nobody gets this dictionary again. It is a fresh one each time where commits can't be noticed."""
        value = self.stamp.value()
        held = self._held
        if value is None or held[0] != value or len(held[1]) > _MOST:
            held = self._held = (value, {})
        return held[1]

    def close(self) -> None:
        """Forget everything."""
        self._held = (None, {})
        self.stamp.close()
