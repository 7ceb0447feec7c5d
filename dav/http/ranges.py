"""Byte ranges (RFC 9110 section 14), pure."""

import re

from dav.http import limits

_SPEC = re.compile(r"\s*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))\s*\Z")


def parse(header: str, size: int) -> list[tuple[int, int]] | None:
    """``[(offset, count), …]`` in the order asked, overlaps merged; [] if none can be satisfied.

    None means: ignore the header and send everything (another unit, malformed, or too many ranges).
    """
    unit, equals, specs = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    wanted = specs.split(",")
    if len(wanted) > limits.RANGES:
        return None
    found: list[tuple[int, int]] = []
    for spec in wanted:
        match = _SPEC.match(spec)
        if match is None:
            return None
        first, last, suffix = match.groups()
        if suffix is not None:
            count = min(int(suffix), size)
            if count:
                found.append((size - count, count))
            continue
        start = int(first)
        end = int(last) if last else size - 1
        if last and end < start:
            return None
        if start < size:
            found.append((start, min(end, size - 1) - start + 1))
    return _merged(found)


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping and touching ranges become one, in the place of the first."""
    merged: list[tuple[int, int]] = []
    for start, count in ranges:
        end = start + count
        rest = []
        for other, length in merged:
            if start <= other + length and other <= end:
                start, end = min(start, other), max(end, other + length)
            else:
                rest.append((other, length))
        merged = [*rest, (start, end - start)]
    return merged
