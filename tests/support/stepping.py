"""Run a real program and look at the disk after every single system call of it that changes something.

The program runs under ptrace(2), its children and threads too; a seccomp(2) filter stops it at the calls of
`killpoints.CHANGING` alone, and each is followed to its end before `after` is asked. So a reconcile can be put between
any two steps of an editor, of `cp -a` or of `rsync`, without knowing what the steps are. x86-64 only, as killpoints.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import select
import signal
import struct
import termios
from collections.abc import Callable, Mapping, Sequence

from tests.support import killpoints

_TRACEME, _CONT, _GETREGS, _SETOPTIONS, _SYSCALL = 0, 7, 12, 0x4200, 24
_OPTIONS = 0x80 | 0x100000 | 0x2 | 0x4 | 0x8 | 0x1
"""TRACESECCOMP, EXITKILL, TRACEFORK, TRACEVFORK, TRACECLONE, TRACESYSGOOD."""
_WALL = 0x40000000
_EVENT_SECCOMP = 7
_ORIG_RAX, _RAX, _RDI = 15, 10, 14
_WRITES = (1, 18, 20, 296)
_LOOKED_AT = sorted(set(killpoints.CHANGING) - {16, 72, 73, 74, 75, 306, 26})
"""Without locks, fsync and ioctl: they change nothing that a reconcile could see."""


class Failed(AssertionError):
    """The program ended with another code than 0."""


def step_through(
    command: Sequence[str | bytes],
    after: Callable[[str], object],
    *,
    cwd: bytes | str,
    keys: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Run `command` in `cwd`; `after(call)` is asked after each changing call. Returns their names, in order.

    `keys`: give it a terminal and type these; without, its input is empty and its output dropped.
    """
    master, slave = pty.openpty() if keys is not None else (-1, -1)
    if slave >= 0:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    pid = os.fork()
    if pid == 0:
        _become(command, cwd, slave, environment)
    if slave >= 0:
        os.close(slave)
    try:
        tracer = _Tracer(pid, after, _Typist(master, keys or b""))
        code = tracer.run()
    finally:
        if master >= 0:
            os.close(master)
    if code != 0:
        raise Failed(f"{command!r} ended with {code}: {tracer.typist.shown[-400:]!r}")
    return tracer.calls


def _become(
    command: Sequence[str | bytes], cwd: bytes | str, slave: int, environment: Mapping[str, str] | None
) -> None:
    try:
        os.setsid()
        os.chdir(cwd)
        if slave < 0:
            slave = os.open("/dev/null", os.O_RDWR)
        else:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(slave, number)
        killpoints.trace_me()
        killpoints.stop_at(_LOOKED_AT)
        os.execvpe(command[0], list(command), {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})})
    finally:
        os._exit(127)


class _Typist:
    """The person at the terminal: types what is left whenever the program is waiting, and reads what it shows."""

    def __init__(self, master: int, keys: bytes) -> None:
        self.master, self.left, self.shown = master, keys, b""

    def look(self, seconds: float) -> None:
        """Read for at most so long; type the next key when the program has come to rest."""
        if self.master < 0:
            return
        poller = select.poll()
        poller.register(self.master, select.POLLIN)
        if poller.poll(seconds * 1000):
            try:
                self.shown += os.read(self.master, 65536)
            except OSError:
                self.master = -1
        elif self.left and self.shown:
            os.write(self.master, self.left[:1])
            self.left = self.left[1:]


class _Tracer:
    """Drives a program and all it starts."""

    def __init__(self, pid: int, after: Callable[[str], object], typist: _Typist) -> None:
        self.first, self.after, self.typist = pid, after, typist
        self.calls: list[str] = []
        self._alive = {pid}
        self._within: dict[int, str] = {}
        self._set_up: set[int] = set()

    def run(self) -> int:
        code = 0
        try:
            while self._alive:
                for pid in list(self._alive):
                    found, status = os.waitpid(pid, os.WNOHANG | _WALL)
                    if found:
                        break
                else:
                    self._wait()
                    continue
                if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                    self._alive.discard(pid)
                    if pid == self.first:
                        code = os.waitstatus_to_exitcode(status)
                else:
                    self._stopped(pid, status)
        finally:
            for pid in self._alive:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, _WALL)
        return code

    def _wait(self) -> None:
        if self.typist.master >= 0:
            self.typist.look(0.002)
        else:
            select.select([], [], [], 0.0002)

    def _stopped(self, pid: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        if pid not in self._set_up:
            self._set_up.add(pid)
            if pid == self.first:
                killpoints.ptrace(_SETOPTIONS, pid, _OPTIONS)
            killpoints.ptrace(_CONT, pid, 0)
        elif event == _EVENT_SECCOMP:
            registers = _registers(pid)
            if killpoints.has_effect(registers[_ORIG_RAX], registers) and not self._elsewhere(pid, registers):
                self._within[pid] = killpoints.CHANGING[registers[_ORIG_RAX]]
            killpoints.ptrace(_SYSCALL if pid in self._within else _CONT, pid, 0)
        elif event:
            self._alive.add(_message(pid))
            killpoints.ptrace(_CONT, pid, 0)
        elif number == signal.SIGTRAP | 0x80:
            call = self._within.pop(pid)
            if _result(pid) >= 0:
                self.calls.append(call)
                self.after(call)
            killpoints.ptrace(_CONT, pid, 0)
        else:
            # A signal for the program; the trap of execve(2) is ours.
            killpoints.ptrace(_CONT, pid, 0 if number == signal.SIGTRAP else number)

    def _elsewhere(self, pid: int, registers: ctypes.Array[ctypes.c_uint64]) -> bool:
        """Written to a terminal or a pipe."""
        if registers[_ORIG_RAX] not in _WRITES:
            return False
        target = os.readlink(f"/proc/{pid}/fd/{registers[_RDI]}")
        return not target.startswith("/") or target.startswith("/dev/")


def _registers(pid: int) -> ctypes.Array[ctypes.c_uint64]:
    registers = (ctypes.c_uint64 * 27)()
    killpoints.ptrace(_GETREGS, pid, ctypes.addressof(registers))
    return registers


def _result(pid: int) -> int:
    return ctypes.c_int64(_registers(pid)[_RAX]).value


def _message(pid: int) -> int:
    """PTRACE_GETEVENTMSG: the new process."""
    value = ctypes.c_ulong()
    killpoints.ptrace(0x4201, pid, ctypes.addressof(value))
    return value.value
