"""Waiting for conditions with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


PATIENCE = 60.0
"""Seconds. As long as a loaded machine may take: what comes true sooner costs nothing."""


class Late(AssertionError):
    """The condition did not come true in time; the message carries what was last seen."""


def wait_for(
    condition: Callable[[], T], *, timeout: float = PATIENCE, what: str = "the condition", every: float = 0.02
) -> T:
    """The first truthy result of `condition`, asked again until `timeout` seconds have passed.

    An AssertionError or OSError from it counts as "not yet" and becomes the message when time is up.
    """
    deadline = time.monotonic() + timeout
    while True:
        trouble: BaseException | None = None
        try:
            result = condition()
            if result:
                return result
        except (AssertionError, OSError) as error:
            trouble = error
        if time.monotonic() >= deadline:
            raise Late(
                f"{what} did not come true within {timeout:g} s" + (f": {trouble}" if trouble else "")
            ) from trouble
        time.sleep(every)


def agree(
    check: Callable[[], None], *, timeout: float = PATIENCE, what: str = "agreement", every: float = 0.05
) -> None:
    """Wait until `check` no longer raises AssertionError; its last one is raised when time is up."""

    def quiet() -> bool:
        check()
        return True

    wait_for(quiet, timeout=timeout, what=what, every=every)
