"""What a probe of `fsd doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Advice:
    """What a probe found; `todo` is empty when there is nothing to do."""

    probe: str
    level: Level
    found: str
    todo: str = ""


def ok(probe: str, found: str) -> Advice:
    """Nothing to do."""
    return Advice(probe, "ok", found)


def warning(probe: str, found: str, todo: str) -> Advice:
    """It works, but something is lost."""
    return Advice(probe, "warning", found, todo)


def problem(probe: str, found: str, todo: str) -> Advice:
    """A promise can't be kept."""
    return Advice(probe, "problem", found, todo)
