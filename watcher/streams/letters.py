"""Messages that were not understood, kept aside for people: one JSON line each, in a file that can't grow for ever."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 20
"""Of one file; the one before it is kept as well."""
MAX_RAW = 4096


class Letters:
    """The file `name`.jsonl in a directory that is made when it is needed. One thread writes."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}.jsonl"
        self._said: set[str] = set()

    def keep(self, where: str, kind: str, reason: str, raw: bytes | None) -> None:
        """Append one; a disk that doesn't take it is no reason to stop. The first of each kind is logged."""
        if kind not in self._said:
            self._said.add(kind)
            log.warning("%s: a message that is %s (%s) is kept in %s", where, kind, reason, self.path)
        line = {
            "at": round(time.time(), 3),
            "where": where,
            "kind": kind,
            "reason": reason[:500],
            "size": len(raw) if raw is not None else None,
            "raw": (raw or b"")[:MAX_RAW].decode("utf-8", "backslashreplace"),
        }
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size >= MAX_BYTES:
                self.path.replace(self.path.with_suffix(".1.jsonl"))
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            if "disk" not in self._said:
                self._said.add("disk")
                log.warning("%s was not written: %s", self.path, error)
