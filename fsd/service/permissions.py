"""Can the service, and the group of a space, use what others write into it? Each misfit with the command that mends it.

What is looked at is bounded: at most DIRECTORIES directories and FILES files, spread over the whole index (over the
disk, where the tree was never verified), for at most SECONDS; every finding says how many that were. What the mode bits
leave open (lists, capabilities) is asked of the kernel (faccessat2(2) with the effective ids).
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fsd.core import index, posixacl
from fsd.core.names import INTERNAL, join
from fsd.service.advice import Advice, Level, ok, problem, warning
from fsd.service.capabilities import has_capability

if TYPE_CHECKING:
    from fsd.core.space import Space, SpaceRecord

DIRECTORIES = 20_000
FILES = 20_000
SECONDS = 5.0
_SHOWN = 3
_LISTED = 5
"""So many paths are named in a command; more are left to find(1)."""


@dataclass(slots=True)
class _Misfit:
    """Paths of one kind, the first few of them by name."""

    count: int = 0
    first: list[bytes] = field(default_factory=list)

    def add(self, path: bytes) -> None:
        self.count += 1
        if len(self.first) < _LISTED:
            self.first.append(path)

    def examples(self) -> str:
        more = f" and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        return ", ".join(os.fsdecode(path) or "/" for path in self.first[:_SHOWN]) + more


@dataclass(slots=True)
class _Looked:
    """What was looked at, and what did not fit."""

    directories: int = 0
    of_directories: int = 0
    files: int = 0
    of_files: int = 0
    closed_dirs: _Misfit = field(default_factory=_Misfit)
    closed_files: _Misfit = field(default_factory=_Misfit)
    other_group: _Misfit = field(default_factory=_Misfit)
    no_setgid: _Misfit = field(default_factory=_Misfit)
    closed_to_group: _Misfit = field(default_factory=_Misfit)
    no_default: _Misfit = field(default_factory=_Misfit)
    narrow_default: _Misfit = field(default_factory=_Misfit)

    def text(self) -> str:
        return (
            f"looked at {self.directories} of {self.of_directories} directories and"
            f" {self.files} of {self.of_files} files"
        )


def probe(space: Space) -> Iterator[Advice]:
    """All about the permissions of one space that is there."""
    record = space.record
    name = f"space '{record.name}'"
    if os.statvfs(record.path).f_flag & os.ST_RDONLY and not record.read_only:
        found = "its filesystem is mounted read-only"
        yield problem(f"{name}, mount", found, f"mount -o remount,rw {_quoted(_mount_point(record.path))}")
        return
    gid = _group(record)
    looked = _look(space, gid)
    lists = record.read_only or _takes_lists(space)
    advices = list(_misfits(name, looked, _Mending(record.path, gid, lists), record))
    if not record.read_only:
        advices += _squashed(name, space)
        if gid is not None:
            advices += _way(name, record.path, gid)
            if not lists:
                advices.append(_no_lists(name))
    yield from advices
    if not advices:
        yield ok(f"{name}, permissions", looked.text())


def _group(record: SpaceRecord) -> int | None:
    """The group that writes into the space as well, None if there is none."""
    if record.gid is not None:
        return record.gid
    found = os.stat(record.path)
    return found.st_gid if found.st_mode & stat.S_ISGID else None


# -- looking


def _look(space: Space, gid: int | None) -> _Looked:
    looked, deadline = _Looked(), time.monotonic() + SECONDS
    for path, directory in _sample(space, looked):
        if time.monotonic() > deadline:
            break
        whole = space.root + b"/" + path if path else space.root
        try:
            found = os.lstat(whole)
        except OSError:
            continue
        if directory and stat.S_ISDIR(found.st_mode):
            looked.directories += 1
            _look_at_directory(looked, path, whole, found, gid, writable=not space.record.read_only)
        elif not directory and stat.S_ISREG(found.st_mode):
            looked.files += 1
            if not os.access(whole, os.R_OK, effective_ids=True):
                looked.closed_files.add(path)
            elif gid is not None:
                _look_at_group(looked, path, whole, found, gid, 6)
    return looked


def _look_at_directory(
    looked: _Looked, path: bytes, whole: bytes, found: os.stat_result, gid: int | None, *, writable: bool
) -> None:
    if not os.access(whole, os.R_OK | os.X_OK | (os.W_OK if writable else 0), effective_ids=True):
        looked.closed_dirs.add(path)
        return
    if not writable:
        return
    try:
        default = posixacl.read(whole, posixacl.DEFAULT)
    except OSError:
        return
    if gid is not None:
        _look_at_group(looked, path, whole, found, gid, 7)
        if not found.st_mode & stat.S_ISGID:
            looked.no_setgid.add(path)
        if default is None:
            looked.no_default.add(path)
        elif _of_group(default, gid) != 7 or not _service_may(default, gid):
            looked.narrow_default.add(path)
    elif _needs_lists() and found.st_uid != os.geteuid() and not _service_may(default or [], found.st_gid):
        (looked.no_default if default is None else looked.narrow_default).add(path)


def _look_at_group(
    looked: _Looked, path: bytes, whole: bytes, found: os.stat_result, gid: int, bits: int
) -> None:
    if found.st_gid != gid:
        looked.other_group.add(path)
    if not _group_may(whole, found, gid, bits):
        looked.closed_to_group.add(path)


def _needs_lists() -> bool:
    """Whether what others write may be closed to the service."""
    return not (has_capability("CAP_DAC_OVERRIDE") or has_capability("CAP_DAC_READ_SEARCH"))


def _service_may(default: list[posixacl.Entry], gid: int) -> bool:
    if not _needs_lists():
        return True
    if posixacl.permissions(default, posixacl.USER, os.geteuid()) == 7:
        return True
    groups = {os.getegid(), *os.getgroups()}
    inherited = gid in groups and posixacl.permissions(default, posixacl.GROUP_OBJ) == 7
    return inherited or any(posixacl.permissions(default, posixacl.GROUP, each) == 7 for each in groups)


def _of_group(entries: list[posixacl.Entry], gid: int) -> int:
    return posixacl.permissions(entries, posixacl.GROUP_OBJ) | posixacl.permissions(
        entries, posixacl.GROUP, gid
    )


def _group_may(whole: bytes, found: os.stat_result, gid: int, bits: int) -> bool:
    """Whether a member of the group may do this with a node that belongs to the group."""
    entries = posixacl.read(whole) if found.st_mode & 0o070 else None
    allowed = _of_group(entries, gid) if entries is not None else found.st_mode >> 3 & 7
    return allowed & bits == bits


def _sample(space: Space, looked: _Looked) -> Iterator[tuple[bytes, bool]]:
    """(path, whether it is a directory): spread over the index; from the disk while the index doesn't know the tree."""
    with space.index.read() as db:
        (complete,) = db.execute("SELECT complete FROM head").fetchone()
        if complete:
            kinds = dict(db.execute("SELECT kind, count(*) FROM node WHERE kind<2 GROUP BY kind").fetchall())
    if not complete:
        yield from _walk(space, looked)
        return
    looked.of_directories, looked.of_files = kinds.get(1, 0), kinds.get(0, 0)
    for kind, most in ((1, DIRECTORIES), (0, FILES)):
        step = -(-kinds.get(kind, 0) // most) or 1
        after = 0
        while True:
            with space.index.read() as db:
                query = "SELECT n FROM node WHERE n>? AND kind=? AND n % ? = 1 % ? ORDER BY n LIMIT 500"
                page = [n for (n,) in db.execute(query, (after, kind, step, step))]
                paths = [index.path_of(db, n) for n in page]
            yield from ((path, kind == 1) for path in paths if path is not None)
            if len(page) < 500:
                break
            after = page[-1]


def _walk(space: Space, looked: _Looked) -> Iterator[tuple[bytes, bool]]:
    waiting = [b""]
    while waiting and looked.directories < DIRECTORIES:
        path = waiting.pop()
        looked.of_directories += 1
        yield path, True
        try:
            with os.scandir(space.root + b"/" + path if path else space.root) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if path or entry.name != INTERNAL:
                            waiting.append(join(path, entry.name))
                    elif looked.files < FILES:
                        looked.of_files += 1
                        yield join(path, entry.name), False
        except OSError:
            continue


# -- saying


@dataclass(frozen=True, slots=True)
class _Mending:
    """The commands for one space."""

    root: bytes
    gid: int | None
    lists: bool

    def find(self, what: str, *does: str) -> str:
        """A command for everything in the tree but the internals."""
        root, inside = _quoted(self.root), _quoted(self.root + b"/" + INTERNAL)
        return f"find {root} -path {inside} -prune -o {what} " + " ".join(
            f"-exec {each} {{}} +" for each in does
        )

    def open(self, paths: list[bytes]) -> str:
        """Let the service use these directories and all below them."""
        uid = os.geteuid()
        if b"" not in paths and self.lists:
            whole = " ".join(_quoted(self.root + b"/" + path) for path in paths)
            return f"setfacl -R -m u:{uid}:rwX,d:u:{uid}:rwX -- {whole}"
        if self.lists:
            return self.everything(f"setfacl -m u:{uid}:rwx,d:u:{uid}:rwx", f"setfacl -m u:{uid}:rw")
        gid = os.getegid() if self.gid is None else self.gid
        return self.everything(f"chgrp {gid}", f"chgrp {gid}") + f" && {self.find('-true', 'chmod g+rwX')}"

    def everything(self, directories: str, files: str) -> str:
        """One command for directories, another for files."""
        return f"{self.find('-type d', directories)} -o -type f -exec {files} {{}} +"

    def group_access(self) -> str:
        """Let the group use what is there."""
        if self.lists:
            return self.everything("setfacl -m g::rwx", "setfacl -m g::rw")
        return self.find("-true", "chmod g+rwX")

    def default(self) -> str:
        """A default list for every directory."""
        if self.gid is None:
            uid = os.geteuid()
            return self.everything(f"setfacl -m u:{uid}:rwx,d:u:{uid}:rwx", f"setfacl -m u:{uid}:rw")
        service = f",d:u:{os.geteuid()}:rwx" if os.geteuid() else ""
        return self.find("-type d", f"setfacl -m d:u::rwx,d:g::rwx,d:o::---{service},d:m::rwx")


def _misfits(name: str, looked: _Looked, mending: _Mending, record: SpaceRecord) -> Iterator[Advice]:
    use = "read" if record.read_only else "read and change"
    group, service = mending.gid, "the service"
    table: tuple[tuple[str, Level, _Misfit, str, Callable[[], str]], ...] = (
        ("closed directories", "problem", looked.closed_dirs, f"directories that {service} can't {use}",
         lambda: mending.open(_listed(looked.closed_dirs))),
        ("closed files", "problem", looked.closed_files, f"files that {service} can't read",
         lambda: mending.open(_listed(looked.closed_files))),
        ("group", "warning", looked.other_group, f"entries of another group than {group}",
         lambda: mending.find(f"! -type l ! -gid {group}", f"chgrp {group}")),
        ("setgid", "warning", looked.no_setgid, "directories without setgid: what is made there gets its maker's group",
         lambda: mending.find("-type d ! -perm -2000", "chmod g+s")),
        ("group access", "warning", looked.closed_to_group, "entries closed to the group by the umask of their writers",
         mending.group_access),
        ("default ACL", "warning", looked.no_default,
         "directories without a default ACL: the umask of who writes there decides who can read it", mending.default),
        ("narrow default ACL", "warning", looked.narrow_default,
         f"directories whose default ACL leaves out the group or {service}", mending.default),
    )  # fmt: skip
    for kind, level, misfit, text, command in table:
        if misfit.count and (kind != "default ACL" or mending.lists):
            found = f"{misfit.count} {text} ({misfit.examples()}); {looked.text()}"
            yield Advice(f"{name}, {kind}", level, found, command())


def _listed(misfit: _Misfit) -> list[bytes]:
    """The paths to name, or the root for everything."""
    return misfit.first if misfit.count <= _LISTED else [b""]


def _quoted(path: bytes) -> str:
    return shlex.quote(os.fsdecode(path))


def _takes_lists(space: Space) -> bool:
    fd = space.open_internal("staging")
    try:
        posixacl.write(fd, posixacl.DEFAULT, posixacl.read(fd, posixacl.DEFAULT) or posixacl.shared(0o700))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    finally:
        os.close(fd)
    return True


def _no_lists(name: str) -> Advice:
    found = "its filesystem has no ACLs: the umask of who writes decides whether the group can use it"
    return warning(
        f"{name}, ACLs", found, "mount it with the option acl, or have everybody write with umask 002"
    )


def _squashed(name: str, space: Space) -> Iterator[Advice]:
    """Root on the client of a network filesystem may be nobody on its server."""
    fd = space.open_internal("staging")
    try:
        test = os.open(b".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=fd)
    except OSError:
        return
    finally:
        os.close(fd)
    try:
        uid = os.fstat(test).st_uid
    finally:
        os.close(test)
    if uid != os.geteuid():
        found = f"what the service makes belongs to uid {uid}, not to {os.geteuid()}: users are mapped (root_squash)"
        todo = "export it with no_root_squash, or run the server as the user who owns the tree"
        yield problem(f"{name}, mapped users", found, todo)


def _way(name: str, root: bytes, gid: int) -> Iterator[Advice]:
    """Members of the group have to get to the space."""
    above = os.path.dirname(root)
    while above != b"/":
        found = os.stat(above)
        group = found.st_gid == gid and found.st_mode & 0o010
        if not (found.st_mode & 0o001 or group or _of_group(posixacl.read(above) or [], gid) & 1):
            text = f"the group {gid} can't pass {os.fsdecode(above)}"
            yield warning(f"{name}, way", text, f"setfacl -m g:{gid}:x -- {_quoted(above)}")
        above = os.path.dirname(above)


def _mount_point(path: bytes) -> bytes:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
