"""Filesystems that come and go inside a space: no event source tells of them, /proc/self/mountinfo does."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterable

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def below(roots: Iterable[bytes], table: bytes) -> dict[bytes, frozenset[tuple[bytes, bytes]]]:
    """For each root the (mount id, mount point) at or below it, from the text of mountinfo (proc(5))."""
    mounts = []
    for line in table.splitlines():
        fields = line.split(b" ", 5)
        if len(fields) >= 5:
            mounts.append((fields[0], _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), fields[4])))
    found = {}
    for root in roots:
        prefix = root.rstrip(b"/") + b"/"
        found[root] = frozenset(
            (number, point) for number, point in mounts if point == root or point.startswith(prefix)
        )
    return found


class Mounts:
    """Remembers what is mounted inside the spaces."""

    def __init__(self, path: str = "/proc/self/mountinfo") -> None:
        self._path = path
        self._known: dict[bytes, frozenset[tuple[bytes, bytes]]] = {}
        self._fd = -1
        self._poll = select.poll()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._fd, select.POLLPRI | select.POLLERR)
        except OSError:
            pass  # no /proc: the roots themselves are still proven every second

    def changed(self, roots: Iterable[bytes]) -> list[bytes]:
        """The roots below which something was mounted or unmounted since the last call. New roots only
        begin."""
        roots = list(roots)
        if self._fd < 0 or (self._known.keys() == set(roots) and not self._poll.poll(0)):
            return []
        with open(self._path, "rb") as file:
            now = below(roots, file.read())
        before, self._known = self._known, now
        return [root for root in roots if root in before and before[root] != now[root]]

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
