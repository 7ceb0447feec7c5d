"""What pyfuse3 lacks, compiled when it is first needed: kernel passthrough, fallocate, lseek, copy_file_range; and
answers to the most frequent requests that don't go through it.

pyfuse3 itself is compiled where it is installed, so a compiler and libfuse's headers are there; where they are not,
or the self-test fails, mounts work without. `shim.c` says how it fits between pyfuse3 and libfuse, `setids.c` what
becomes of set-id bits, `answers.c` what it answers itself. The last needs Python's headers, and is left out where they
are missing.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fsd.core.errors import FsdError
from fsd.mount.rights import AS_IT_IS

if TYPE_CHECKING:
    from fsd.mount.coherence import Order
    from fsd.mount.mounted import Operations
    from fsd.mount.nodes import Node

_log = logging.getLogger(__name__)

SOURCES = [Path(__file__).with_name(name) for name in ("shim.c", "setids.c")]
ANSWERS = [Path(__file__).with_name(name) for name in ("answers.c", "state.c", "hearing.c", "turns.c")]
_HEADERS = [Path(__file__).with_name(name) for name in ("shim.h", "state.h", "turns.h")]
_FLAGS = ("-O2", "-shared", "-fPIC", "-Wall", "-Werror")
_TEST_SECONDS = 20.0
_END_SECONDS = 5.0
Wanted = Literal["auto", "on", "off"]
Compare = Callable[[bytes, "dict[int, Node]"], "tuple[list[Order], list[tuple[int, int, bytes]]]"]
"""What inotify(7) said and the directories by watch: what the kernel is to forget, and the events, (watch, mask, name),
that are not for it."""


class Shim:
    """The loaded shim. Must exist before pyfuse3 is imported; belongs to the thread of the event loop."""

    def __init__(self, library: Path) -> None:
        if "pyfuse3" in sys.modules:
            raise FsdError("pyfuse3 was loaded before what has to stand beside it.")
        self._path = library
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._library.shim_register_now.argtypes = [ctypes.c_int]
        self._library.shim_unregister.argtypes = [ctypes.c_uint32]
        self._next = ctypes.c_int.in_dll(self._library, "shim_backing")
        self._want = ctypes.c_int.in_dll(self._library, "shim_want")
        self._have = ctypes.c_int.in_dll(self._library, "shim_passthrough")
        self._away = ctypes.c_int.in_dll(self._library, "shim_away")
        self._tired = ctypes.c_int.in_dll(self._library, "shim_tired")
        self._other = ctypes.c_int.in_dll(self._library, "shim_other")
        self.passthrough = False
        self.answers = False
        """Whether it waits for requests and answers what it can; see `answer`."""
        self.compare: Compare | None = None

    def want(self, passthrough: bool) -> None:
        """Before the mount: whether to ask the kernel for passthrough."""
        self._want.value = int(passthrough)

    def attach(self) -> None:
        """After the mount, before its first request."""
        failed = self._library.shim_attach()
        if failed:
            raise FsdError(f"libfuse does not take the shim: {os.strerror(-failed)}.")

    def settled(self) -> bool:
        """After the first request: what the kernel said to passthrough."""
        self.passthrough = bool(self._have.value)
        return self.passthrough

    def answer(self, operations: Operations) -> bool:
        """After `settled`: answer frequent requests without pyfuse3, from the state of these handlers, and have
        `compare`. False if that was not compiled."""
        if not hasattr(self._library, "answers_begin"):
            return False
        # Imported here: these need pyfuse3, which has to find the shim loaded.
        from fsd.mount.files import Handle
        from fsd.mount.nodes import Node

        library = ctypes.PyDLL(str(self._path))
        library.answers_begin.argtypes = [ctypes.py_object] * 4
        library.hearing_compare.argtypes = [ctypes.py_object] * 2
        library.answers_begin.restype = library.hearing_compare.restype = ctypes.py_object
        try:
            library.answers_begin(operations, Node, Handle, AS_IT_IS)
        except (OSError, TypeError) as error:
            _log.warning("all requests are answered by Python, more slowly: %s", error)
            return False
        self.compare = library.hearing_compare
        self.answers = True
        return True

    def away(self, handlers: int) -> None:
        """How many handlers wait for something: the shim waits for nothing then."""
        self._away.value = handlers

    def listen(self, fd: int) -> None:
        """What the event loop waits for besides requests; -1 for nothing."""
        self._other.value = fd

    @property
    def tired(self) -> bool:
        """Whether the shim gave up its turn for the event loop's other tasks."""
        return bool(self._tired.value)

    def register(self, fd: int) -> int:
        """Have the kernel read and write this file itself; the number for `use`. OSError: not this one (ELOOP on a
        stacked filesystem, EPERM without CAP_SYS_ADMIN)."""
        number: int = self._library.shim_register_now(fd)
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return number

    def unregister(self, number: int) -> None:
        """No handle is left that uses it."""
        self._library.shim_unregister(number)

    def use(self, number: int) -> None:
        """The next answer to an open or create is about this file."""
        self._next.value = number


def build(place: Path) -> Path:
    """The compiled shim in `place` (a directory nobody else may write), made if it is not there yet.

    FsdError, in one sentence, when it can't be made here.
    """
    compiler = os.environ.get("CC") or "cc"
    if shutil.which(compiler) is None:
        raise FsdError(f"there is no C compiler '{compiler}'")
    flags = _pkg_config("--cflags", "--libs").split()
    sources, depends = [*SOURCES], [_pkg_config("--modversion"), platform.machine()]
    headers = Path(sysconfig.get_path("include"))
    if (headers / "Python.h").exists():
        sources += ANSWERS
        flags += ["-I", str(headers)]
        depends.append(sys.version)
    texts = [source.read_bytes() for source in (*sources, *_HEADERS)]
    key = hashlib.sha256(b"\0".join((*texts, *(each.encode() for each in depends)))).hexdigest()[:16]
    made = place / f"shim-{key}.so"
    if made.exists():
        return made
    place.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as aside:
        new = Path(aside) / "shim.so"
        command = [compiler, *_FLAGS, "-o", str(new), *map(str, sources), *flags, "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise FsdError(f"the C compiler says: {said}")
        new.replace(made)
    return made


def _pkg_config(*wanted: str) -> str:
    try:
        done = subprocess.run(["pkg-config", *wanted, "fuse3"], capture_output=True, text=True)
    except FileNotFoundError:
        raise FsdError("there is no pkg-config") from None
    if done.returncode != 0:
        raise FsdError("libfuse's headers (package libfuse3-dev) are missing")
    return done.stdout.strip()


def load(place: Path, wanted: Wanted) -> Shim | None:
    """The shim, tested in a process of its own: a wrong one may crash, and must not take a mount along.

    `auto`: with passthrough if that works, else without, else no shim at all (None); the log says why. `off`: without
    passthrough. `on`: FsdError unless passthrough works.
    """
    try:
        library = build(place)
        if wanted != "off":
            failed = _test(library, passthrough=True)
            if failed is None:
                return _loaded(library, passthrough=True)
            if wanted == "on":
                raise FsdError(f"the self-test says: {failed}")
            _log.info("no kernel passthrough here: %s", failed)
        failed = _test(library, passthrough=False)
        if failed is not None:
            raise FsdError(f"the self-test says: {failed}")
        return _loaded(library, passthrough=False)
    except OSError as error:
        if wanted == "on":
            raise FsdError(f"Kernel passthrough can't be had: {error}.") from error
        _log.info("mounting without passthrough, fallocate and SEEK_HOLE: %s", error)
        return None


def _loaded(library: Path, *, passthrough: bool) -> Shim:
    shim = Shim(library)
    shim.want(passthrough)
    return shim


def _test(library: Path, *, passthrough: bool) -> str | None:
    """Why it does not work here, None if it does."""
    command = [sys.executable, "-m", "fsd.mount.probe", str(library), "on" if passthrough else "off"]
    command.append(str(os.getpid()))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as testing:
        try:
            said, _ = testing.communicate(timeout=_TEST_SECONDS)
        except BaseException as error:
            _end(testing)
            if isinstance(error, subprocess.TimeoutExpired):
                return "it does not answer"
            raise
    if testing.returncode == 0:
        return None
    return (said.strip().splitlines() or [f"it ended with {testing.returncode}"])[-1]


def _end(testing: subprocess.Popen[str]) -> None:
    """End a self-test so that it unmounts what it mounted, if it can."""
    testing.terminate()
    try:
        testing.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        testing.kill()
