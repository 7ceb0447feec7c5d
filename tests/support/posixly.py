"""What each call answers and changes, for every kind of object, name and caller: the same table is played on two
filesystems, and they have to agree (POSIX and Linux's man pages, as the filesystem of the disk interprets them).

A case is one call by one caller in a small world of its own. All worlds are made first, then all calls are done in a
process with the caller's ids, then all worlds are looked at. So hardly anything is waited for.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsd.core.syscalls import rename_exchange, rename_noreplace
from tests.support.waiting import wait_for

OWNER, OTHER, GROUP = 65534, 65531, 65532
LONG, TOO_LONG = "n" * 255, "n" * 256
PATH_MAX = 4096
_OLD = 10**18
"""The times of everything in a world before its call, ns."""


@dataclass(frozen=True)
class Caller:
    """Who calls."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def become(self) -> None:
        """For good, in a process of its own."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


ROOT = Caller("root", 0, 0)
OWNING = Caller("owner", OWNER, OWNER, (GROUP,))
STRANGER = Caller("other", OTHER, OTHER)


def _file(path: str, mode: int = 0o644, uid: int = OWNER, gid: int = OWNER, data: bytes = b"hello") -> None:
    with open(path, "wb") as file:
        file.write(data)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def _dir(path: str, mode: int = 0o755, uid: int = OWNER, gid: int = OWNER) -> None:
    os.mkdir(path)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def _node(path: str, kind: int, device: int = 0) -> None:
    os.mknod(path, kind | 0o644, device)
    os.chown(path, OWNER, OWNER)


def _link(target: str, path: str) -> None:
    os.symlink(target, path)
    os.lchown(path, OWNER, OWNER)


def _with(*steps: Callable[[], None]) -> Callable[[], None]:
    def make() -> None:
        for step in steps:
            step()

    return make


OBJECTS: dict[str, Callable[[], None]] = {
    "f": lambda: _file("f"),
    "foreign": lambda: _file("foreign", uid=0, gid=0),
    "locked": lambda: _file("locked", 0),
    "setid": lambda: _file("setid", 0o6755),
    "opensetid": lambda: _file("opensetid", 0o6777, gid=GROUP),
    "lockid": lambda: _file("lockid", 0o2666, gid=GROUP),
    "twin": _with(lambda: _file("twin"), lambda: os.link("twin", "twin2")),
    "d": lambda: _dir("d"),
    "full": _with(lambda: _dir("full"), lambda: _file("full/x"), lambda: _dir("full/e")),
    "fifo": lambda: _node("fifo", stat.S_IFIFO),
    "sock": lambda: _node("sock", stat.S_IFSOCK),
    "chr": lambda: _node("chr", stat.S_IFCHR, os.makedev(1, 3)),
    "sym": _with(lambda: _file("f"), lambda: _link("f", "sym")),
    "dang": lambda: _link("nowhere", "dang"),
    "loop1": _with(lambda: _link("loop2", "loop1"), lambda: _link("loop1", "loop2")),
    "symd": _with(lambda: _dir("d"), lambda: _link("d", "symd")),
    "sticky": _with(
        lambda: _dir("sticky", 0o1777, 0, 0),
        lambda: _file("sticky/mine"),
        lambda: _file("sticky/theirs", 0o666, 0, 0),
        lambda: _dir("sticky/dmine"),
        lambda: _dir("sticky/dtheirs", 0o777, 0, 0),
    ),
    "ro": _with(lambda: _dir("ro", 0o555, 0, 0), lambda: _file("ro/x"), lambda: _dir("ro/d")),
    "nox": _with(lambda: _dir("nox", 0o666), lambda: _file("nox/x")),
    "private": _with(lambda: _dir("private", 0o700), lambda: _file("private/x", 0o666)),
    "sg": lambda: _dir("sg", 0o2777, 0, GROUP),
    "sgmine": lambda: _dir("sgmine", 0o2755, OWNER, GROUP),
}

PATHS = (
    "f foreign locked setid opensetid lockid twin d full fifo sock chr sym dang loop1 symd missing "
    "f/x missing/x loop1/x dang/x sym/x symd/x sticky/mine sticky/theirs sticky/dmine sticky/dtheirs sticky/new "
    "ro/x ro/d ro/new nox/x nox/new private/x private/new sg sg/new sgmine full/x full/e d/. d/.. full/. . .. "
    "f/ d/ full/ missing/ sym/ symd/ dang/"
).split() + [
    "",
    LONG,
    TOO_LONG,
    f"d/{LONG}",
    f"d/{TOO_LONG}",
    "d/" * (PATH_MAX // 2 - 1),
    "d/" * (PATH_MAX // 2) + "x",
]

PAIRED = (
    "f foreign twin twin2 d full full/x full/e fifo sym dang symd loop1 missing f/x missing/x "
    "sticky/mine sticky/theirs sticky/dmine sticky/dtheirs sticky/new ro/x ro/d ro/new private/x private/new sg/new "
    "d/. .. . d/ full/ missing/ sym/ d/new full/e/new"
).split() + [TOO_LONG]


def _open(path: str, flags: int, mode: int = 0o666) -> Any:
    fd = os.open(path, flags | os.O_NONBLOCK, mode)
    os.close(fd)


def _write(path: str, flags: int = 0) -> Any:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags)
    try:
        return os.write(fd, b"x")
    finally:
        os.close(fd)


def _read(path: str) -> Any:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 10)
    finally:
        os.close(fd)


def _masked(call: Callable[[str], Any]) -> Callable[[str], Any]:
    def masked(path: str) -> Any:
        before = os.umask(0o027)
        try:
            return call(path)
        finally:
            os.umask(before)

    return masked


def _ftruncate(path: str, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _link_following(path: str, new: str) -> None:
    here = os.open(".", os.O_PATH)  # with a descriptor os.link really follows
    try:
        os.link(path, new, dst_dir_fd=here, follow_symlinks=True)
    finally:
        os.close(here)


CALLS: dict[str, Callable[[str], Any]] = {
    "open read": lambda path: _open(path, os.O_RDONLY),
    "open write": lambda path: _open(path, os.O_WRONLY),
    "open both": lambda path: _open(path, os.O_RDWR),
    "open truncating": lambda path: _open(path, os.O_WRONLY | os.O_TRUNC),
    "open truncating to read": lambda path: _open(path, os.O_RDONLY | os.O_TRUNC),
    "open creating": lambda path: _open(path, os.O_WRONLY | os.O_CREAT),
    "open creating to read": lambda path: _open(path, os.O_RDONLY | os.O_CREAT, 0o444),
    "open creating without rights": lambda path: _open(path, os.O_RDWR | os.O_CREAT, 0),
    "open creating with setid": lambda path: _open(path, os.O_WRONLY | os.O_CREAT, 0o6777),
    "open creating anew": lambda path: _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open creating, masked": _masked(lambda path: _open(path, os.O_WRONLY | os.O_CREAT)),
    "open creating and truncating": lambda path: _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "open directory": lambda path: _open(path, os.O_RDONLY | os.O_DIRECTORY),
    "open directory, creating": lambda path: _open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CREAT),
    "open no link": lambda path: _open(path, os.O_RDONLY | os.O_NOFOLLOW),
    "open no link, creating": lambda path: _open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW),
    "open as a path": lambda path: _open(path, os.O_PATH | os.O_NOFOLLOW),
    "open without atime": lambda path: _open(path, os.O_RDONLY | os.O_NOATIME),
    "open unnamed": lambda path: _open(path, os.O_WRONLY | os.O_TMPFILE),
    "write": _write,
    "append": lambda path: _write(path, os.O_APPEND),
    "read": _read,
    "mkdir": lambda path: os.mkdir(path, 0o777),
    "mkdir with setid": lambda path: os.mkdir(path, 0o7777),
    "mkdir, masked": _masked(lambda path: os.mkdir(path, 0o777)),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "symlink": lambda path: os.symlink("f", path),
    "symlink of nothing": lambda path: os.symlink("", path),
    "symlink, long": lambda path: os.symlink("t" * 4095, path),
    "symlink, too long": lambda path: os.symlink("t" * 4096, path),
    "mkfifo": lambda path: os.mkfifo(path, 0o644),
    "mkfifo, masked": _masked(lambda path: os.mkfifo(path, 0o666)),
    "mknod file": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "mknod socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "mknod character": lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
    "mknod block": lambda path: os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(8, 1)),
    "mknod directory": lambda path: os.mknod(path, stat.S_IFDIR | 0o644),
    "chmod": lambda path: os.chmod(path, 0o640),
    "chmod setid": lambda path: os.chmod(path, 0o6755),
    "chmod sticky": lambda path: os.chmod(path, 0o1777),
    "chown to nobody": lambda path: os.chown(path, -1, -1),
    "chown to the owner": lambda path: os.chown(path, OWNER, -1),
    "chown to the group": lambda path: os.chown(path, -1, GROUP),
    "chown to root": lambda path: os.chown(path, 0, 0),
    "lchown to the group": lambda path: os.lchown(path, -1, GROUP),
    "lchown to root": lambda path: os.lchown(path, 0, 0),
    "utime now": lambda path: os.utime(path),
    "utime then": lambda path: os.utime(path, ns=(_OLD + 5, _OLD + 7)),
    "utime of a link": lambda path: os.utime(path, ns=(_OLD + 5, _OLD + 7), follow_symlinks=False),
    "truncate": lambda path: os.truncate(path, 3),
    "truncate to nothing": lambda path: os.truncate(path, 0),
    "truncate to the same": lambda path: os.truncate(path, 5),
    "truncate to more": lambda path: os.truncate(path, 10_000),
    "truncate to less than nothing": lambda path: os.truncate(path, -1),
    "truncate to too much": lambda path: os.truncate(path, 1 << 62),
    "ftruncate": lambda path: _ftruncate(path, 3),
    "ftruncate to the same": lambda path: _ftruncate(path, 5),
    "stat": lambda path: _shape(os.stat(path)),
    "lstat": lambda path: _shape(os.lstat(path)),
    "readlink": os.readlink,
    "access to read": lambda path: os.access(path, os.R_OK),
    "access to write": lambda path: os.access(path, os.W_OK),
    "access to execute": lambda path: os.access(path, os.X_OK),
    "list": lambda path: (
        sorted(os.listdir(path)) if path not in (".", "..", "d/..") else os.listdir(path) and None
    ),
    "go there": lambda path: os.close(os.open(path + "/.", os.O_PATH)),
    "set an attribute": lambda path: os.setxattr(path, "user.a", b"1"),
    "set an attribute anew": lambda path: os.setxattr(path, "user.a", b"1", os.XATTR_CREATE),
    "set an attribute again": lambda path: os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE),
    "set an attribute of a link": lambda path: os.setxattr(path, "user.a", b"1", follow_symlinks=False),
    "set an attribute, trusted": lambda path: os.setxattr(path, "trusted.a", b"1"),
    "set an attribute, unknown": lambda path: os.setxattr(path, "other.a", b"1"),
    "set an attribute, nameless": lambda path: os.setxattr(path, "user.", b"1"),
    "set an attribute, long": lambda path: os.setxattr(path, "user." + "a" * 251, b"1"),
    "get an attribute": lambda path: os.getxattr(path, "user.a"),
    "list attributes": lambda path: sorted(os.listxattr(path)),
    "link": lambda path: os.link(path, "new", follow_symlinks=False),
    "link, following": lambda path: _link_following(path, "new"),
    "rename": lambda path: os.rename(path, "new"),
}


def _by_descriptor(call: Callable[[int, bytes, int, bytes], None]) -> Callable[[str, str], None]:
    def renamed(one: str, other: str) -> None:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            call(here, one.encode(), here, other.encode())
        finally:
            os.close(here)

    return renamed


PAIR_CALLS: dict[str, Callable[[str, str], Any]] = {
    "rename to": os.rename,
    "link to": lambda one, other: os.link(one, other, follow_symlinks=False),
    "rename, not over": _by_descriptor(rename_noreplace),
    "exchange with": _by_descriptor(rename_exchange),
}


@dataclass(frozen=True)
class Case:
    """One call by one caller. `title` is unique."""

    caller: Caller
    call: str
    paths: tuple[str, ...]

    @property
    def title(self) -> str:
        """As a sentence."""
        return f"{self.caller.name}: {self.call} {' '.join(_short(path) for path in self.paths)}"

    def needs(self) -> list[str]:
        """The objects that its paths lead to, in order."""
        firsts = [path.split("/")[0] for path in self.paths]
        names = [{"twin2": "twin"}.get(name, name) for name in firsts]
        wanted = [name for name in OBJECTS if name in names]
        covered = {"sym": "f", "symd": "d"}
        return [name for name in wanted if not any(covered.get(each) == name for each in wanted)]

    def do(self) -> Any:
        """The call; what it returns."""
        if len(self.paths) == 1:
            return CALLS[self.call](self.paths[0])
        return PAIR_CALLS[self.call](*self.paths)


def _short(path: str) -> str:
    return path if len(path) < 40 else f"{path[:4]}…({len(path)})"


def cases() -> list[Case]:
    """The whole table."""
    table = [
        Case(caller, call, (path,)) for caller in (ROOT, OWNING, STRANGER) for call in CALLS for path in PATHS
    ]
    table += [
        Case(caller, call, (one, other))
        for caller in (ROOT, OWNING)
        for call in PAIR_CALLS
        for one in PAIRED
        for other in PAIRED
    ]
    return table


@dataclass
class Outcome:
    """What a call returned or why it failed, and what of its world is another thing afterwards."""

    answer: Any
    state: dict[str, Any] = field(default_factory=dict)


def _shape(found: os.stat_result) -> tuple[object, ...]:
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
    return oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, size, found.st_rdev


def _walk(world: Path) -> dict[str, os.stat_result]:
    """All that is in a world, and the world, by path."""
    found = {".": os.lstat(world)}
    for base, directories, files in os.walk(world):
        for name in directories + files:
            path = os.path.join(base, name)
            found[os.path.relpath(path, world)] = os.lstat(path)
    return found


def _age(world: Path) -> None:
    for base, directories, files in os.walk(world, topdown=False):
        for name in directories + files:
            os.utime(os.path.join(base, name), ns=(_OLD, _OLD), follow_symlinks=False)
    os.utime(world, ns=(_OLD, _OLD))


def _clock(place: Path) -> int:
    """The time that the filesystem would give to a change, ns."""
    os.utime(place)
    return os.stat(place).st_ctime_ns


def _answers(caller: Caller, table: list[Case], worlds: list[Path]) -> list[Any]:
    """Do the calls in a process that is the caller's."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reading)
            os.umask(0)
            here = [os.open(world, os.O_PATH) for world in worlds]
            caller.become()
            told = []
            for case, fd in zip(table, here, strict=True):
                os.fchdir(fd)
                try:
                    told.append(case.do())
                except OSError as error:
                    told.append(errno.errorcode.get(error.errno or 0, str(error)))
            with open(writing, "wb") as pipe:
                pickle.dump(told, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer: list[Any] = pickle.load(pipe)
    os.waitpid(child, 0)
    return answer


def play(place: Path, table: list[Case], beneath: Callable[[Path], Path] | None = None) -> dict[str, Outcome]:
    """Play the table in a directory; outcomes by title. `beneath`: where the same is on disk: what is shown here after
    the calls must be what is there, to the nanosecond (AssertionError).

    A table of thousands wants as many descriptors as it has worlds; callers give portions."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o755)
    worlds, before = [], []
    home = os.getcwd()
    for number, case in enumerate(table):
        world = place / str(number)
        world.mkdir()
        world.chmod(0o777)
        os.chdir(world)
        for name in case.needs():
            OBJECTS[name]()
        _age(world)
        worlds.append(world)
    os.chdir(home)
    before = [_walk(world) for world in worlds]
    latest = max(each.st_ctime_ns for found in before for each in found.values())
    wait_for(lambda: _clock(place) > latest, every=0.001, what="the next tick")
    outcomes = {}
    callers = list(dict.fromkeys(case.caller for case in table))
    answers: dict[int, Any] = {}
    for caller in callers:
        mine = [number for number, case in enumerate(table) if case.caller == caller]
        told = _answers(caller, [table[n] for n in mine], [worlds[n] for n in mine])
        answers.update(zip(mine, told, strict=True))
    for number, case in enumerate(table):
        after = _walk(worlds[number])
        outcomes[case.title] = Outcome(answers[number], _differences(before[number], after))
        if beneath is not None:
            there = _walk(beneath(worlds[number]))
            shown = {path: _exact(each) for path, each in after.items()}
            kept = {path: _exact(each) for path, each in there.items()}
            assert shown == kept, f"{case.title}: shown {shown}, on disk {kept}"
    return outcomes


def _exact(found: os.stat_result) -> tuple[object, ...]:
    return (*_shape(found), found.st_mtime_ns, found.st_ctime_ns, found.st_blocks)


def _differences(before: dict[str, os.stat_result], after: dict[str, os.stat_result]) -> dict[str, Any]:
    """By path what is new, gone or another thing; of the times only whether they are other ones."""
    found: dict[str, Any] = dict.fromkeys(before.keys() - after.keys(), "gone")
    for path, now in after.items():
        was = before.get(path)
        times = "" if was is None else _moved(was, now)
        if was is None or times or _shape(was) != _shape(now):
            found[path] = (*_shape(now), times)
    return found


def _moved(was: os.stat_result, now: os.stat_result) -> str:
    """Which times are other ones; that of reading says nothing of a directory, as it was looked at."""
    pairs = (
        ("a", was.st_atime_ns, now.st_atime_ns),
        ("m", was.st_mtime_ns, now.st_mtime_ns),
        ("c", was.st_ctime_ns, now.st_ctime_ns),
    )
    return "".join(
        letter
        for letter, one, other in pairs
        if one != other and not (letter == "a" and stat.S_ISDIR(now.st_mode))
    )


KNOWN: dict[str, Callable[[Case], bool]] = {
    "the mount has no devices": lambda case: "chr" in case.paths and case.call.split()[0] in _OPENING,
}
"""What differs and is documented so (docs/compliance.md)."""
KNOWN_WITH_SHIM: dict[str, Callable[[Case], bool]] = {
    "a stranger's chown to nobody is refused by nobody, and does nothing": lambda case: (
        case.caller == STRANGER and case.call == "chown to nobody" and case.paths[0].rstrip("/") in _SET_ID
    ),
}
KNOWN_WITHOUT_SHIM: dict[str, Callable[[Case], bool]] = {
    "the kernel leaves the bit of what only its group executes not": lambda case: (
        case.caller == STRANGER and case.paths == ("lockid",) and case.call in ("write", "append")
    ),
}
_SET_ID = ("setid", "opensetid", "lockid")
_OPENING = ("open", "write", "append", "read", "ftruncate")
