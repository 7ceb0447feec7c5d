"""Programs that write files slowly, as instruments, scanners and databases do: real processes, one step at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_PROGRAM = """
import mmap, os, sys
uid, mask = sys.argv[1:3]
if uid != "-":
    gids = [int(each) for each in uid.split(":")]
    os.setgroups(gids[1:]); os.setresgid(*[gids[1]] * 3); os.setresuid(*[gids[0]] * 3)
if mask != "-":
    os.umask(int(mask, 8))
fd, area = -1, None
for line in sys.stdin:
    what, _, rest = line.rstrip("\\n").partition(" ")
    try:
        if what == "open":
            fd = os.open(rest, os.O_RDWR | os.O_CREAT, 0o666)
        elif what == "append":
            os.lseek(fd, 0, os.SEEK_END)
            os.write(fd, rest.encode())
        elif what == "hole":
            os.lseek(fd, int(rest), os.SEEK_END)
            os.write(fd, b"end")
        elif what == "map":
            area = mmap.mmap(fd, 0)
        elif what == "store":
            at, text = rest.split(" ", 1)
            area[int(at) : int(at) + len(text)] = text.encode()
        elif what == "unmap":
            area.close()
        elif what == "close":
            os.close(fd)
        elif what == "mkdir":
            os.mkdir(rest)
        elif what == "read":
            open(rest, "rb").read()
        elif what == "rename":
            os.rename(*rest.split(" "))
        elif what == "list":
            os.listdir(rest)
        print("done", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


class Writer:
    """One such process. Each step is over when the call returns; OSError as the process got it."""

    def __init__(
        self, *, uid: int | None = None, gids: tuple[int, ...] = (), umask: int | None = None
    ) -> None:
        who = "-" if uid is None else ":".join(map(str, (uid, *gids)))
        mask = "-" if umask is None else f"{umask:o}"
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _PROGRAM, who, mask],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip

    def do(self, what: str, *rest: object) -> None:
        """One step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        texts = [os.fsdecode(each) if isinstance(each, bytes | Path) else str(each) for each in rest]
        self._process.stdin.write(" ".join([what, *texts]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer != "done":
            raise OSError(int(answer), os.strerror(int(answer)), f"{what} {texts}")

    def kill(self) -> None:
        """SIGKILL in the middle of whatever it has open."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def close(self) -> None:
        """Let it end, which closes what it has open."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
