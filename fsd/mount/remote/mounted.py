"""A remote mount from its beginning to its end: the daemon's tasks in one trio loop.

One serves requests (pyfuse3), one sends changes, one hears of the server's, one looks at folders that may differ, one
has the kernel forget, one writes down what is known and how it goes. If one of them ends, all do.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pyfuse3
import trio

from fsd.core.errors import BUSY, FsdError, UserError
from fsd.mount import loop, mountpoints
from fsd.mount.mounted import raise_limit
from fsd.mount.remote.client import Client
from fsd.mount.remote.contents import Contents
from fsd.mount.remote.dav import Dav
from fsd.mount.remote.errors import Offline, Refused
from fsd.mount.remote.fetching import Fetcher
from fsd.mount.remote.files import Files
from fsd.mount.remote.ledger import Ledger
from fsd.mount.remote.listening import Listener
from fsd.mount.remote.names import Names
from fsd.mount.remote.nodes import Tree
from fsd.mount.remote.progress import Progress
from fsd.mount.remote.status import Status
from fsd.mount.remote.sync import Sync
from fsd.mount.remote.uploads import Uploader

_log = logging.getLogger(__name__)

SAVE_EVERY = 5.0
ROOM_EVERY = 30.0
DRAIN_SECONDS = 10.0
"""How long the end of a mount waits for what is on its way; the rest is sent by the next one."""


@dataclass(frozen=True)
class Plan:
    """What to mount where. `cache`: a directory of this mount's own; `delay`: seconds between close and upload."""

    url: str
    mountpoint: str
    cache: Path
    cache_size: int
    authorization: str
    user: str = ""
    ca_file: str | None = None
    seconds: float = 30.0
    delay: float = 1.0
    read_only: bool = False
    ready: Callable[[], object] = lambda: None


class Operations(Names, Files, pyfuse3.Operations):
    """All handlers, as pyfuse3 wants them; its own class has the rest (poll), as one that is missing ends the mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False
    begun: trio.Event

    def init(self) -> None:
        """The kernel has asked for the first time; this call's end answers it."""
        self.begun.set()

    def stacktrace(self) -> None:
        """Asked for by a magic attribute of pyfuse3, which nobody may set here."""


class Mounted:
    """One mount. `run` returns when it is unmounted, or told to end."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        plan.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(plan.cache)
        raise_limit()
        self._ledger = Ledger(plan.cache)
        self._contents = Contents(plan.cache, self._ledger, plan.cache_size)
        self._client = Client(plan.url, plan.authorization, seconds=plan.seconds, ca_file=plan.ca_file)
        dav = Dav(self._client)
        self._progress = Progress()
        self._sync = Sync(Tree(), dav, self._ledger)
        self._fetcher = Fetcher(dav, self._contents, self._progress)
        self._uploader = Uploader(
            self._sync, dav, self._contents, self._ledger, self._progress, delay=plan.delay, user=plan.user
        )
        self._sync.uploader = self._uploader
        self._operations = Operations(
            self._sync, dav, self._contents, self._fetcher, self._uploader, read_only=plan.read_only
        )
        self._operations.handles, self._operations._listings = {}, {}
        self._operations.begun = trio.Event()
        self._status = Status(plan, self._client, self._sync, self._uploader, self._contents, self._progress)
        self._dav = dav

    def run(self) -> int:
        """Mount, serve, unmount. 0 after umount or SIGTERM; UserError if it can't be mounted."""
        try:
            trio.run(self._run)
        finally:
            self._ledger.close()
            os.close(self._lock)
        return 0

    async def _run(self) -> None:
        left = self._uploader.restore()
        if left:
            _log.info("%d changes of an earlier mount are still to be uploaded", left)
        try:
            await self._connect()
            loop.install()
            self._mount()
        except BaseException:
            await self._client.close()
            raise
        gc.collect()
        gc.freeze()
        unmounted = False
        try:
            async with trio.open_nursery() as nursery:
                self._fetcher.nursery = nursery
                for task in self._tasks():
                    nursery.start_soon(task)
                await pyfuse3.main()
                unmounted = True
                await trio.to_thread.run_sync(self._unmount)
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            if not unmounted:
                pyfuse3.close(unmount=True)
            with trio.CancelScope(shield=True):
                await self._client.close()
            self._save()
            self._status.write(ended=True)

    def _tasks(self) -> tuple[Callable[[], Any], ...]:
        listener = Listener(self._client, self._sync, self._back)
        return (
            self._uploader.run, listener.run, listener.probe, listener.spaces, self._sync.look,
            self._sync.forget, self._signals, self._say_ready, self._keep_saving, self._ask_room, self._status.run,
        )  # fmt: skip

    async def _connect(self) -> None:
        """The user's spaces; without the server those that an earlier mount saw."""
        root = self._sync.tree.root
        try:
            await self._sync.load(root)
        except Refused as error:
            if error.status == 401:
                raise UserError(f"{self._plan.url} does not accept these credentials.") from None
            raise UserError(f"{self._plan.url} can't be mounted: {error.strerror}.") from None
        except Offline as error:
            raise UserError(f"{self._plan.url} can't be mounted: {error.strerror}.") from None
        if self._client.away is not None:
            _log.warning("mounted from the cache: the server can't be reached (%s)", self._client.away)

    def _mount(self) -> None:
        host = urlsplit(self._plan.url).netloc.replace(",", "_")
        options = {"default_permissions", f"fsname=fsd:{host}", "subtype=fsd"}
        if self._plan.read_only:
            options.add("ro")
        try:
            pyfuse3.init(cast(Any, self._operations), mountpoints.real(self._plan.mountpoint), options)
        except RuntimeError as error:
            raise FsdError(f"{self._plan.mountpoint} could not be mounted: {error}.") from error

    def _unmount(self) -> None:
        pyfuse3.close(unmount=True)

    def _back(self) -> None:
        """The server can be reached (again)."""
        self._sync.suspect()
        self._uploader.retry_all()

    async def _say_ready(self) -> None:
        """Once the kernel's first request is answered; before that the mountpoint hangs. The mount itself is not
        asked: who waits for a mount in its own daemon can't be killed, and keeps it alive if the daemon is."""
        await self._operations.begun.wait()
        self._status.write()
        _log.info("%s is mounted at %s", self._plan.url, self._plan.mountpoint)
        self._plan.ready()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                pyfuse3.terminate()
                return

    async def _drain(self) -> None:
        """Send what is waiting, for a moment."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline and self._client.away is None:
            left = [change for change in self._uploader.waiting.values() if change.error is None]
            if not left:
                break
            for change in left:
                change.node.writers = 0
            self._uploader.retry_now()
            await trio.sleep(0.05)
        if self._uploader.waiting:
            _log.warning(
                "%d changes are not uploaded; the next mount will do it", len(self._uploader.waiting)
            )

    async def _keep_saving(self) -> None:
        while True:
            await trio.sleep(SAVE_EVERY)
            self._save()

    def _save(self) -> None:
        try:
            self._contents.save()
            self._sync.save()
        except OSError as error:
            _log.info("what is cached is not written down: %s", error)

    async def _ask_room(self) -> None:
        while True:
            for node in list((self._sync.tree.root.children or {}).values()):
                try:
                    found = await self._dav.room(node.space)
                except OSError as error:
                    _log.debug("the room in %r is not known: %s", node.name, error)
                    continue
                if found is not None:
                    self._operations.rooms[node.space] = found
            await trio.sleep(ROOM_EVERY)


def _locked(place: Path) -> int:
    """The cache directory's lock, for one mount at a time."""
    fd = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UserError(
            f"{place} is in use by another mount of the same server; give --cache DIR.", BUSY
        ) from None
    return fd
