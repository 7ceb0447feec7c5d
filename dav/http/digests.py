"""The ``OC-Checksum`` header, pure."""

import re

_LENGTHS = {"SHA1": 40, "MD5": 32, "ADLER32": 8, "SHA256": 64}
_FORM = re.compile(r"\s*([A-Za-z0-9-]+):(\S*)\s*\Z")
_DIGITS = frozenset("0123456789abcdefABCDEF")


def parse(header: str) -> tuple[str, str] | None:
    """(algorithm, lower-case hex) of a checksum that is understood, None for one that is not.

    ValueError when what stands behind a known algorithm is no such sum.
    """
    match = _FORM.match(header)
    if match is None:
        return None
    algorithm = match[1].upper().replace("-", "")
    length = _LENGTHS.get(algorithm)
    if length is None:
        return None
    if len(match[2]) != length or not _DIGITS.issuperset(match[2]):
        raise ValueError(f"A {algorithm} checksum has {length} hexadecimal digits.")
    return algorithm, match[2].lower()
