"""What the kernel allows this process (capabilities(7))."""

from __future__ import annotations

import re
from pathlib import Path

CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_CHOWN": 0,
    "CAP_FOWNER": 3,
    "CAP_SYS_ADMIN": 21,
    "CAP_LEASE": 28,
}
"""Those that make a difference to fsd, with their numbers."""


def effective() -> int:
    """The effective set, as a bit mask."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def has_capability(name: str) -> bool:
    """Whether this process has an effective capability."""
    return bool(effective() >> CAPABILITIES[name] & 1)
