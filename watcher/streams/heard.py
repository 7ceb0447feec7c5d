"""What a message of a log says, as far as it concerns us: which paths may differ. Pure.

A decoder takes the parsed JSON object and answers changes; what a message claims to have happened is not kept, as the
disk is looked at anyway. Names stay what they are: JSON text becomes bytes with surrogateescape, so bytes that are not
UTF-8 survive whichever way a producer sends them (raw, or as lone surrogates).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

ENTRY = 1
"""The entry at the path may differ from its row."""
BELOW = 2
"""So may anything at or below the path: its content was never announced, or was moved along."""
SOFT = 4
"""Only stores were heard: the writer is probably not done."""

_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

Change = tuple[str, int]
Decoder = Callable[[dict[str, Any]], list[Change]]


class Malformed(ValueError):
    """A message that can't be read. What it would have said is not known."""


class Unfamiliar(Exception):
    """A message that says something unknown; `changes` is what can be said of it in any case."""

    def __init__(self, reason: str, changes: list[Change]) -> None:
        super().__init__(reason)
        self.changes = changes


def parse(raw: bytes | None) -> dict[str, Any]:
    """The JSON object of a message. Malformed if it is none."""
    if raw is None:
        raise Malformed("a message without a value")
    try:
        said = raw.decode("utf-8", "surrogateescape")
        try:
            found, end = _scan(said, 0)
        except StopIteration:
            end = -1
        if end != len(said):  # white space around it, or no JSON: the whole parser says which
            found = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Malformed("no JSON object")
    return found


def text(message: dict[str, Any], key: str) -> str:
    """A string that has to be there."""
    value = message.get(key)
    if not isinstance(value, str):
        raise Malformed(f"no string '{key}'")
    return value


def number(value: Any) -> int:
    """A number, also as a string, decimal or hexadecimal. Malformed otherwise."""
    if isinstance(value, bool):
        raise Malformed(f"{value!r} is no number")
    if isinstance(value, int):
        return value
    try:
        return int(value, 0)
    except (TypeError, ValueError):
        raise Malformed(f"{value!r} is no number") from None


def to_bytes(path: str) -> bytes:
    """The path's bytes. Malformed if no bytes can be meant."""
    try:
        found = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Malformed("a path that is no text") from None
    if b"\0" in found:
        raise Malformed("a path with a NUL")
    return found
