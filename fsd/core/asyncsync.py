"""fsync(2) in the background, without a thread: the kernel does it while the caller computes (io_submit(2), since
Linux 4.18).

Where the kernel does not take it (another architecture, a filter of system calls, no context left) `end` does it. Each
thread has a context of its own; nothing here survives a fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from typing import Final

from fsd.core import waits

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_NUMBERS: Final = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4), "riscv64": (0, 2, 4)}
"""io_setup, io_submit, io_getevents."""
_CALLS: Final = _NUMBERS.get(platform.machine()) if struct.calcsize("P") == 8 else None
_FSYNC: Final = 2
_IOCB: Final = struct.Struct("=QIIHhIQQqQII")
"""linux/aio_abi.h: data, key, rw_flags, opcode, priority, descriptor, buffer, bytes, offset, reserved, flags, resfd."""
_EVENT: Final = struct.Struct("=QQqq")
_MOST: Final = 16
_NOW: Final = bytes(16)


class _Context(threading.local):
    """The calling thread's context, made when it is first needed. `free`: how many more may be under way; 0 also where
    there is none."""

    def __init__(self) -> None:
        self.ident = ctypes.c_ulong(0)
        self.free = 0
        self.event = ctypes.create_string_buffer(_EVENT.size)
        self.results: dict[int, int] = {}
        """Of those that have ended, by the address of what was submitted."""
        if _CALLS is not None and _syscall(_CALLS[0], ctypes.c_uint(_MOST), ctypes.byref(self.ident)) == 0:
            self.free = _MOST


_context = _Context()


def _forget_after_fork() -> None:
    global _context
    _context = _Context()


os.register_at_fork(after_in_child=_forget_after_fork)


class Syncing:
    """An fsync of `fd` that has begun; `end` must be called, once, by the same thread, before `fd` is closed."""

    __slots__ = ("_block", "_fd", "_pending")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = 0
        if _context.free > 0:
            assert _CALLS is not None
            self._block = ctypes.create_string_buffer(
                _IOCB.pack(0, 0, 0, _FSYNC, 0, fd, 0, 0, 0, 0, 0, 0), _IOCB.size
            )
            address = ctypes.c_void_p(ctypes.addressof(self._block))
            if _syscall(_CALLS[1], _context.ident, ctypes.c_long(1), ctypes.byref(address)) == 1:
                self._pending = ctypes.addressof(self._block)
                _context.free -= 1

    def end(self) -> None:
        """Return once it is done; OSError as fsync(2)."""
        if not self._pending:
            with waits.aside:
                os.fsync(self._fd)
            return
        result = self._reaped(_NOW)
        if result is None:
            with waits.aside:
                while result is None:
                    result = self._reaped(None)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def _reaped(self, timeout: bytes | None) -> int | None:
        """The result; None if it is another one's, or there is none within `timeout` (a timespec; None: any time)."""
        context, mine = _context, self._pending
        if mine not in context.results:
            assert _CALLS is not None
            one = ctypes.c_long(1)
            got = _syscall(_CALLS[2], context.ident, one, one, context.event, timeout)
            if got < 0 and ctypes.get_errno() != errno.EINTR:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if got == 1:
                _, address, result, _ = _EVENT.unpack(context.event)
                context.results[address] = result
                context.free += 1
        return context.results.pop(mine, None)
