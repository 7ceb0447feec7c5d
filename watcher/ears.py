"""Which source hears which part of which space, chosen when a space is taken up, and again when its mounts
change.

A part is what lies on one filesystem: the space's root, and each filesystem mounted inside it. For a part the
first of fanotify, inotify and polling that works is taken, or what a setting says; a storage that tells
nothing is polled. Why something better was not taken is kept, for `status`. Spaces on one filesystem share a
source, so that one filesystem's flood or hang is its own.

The thread that hears owns this; others may call `told`.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fsd.core import hosts, positions
from fsd.core.hosts import Mount, within
from fsd.service.shift import Subject
from watcher.sources.base import LogReader, Source, SourceStatus
from watcher.sources.fanotify import FanotifySource
from watcher.sources.inotify import InotifySource
from watcher.sources.poll import STATS, PollSource
from watcher.sources.rctime import RecursiveTimes

if TYPE_CHECKING:
    from fsd.core.space import Space

log = logging.getLogger(__name__)

Kind = Literal["fanotify", "inotify", "poll", "rctime", "gpfs-watchfolder", "gpfs-audit", "cephfs", "journal"]
KINDS: tuple[Kind, ...] = ("fanotify", "inotify", "poll")
ASKING: tuple[Kind, ...] = ("poll", "rctime")
"""They hear nothing and ask: in the background, as a storage may take its time."""
LOGS: tuple[Kind, ...] = ("gpfs-watchfolder", "gpfs-audit", "cephfs")
"""They read what a storage writes about itself."""
READING: tuple[Kind, ...] = (*LOGS, "journal")
"""Those, and what the host that works on a space tells the others: beside whatever hears the storage."""
_LOGS_OF: dict[str, tuple[Kind, ...]] = {"gpfs": ("gpfs-watchfolder", "gpfs-audit"), "ceph": ("cephfs",)}
CEPHFS = frozenset({"ceph", "fuse.ceph", "fuse.ceph-fuse"})
BUSY = 0.5
"""Seconds to wait for a source that is at work."""


MakeLog = Callable[[threading.Event], LogReader]
"""The argument is the bell to be rung when there is something."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the settings say. `source`: auto, or one of KINDS, for all spaces; `polled`: types of filesystems
    that tell nothing; `stats`: calls a second for each polled space; `max_watches` of inotify for each
    filesystem, 0 for no limit of our own."""

    source: str = "auto"
    polled: frozenset[str] = hosts.NETWORK
    stats: int = STATS
    max_watches: int = 0
    logs: Mapping[Kind, MakeLog] = field(default_factory=dict)
    """How to make the sources that are configured and read logs."""


@dataclass(slots=True)
class Held:
    """A source with its subject: one thread at a time calls it."""

    kind: Kind
    source: Source
    subject: Subject


@dataclass(frozen=True, slots=True)
class Part:
    """What of a space one source hears; `why` something better does not."""

    base: bytes
    fstype: str
    kind: Kind
    why: str


@dataclass(slots=True)
class Ear:
    """How a space is heard."""

    parts: list[Part] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)


class Ears:
    """All sources, by kind and filesystem."""

    def __init__(self, choice: Choice, *, own: Callable[[], Collection[int]] = lambda: ()) -> None:
        self.bell = threading.Event()
        """Set when some source has something to collect."""
        self._choice = choice
        self._own = own
        self._sources: dict[tuple[str, str], Held] = {}
        self._ears: dict[str, Ear] = {}
        self._leaving: list[tuple[Held, str]] = []

    def sources(self) -> list[Held]:
        """All sources there are now."""
        return list(self._sources.values())

    def heard(self, key: str) -> Ear | None:
        """How a space is heard; None if it is not."""
        return self._ears.get(key)

    # -- spaces

    def add(self, key: str, space: Space, wanted: str = "auto") -> Ear:
        """Begin to hear a space; each source says GAP when it hears. OSError if not even its root can be
        asked."""
        self.remove(key)
        ear = Ear()
        table = hosts.mounts()
        mounts = parts_of(space.root, table)
        inside = frozenset(point for point, _ in mounts[1:])
        try:
            for point, mount in mounts:
                self._add_part(ear, key, space, point, mount, inside, wanted)
        except BaseException:
            self._drop(key, ear)
            raise
        self._ears[key] = ear
        return ear

    def remove(self, key: str) -> None:
        """Forget a space."""
        ear = self._ears.pop(key, None)
        if ear is not None:
            self._drop(key, ear)

    def _drop(self, key: str, ear: Ear) -> None:
        self._leaving += [(held, key) for held in ear.held]
        self.tidy()

    def tidy(self) -> None:
        """Take leave from sources that were at work when a space was removed; close those without any
        space."""
        leaving, self._leaving = self._leaving, []
        for held, key in leaving:
            with held.subject.held() as mine:
                if mine and not any(each is held for each in self._ears.get(key, Ear()).held):
                    held.source.remove(key)
                elif not mine:
                    self._leaving.append((held, key))
        for name, held in list(self._sources.items()):
            with held.subject.held() as mine:
                if mine and not held.source.spaces():
                    del self._sources[name]
                    held.source.close()

    def _add_part(
        self,
        ear: Ear,
        key: str,
        space: Space,
        point: bytes,
        mount: Mount | None,
        inside: frozenset[bytes],
        wanted: str,
    ) -> None:
        base = point[len(space.root) + 1 :]
        reasons = []
        for kind in self._order(mount, wanted):
            try:
                held = self._source(kind, space, mount)
                with held.subject.held(BUSY) as mine:
                    if not mine:
                        raise OSError(errno.EBUSY, "another thread is at work on it")
                    if isinstance(held.source, LogReader):
                        held.source.resume(key, positions.reached(space))
                    without = frozenset(other for other in inside if within(other, point) and other != point)
                    held.source.add(key, point, space.fsd_ident, base=base, without=without)
            except FileExistsError:
                return  # it is heard already: the same directory shows twice in this space
            except OSError as error:
                reasons.append(f"{kind}: {explain(kind, error)}")
                continue
            fstype = mount.fstype if mount is not None else ""
            ear.parts.append(Part(base, fstype, kind, "; ".join(reasons)))
            if not any(each is held for each in ear.held):
                ear.held.append(held)
            if mount is not None and mount.fstype in CEPHFS and kind in ("poll", "cephfs"):
                self._add_sums(ear, key, space, point, mount, inside)
            if "journal" in self._choice.logs and not base:
                self._add_journal(ear, key, space, fstype)
            return
        raise OSError(errno.EIO, "; ".join(reasons), point)

    def _add_sums(
        self, ear: Ear, key: str, space: Space, point: bytes, mount: Mount, inside: frozenset[bytes]
    ) -> None:
        """Beside what hears or polls a CephFS: what its directories sum up finds what that one missed."""
        held = self._source("rctime", space, mount)
        base = point[len(space.root) + 1 :]
        without = frozenset(other for other in inside if within(other, point) and other != point)
        with held.subject.held(BUSY) as mine:
            try:
                if not mine:
                    raise OSError(errno.EBUSY, "another thread is at work on it")
                held.source.add(key, point, space.fsd_ident, base=base, without=without)
            except OSError as error:
                log.info("space %s: its CephFS sums up nothing for us: %s", space.record.id, error)
                return
        ear.parts.append(Part(base, mount.fstype, "rctime", ""))
        if not any(each is held for each in ear.held):
            ear.held.append(held)

    def _add_journal(self, ear: Ear, key: str, space: Space, fstype: str) -> None:
        """What another host says that works on the space."""
        held = self._source("journal", space, None)
        with held.subject.held(BUSY) as mine:
            if not mine or not isinstance(held.source, LogReader):
                return  # it is only quicker
            held.source.resume(key, positions.reached(space))
            held.source.add(key, space.root, space.fsd_ident)
        ear.parts.append(Part(b"", fstype, "journal", ""))
        ear.held.append(held)

    def _order(self, mount: Mount | None, wanted: str) -> Sequence[Kind]:
        """The kinds to try, best first."""
        wish = wanted if wanted != "auto" else self._choice.source
        for kind in LOGS:
            if wish == kind:
                return (kind, "poll")
        if wish == "auto" and mount is not None:
            for kind in log_kinds(mount.fstype):
                if kind in self._choice.logs:
                    return (kind, "poll")
        if wish == "auto" and mount is not None and is_polled(mount.fstype, self._choice.polled):
            return ("poll",)
        if wish == "fanotify" or wish == "auto":
            return KINDS
        return ("poll",) if wish == "poll" else ("inotify", "poll")

    def _source(self, kind: Kind, space: Space, mount: Mount | None) -> Held:
        storage = mount.dev if mount is not None else ""
        if kind in READING:
            storage = ""  # the log is its own: no storage keeps it from being read
        name = (kind, space.record.hex if kind in ASKING else storage)
        held = self._sources.get(name)
        if held is None:
            held = self._sources[name] = Held(kind, self._make(kind, space), Subject(storage))
        return held

    def _make(self, kind: Kind, space: Space) -> Source:
        match kind:
            case "fanotify":
                return FanotifySource(own=self._own, bell=self.bell)
            case "inotify":
                return InotifySource(max_watches=self._choice.max_watches, bell=self.bell)
            case "poll":
                return PollSource(space, stats=self._choice.stats, bell=self.bell)
            case "rctime":
                return RecursiveTimes(space, bell=self.bell)
            case "gpfs-watchfolder" | "gpfs-audit" | "cephfs" | "journal":
                if kind not in self._choice.logs:
                    raise OSError(errno.ENOENT, "no topic or log is configured for it")
                return self._choice.logs[kind](self.bell)

    # -- asking

    def lost(self, key: str) -> bool:
        """Whether some source does not hear a root of this space any more. Only for whoever may call the
        sources."""
        ear = self._ears.get(key)
        if ear is None:
            return False
        for held in ear.held:
            with held.subject.held() as mine:
                if mine and held.source.lost(key):
                    return True
        return False

    def told(self, key: str) -> list[SourceStatus]:
        """What the sources of a space say of it."""
        ear = self._ears.get(key)
        found = [held.source.status(key) for held in ear.held] if ear is not None else []
        return [status for status in found if status is not None]

    def close(self) -> None:
        """Give everything back; what hangs is left to the end of the process."""
        for held in self._sources.values():
            with held.subject.held(BUSY) as mine:
                if mine:
                    held.source.close()


def parts_of(root: bytes, table: Sequence[Mount]) -> list[tuple[bytes, Mount | None]]:
    """The root of a space and the mount points below it, each with what is mounted there; from the table
    alone.

    What is covered by another mount, and what holds no files (proc and the like), is left out.
    """
    points = {mount.point for mount in table if within(mount.point, root) and mount.point != root}
    found: list[tuple[bytes, Mount | None]] = [(root, hosts.mount_of(root, table))]
    for point in sorted(points):
        mount = hosts.mount_of(point, table)
        above = hosts.mount_of(os.path.dirname(point), table)
        covered = mount is not None and above is not None and table.index(above) > table.index(mount)
        if mount is not None and mount.point == point and not covered and mount.fstype not in hosts.PSEUDO:
            found.append((point, mount))
    return found


def log_kinds(fstype: str) -> tuple[Kind, ...]:
    """The logs that storages of a type may write, best first; of "" all."""
    return _LOGS_OF.get(fstype.removeprefix("fuse.").partition("-")[0], ()) if fstype else LOGS


def is_polled(fstype: str, polled: Collection[str]) -> bool:
    """Whether a type of filesystem is in the list, or is one of the family `fuse`, if that is."""
    return fstype in polled or fstype.partition(".")[0] in polled


def explain(kind: str, error: OSError) -> str:
    """Why a source cannot be used, for people."""
    number = error.errno or 0
    if kind == "fanotify":
        text = {
            errno.EPERM: "needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH",
            errno.EINVAL: "needs Linux 5.17",
            errno.ENOSYS: "the kernel has none",
            errno.ENODEV: "the filesystem has no id",
            errno.EOPNOTSUPP: "the filesystem has no handles",
            errno.EXDEV: "the filesystem cannot be heard through this mount",
            errno.EMFILE: "fs.fanotify.max_user_groups is reached",
        }.get(number)
    else:
        text = {
            errno.EMFILE: "fs.inotify.max_user_instances is reached",
            errno.ENOSPC: "fs.inotify.max_user_watches is reached",
        }.get(number)
    return text or str(error.strerror or error)
