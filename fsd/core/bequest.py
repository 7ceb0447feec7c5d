"""What a host had begun in a space that several share: its intents, and what it has staged, lie side by side in
`.fsd/staging/work-ID`, so that whoever has the lease next can end it.

`take_in` moves both into the place of this host, whose replay then settles them as its own, and removes the directory.
Whoever had it open (a host that was stopped in the middle of a change, and goes on) can put nothing into it and take
nothing out of it any more: ENOENT (rename(2) into a directory that was removed). That is a fence which the
filesystem keeps, also in front of the one call that nobody asks the lease before.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from fsd.core import ownfiles
from fsd.core.errors import Elsewhere

if TYPE_CHECKING:
    from fsd.core.space import Space

_log = logging.getLogger(__name__)
SUFFIX: Final = b".intent"
PREFIX: Final = b"work-"
OLD_PREFIX: Final = b"host-"
"""Of earlier releases, whose intents only the host itself knows: nobody else may touch what lies there."""
_TURNS: Final = 100
_MOST: Final = 8 << 20
"""Bytes of an intent: two paths, or all properties of a node as they were, in hexadecimal."""


@contextmanager
def _staging(space: Space) -> Iterator[int]:
    fd = space.open_internal("staging")
    try:
        yield fd
    finally:
        os.close(fd)


def _listed(fd: int) -> list[bytes]:
    return os.listdir(b"/proc/self/fd/%d" % fd)


@contextmanager
def fenced() -> Iterator[None]:
    """Elsewhere instead of FileNotFoundError, where that only says that this host's place was taken away from it."""
    try:
        yield
    except FileNotFoundError as error:
        raise Elsewhere("Another host works on the space meanwhile; ask again in a moment.") from error


# -- intents as files


def rows(space: Space) -> list[tuple[int, str, dict[str, Any]]]:
    """(number, kind, body) of each intent of this host's. One that can't be read is logged, and stays."""
    found = []
    with _staging(space) as fd:
        for name in sorted(_listed(fd)):
            if name.endswith(SUFFIX):
                row = _row(space, fd, name)
                if row is not None:
                    found.append(row)
    return found


def row(space: Space, number: int) -> tuple[int, str, dict[str, Any]] | None:
    """One of them."""
    with _staging(space) as fd:
        return _row(space, fd, _file(number))


def write(space: Space, intents: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
    """Write or rewrite them, each whole, durably. Elsewhere: another host has taken over meanwhile."""
    with _staging(space) as fd, fenced():
        for number, kind, body in intents:
            name = _file(number)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name + b".new", flags, 0o600, dir_fd=fd), "w", encoding="ascii") as file:
                json.dump({"number": number, "kind": kind, "body": body}, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(name + b".new", name, src_dir_fd=fd, dst_dir_fd=fd)
        os.fsync(fd)


def drop(space: Space, numbers: Sequence[int], *, durably: bool) -> None:
    """Delete intents; those that are not there are fine."""
    if not numbers:
        return
    with _staging(space) as fd:
        for number in numbers:
            try:
                os.unlink(_file(number), dir_fd=fd)
            except FileNotFoundError:
                continue
        if durably:
            os.fsync(fd)


def _file(number: int) -> bytes:
    return b"%016x%b" % (number, SUFFIX)


def _row(space: Space, fd: int, name: bytes) -> tuple[int, str, dict[str, Any]] | None:
    try:
        found = ownfiles.parse(ownfiles.read(fd, name, _MOST))
        number, kind, body = found["number"], found["kind"], found["body"]
        if not isinstance(number, int) or _file(number) != name or not isinstance(body, dict):
            raise ValueError("it is another one's")
        return number, str(kind), body
    except FileNotFoundError:
        return None
    except (ownfiles.Unusable, ValueError, KeyError, TypeError) as error:
        _log.info("space %s: an intent is not usable: %s", space.record.id, error)
        number = int(name[:16], 16) if not set(name[:16]) - set(b"0123456789abcdef") else -1
        return (number, "damaged", {}) if number >= 0 else None


# -- what another host had begun


def take_in(space: Space, ours: str) -> int:
    """Make what other hosts had begun this host's (`ours`: its id); how many entries. By who has just taken the lease,
    before anybody on this host may use it: replay and its sweep see either nothing of it, or all.

    OSError: some of it is where it was. Nothing may be replayed then, as half of it would be taken for the whole.
    """
    with _staging(space) as mine:
        top = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mine)
        try:
            here = PREFIX + ours.encode()
            others = [name for name in _listed(top) if name.startswith(PREFIX) and name != here]
            others.append(OLD_PREFIX + ours.encode())
            count = sum(_move_in(top, name, mine) for name in sorted(others))
        finally:
            os.close(top)
    if count:
        _log.info("space %s: %d entries that another host had staged are taken over", space.record.id, count)
    return count


def _move_in(top: int, name: bytes, mine: int) -> int:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        return 0
    count = 0
    try:
        for _ in range(_TURNS):
            # Intents first: what is staged without one is nobody's, and is swept.
            for entry in sorted(_listed(fd), key=lambda entry: not entry.endswith(SUFFIX)):
                try:
                    os.rename(entry, entry, src_dir_fd=fd, dst_dir_fd=mine)
                    count += 1
                except FileNotFoundError:
                    continue  # the one call that its host was stopped at
            os.fsync(mine)
            try:
                os.rmdir(name, dir_fd=top)
            except FileNotFoundError:
                return count
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                os.fsync(top)
                return count
        raise OSError(errno.EBUSY, "another host goes on staging in its directory", name)
    finally:
        os.close(fd)
