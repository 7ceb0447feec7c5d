"""The jobs process: the operations address, and work by the clock: trash retention, expired locks, abandoned intents.

Each job does little at a time and may be killed at any point: what it did is done, the rest comes the next time.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

from fsd.core import (
    journal,
    lease,
    partials,
    replay,
    restoring,
    returning,
    shadows,
    spare,
    trash,
    versions,
    writers,
)
from fsd.core.errors import FsdError, StorageUnavailable
from fsd.core.hashing import forget_gone
from fsd.core.limbo import TOMBSTONE_S
from fsd.core.locks import LockTable
from fsd.core.registry import Registry
from fsd.core.sweep import Sweep
from fsd.service import alarms, checkpoints, health
from fsd.service.checkpoints import Checkpoints
from fsd.service.hasher import Hasher
from fsd.service.shift import Shift, Subject
from fsd.service.status import replace_json

if TYPE_CHECKING:
    from fsd.core.space import Space, SpaceRecord
    from fsd.service.config import Settings

log = logging.getLogger(__name__)

TAKEN_EVERY = 1.0
REPLAY_EVERY = 20.0
"""A worker that was killed leaves its change to be finished or undone: after so many seconds at most."""
LOCKS_EVERY = 60.0
SPARE_EVERY = 60.0
TRASH_EVERY = 600.0
GRANTS_EVERY = 60.0
EPOCH_EVERY = 60.0
VERSIONS_EVERY = 3600.0
UPLOADS_EVERY = 600.0
OLD_EVERY = 3600.0
ROOT_EVERY = 2.0
SUMS_EVERY = 60.0
SHADOWS_EVERY = 2.0
SHADOWS_FOR = 0.5
ALARMS_EVERY = 5.0
OPS_RETRY = 10.0
_STOP_S = 20.0
"""How long the end waits for the job under way. Seconds."""


@dataclass(slots=True)
class Job:
    """Something that is done for each space every so many seconds."""

    name: str
    every: float
    work: Callable[[Space], object]
    first: float = 0.0
    due: dict[str, float] = field(default_factory=dict)
    """By space, from its second turn on."""
    everywhere: bool = False
    """It changes what this host alone has: also for spaces that another host works on."""


def over_limit(items: list[trash.TrashItem], limit: int) -> list[trash.TrashItem]:
    """What has to go, oldest first, so that the rest is at most `limit` bytes."""
    total = sum(item.size for item in items)
    going = []
    for item in sorted(items, key=lambda each: each.deleted):
        if total <= limit:
            break
        going.append(item)
        total -= item.size
    return going


def forget_old(space: Space) -> None:
    """What is kept for a while and no longer: the journal's tail, tombstones, notes on files that were being read."""
    journal.trim(space)
    with space.state.read() as db:
        (oldest,) = db.execute("SELECT min(at) FROM tombstone").fetchone()
    if oldest is not None and oldest < time.time() - TOMBSTONE_S:
        space.state.exhume([], time.time() - TOMBSTONE_S)
    writers.forget_older(space, time.time() - writers.KEEP_S)


class Jobs:
    """All jobs of one data root."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.state)
        versions.use(settings.state, float(settings.versions_keep))
        self._ops: ThreadingHTTPServer | None = None
        self._ops_due = self._alarms_due = 0.0
        self._jobs = [
            Job("replay", REPLAY_EVERY, self._replay),
            Job("taken over", TAKEN_EVERY, self._end_what_others_began),
            Job("locks", LOCKS_EVERY, lambda space: LockTable(space).expire()),
            Job("grants", GRANTS_EVERY, self._grants, everywhere=True),
            Job("epoch", EPOCH_EVERY, self._epoch),
            Job("root", ROOT_EVERY, self._root),
            Job("spare room", SPARE_EVERY, spare.keep),
            Job("trash", TRASH_EVERY, self._trash, first=time.monotonic() + 30.0),
            Job("versions", VERSIONS_EVERY, self._versions, first=time.monotonic() + 90.0),
            Job("uploads", UPLOADS_EVERY, partials.expire, first=time.monotonic() + 45.0),
            Job("index log", checkpoints.EVERY, Checkpoints().step, everywhere=True),
            Job("direct versions", SHADOWS_EVERY, self._shadows),
            Job("old shadows", OLD_EVERY, self._sweep_shadows, first=time.monotonic() + 150.0),
            Job("old checksums", SUMS_EVERY, self._forget_sums, first=time.monotonic() + 120.0),
            Job("old rows", OLD_EVERY, forget_old, first=time.monotonic() + 60.0, everywhere=True),
        ]
        self._verify = Job("verify", 0.0, self._verify_restored)
        self._restored: dict[str, Space] = {}
        self._alarms: dict[str, dict[str, str]] = {}
        self._stop = threading.Event()
        self._shift = Shift("jobs", self._round, self._stop)
        self._subjects: dict[str, Subject] = {}
        self._at_work: dict[str, tuple[str, str, float]] = {}
        """(job, space, since) by space, for whoever asks whether its storage hangs."""
        self._sums_swept: dict[str, bytes] = {}
        self._tokens: dict[str, int] = {}
        """Of the leases under which each space was replayed last."""
        self._said: set[tuple[str, str, str]] = set()
        self._guard = threading.Lock()

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop. What a storage holds up is not waited for."""
        told = threading.Thread(target=self._tell, args=(stop,), name="status", daemon=True)
        told.start()
        if self._settings.checksums_rate:
            hasher = Hasher(self._registry, self._settings.checksums_rate)
            threading.Thread(target=hasher.run, args=(stop,), name="hashing", daemon=True).start()
        self._stop = stop
        self._shift = Shift("jobs", self._round, stop)
        self._shift.start()
        try:
            while not stop.is_set():
                self._serve_operations()
                self._shift.relieve(time.monotonic())
                stop.wait(0.25)
        finally:
            told.join(2.0)
            self._shift.join(2.0 if self._shift.strained() else _STOP_S)
            if self._ops is not None:
                self._ops.shutdown()
                self._ops.server_close()

    def _round(self) -> float:
        self.turn(time.monotonic(), self._stop)
        self._look_for_alarms(time.monotonic(), self._stop)
        return 1.0

    def turn(self, now: float, stop: threading.Event) -> None:
        """Do what is due, one space after the other; what another thread keeps from its turn stays due."""
        records = [each for each in self._registry.spaces() if each.state == "active" and not each.read_only]
        for job in self._jobs:
            for record in records:
                if stop.is_set():
                    return
                if now >= job.due.get(record.id, job.first):
                    self._alone(record, partial(self._do, job, record, now))
        for space in list(self._restored.values()):
            self._alone(space.record, partial(self._do, self._verify, space.record, now))
        known = {record.id for record in records}
        for job in self._jobs:
            job.due = {space_id: due for space_id, due in job.due.items() if space_id in known}

    def _alone(self, record: SpaceRecord, work: Callable[[], object]) -> None:
        self._shift.do(self._subjects.setdefault(record.id, Subject(record.id)), work)

    def _look_for_alarms(self, now: float, stop: threading.Event) -> None:
        if now < self._alarms_due:
            return
        self._alarms_due = now + ALARMS_EVERY
        records = [record for record in self._registry.spaces() if record.state == "active"]
        for record in records:
            if stop.is_set():
                return
            self._alone(record, partial(self._look_at, record))
        known = {record.hex for record in records}
        self._alarms = {key: found for key, found in self._alarms.items() if key in known}

    def _look_at(self, record: SpaceRecord) -> None:
        with self._seen("alarms", record):
            try:
                self._alarms = {**self._alarms, record.hex: alarms.of(self._registry, record)}
            except OSError as error:
                log.info("space %s: its alarms could not be looked for: %s", record.id, error)

    @contextmanager
    def _seen(self, job: str, record: SpaceRecord) -> Iterator[None]:
        self._at_work[record.id] = (job, record.name, time.time())
        try:
            yield
        finally:
            self._at_work.pop(record.id, None)

    def _tell(self, stop: threading.Event) -> None:
        """Once a second, whatever the jobs are doing: storage that hangs must be seen."""
        while True:
            over = stop.wait(1.0)
            told = {
                "pid": os.getpid(), "running": not over, "written": time.time(),
                "alarms": self._alarms,
                "at_work": min(list(self._at_work.values()), key=lambda each: each[2], default=None),
            }  # fmt: skip
            replace_json(self._settings.state / "run" / "jobs.json", told)
            if over:
                return

    def _do(self, job: Job, record: SpaceRecord, now: float) -> None:
        """One space's failure keeps no other from its turn, and is said once until it changes."""
        job.due[record.id] = now + job.every
        said = (job.name, record.id, "")
        with self._seen(job.name, record):
            try:
                space = self._registry.open(record.id)
            except OSError as error:
                log.info("space %s is skipped: %s", record.id, error)
                return
            if not (job.everywhere or lease.may_write(space)):
                return
            try:
                job.work(space)
            except StorageUnavailable:
                return
            except Exception as error:
                said = (job.name, record.id, f"{type(error).__name__}: {error}")
                if said not in self._said:
                    known = isinstance(error, OSError)
                    log.error("job %s of space %s failed: %s", *said, exc_info=None if known else error)
        with self._guard:
            others = {each for each in self._said if each[:2] != said[:2]}
            self._said = others | ({said} if said[2] else set())

    def _replay(self, space: Space) -> None:
        def peer(space_id: str) -> Space | None:
            try:
                return self._registry.open(space_id)
            except OSError:
                return None

        replay.replay(space, peer)

    def _end_what_others_began(self, space: Space) -> None:
        """At once: what another host was moving when it was killed is to be seen nowhere till then."""
        token = lease.token(space)
        if token != self._tokens.get(space.record.id, 0):
            self._replay(space)
            self._tokens[space.record.id] = token

    def _grants(self, space: Space) -> None:
        """acl.json in the tree against what is in force: a difference is an alarm, said once."""
        alarm = self._registry.grants.verify(space)
        if alarm is not None:
            raise FsdError(alarm)

    def _epoch(self, space: Space) -> None:
        """A tree or a state that went back in time is noticed within a minute, also while it is served."""
        if restoring.check_epoch(space, self._registry.installation):
            self._restored[space.record.id] = space
        else:
            restoring.raise_epoch(space, self._registry.installation)
            returning.note_filesystem(space, self._registry.installation)

    def _root(self, space: Space) -> None:
        """A root that is another directory now may be an earlier state of the space, put in its place."""
        try:
            space.root_fd()
        except StorageUnavailable:
            if returning.accept(space.record, self._registry.installation):
                restored = self._registry.open(space.record.id)
                self._restored[restored.record.id] = restored

    def _verify_restored(self, space: Space) -> None:
        if Sweep(space).step(0.5).finished:
            self._restored.pop(space.record.id, None)

    def _trash(self, space: Space) -> None:
        trash.purge(space, float(self._settings.trash_keep))
        if self._settings.trash_limit is not None:
            for item in over_limit(trash.items(space), self._settings.trash_limit):
                try:
                    trash.remove(space, item.key)
                except FileNotFoundError:
                    continue

    def _versions(self, space: Space) -> None:
        versions.thin(space, float(self._settings.versions_keep), self._settings.versions_limit)

    def _shadows(self, space: Space) -> None:
        if self._registry.installation.setting(shadows.setting(space.record.id)) != "on":
            return
        deadline = time.monotonic() + SHADOWS_FOR
        while shadows.step(space) and time.monotonic() < deadline:
            pass

    def _sweep_shadows(self, space: Space) -> None:
        wanted = self._registry.installation.setting(shadows.setting(space.record.id))
        if wanted is not None:
            shadows.sweep(space, wanted=wanted == "on", kept={item.node_id for item in trash.items(space)})

    def _forget_sums(self, space: Space) -> None:
        trashed = {item.node_id for item in trash.items(space)}

        def kept(node_id: str) -> bool:
            return node_id in trashed or versions.any_of(space, node_id)

        self._sums_swept[space.record.id] = forget_gone(
            space, self._sums_swept.get(space.record.id, b""), kept
        )

    def _serve_operations(self) -> None:
        """Open the operations address; another server on this machine may have the default one."""
        address = self._settings.ops_listen
        if address is None or self._ops is not None or time.monotonic() < self._ops_due:
            return
        first = self._ops_due == 0.0
        self._ops_due = time.monotonic() + OPS_RETRY
        run_dir = self._settings.state / "run"
        try:
            self._ops = health.start(address, run_dir, health.render_metrics(run_dir))
        except OSError as error:
            if first:
                log.warning("no health and metrics at %s: %s", address, error.strerror or error)


def run(settings: Settings) -> None:
    """Do the jobs until SIGTERM; the caller forked and set logging up."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Jobs(settings).run(stop)
