"""The supervisor: starts the processes of one data root, restarts what dies, stops everything.

It is single-threaded and takes signals synchronously (signalfd(2)), so nothing runs in a handler and forking is
safe at any time. Children die with it (PR_SET_PDEATHSIG). One supervisor per state directory: a flock(2) on
`run/supervisor.lock`, which the kernel releases whatever happens. `run/supervisor.json` tells who runs.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsd.core.errors import BUSY, UserError
from fsd.service.process import MANAGED, Child, monotonic
from fsd.service.pulse import Listened
from fsd.service.signals import Awaited
from fsd.service.status import replace_json

log = logging.getLogger(__name__)

PULSE = 1.0
"""Longest pause of the loop, seconds: restarts, watchdog."""
STARTING = 0.02
"""Pause while it is not ready yet."""
READY_WITHIN = 20.0
_LONG_PAUSE = 0.5
"""Seconds that connections may wait for a worker that died; for longer, the others get them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `children` makes the processes for the settings as they are now (called again on SIGHUP)."""

    run_dir: Path
    children: Callable[[], Mapping[str, Callable[[], None]]]
    drain_seconds: float = 30.0
    lasting: Callable[[str], bool] = lambda name: False
    """Whether a process of that name is the same after a reload: it goes on, and is sent SIGHUP itself."""
    reload: Callable[[], None] | None = None
    """Read the settings again; an exception leaves the old ones in force."""
    ready: Callable[[], None] | None = None
    """Called once, when requests are answered."""
    notify: Callable[[str], object] = field(default=lambda state: None)
    """sd_notify(3)."""
    listened: Mapping[str, Listened] = field(default_factory=dict)
    """Children that give signs of life, by name: one that stops doing so is killed, and started again."""
    watchdog: float | None = None
    """Seconds within which the service manager wants to hear from us."""


def lock(run_dir: Path) -> int:
    """Become the only supervisor of this state directory; the descriptor holds the lock.

    UserError (exit code 4) if another one runs.
    """
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = run_dir / "supervisor.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        who = f" (process {owner})" if owner.isdigit() else ""
        raise UserError(f"A server already runs on this data{who}; nothing was started.", BUSY) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def lock_data(data: Path) -> int | None:
    """Become the only server of this data root, also among those with another state directory; the descriptor holds
    the lock, None where there is none to be had (no such directory yet, a filesystem without locks).

    UserError (exit code 4) if another one runs.
    """
    try:
        fd = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        text = f"A server with another state directory already runs on {data}; nothing was started."
        raise UserError(text, BUSY) from None
    except OSError as error:
        os.close(fd)
        log.info("%s can't be locked against a second server: %s", data, error)
        return None
    return fd


def reserve(host: str, port: int) -> socket.socket:
    """Make sure that nobody has the address, and keep it: a bound socket that never listens.

    Port 0 takes a free one. The workers bind beside it with SO_REUSEPORT and get all connections. UserError in one
    sentence if the address is taken or not ours.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            # Without SO_REUSEPORT this fails while anybody is bound there; SO_REUSEADDR forgives TIME_WAIT only.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            address = probe.getsockname()
        kept = socket.socket(family, kind, proto)
        # Also here: connections of an earlier server that are in TIME_WAIT don't forbid a restart.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot listen on {host}:{port}: {reason}.") from None
    return kept


def slots(reserved: socket.socket, count: int) -> dict[str, socket.socket]:
    """One bound socket for each web worker, by its name; the worker listens on it (SO_REUSEPORT spreads connections).

    The supervisor keeps them all open: what waits in the queue of a worker that dies or is replaced is served by its
    successor, so a reload loses no connection.
    """
    made = {}
    for index in range(count):
        each = socket.socket(reserved.family, socket.SOCK_STREAM, reserved.proto)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        each.bind(reserved.getsockname())
        made[f"web-{index}"] = each
    return made


def _deafen(listening: socket.socket) -> None:
    """End listening but stay bound: connections go to the others meanwhile, and who listens again hears again."""
    with suppress(OSError):
        listening.shutdown(socket.SHUT_RDWR)


def _accepts(address: tuple[Any, ...], family: int) -> bool:
    host = address[0]
    if host == "0.0.0.0":
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, *address[1:])) == 0


class Supervisor:
    """One run. `run` returns the exit code; it may be called once."""

    def __init__(
        self,
        plan: Plan,
        held: Sequence[int] = (),
        sockets: Sequence[socket.socket] = (),
        slots: Mapping[str, socket.socket] | None = None,
    ) -> None:
        """`held`: the lock; `sockets`: the reserved addresses, on which the web workers are to listen; `slots`: the
        socket of each worker, by its name. A child keeps its own slot only; the caller closes all of them after `run`.
        """
        self._plan = plan
        self._sockets = list(sockets)
        self._slots = dict(slots or {})
        self._close = [*held, *(each.fileno() for each in sockets)]
        self._children: dict[str, Child] = {}
        self._stopping_since: float | None = None
        self._ready = False
        self._began = monotonic()
        self._pulsed = self._listened = 0.0

    def run(self) -> int:
        """Start everything, keep it running, and return when all of it has ended."""
        signals = Awaited(MANAGED)
        self._close.append(signals.fileno())
        self._adopt(self._plan.children())
        # What is loaded by now is shared by all children; a collection there must not touch it page by page.
        gc.collect()
        gc.freeze()
        try:
            while self._step(signals):
                pass
        finally:
            for child in self._children.values():
                child.tell(signal.SIGKILL)
            signals.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, MANAGED)
        self._write({})
        return 0

    def _adopt(self, mains: Mapping[str, Callable[[], None]]) -> None:
        """Make the set of children what it should be; new ones start in the next step."""
        for name, main in mains.items():
            if name in self._children:
                self._children[name].main = main
            else:
                others = [each.fileno() for slot, each in self._slots.items() if slot != name]
                self._children[name] = Child(name, main, [*self._close, *others])
        for name in self._children.keys() - mains.keys():
            self._children[name].wanted = False
            self._children[name].tell(signal.SIGTERM)
            if name in self._slots:
                _deafen(self._slots[name])

    def _step(self, signals: Awaited) -> bool:
        """One turn: start, check, wait for a signal. False when it is over."""
        now = monotonic()
        if self._stopping_since is None:
            started = [child for child in self._children.values() if self._due(child, now)]
            for child in started:
                if listened := self._plan.listened.get(child.name):
                    listened.begin(now)
                child.start(now)
            self._listen(now)
            if started:
                self._write(self._children)
            self._check_ready(now)
        elif not self._left():
            return False
        elif now - self._stopping_since > self._plan.drain_seconds:
            log.warning("not everything ended within %.0f s: killing it", self._plan.drain_seconds)
            self._kill()
        self._pulse(now)
        got = signals.wait(self._pause(now))
        if got is not None:
            self._signal(got)
        self._reap()
        return True

    def _listen(self, now: float) -> None:
        """End what does not die by itself and lives no more."""
        if now - self._listened < PULSE:
            return
        self._listened = now
        for name, listened in self._plan.listened.items():
            child = self._children.get(name)
            if child is not None and child.pid and listened.silent(now, child.pid):
                log.error("%s has given no sign of life for %.0f s: killing it", name, listened.patience)
                listened.begin(now)
                os.kill(child.pid, signal.SIGKILL)

    @staticmethod
    def _due(child: Child, now: float) -> bool:
        # A replaced web worker serves on beside its successor; of the others only one may run at a time.
        alone = not child.retired or child.name.startswith("web")
        return child.wanted and child.pid == 0 and now >= child.start_at and alone

    def _left(self) -> bool:
        return any(child.pid or child.retired for child in self._children.values())

    def _pause(self, now: float) -> float:
        pause = PULSE if self._ready or self._stopping_since is not None else STARTING
        if self._stopping_since is None:
            waiting = [
                each for each in self._children.values() if each.wanted and not (each.pid or each.retired)
            ]
            starts = [each.start_at - now for each in waiting]
            pause = min([pause, *starts])
        return max(pause, 0.0)

    def _pulse(self, now: float) -> None:
        every = self._plan.watchdog
        if every is not None and now - self._pulsed >= every / 3:
            self._pulsed = now
            self._plan.notify("WATCHDOG=1")

    def _check_ready(self, now: float) -> None:
        if self._ready:
            return
        listening = all(_accepts(each.getsockname(), each.family) for each in self._sockets)
        if not listening and now - self._began < READY_WITHIN:
            return
        self._ready = True
        if not listening:
            log.error("the web workers did not begin to listen within %.0f s", READY_WITHIN)
        self._write(self._children)
        self._plan.notify("READY=1")
        if self._plan.ready is not None:
            self._plan.ready()

    # -- signals

    def _signal(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT | signal.SIGQUIT:
                self._stop(number)
            case signal.SIGHUP:
                self._reload()
            case _:
                pass  # SIGCHLD: reaped below; SIGUSR1 is for the children

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping_since is not None:
            if number == signal.SIGINT and monotonic() - self._stopping_since < 0.5:
                return  # one ctrl-C can arrive twice: from the terminal and from a wrapper
            log.warning("told to stop twice: killing what has not ended")
            self._kill()
            return
        log.info("stopping (%s)", number.name)
        self._plan.notify("STOPPING=1")
        self._stopping_since = monotonic()
        for each in self._slots.values():
            _deafen(each)
        for child in self._children.values():
            child.wanted = False
            child.tell(signal.SIGTERM)

    def _kill(self) -> None:
        for child in self._children.values():
            child.tell(signal.SIGKILL)

    def _reload(self) -> None:
        """SIGHUP: new settings, then each child is replaced; a web worker's successor starts before it ends."""
        if self._stopping_since is not None:
            return
        self._plan.notify(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1_000_000)}")
        try:
            if self._plan.reload is not None:
                self._plan.reload()
        except Exception as error:
            log.error("the settings were not reloaded: %s", error)
        else:
            self._replace()
        self._plan.notify("READY=1")

    def _replace(self) -> None:
        log.info("reloading")
        self._adopt(self._plan.children())
        now = monotonic()
        for child in self._children.values():
            if child.wanted and self._plan.lasting(child.name):
                child.tell(signal.SIGHUP)
                child.start_at, child.failures = now, 0
            elif child.wanted and child.pid:
                old, child.failures = child.pid, 0
                if child.name.startswith("web"):
                    if listened := self._plan.listened.get(child.name):
                        listened.begin(now)
                    child.start(now)
                else:
                    child.pid, child.start_at = 0, now
                child.retired.add(old)
                os.kill(old, signal.SIGTERM)
        self._write(self._children)

    def _reap(self) -> None:
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            changed = True
            for child in self._children.values():
                if child.pid == pid:
                    child.ended(status, monotonic())
                    if child.start_at - monotonic() > _LONG_PAUSE and child.name in self._slots:
                        _deafen(self._slots[child.name])
                child.retired.discard(pid)
        if changed and self._stopping_since is None:
            for name in [n for n, c in self._children.items() if not (c.wanted or c.pid or c.retired)]:
                del self._children[name]
            self._write(self._children)

    # -- what others may read

    def _write(self, children: Mapping[str, Child]) -> None:
        """`run/supervisor.json`, replaced atomically."""
        told = {
            "pid": os.getpid(),
            "running": bool(children),
            "ready": self._ready,
            "listen": [_text(each.getsockname()) for each in self._sockets],
            "children": {
                child.name: {"pid": child.pid, "restarts": child.restarts, "last_exit": child.last_exit}
                for child in children.values()
            },
        }
        replace_json(self._plan.run_dir / "supervisor.json", told)


def _text(address: tuple[Any, ...]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"
