"""Stop an operation at each of its system calls: kill it there, or make that call fail.

The operation runs in a forked child under ptrace(2); a seccomp(2) filter stops it at the wanted calls only. Calls
that change nothing outside the process (reads, waits, memory) are passed over: a kill before one of them leaves what
a kill before the next changing call leaves. They are counted from the moment `prepare` has returned. x86-64 only;
`available()` says whether this host can do it.

    for stop in kill_at_each(prepare, operate):     # a fresh child each time; the last run goes through
    unharmed
        ...look at what is left...
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_TRACEME, _CONT, _GETREGS, _SETREGS, _SETOPTIONS = 0, 7, 12, 13, 0x4200
_O_TRACESECCOMP, _O_EXITKILL = 0x80, 0x100000
_SECCOMP_STOP = signal.SIGTRAP | 7 << 8
_BPF_LOAD, _BPF_JEQ, _BPF_RET = 0x20, 0x15, 0x06
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000
_ORIG_RAX, _RAX, _RSI, _RDX = 15, 10, 13, 12

CHANGING = {
    1: "write", 18: "pwrite64", 20: "writev", 296: "pwritev", 26: "msync", 40: "sendfile", 326: "copy_file_range",
    2: "open", 257: "openat", 85: "creat",
    82: "rename", 264: "renameat", 316: "renameat2", 86: "link", 265: "linkat", 87: "unlink", 263: "unlinkat",
    83: "mkdir", 258: "mkdirat", 84: "rmdir", 88: "symlink", 266: "symlinkat", 133: "mknod", 259: "mknodat",
    90: "chmod", 91: "fchmod", 268: "fchmodat", 452: "fchmodat2", 92: "chown", 93: "fchown", 260: "fchownat",
    76: "truncate", 77: "ftruncate", 285: "fallocate", 74: "fsync", 75: "fdatasync", 306: "syncfs",
    188: "setxattr", 189: "lsetxattr", 190: "fsetxattr", 197: "removexattr", 198: "lremovexattr",
    199: "fremovexattr", 463: "setxattrat", 466: "removexattrat", 280: "utimensat", 16: "ioctl",
    73: "flock", 72: "fcntl",
}  # fmt: skip
"""Calls whose effect outlives the process or that others can see; `open` only when it creates, `fcntl` only
locks."""

REACHING = CHANGING.keys() - {73, 72}
"""What changes a disk: locks do not, and they go with the process that is killed."""

KILLING = REACHING - {26, 74, 75, 306}
"""What changes what others read. A sync does not: a kill before it leaves what a kill before the next call leaves."""

FAILING = {
    1, 18, 326, 2, 257, 82, 264, 316, 86, 265, 87, 263, 83, 258, 84, 88, 266, 133, 259, 91, 93, 77, 74, 75,
    188, 189, 190, 199, 463, 466, 280,
}  # fmt: skip
"""Calls that a filesystem can refuse with ENOSPC, EIO or EACCES; opening what exists is among them."""

_CREATING = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
_FICLONE = 0x40049409
_FAILED, _OK = 66, 0


class Stop(NamedTuple):
    """How one run ended: before its `index`-th counted call (`call`), or through (`call` is None)."""

    index: int
    call: str | None
    error: str | None
    """What `operate` raised, if it came to an end with an error."""


@functools.cache
def available() -> bool:
    """Whether this host lets us trace a child and is the architecture whose numbers are above."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return False
    try:
        return _run(lambda: None, lambda _ready: None, lambda _regs: False) is None
    except OSError:
        return False


def kill_at_each(
    prepare: Callable[[], Any],
    operate: Callable[[Any], object],
    *,
    fresh: Callable[[], object] | None = None,
    first: int = 0,
    step: int = 1,
    every: bool = False,
    calls: Set[int] = KILLING,
) -> Iterator[Stop]:
    """Run the operation again and again, killed before call 0, 1, 2, ... of `calls` and at last not at all.

    `fresh` makes the world new in this process before each run. `every`: also before calls that change
    nothing.
    """
    index = first
    while True:
        if fresh is not None:
            fresh()
        stop = _counted(prepare, operate, index, calls, None, every)
        yield stop
        if stop.call is None:
            return
        index += step


def fail_at_each(
    prepare: Callable[[], Any],
    operate: Callable[[Any], object],
    errors: Sequence[int],
    *,
    fresh: Callable[[], object] | None = None,
    calls: Set[int] = FAILING,
    step: int = 1,
) -> Iterator[Stop]:
    """The same, but the call fails with one of `errors` (in turn) without having been made, and the operation goes
    on from there."""
    index = 0
    while True:
        if fresh is not None:
            fresh()
        stop = _counted(prepare, operate, index, calls, errors[index % len(errors)], False)
        yield stop
        if stop.call is None:
            return
        index += step


def calls_made(
    prepare: Callable[[], Any], operate: Callable[[Any], object], calls: Set[int] = CHANGING.keys()
) -> list[str]:
    """Which of these calls one unharmed run makes, in order, by name."""
    made: list[str] = []

    def note(regs: Any) -> bool:
        if has_effect(regs[_ORIG_RAX], regs):
            made.append(CHANGING[regs[_ORIG_RAX]])
        return False

    message = _run(prepare, operate, note, calls=sorted(calls))
    assert message is None, message
    return made


class _Counter:
    """Decides at each call's entry; remembers at which one it struck."""

    def __init__(self, index: int, wanted: Set[int], every: bool, looks: bool) -> None:
        self._left = index
        self._looks = looks
        self._wanted = wanted
        self._every = every
        self.struck: str | None = None

    def __call__(self, regs: Any) -> bool:
        if self.struck is not None:
            return False
        number = regs[_ORIG_RAX]
        if not self._every and not (number in self._wanted and (self._looks or has_effect(number, regs))):
            return False
        if self._left:
            self._left -= 1
            return False
        self.struck = CHANGING.get(number, str(number))
        return True


def has_effect(number: int, regs: Any) -> bool:
    """Whether a call of `CHANGING` changes anything with these arguments: opening does only if it creates."""
    if number in (2, 257):
        return bool(regs[_RSI if number == 2 else _RDX] & _CREATING)
    if number == 16:
        return bool(regs[_RSI] == _FICLONE)
    return True


def _counted(
    prepare: Callable[[], Any],
    operate: Callable[[Any], object],
    index: int,
    wanted: Set[int],
    error: int | None,
    every: bool,
) -> Stop:
    counter = _Counter(index, wanted, every, looks=error is not None)
    message = _run(prepare, operate, counter, error, () if every else sorted(wanted))
    return Stop(index, counter.struck, message)


def _run(
    prepare: Callable[[], Any],
    operate: Callable[[Any], object],
    decide: Callable[[Any], bool],
    error: int | None = None,
    calls: Sequence[int] = (),
) -> str | None:
    """One child. Returns what `operate` raised, None if nothing or if it was killed."""
    told, tell = os.pipe()
    with _one_processor():
        pid = os.fork()
        if pid == 0:
            os.close(told)
            _child(prepare, operate, tell, calls)
        os.close(tell)
        try:
            alive = _trace(pid, decide, error)
        except BaseException:
            os.kill(pid, signal.SIGKILL)  # else the pipe has no end
            raise
        finally:
            with os.fdopen(told, "rb") as pipe:
                message = pipe.read().decode(errors="replace")
    return message if alive and message else None


@contextmanager
def _one_processor() -> Iterator[None]:
    """Tracer and child on one processor: tracing is a ping-pong, and this makes it 3 x faster. Each test process takes
    its own, and only for as long as it traces: what a test starts later inherits where it may run."""
    allowed = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(allowed)[worker % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _child(
    prepare: Callable[[], Any], operate: Callable[[Any], object], tell: int, calls: Sequence[int]
) -> None:
    code = _OK
    try:
        trace_me()
        ready = prepare()
        raised: BaseException | None = None
        os.kill(os.getpid(), signal.SIGSTOP)
        stop_at(calls)  # from here on the parent counts
        try:
            operate(ready)
        except BaseException as caught:
            raised = caught
        os.kill(os.getpid(), signal.SIGSTOP)  # and here it lets go
        if isinstance(raised, OSError):
            os.write(tell, f"{type(raised).__name__} {raised.errno} {raised}".encode())
        elif raised is not None:
            raise raised
    except BaseException:
        os.write(tell, ("CRASH " + traceback.format_exc()).encode())
        code = _FAILED
    finally:
        os._exit(code)


def _trace(pid: int, decide: Callable[[Any], bool], error: int | None) -> bool:
    """Drive the child to its end. False if `decide` had it killed."""
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        return True
    ptrace(_SETOPTIONS, pid, _O_TRACESECCOMP | _O_EXITKILL)
    regs = (ctypes.c_uint64 * 27)()
    deliver, counting = 0, True
    while True:
        ptrace(_CONT, pid, deliver)
        deliver = 0
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return True
        if status >> 8 == _SECCOMP_STOP:
            ptrace(_GETREGS, pid, ctypes.addressof(regs))
            if not counting or not decide(regs):
                continue
            if error is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return False
            regs[_ORIG_RAX] = (1 << 64) - 1  # skip the call; it returns what we put into rax (seccomp(2))
            regs[_RAX] = (1 << 64) - error
            ptrace(_SETREGS, pid, ctypes.addressof(regs))
        elif os.WSTOPSIG(status) == signal.SIGSTOP:
            counting = False
        else:
            deliver = os.WSTOPSIG(status)


def trace_me() -> None:
    """Be traced by the parent from now on."""
    _libc.ptrace(_TRACEME, 0, None, None)


def stop_at(calls: Sequence[int]) -> None:
    """Have the kernel stop this process for its tracer at the given calls, at all if there are none (seccomp(2))."""
    trace = [(_BPF_JEQ, 0, 1, number, _BPF_RET, _RET_TRACE) for number in calls]
    program = struct.pack("=HBBI", _BPF_LOAD, 0, 0, 0)  # the number is the first word of struct seccomp_data
    for jump, yes, no, number, ret, value in trace:
        program += struct.pack("=HBBI", jump, yes, no, number) + struct.pack("=HBBI", ret, 0, 0, value)
    program += struct.pack("=HBBI", _BPF_RET, 0, 0, _RET_ALLOW if calls else _RET_TRACE)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, ctypes.create_string_buffer(head, len(head)), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def ptrace(request: int, pid: int, data: int) -> None:
    """ptrace(2); raises OSError."""
    if _libc.ptrace(request, pid, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request}: {os.strerror(number)}")
