"""All connections of a process in one epoll, on cheroot's manager extension point.

One thread leads: it waits in epoll and serves what comes, one event after the other, without handing anything over.
Before something that may take long (a password's hash, a large transfer) it *steps down*, and one of those who wait
leads on; before a wait for the disk (an fsync) it also lets others compute, and gets its turn again when it comes back.
A thread that is stuck without having said so, in a system call on a storage that hangs, is replaced by the front
thread, which also ends what has waited too long.  So a slow client costs a socket, a slow disk costs a thread, and what
is quick costs neither a thread switch nor a fight for the interpreter's lock.
"""

import errno
import logging
import os
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from cheroot.connections import ConnectionManager

from dav.front.connection import Connection, State
from dav.front.turns import WATCH, Turns
from dav.front.wire import READ
from fsd.core import steps, waits

if TYPE_CHECKING:
    from dav.server import Server
    from fsd.core.arrivals import Outcome

log = logging.getLogger(__name__)

_ONCE = select.EPOLLONESHOT | select.EPOLLRDHUP
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 20\r\nConnection: close\r\n\r\nThe server is busy.\n"
)
_EVENTS = 64
_ACCEPTS = 64
_TOGETHER = 32
"""Uploads that wait for each other at most."""
_TICK = 0.5
_OVERLOADED = 3.0
"""Seconds without a leader, because every thread is busy, after which clients are told so."""
_FAREWELL = 1.0
"""A connection that was used a moment ago gets so long for its last request before the server stops."""


class _Term(threading.local):
    """The term in which the calling thread leads; 0 if it does not."""

    number = 0


class Loop(ConnectionManager):  # type: ignore[misc,unused-ignore]
    """Replaces cheroot's manager.  ``run`` is the front thread's, ``work`` is every worker thread's."""

    def __init__(self, server: "Server", grow: Callable[[], None]) -> None:
        # Not calling the base, whose selector this replaces.
        self.server: Server = server
        self._grow = grow
        self._epoll = select.epoll()
        self._listener = server.socket
        self._listener.setblocking(False)
        self._listening = self._listener.fileno()
        self._connections: dict[int, Connection] = {}
        self._addresses: Counter[str] = Counter()
        self._ready: deque[int] = deque()
        self._gathering: deque[Connection] = deque()
        """Those with uploads that wait for each other (``State.GATHER``), for whoever leads."""
        self._gathered = False
        self._baton = threading.Lock()
        self._guard = threading.Lock()
        self._own = _Term()
        self._turns = Turns()
        self._term = 0
        self._leader = 0
        self._resting = False
        self._waiting = 0
        self._free_since = 0.0
        self._over = self._draining = self._paused = False
        self._front = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._listening, select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)

    # -- the worker threads ----------------------------------------------------------------------

    def work(self) -> None:
        """Lead whenever nobody else does; return when the loop is over."""
        waits.tell(self._leaving, self._turns.back)
        while not self._over:
            with self._guard:
                self._waiting += 1
            self._baton.acquire()
            with self._guard:
                self._waiting -= 1
                self._term += 1
                self._own.number = self._term
                self._leader = threading.get_native_id()
                self._free_since = 0.0
            self._lead(self._own.number)
            self._own.number = 0

    def _lead(self, term: int) -> None:
        ready, poll, turns = self._ready, self._epoll.poll, self._turns
        self._go_on()  # who led before may wait for what they hold
        while self._term == term:
            if self._over:
                self._go_on()
                self.step_down()
                return
            try:
                fd = ready.popleft()
            except IndexError:
                if self._gathering:
                    self._gather()
                    continue
                self._resting = True
                ready.extend([fd for fd, _ in poll(-1, _EVENTS)])
                self._resting = False
                continue
            turns.take()
            try:
                self._event(fd)
            except Exception:
                log.exception("a connection failed")
            finally:
                turns.give()

    def gathers(self) -> bool:
        """Whether an upload of the calling thread can wait for others, until the events that are here were served."""
        term = self._own.number
        return term != 0 and term == self._term

    def _gather(self) -> None:
        """Nothing more is ready: look once what has come meanwhile, then let those that wait go on."""
        if not self._gathered and len(self._gathering) < _TOGETHER:
            self._gathered = True
            self._ready.extend([fd for fd, _ in self._epoll.poll(0, _EVENTS)])
        else:
            self._go_on()

    def _go_on(self) -> None:
        """What the uploads that wait need, for all of them at once, until each has its answer."""
        if not self._gathering:
            return
        self._turns.take()
        try:
            self._gathered = False
            waiting = []
            with suppress(IndexError):
                while True:  # one by one: who lost its turn may be adding to them
                    waiting.append(self._gathering.popleft())
            while waiting:
                outcomes = steps.serve([conn.need for conn in waiting])
                waiting = [
                    conn
                    for conn, outcome in zip(waiting, outcomes, strict=True)
                    if self._needs_more(conn, outcome)
                ]
        finally:
            self._turns.give()

    def _needs_more(self, conn: Connection, outcome: "Outcome") -> bool:
        """Go on with one; False if it was answered."""
        try:
            conn.served(outcome)
            if conn.state is State.GATHER:
                return True
            self._serve(conn)
        except Exception:
            log.exception("a connection failed")
            conn.close()
        return False

    def step_down(self) -> None:
        """The calling thread may be busy for a while: if it leads, another one does from now on.  It does not wait for
        its turn any more, and computes beside the others."""
        self._resign_if_leading()
        self._turns.give()

    def _leaving(self) -> None:
        self._resign_if_leading()
        self._turns.leave()

    def _resign_if_leading(self) -> None:
        term = self._own.number
        if term == 0 or term != self._term:
            return
        with self._guard:
            if term != self._term:
                return
            self._resign()

    def _resign(self) -> None:
        self._term += 1
        self._leader = 0
        alone = self._waiting == 0
        if alone:
            self._free_since = time.monotonic()
        self._baton.release()
        if alone and not self._over:
            self._grow()

    @property
    def waiting(self) -> int:
        """Threads that have nothing to do."""
        return self._waiting

    @property
    def leader_rests(self) -> bool:
        """Whether somebody leads and has nothing to do."""
        return self._baton.locked() and self._resting

    # -- events ----------------------------------------------------------------------------------

    def _event(self, fd: int) -> None:
        conn = self._connections.get(fd)
        if conn is not None:
            try:
                conn.claims.pop()
            except IndexError:
                return  # the front thread is ending it
            self._serve(conn)
        elif fd == self._listening:
            self._accept()
        elif fd == self._wake_read:
            with suppress(BlockingIOError):
                os.read(fd, 64)

    def _serve(self, conn: Connection) -> None:
        """Let the connection, which the caller owns, go on; then it waits again or is closed."""
        alive = False
        try:
            alive = conn.advance()
        finally:
            if not alive:
                conn.close()
            elif conn.state is State.GATHER:
                self._gathering.append(conn)
                if self._own.number != self._term:
                    self._wake()  # the lead was taken away just now
            else:
                self.release(conn)

    def release(self, conn: Connection) -> None:
        """The caller does not own the connection any more; it waits for what its wire wants."""
        fd, wants = conn.fd, conn.wire.wants
        # In this order: an event that came before the claim is back would be lost.
        conn.claims.append(None)
        with suppress(OSError, ValueError):
            self._epoll.modify(fd, wants | _ONCE)

    def claim(self, conn: Connection) -> bool:
        """Own a waiting connection; False if somebody else does."""
        try:
            conn.claims.pop()
        except IndexError:
            return False
        return True

    def forget(self, conn: Connection) -> None:
        if self._connections.pop(conn.fd, None) is not None:
            with self._guard:
                self._addresses[conn.remote_addr] -= 1
                if not self._addresses[conn.remote_addr]:
                    del self._addresses[conn.remote_addr]

    @property
    def can_add_keepalive_connection(self) -> bool:
        return not self._draining

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("cannot accept connections for now: %s", error)
                    self._close_resting()
                    # Level-triggered: without a pause this would spin until a descriptor is free.
                    self._paused = True
                    self._epoll.modify(self._listening, 0)
                return
            try:
                self._adopt(sock, address)
            except OSError:
                sock.close()

    def _close_resting(self) -> None:
        """Make room: close the tenth of the waiting connections that has been silent longest."""
        resting = [conn for conn in list(self._connections.values()) if conn.resting]
        resting.sort(key=lambda conn: conn.deadline)
        for conn in resting[: len(resting) // 10 + 1]:
            if self.claim(conn):
                conn.close()

    def _adopt(self, sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setblocking(False)
        host = address[0] if address else ""
        full = self.server.full(host, self._addresses[host])
        adapter = self.server.ssl_adapter
        if adapter is not None and not full:
            sock = adapter.wrap_socket(sock)
        conn = Connection(self.server, sock)
        if address:
            conn.remote_addr, conn.remote_port = host, str(address[1])
        with self._guard:
            self._addresses[host] += 1
        self._connections[conn.fd] = conn
        if full:
            conn.busy(_BUSY)
        conn.wire.wants = READ
        conn.claims.append(None)
        self._epoll.register(conn.fd, READ | _ONCE)

    # -- the front thread ------------------------------------------------------------------------

    def run(self, expiration_interval: float) -> None:
        """Watch over the leader and the deadlines until ``stop``."""
        self._idle.clear()
        try:
            self._watch()
        finally:
            self._idle.set()

    def _watch(self) -> None:
        checked = active = time.monotonic()
        while not self._over:
            now = time.monotonic()
            self._replace_stuck(now)
            if self._turns.busy:
                active = now
            if now - checked >= _TICK:
                checked = now
                self._expire(now)
                for chore in self.server.chores:
                    chore()
                self._refuse_when_overloaded(now)
                if self._paused:
                    self._paused = False
                    self._epoll.modify(self._listening, select.EPOLLIN)
            pause = WATCH if now - active < 1.0 else _TICK
            if self._front.wait(min(pause, self.server.streams.tick(now))):
                self._front.clear()

    def _replace_stuck(self, now: float) -> None:
        """Whoever sleeps in its turn loses it, and the lead if it has that."""
        stuck = self._turns.take_from_stuck(now)
        with self._guard:
            if stuck and self._leader == stuck:
                self._resign()

    def _expire(self, now: float) -> None:
        for conn in list(self._connections.values()):
            if self._draining and conn.resting and conn.used < now - _FAREWELL:
                conn.deadline = 0.0
            if conn.deadline < now and conn.state is not State.STREAM and self.claim(conn):
                try:
                    alive = conn.deadline < now and not conn.expire()
                except Exception:
                    log.exception("a connection failed")
                    alive = True
                if alive:
                    conn.close()
                else:
                    self.release(conn)

    def _refuse_when_overloaded(self, now: float) -> None:
        """Every thread has been busy for a while: tell those who ask, instead of letting them wait for nothing."""
        if not self._free_since or now - self._free_since < _OVERLOADED or not self._baton.acquire(False):
            return
        try:
            for fd, _ in self._epoll.poll(0, 1024):
                if fd == self._listening:
                    self._accept()
                conn = self._connections.get(fd)
                if conn is not None and self.claim(conn):
                    if conn.state is State.HEAD:
                        conn.busy(_BUSY)
                    self.release(conn)
        finally:
            self._baton.release()

    # -- its end ---------------------------------------------------------------------------------

    def nudge(self) -> None:
        """The front thread has something to do."""
        self._front.set()

    def stop(self) -> None:
        """Accept nothing more, and let what is under way finish for as long as the server allows."""
        self._draining = True
        with suppress(OSError, ValueError):
            self._epoll.unregister(self._listening)
        self._listener.close()
        self.server.socket = None  # cheroot would call itself there, to end an accept that nobody waits in
        until = time.monotonic() + self.server.shutdown_timeout
        while time.monotonic() < until and not self._drained():
            self._front.wait(0.02)
        self._over = True
        self._front.set()
        self._wake()
        self._idle.wait(5)

    def _wake(self) -> None:
        """Whoever waits in epoll comes back."""
        with suppress(OSError):
            os.write(self._wake_write, b"x")

    def _drained(self) -> bool:
        now = time.monotonic()
        left = False
        for conn in list(self._connections.values()):
            if conn.state is State.STREAM or (conn.resting and conn.used < now - _FAREWELL):
                if self.claim(conn):
                    conn.close()
            elif conn.state not in (State.HANDSHAKE, State.LINGER):
                left = True
        return not left

    def close(self) -> None:
        """Close every connection that no thread owns, and the epoll once the threads have left it."""
        for conn in list(self._connections.values()):
            if self.claim(conn):
                conn.close()

    def dispose(self) -> None:
        """The threads have ended."""
        for conn in list(self._connections.values()):
            conn.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
