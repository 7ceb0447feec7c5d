"""Rows of the result and their markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure; `met` is None where there is no goal."""

    figure: str
    goal: str
    measured: str
    met: bool | None = None


def render(rows: Iterable[Row]) -> str:
    """A markdown table."""
    lines = ["| figure | goal | measured | |", "|---|---|---|---|"]
    sign = {True: "met", False: "**missed**", None: ""}
    lines += [f"| {row.figure} | {row.goal} | {row.measured} | {sign[row.met]} |" for row in rows]
    return "\n".join(lines)


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0…1) of the sorted values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
