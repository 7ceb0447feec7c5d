"""Which children of `fsd serve` give signs of life, and how long each may be silent."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from fsd.service.pulse import Listened
from fsd.service.status import MOUNT

if TYPE_CHECKING:
    from fsd.service.config import Settings


class Pulses(dict[str, Listened]):
    """What each web worker and each mount that the settings name is listened to by; the same object for the same."""

    def follow(self, settings: Settings) -> None:
        """The settings are these now."""
        wanted: dict[str, tuple[str, int]] = {}
        if "web" in settings.only:
            wanted |= {f"web-{n}": (f"web-{n}", settings.http_patience) for n in range(settings.workers)}
        for line in settings.mounts if "mounts" in settings.only else ():
            key = hashlib.sha256(os.fsencode(line.place)).hexdigest()[:16]
            wanted[MOUNT + line.place] = (key, settings.mount_patience)
        for name in self.keys() - wanted.keys():
            del self[name]
        for name, (key, patience) in wanted.items():
            listened = self.setdefault(name, Listened(settings.state / "run" / f"pulse-{key}", 0))
            listened.patience = patience
