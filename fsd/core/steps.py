"""A change in steps: it stops where it needs the disk or the index, so that one thread can bring many of them there.

`run` takes one change through all of its steps in the calling thread. Whoever has several at hand resumes each as far
as it goes, and asks `serve` for what all of them need then.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from fsd.core import arrivals, waits
from fsd.core.arrivals import Arrival, Outcome
from fsd.core.index import NodeRow
from fsd.core.syscalls import start_writing, wait_for_writing


class Unsynced(NamedTuple):
    """An open file that has to be durable before it gets a name."""

    fd: int


_T = TypeVar("_T")
Need = Unsynced | Arrival
Steps = Generator[Need, NodeRow | None, _T]
"""Goes on with the row of an Arrival, with None for an Unsynced; the error of either is thrown into it."""


def run(steps: Steps[_T]) -> _T:
    """All steps of one change; its value, or its error."""
    try:
        need = next(steps)
        while True:
            need = resume(steps, serve([need])[0])
    except StopIteration as end:
        value: _T = end.value
        return value


def resume(steps: Steps[_T], outcome: Outcome) -> Need:
    """Go on with what `serve` gave; what is needed next, or StopIteration with the value."""
    return steps.throw(outcome) if isinstance(outcome, BaseException) else steps.send(outcome)


def serve(needs: Sequence[Need]) -> list[Outcome]:
    """What each was waiting for: its row, None, or its error. Files are synced together, and those that have their
    names settled in one transaction for each space."""
    found: list[Outcome] = [None] * len(needs)
    files = [number for number, need in enumerate(needs) if isinstance(need, Unsynced)]
    if files:
        for number, error in zip(files, _sync([needs[number].fd for number in files]), strict=True):
            found[number] = error
    named = [(number, need) for number, need in enumerate(needs) if isinstance(need, Arrival)]
    if named:
        outcomes = arrivals.settle_all([new for _, new in named])
        for (number, _), outcome in zip(named, outcomes, strict=True):
            found[number] = outcome
    return found


def _sync(fds: Sequence[int]) -> list[OSError | None]:
    """fsync(2) each. What is written, and allocated for it, before the first of them is in the same transaction of the
    filesystem's journal, so the others find it committed."""
    errors: list[OSError | None] = []
    with waits.aside:
        if len(fds) > 1:
            for step in (start_writing, wait_for_writing):
                for fd in fds:
                    step(fd)
        for fd in fds:
            try:
                os.fsync(fd)
            except OSError as error:
                errors.append(error)
            else:
                errors.append(None)
    return errors
