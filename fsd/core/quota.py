"""Quota: how many bytes a space may still take, and how many its disk has to keep. Trash is not counted; it has a
limit of its own."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fsd.core import waits
from fsd.core.errors import QuotaExceeded
from fsd.core.partials import reserved
from fsd.core.tree import usage

if TYPE_CHECKING:
    from fsd.core.space import Space

_PLENTY = 64 << 20
_SMALL = 32
"""Of a filesystem at most one part in so many is held back: a larger reserve would make it read-only."""
_AT_ONCE = 256
"""Where so many uploads of this size have room beside each other nobody waits: there are fewer threads than that."""
Limit = Callable[["Space"], "int | None"]


def _unlimited(_space: Space) -> int | None:
    return None


_limits: dict[Path, Limit] = {}
_reserves: dict[Path, int] = {}


def use(state_dir: Path, limit: Limit, reserve: int = 0) -> None:
    """Tell this process where the limits of an installation's spaces come from: bytes, or None for none.

    `reserve`: free bytes that what fsd writes leaves on each disk (`disk.reserve`); of small ones less.
    """
    _limits[state_dir] = limit
    _reserves[state_dir] = reserve


def _limit(space: Space) -> int | None:
    return _limits.get(space.state_dir, _unlimited)(space)


def held_back(disk: os.statvfs_result, reserve: int) -> int:
    """How many bytes of this filesystem a reserve of so many means: at most a 32nd of it."""
    return min(reserve, disk.f_blocks * disk.f_frsize // _SMALL)


def free_on_disk(space: Space) -> int:
    """Bytes that the filesystem of the space still has for the service, without the reserve; never negative."""
    found = os.fstatvfs(space.root_fd())
    free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
    return max(0, free - held_back(found, _reserves.get(space.state_dir, 0)))


def available(space: Space, limit: Limit | None = None) -> int | None:
    """Bytes that may still be added under the quota, never negative and never more than the disk has; None if
    there is no quota. Without `limit` the source that `use` named is asked."""
    allowed = (limit or _limit)(space)
    if allowed is None:
        return None
    return max(0, min(allowed - _taken(space), free_on_disk(space)))


def check(space: Space, extra_bytes: int) -> None:
    """Raise QuotaExceeded, or OSError(ENOSPC), if `extra_bytes` more can't be taken. Shrinking is always allowed."""
    check_limit(space, extra_bytes)
    check_disk(space, extra_bytes)


def check_disk(space: Space, extra_bytes: int) -> None:
    """The disk alone: OSError(ENOSPC) if so many bytes more would eat the reserve, or don't fit at all."""
    if extra_bytes > 0 and extra_bytes > free_on_disk(space):
        raise OSError(errno.ENOSPC, "The disk of the space is full")


def alone(space: Space, extra_bytes: int) -> AbstractContextManager[None]:
    """`check_limit`, and until the end nobody else adds bytes that together would be too many: near the limit one at a
    time, among all processes. A killed holder lets go (flock(2))."""
    allowed = _limit(space)
    if allowed is None or extra_bytes <= 0:
        return _nobody_waits
    if allowed - _taken(space) >= _PLENTY + _AT_ONCE * extra_bytes:
        return _nobody_waits
    return _one_at_a_time(space, extra_bytes)


_nobody_waits = nullcontext()


@contextmanager
def _one_at_a_time(space: Space, extra_bytes: int) -> Iterator[None]:
    with _queue(space):
        check_limit(space, extra_bytes)
        yield


@contextmanager
def granting(space: Space, allowed: int, slot: int) -> Iterator[int]:
    """The room under the quota `allowed` for the mount of a slot of the board; until the end nobody else asks near the
    limit, so that it can promise itself a part of it (`Board.promise`)."""
    with _queue(space):
        yield max(0, allowed - _taken(space, slot))


@contextmanager
def _queue(space: Space) -> Iterator[None]:
    lock = space.state_dir / f"{space.record.hex}.quota-lock"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with waits.aside:
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _taken(space: Space, but: int = 0) -> int:
    """Bytes that count against the quota: of the tree, of uploads under way, and what mounts were promised."""
    promised = space.board.promised(but)  # first, see there
    return promised + usage(space) + reserved(space)


def check_limit(space: Space, extra_bytes: int) -> None:
    """The quota alone, for bytes that are on the disk already."""
    if extra_bytes <= 0:
        return
    allowed = _limit(space)
    if allowed is None:
        return
    room = max(0, allowed - _taken(space))
    if extra_bytes > room:
        raise QuotaExceeded(f"The space has room for {room} more bytes, not {extra_bytes}.")
