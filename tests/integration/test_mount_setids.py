"""Set-id bits and capabilities of files that are written: a mount takes what the disk's filesystem takes, whoever
writes, in whatever way, with passthrough or without; also from a file that was open before it had them."""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounting import WAYS, Mount, below, mounted, open_space, open_way
from tests.support.posixly import GROUP, OTHER, OWNER, OWNING, ROOT, STRANGER, Caller

pytestmark = pytest.mark.root
MEMBER = Caller("member", OTHER, OTHER, (GROUP,))
CALLERS = (ROOT, OWNING, STRANGER, MEMBER)
MODES = (0o4777, 0o2777, 0o2666, 0o6777, 0o6766, 0o777)
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
_SIZE = 8192


@pytest.fixture(scope="module", params=WAYS)
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One space, mounted as it is, that everybody may reach on disk."""
    base = open_way(tmp_path_factory.mktemp("setids"))
    with mounted(open_space(base), base / "mnt", "posix", way=request.param) as made:
        yield made


def _mapped(fd: int) -> None:
    if os.fstat(fd).st_size < _SIZE:
        return  # truncated: there is nothing to store to
    with mmap.mmap(fd, _SIZE) as mapped:
        mapped[0] = 120


def _copied(fd: int) -> None:
    source = os.open("source", os.O_RDONLY)
    try:
        assert os.copy_file_range(source, fd, 100, 0, 0) == 100
    finally:
        os.close(source)


def _spliced(fd: int) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x" * 100)
    os.splice(reading, fd, 100)
    os.close(reading)
    os.close(writing)


WRITES: dict[str, Callable[[int], object]] = {
    "nothing": lambda fd: None,
    "write": lambda fd: os.write(fd, b"x"),
    "write of nothing": lambda fd: os.write(fd, b""),
    "write at the end": lambda fd: os.pwrite(fd, b"x", _SIZE),
    "write of vectors": lambda fd: os.pwritev(fd, [b"x", b"y"], 10),
    "splice": _spliced,
    "store in a mapping": _mapped,
    "ftruncate": lambda fd: os.ftruncate(fd, 10),
    "ftruncate to more": lambda fd: os.ftruncate(fd, _SIZE * 2),
    "fallocate": lambda fd: os.posix_fallocate(fd, 0, _SIZE * 2),
    "copy_file_range": _copied,
    "fchown to nobody": lambda fd: os.fchown(fd, -1, -1),
    "fsync": os.fsync,
}
OPENS: dict[str, int] = {
    "open": os.O_RDWR,
    "append": os.O_RDWR | os.O_APPEND,
    "truncating": os.O_RDWR | os.O_TRUNC,
}


def _tell(caller: Caller, work: Callable[[], object]) -> object:
    """What `work` returns, or its error's number, in a process of the caller's."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            caller.become()
            try:
                told = work()
            except OSError as error:
                told = error.errno
            with open(writing, "wb") as pipe:
                pickle.dump(told, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer: object = pickle.load(pipe)
    os.waitpid(child, 0)
    return answer


def _make(path: Path, mode: int) -> Path:
    path.write_bytes(b"o" * _SIZE)
    os.chown(path, OWNER, GROUP)
    path.chmod(mode)
    return path


def _written(path: Path, flags: int, write: Callable[[int], object]) -> Callable[[], object]:
    def work() -> object:
        os.chdir(path.parent)
        fd = os.open(path, flags)
        try:
            return write(fd)
        finally:
            os.close(fd)

    return work


def _modes(place: Path, show: Callable[[Path], Path]) -> dict[str, object]:
    """What each way of writing by each caller answers and leaves of each mode."""
    place.chmod(0o777)
    (place / "source").write_bytes(b"s" * 100)
    told: dict[str, object] = {}
    for caller in CALLERS:
        found = _tell(ROOT, lambda caller=caller: _modes_of(caller, place / "f", show))
        assert isinstance(found, dict), found
        told |= found
    return told


def _modes_of(caller: Caller, path: Path, show: Callable[[Path], Path]) -> dict[str, object]:
    told: dict[str, object] = {}
    for mode, (how, flags), (what, write) in itertools.product(MODES, OPENS.items(), WRITES.items()):
        _make(path, mode)
        answer = _lent(caller, _written(path, flags, write))
        left = stat.S_IMODE(path.stat().st_mode)
        assert left == stat.S_IMODE(show(path).stat().st_mode)
        told[f"{caller.name}: {how}, {what}, of {mode:o}"] = (answer, oct(left))
        path.unlink()
    return told


def _lent(caller: Caller, work: Callable[[], object]) -> object:
    """What `work` returns, or its error's number, as the caller: root again afterwards, without its capabilities
    meanwhile (capabilities(7): they go with the effective user)."""
    os.setgroups(caller.groups)
    os.setresgid(caller.gid, caller.gid, 0)
    os.setresuid(caller.uid, caller.uid, 0)
    try:
        return work()
    except OSError as error:
        return error.errno
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def test_who_writes_takes_what_the_disk_takes(
    mount: Mount, here: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    open_way(tmp_path)
    expected = _modes(tmp_path, lambda path: path)
    found = _modes(here, lambda path: below(mount, path))
    odd = _odd_without_shim if request.node.callspec.params["mount"] == "none" else _odd
    different = {
        title: (found[title], expected[title])
        for title in expected
        if found[title] != expected[title] and not odd(title)
    }
    assert not different


def _odd(title: str) -> bool:
    """Who may not, is not told so, and nothing is changed."""
    return "to nobody" in title and title.startswith(("other", "member"))


def _odd_without_shim(title: str) -> bool:
    """The kernel takes the bits, but not what only its group executes not; and libc writes where it can't allocate."""
    return "2666" in title or "6766" in title or "fallocate" in title


@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777])
def test_bits_that_are_set_while_somebody_writes(
    mount: Mount, here: Path, request: pytest.FixtureRequest, mode: int
) -> None:
    """A descriptor that was opened before can't write to a set-id file without taking its bits."""
    ways = {"through": lambda path: path, "beneath": lambda path: below(mount, path)}
    if request.node.callspec.params["mount"] == "none":
        del ways["beneath"]  # the kernel takes what it knows of, and hears of them a moment later
    for name, setting in ways.items():
        path = _make(here / name, 0o666)
        reading, writing = os.pipe()
        told, tell = os.pipe()
        if (child := os.fork()) == 0:
            try:
                STRANGER.become()
                fd = os.open(path, os.O_WRONLY)
                os.write(fd, b"before")
                os.write(tell, b"1")
                os.read(reading, 1)
                os.write(fd, b"after")
                os.write(tell, b"2")
            finally:
                os._exit(0)
        assert os.read(told, 1) == b"1"
        setting(path).chmod(mode)
        assert stat.S_IMODE(below(mount, path).stat().st_mode) == mode
        os.write(writing, b"1")
        assert os.read(told, 1) == b"2"
        assert stat.S_IMODE(below(mount, path).stat().st_mode) == 0o777
        os.waitpid(child, 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
        for fd in (reading, writing, told, tell):
            os.close(fd)


def test_capabilities_are_taken_by_whoever_writes(mount: Mount, here: Path) -> None:
    for caller in CALLERS:
        for what in ("write", "splice", "ftruncate", "copy_file_range"):
            path = _make(here / "f", 0o777)
            (here / "source").write_bytes(b"s" * 100)
            os.setxattr(below(mount, path), "security.capability", _CAPABILITY)
            assert _tell(caller, _written(path, os.O_RDWR, WRITES[what])) in (None, 1, 100)
            assert "security.capability" not in os.listxattr(below(mount, path)), (caller.name, what)
            path.unlink()


def test_writing_asks_the_daemon_nothing(mount: Mount, here: Path, request: pytest.FixtureRequest) -> None:
    """With passthrough. Before each write the kernel would ask for `security.capability`, if it took set-id bits."""
    if request.node.callspec.params["mount"] != "on":
        return  # each write is a request
    writes = 200
    with open(here / "f", "wb", buffering=0) as file:
        file.write(b"first")
        before = _reads(mount)
        for _ in range(writes):
            file.write(b"x" * 4096)
        assert _reads(mount) - before < writes / 4


def _reads(mount: Mount) -> int:
    """How often the daemon called read(2) and its like (proc(5)): at least once for each request."""
    lines = Path(f"/proc/{mount.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["syscr"])
