"""A person at a shell and the programs they run: random changes of a tree, and what inotify would have said of them."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import socket
import stat as stat_
from collections.abc import Callable

from tests.support.oracle import walk
from tests.support.worlds import Hint

NAMES = [b"a", b"b", b"c", b"d", b"e\xff", b"f~", b"f"]
ODD = [
    b"\n", b"\x7f\x01", b" ", b"-", b"~$f", b".~lock.f#", b"Cargo.lock", b"x.flock", b".Trash", b"n" * 255, b"*?[",
    "e\u0301".encode(), "\u00e9".encode(), b"con", b"%2f", b"a;b&c=<>\"'", b".fsd.", b"\xed\xa0\x80",
]  # fmt: skip
LABEL = "user.fsd.id"
_libc = ctypes.CDLL(None, use_errno=True)


class Shell:
    """Changes the tree below `root`; `heard` collects (directory, name), name None for the whole directory.

    `outside` is a directory beside the tree, for backups and for what comes from elsewhere. What fails fails.
    """

    def __init__(self, root: bytes, chance: random.Random, outside: bytes) -> None:
        self.root, self.random, self.outside = os.path.realpath(root), chance, outside
        self.heard: list[Hint] = []
        self.done: list[str] = []
        self._saved = 0
        self._operations: list[Callable[[], None]] = [
            *(self.write, self.write, self.edit, self.edit, self.mkdir, self.mkdir, self.move, self.move),
            *(self.remove, self.replace, self.backup, self.link, self.copy, self.symlink, self.chmod),
            *(self.copy_tree, self.touch_back, self.exchange, self.special, self.odd_name, self.strip),
            *(self.relabel, self.save_outside, self.restore, self.reuse, self.come_back),
        ]

    # -- paths

    def path(self, depth: int = 4) -> bytes:
        return b"/".join(self.random.choice(NAMES) for _ in range(self.random.randint(1, depth)))

    def existing(self) -> bytes:
        """Some path that is there."""
        paths = sorted(path for path in walk(self.root) if path)
        return self.random.choice(paths) if paths else self.path(1)

    def directory(self) -> bytes:
        """Some directory that is there; the root too."""
        return self.random.choice(sorted(path for path, item in walk(self.root).items() if item.kind == "d"))

    def at(self, path: bytes) -> bytes:
        """Where it is; OSError if the way there leads through a link: what is done there is not done here."""
        place = os.path.join(self.root, path)
        if os.path.realpath(os.path.dirname(place)) != os.path.dirname(place):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), place)
        return place

    def is_file(self, path: bytes) -> bool:
        return stat_.S_ISREG(os.lstat(self.at(path)).st_mode)

    def hear(self, *paths: bytes) -> None:
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            self.heard.append((parent, name))
            if os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):
                # A new directory is listed by whoever begins to watch it, and so is all below it.
                below = (directory for directory, _, _ in os.walk(self.at(path)))
                self.heard += [(directory[len(self.root) + 1 :], None) for directory in below]

    def step(self) -> str | None:
        """One random change; its name, None if it was refused."""
        operation = self.random.choice(self._operations)
        try:
            operation()
        except (OSError, shutil.Error):
            self.hear(
                *sorted(path for path in walk(self.root) if path.count(b"/") < 1)
            )  # a part of it may be done
            return None
        self.done.append(operation.__name__)
        return operation.__name__

    def _file(self, path: bytes, mode: str = "wb") -> None:
        if os.path.lexists(self.at(path)) and not self.is_file(path):
            return
        with open(self.at(path), mode) as file:
            file.write(self.random.randbytes(self.random.randrange(2000)))

    # -- plain ones

    def write(self) -> None:
        path = self.path()
        self._file(path)
        self.hear(path)

    def edit(self) -> None:
        path = self.existing()
        self._file(path, self.random.choice(["ab", "r+b"]))
        self.hear(path)

    def mkdir(self) -> None:
        path = self.path()
        os.makedirs(self.at(path))
        first = path.split(b"/")
        self.hear(*(b"/".join(first[: depth + 1]) for depth in range(len(first))))

    def move(self) -> None:
        source, target = self.existing(), self.path()
        os.rename(self.at(source), self.at(target))
        self.hear(source, target)

    def remove(self) -> None:
        path = self.existing()
        if os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):
            shutil.rmtree(self.at(path))
        else:
            os.unlink(self.at(path))
        self.hear(path)

    def chmod(self) -> None:
        path = self.existing()
        if not os.path.islink(self.at(path)):
            os.chmod(self.at(path), self.random.choice([0o644, 0o755, 0o000]))
            self.hear(path)

    def touch_back(self) -> None:
        """An edit that leaves size and mtime as they were."""
        path = self.existing()
        if self.is_file(path):
            before = os.stat(self.at(path))
            with open(self.at(path), "r+b") as file:
                file.write(self.random.randbytes(before.st_size))
            os.utime(self.at(path), ns=(before.st_atime_ns, before.st_mtime_ns))
            self.hear(path)

    # -- saving

    def replace(self) -> None:
        path = self.existing()
        if self.is_file(path):
            self._file(path + b".tmp")
            self.hear(path + b".tmp")
            os.replace(self.at(path + b".tmp"), self.at(path))
            self.hear(path + b".tmp", path)

    def backup(self) -> None:
        path = self.existing()
        if self.is_file(path):
            os.replace(self.at(path), self.at(path + b"~"))
            self.hear(path, path + b"~")
            self._file(path)
            self.hear(path)

    def exchange(self) -> None:
        """Two names swapped at once (renameat2(2))."""
        one, two = self.existing(), self.existing()
        if one.startswith(two) or two.startswith(one):
            return
        if _libc.renameat2(-100, self.at(one), -100, self.at(two), 2) == 0:
            self.hear(one, two)

    def reuse(self) -> None:
        """Deleted and made again: the inode number may come back at once."""
        path = self.existing()
        if self.is_file(path):
            os.unlink(self.at(path))
            self.hear(path)
            other = path + b"2"
            self._file(other)
            self.hear(other)

    # -- copies, links, labels

    def link(self) -> None:
        source, target = self.existing(), self.path()
        os.link(self.at(source), self.at(target), follow_symlinks=False)
        self.hear(source, target)

    def symlink(self) -> None:
        path = self.path()
        target = self.random.choice(
            [b"nowhere", b"/proc/version", b".", b"..", b"/proc", path.rpartition(b"/")[2]]
        )
        os.symlink(target, self.at(path))
        self.hear(path)

    def copy(self) -> None:
        """With its attributes, as `cp -a`."""
        source, target = self.existing(), self.path()
        if not os.path.lexists(self.at(target)) and self.is_file(source):
            shutil.copy2(self.at(source), self.at(target))
            self.hear(target)

    def copy_tree(self) -> None:
        source, target = self.existing(), self.path()
        if (
            not os.path.isdir(self.at(source))
            or os.path.islink(self.at(source))
            or os.path.lexists(self.at(target))
        ):
            return
        if target.startswith(source + b"/") or any(
            stat_.S_ISFIFO(os.lstat(os.path.join(top, name)).st_mode)
            for top, _, names in os.walk(self.at(source))
            for name in names
        ):
            return
        shutil.copytree(self.at(source), self.at(target), symlinks=True)
        self.hear(target)

    def strip(self) -> None:
        path = self.existing()
        os.removexattr(self.at(path), LABEL, follow_symlinks=False)
        self.hear(path)

    def relabel(self) -> None:
        """By hand: another node's label, or rubbish."""
        path, other = self.existing(), self.existing()
        if os.path.islink(self.at(path)):
            return
        label = self.random.choice([b"rubbish", b"1:" + b"0" * 32 + b":" + b"0" * 16 + b":7"])
        if self.random.random() < 0.7:
            label = os.getxattr(self.at(other), LABEL, follow_symlinks=False)
        os.setxattr(self.at(path), LABEL, label, follow_symlinks=False)
        self.hear(path)

    # -- to and from elsewhere

    def save_outside(self) -> None:
        """A backup with attributes."""
        path = self.existing()
        self._saved += 1
        target = os.path.join(self.outside, b"%d" % self._saved)
        if self.is_file(path):
            shutil.copy2(self.at(path), target)
        elif os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):
            shutil.copytree(self.at(path), target, symlinks=True, ignore=_no_fifos)

    def restore(self) -> None:
        """A backup comes back, over something or beside it."""
        saved = sorted(os.listdir(self.outside))
        if not saved:
            return
        source = os.path.join(self.outside, self.random.choice(saved))
        target = self.random.choice([self.existing(), self.path()])
        if os.path.isdir(source) and not os.path.islink(self.at(target)):
            shutil.copytree(source, self.at(target), symlinks=True, dirs_exist_ok=True, copy_function=_copy)
        elif not os.path.isdir(source) and not os.path.isdir(self.at(target)):
            _copy(source, self.at(target))
        self.hear(target)

    def come_back(self) -> None:
        """Moved out of the space, and in again at another place: the same node."""
        path, target = self.existing(), self.path()
        if os.path.lexists(self.at(target)) or not os.path.isdir(os.path.dirname(self.at(target))):
            return
        away = os.path.join(self.outside, b"away")
        os.rename(self.at(path), away)
        try:
            os.rename(away, self.at(target))
        except OSError:
            os.rename(away, self.at(path))
        self.hear(path, target)

    # -- what is no file

    def special(self) -> None:
        path = self.path(2)
        kind = self.random.choice(["fifo", "socket", "device"])
        if kind == "fifo":
            os.mkfifo(self.at(path))
        elif kind == "device":
            os.mknod(self.at(path), 0o600 | stat_.S_IFCHR, os.makedev(1, 3))
        else:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(self.at(path))
        self.hear(path)

    def odd_name(self) -> None:
        parent, name = self.directory(), self.random.choice(ODD)
        path = parent + b"/" + name if parent else name
        if self.random.random() < 0.3:
            os.mkdir(self.at(path))
        else:
            self._file(path)
        self.hear(path)


def _copy(source: bytes, target: bytes) -> None:
    """Over a link, not through it."""
    if os.path.islink(target):
        os.unlink(target)
    if _looks_like_chmod(source, target):
        raise OSError(errno.EINVAL, "Nobody could tell this from a chmod(1)", target)
    shutil.copy2(source, target, follow_symlinks=False)


def _looks_like_chmod(source: bytes, target: bytes) -> bool:
    """Other content, same size and mtime, another mode: what docs/formats.md says not to be noticed."""
    try:
        one, two = os.lstat(source), os.lstat(target)
    except OSError:
        return False
    same = (one.st_size, one.st_mtime_ns) == (two.st_size, two.st_mtime_ns)
    return same and one.st_mode != two.st_mode and stat_.S_ISREG(two.st_mode)


def _no_fifos(directory: bytes, names: list[bytes]) -> list[bytes]:
    plain = (stat_.S_IFREG, stat_.S_IFDIR, stat_.S_IFLNK)
    return [
        name for name in names if stat_.S_IFMT(os.lstat(os.path.join(directory, name)).st_mode) not in plain
    ]
