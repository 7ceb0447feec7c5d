"""A mount from its beginning to its end: the daemon's tasks in one trio loop.

One serves requests (pyfuse3), one hears of changes made elsewhere, one settles what was announced when nothing else
happens, one follows the registry (grants, quotas, spaces), one waits for signals, one gives signs of life to a server
that keeps the mount up. If one of them ends, all do.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import trio

from fsd.core import announced
from fsd.core.errors import FsdError
from fsd.mount import loop, mountpoints
from fsd.mount.attributes import Attributes
from fsd.mount.coherence import Coherence
from fsd.mount.files import Files
from fsd.mount.follow import Follower
from fsd.mount.names import Names
from fsd.mount.nodes import Nodes
from fsd.mount.rights import free_way

if TYPE_CHECKING:
    from fsd.core.registry import Registry
    from fsd.mount.shim import Shim

_log = logging.getLogger(__name__)

SETTLE_EVERY = 0.25
"""Seconds. A watcher has usually been quicker, and then little is left to compare."""
SETTLE_FULL = 0.5
"""How full an announcer's log gets before it is begun anew."""
BEAT_EVERY = 1.0
_OWN_DESCRIPTORS = 256
_TURN = 0.0001
"""Seconds that a thread at work (settling) may hold up a request."""
_GARBAGE = 20_000
"""Objects made before cycles among them are looked for: nodes are made by the thousand, and are in none."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Plan:
    """What to mount where. `space` None: all that `user` may see (or everybody, if others are allowed)."""

    mountpoint: str
    space: str | None = None
    user: str | None = None
    read_only: bool = False
    allow_other: bool = False
    shim: Shim | None = None
    ready: Callable[[], object] = lambda: None
    beat: Callable[[], object] | None = None
    """A sign of life, wanted each second."""


class Operations(Names, Files, Attributes, pyfuse3.Operations):
    """All handlers, as pyfuse3 wants them; its own class has the rest (poll), as one that is missing ends the mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, nodes: Nodes, shim: Shim | None, *, acl: bool) -> None:
        super().__init__(nodes)
        self.begun = trio.Event()
        self.enable_acl = acl
        self.shim = shim
        self.handles = {}
        self._listings = {}
        self._late = {}

    def init(self) -> None:
        """The kernel has asked for the first time; this call's end answers it."""
        self.begun.set()

    def stacktrace(self) -> None:
        """Asked for by a magic attribute of pyfuse3, which nobody may set here."""


class Mounted:
    """One mount. `run` returns when it is unmounted, or told to end."""

    def __init__(self, registry: Registry, plan: Plan) -> None:
        self._plan = plan
        self._nodes = Nodes(_descriptors())
        self._operations = Operations(self._nodes, plan.shim, acl=os.geteuid() == 0)
        self._coherence = Coherence(self._nodes)
        self._operations.hear = self._coherence.listen
        self.follower = Follower(registry, plan.space, plan.user, plan.allow_other, plan.read_only)
        self._ended_by = 0

    def run(self) -> int:
        """Mount, serve, unmount. 0 after umount or SIGTERM; OSError if it can't be mounted."""
        try:
            self._prepare()
            os.umask(0)
            # What comes while it is being mounted waits for `_signals`; a second one ends the process.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            loop.install(self._coherence.descriptors, self._plan.shim)
            self._mount()
            try:
                gc.collect()
                gc.freeze()
                gc.set_threshold(_GARBAGE, *gc.get_threshold()[1:])
                trio.run(self._serve)
            finally:
                pyfuse3.close(unmount=True)
        finally:
            self._coherence.close()
            self.follower.close()
        return 0

    def _prepare(self) -> None:
        exports = self.follower.update()
        if self._plan.space is not None:
            export = self.follower.only
            self._nodes.root(export, os.dup(export.space.root_fd()))
        else:
            self._nodes.root(None, -1)
            self._operations.spaces = exports

    def _mount(self) -> None:
        plan = self._plan
        options = {
            "default_permissions",
            f"fsname=fsd:{plan.space or 'all'}".replace(",", "_"),
            "subtype=fsd",
        }
        if plan.allow_other or self._lets_others_in():
            options.add("allow_other")
        if plan.read_only:
            options.add("ro")
        options = {option.encode("ascii", "replace").decode().replace("?", "_") for option in options}
        try:
            pyfuse3.init(cast(Any, self._operations), mountpoints.real(plan.mountpoint), options)
        except RuntimeError as error:
            raise FsdError(f"{plan.mountpoint} could not be mounted: {error}.") from error
        if plan.shim is not None:
            plan.shim.attach()

    def _lets_others_in(self) -> bool:
        """A space that is mounted as it is, by root, is open to whom it is open on disk: the kernel asks the modes and
        ACLs of what is in it, and the way to it has to be free there, too."""
        plan = self._plan
        as_it_is = plan.space is not None and plan.user is None
        return as_it_is and os.geteuid() == 0 and free_way(self.follower.only.space.record.path)

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            for task in (self._coherence.run, self._settle, self._follow, self._signals):
                nursery.start_soon(task)
            nursery.start_soon(self._say_ready)
            if self._plan.beat is not None:
                nursery.start_soon(self._live, self._plan.beat)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    async def _say_ready(self) -> None:
        """Once the kernel's first request is answered; before that the mountpoint hangs. The mount itself is not
        asked: who waits for a mount in its own daemon can't be killed, and keeps it alive if the daemon is."""
        await self._operations.begun.wait()
        shim = self._plan.shim
        direct = shim is not None and shim.settled()
        if shim is not None and shim.answer(self._operations):
            self._coherence.pausing, self._coherence.compiled = shim.listen, shim.compare
        how = "the kernel reads and writes files itself" if direct else "no kernel passthrough"
        _log.info("mounted at %s: %s", self._plan.mountpoint, how)
        self._plan.ready()

    async def _live(self, beat: Callable[[], object]) -> None:
        await self._operations.begun.wait()
        while True:
            beat()
            await trio.sleep(BEAT_EVERY)

    async def _signals(self) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as received:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            async for number in received:
                if number == signal.SIGHUP:
                    self.follower.forget()
                    continue
                self._ended_by = number
                pyfuse3.terminate()
                return

    async def _settle(self) -> None:
        """Compare what was announced when there is a pause; begin full logs anew."""
        before: dict[int, int] = {}
        while True:
            await trio.sleep(SETTLE_EVERY)
            for export in self.follower.all():
                announcer = export.announcer
                export.rest()
                if announcer is None or (not announcer.backlog and announcer.filled < SETTLE_FULL):
                    continue
                quiet = before.get(announcer.slot) == announcer.backlog
                before[announcer.slot] = announcer.backlog
                if quiet or announcer.filled >= SETTLE_FULL:
                    await trio.to_thread.run_sync(announced.settle, export.space)
                if announcer.filled >= SETTLE_FULL and not announcer.backlog:
                    announcer.compact()

    async def _follow(self) -> None:
        async for exports, renewed in self.follower.watch():
            self._operations.spaces = exports if self._plan.space is None else {}
            for export in renewed:
                await self._coherence.renew(export)


def raise_limit() -> int:
    """Raise the limit of descriptors as far as allowed; what it is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(most, 1 << 20) if most != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _descriptors() -> int:
    """How many directories may be kept open."""
    most = raise_limit()
    return max(64, min(most // 3, 50_000) - _OWN_DESCRIPTORS)


def quiet_pyfuse3() -> None:
    """An answer that comes too late for a caller who was interrupted is no error."""
    logging.getLogger("pyfuse3").addFilter(lambda record: "fuse_reply_" not in record.getMessage())
    sys.setswitchinterval(_TURN)
