"""Group commit: one slow durable step serves every thread that was waiting when it started.

The first caller leads: it takes everything that queued up, runs the step once, and wakes the others. Whoever
arrives while a step is running waits for the next one, because it may have started before their change was made.
Nothing here survives a fork: a child starts with an empty queue.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from fsd.core import waits

T = TypeVar("T")


class _Batch(Generic[T]):
    """Items that will go through one step together, and how it ended."""

    __slots__ = ("done", "error", "items")

    def __init__(self) -> None:
        self.items: list[T] = []
        self.done = False
        self.error: BaseException | None = None


class Group(Generic[T]):
    """Runs `step(items)` for batches of items; `submit` returns when the item's batch is through.

    A step that raises fails every member of its batch with the same error; the next batch starts afresh.
    """

    def __init__(self, step: Callable[[Sequence[T]], None]) -> None:
        self._step = step
        self._changed = threading.Condition()
        self._next: _Batch[T] = _Batch()
        self._running = False

    def submit(self, item: T) -> None:
        """Take part in the next step and wait for it; raises what the step raised."""
        with waits.aside:
            with self._changed:
                batch = self._next
                batch.items.append(item)
                while self._running and not batch.done:
                    self._changed.wait()
                leads = not batch.done
                if leads:
                    self._running = True
                    self._next = _Batch()
            if leads:
                self._lead(batch)
        if batch.error is not None:
            raise batch.error

    def _lead(self, batch: _Batch[T]) -> None:
        try:
            self._step(batch.items)
        except BaseException as error:
            batch.error = error
        finally:
            with self._changed:
                batch.done = True
                self._running = False
                self._changed.notify_all()


class DirectorySync:
    """fsync of directories, one call for all threads that changed the same one at the same time."""

    def __init__(self, fsync: Callable[[int], None] = os.fsync) -> None:
        self._fsync = fsync
        self._guard = threading.Lock()
        self._groups: dict[tuple[int, int], tuple[Group[int], int]] = {}

    def __call__(self, fd: int) -> None:
        """Return once every change made so far in the directory behind `fd` is durable (fsync(2))."""
        found = os.fstat(fd)
        with self._joined((found.st_dev, found.st_ino)) as group:
            group.submit(fd)

    @contextmanager
    def _joined(self, key: tuple[int, int]) -> Iterator[Group[int]]:
        # Any member's descriptor is the same directory, and the leader's own stays open while it leads.
        with self._guard:
            group, users = self._groups.get(key, (None, 0))
            if group is None:
                group = Group(lambda fds: self._fsync(fds[0]))
            self._groups[key] = (group, users + 1)
        try:
            yield group
        finally:
            with self._guard:
                _, users = self._groups.pop(key)
                if users > 1:
                    self._groups[key] = (group, users - 1)


sync_directory = DirectorySync()
"""The process's own instance: `sync_directory(fd)`."""


def _forget_after_fork() -> None:
    sync_directory.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget_after_fork)
