"""Random histories of a tree: operations on disk and over WebDAV, from one seed each.

Files carry content that proves itself (`content`, `whole`), so that a half-written or mixed one is noticed.
Operations may lose races against each other; what they may not do is leave the tree half-done.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import stat as stat_
from collections.abc import Callable

from fsd.core.syscalls import rename_exchange
from tests.support.davclient import Dav

NAMES = [b"a", b"b", b"c", b"d e", b"e%3f", b"f\xc3\xbc", b"g.txt", b"h.txt"]
RAW_NAMES = [*NAMES, b"odd\xff", b"new\nline"]
# What a request may answer when others change the same tree, or a process of the server was just killed.
LOST_RACES = {201, 204, 207, 200, 400, 403, 404, 405, 409, 412, 423, 503}


def content(token: int, size: int) -> bytes:
    """Bytes that say themselves what they should be."""
    body = (b"%d," % token) * (size // 4 + 1)
    body = body[:size]
    return b"%d:%s:" % (len(body), hashlib.sha1(body).hexdigest().encode()) + body


def whole(data: bytes) -> bool:
    """Whether the bytes are one write's, all of them. Empty ones are (a file that was just made)."""
    if not data:
        return True
    length, _, rest = data.partition(b":")
    digest, _, body = rest.partition(b":")
    return length.isdigit() and int(length) == len(body) and hashlib.sha1(body).hexdigest().encode() == digest


class Player:
    """Picks paths and counts; one per thread."""

    def __init__(self, seed: str, names: list[bytes]) -> None:
        self.random = random.Random(seed)
        self.names = names
        self.log: list[str] = []
        self.done = 0

    def path(self, depth: int = 4) -> bytes:
        """A path that may or may not exist."""
        return b"/".join(self.random.choice(self.names) for _ in range(self.random.randint(1, depth)))

    def fresh(self, most: int = 70_000) -> bytes:
        """Content of its own, mostly small."""
        size = min(most, self.random.choice([0, 1, 10, 100, 1000, 5000, 70_000]))
        return content(self.random.getrandbits(48), size)


# What is written in place stays within one page: a copy made meanwhile has the old bytes, none, or all the new ones.
IN_PLACE = 3000


class OnDisk(Player):
    """Operations a shell would do, each on whatever stands there."""

    def __init__(self, seed: str, root: bytes) -> None:
        super().__init__(seed, RAW_NAMES)
        self.root = root

    def at(self, path: bytes) -> bytes:
        """The absolute path."""
        return self.root + b"/" + path

    def step(self) -> None:
        """One operation; losing a race is fine."""
        operation = self.random.choice(
            [
                self.write,
                self.write,
                self.append,
                self.replace,
                self.backup,
                self.mkdir,
                self.mkdir,
                self.move,
            ]
            + [self.move, self.remove, self.copy, self.link, self.symlink, self.touch, self.chmod, self.fifo]
        )
        self.done += 1
        try:
            operation()
        except (OSError, shutil.Error) as error:
            self.log.append(f"disk {operation.__name__}: {error}")

    def write(self) -> None:
        path = self.at(self.path())
        if not os.path.lexists(path) or stat_.S_ISREG(os.lstat(path).st_mode):
            with open(path, "wb") as file:
                file.write(self.fresh(IN_PLACE))

    def append(self) -> None:
        """A log that grows: written whole each time, as its header says its length."""
        path = self.at(self.path())
        if stat_.S_ISREG(os.lstat(path).st_mode):
            with open(path, "r+b", buffering=0) as file:
                file.truncate(0)
                file.write(self.fresh(IN_PLACE))

    def replace(self) -> None:
        """Save by rename over."""
        path = self.at(self.path())
        with open(path + b".tmp", "wb") as file:
            file.write(self.fresh())
        try:
            os.replace(path + b".tmp", path)
        except OSError:
            os.unlink(path + b".tmp")
            raise

    def backup(self) -> None:
        """Save with a backup aside."""
        path = self.at(self.path())
        if stat_.S_ISREG(os.lstat(path).st_mode):
            os.rename(path, path + b"~")
            with open(path, "wb") as file:
                file.write(self.fresh(IN_PLACE))

    def mkdir(self) -> None:
        if self.random.random() < 0.5:
            os.makedirs(self.at(self.path()))
        else:
            os.mkdir(self.at(self.path()))

    def move(self) -> None:
        os.rename(self.at(self.path()), self.at(self.path()))

    def remove(self) -> None:
        path = self.at(self.path())
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)

    def copy(self) -> None:
        """As `cp -a` does, attributes and all."""
        source, target = self.at(self.path()), self.at(self.path())
        if os.path.lexists(target) or target.startswith(source + b"/"):
            return
        if os.path.isdir(source) and not os.path.islink(source):
            shutil.copytree(source, target, symlinks=True, ignore=_only_plain)
        elif os.path.isfile(source) and not os.path.islink(source):
            shutil.copy2(source, target)

    def link(self) -> None:
        source = self.at(self.path())
        if stat_.S_ISREG(os.lstat(source).st_mode):
            os.link(source, self.at(self.path()))

    def symlink(self) -> None:
        # Never a target outside: other operations follow it.
        os.symlink(self.random.choice([b"a", b"b", b"nowhere"]), self.at(self.path()))

    def touch(self) -> None:
        os.utime(self.at(self.path()), (1e9, self.random.randrange(10**9)), follow_symlinks=False)

    def chmod(self) -> None:
        path = self.at(self.path())
        if not os.path.islink(path):
            os.chmod(path, self.random.choice([0o600, 0o644, 0o755, 0o700]))

    def fifo(self) -> None:
        os.mkfifo(self.at(self.path()))


class ThroughMount(OnDisk):
    """The same through a mount, whose daemon may be killed under it; and what a disk has not, or has otherwise."""

    def __init__(self, seed: str, root: bytes) -> None:
        super().__init__(seed, root)
        self.more = [self.unnamed, self.mapped, self.exchange, self.listed, self.kept_open]

    def step(self) -> None:
        """One operation; in one of four cases one of those that go other ways through the mount."""
        if self.random.random() > 0.25:
            super().step()
            return
        operation = self.random.choice(self.more)
        self.done += 1
        try:
            operation()
        except OSError as error:
            self.log.append(f"mount {operation.__name__}: {error}")

    def copy(self) -> None:
        """Small files only: of a larger one a daemon's death leaves a part, as a disk's would."""
        source = self.at(self.path())
        if os.path.isfile(source) and os.lstat(source).st_size <= IN_PLACE:
            super().copy()

    def unnamed(self) -> None:
        """A file that gets its name when it is whole."""
        path = self.at(self.path())
        fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR)
        where = os.open(os.path.dirname(path), os.O_PATH)
        try:
            os.write(fd, self.fresh(IN_PLACE))
            os.link(b"/proc/self/fd/%d" % fd, os.path.basename(path), dst_dir_fd=where, follow_symlinks=True)
        finally:
            os.close(where)
            os.close(fd)

    def mapped(self) -> None:
        """Stores into a mapping; other bytes of the same length, in one page."""
        path = self.at(self.path())
        if not stat_.S_ISREG(os.lstat(path).st_mode):
            return
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            data = self.fresh(IN_PLACE)
            os.ftruncate(fd, 0)
            os.write(fd, data)
            with mmap.mmap(fd, len(data)) as memory:
                memory[:] = memory[:]
        finally:
            os.close(fd)

    def exchange(self) -> None:
        """Two names change places."""
        here = os.open(self.root, os.O_RDONLY)
        try:
            rename_exchange(here, self.path(), here, self.path())
        finally:
            os.close(here)

    def listed(self) -> None:
        """What others do must not end a listing."""
        for entry in os.scandir(self.at(self.path(2))):
            entry.stat(follow_symlinks=False)

    def kept_open(self) -> None:
        """Written to after its name is another one, or gone."""
        path = self.at(self.path())
        if os.path.lexists(path):
            return
        with open(path, "wb", buffering=0) as file:
            os.rename(path, other := self.at(self.path()))
            if self.random.random() < 0.5:
                os.unlink(other)
            file.write(self.fresh(IN_PLACE))


def _only_plain(directory: bytes | str, names: list[str]) -> set[str]:
    plain = (stat_.S_IFREG, stat_.S_IFDIR, stat_.S_IFLNK)
    return {
        name for name in names if stat_.S_IFMT(os.lstat(os.path.join(directory, name)).st_mode) not in plain
    }


class OverDav(Player):
    """Operations a client would do."""

    def __init__(self, seed: str, dav: Dav) -> None:
        super().__init__(seed, NAMES)
        self.dav = dav
        self.wrong: list[str] = []

    def step(self) -> None:
        """One operation; the server may have been killed under it."""
        operation: Callable[[], int] = self.random.choice(
            [self.put, self.put, self.put, self.mkcol, self.mkcol, self.move, self.move]
            + [self.copy, self.delete, self.look, self.look, self.read]
        )
        self.done += 1
        try:
            status = operation()
        except OSError as error:
            self.log.append(f"dav {operation.__name__}: {error}")
            return
        except Exception as error:  # http.client's own errors: the connection broke
            self.log.append(f"dav {operation.__name__}: {error!r}")
            return
        if status not in LOST_RACES:
            self.wrong.append(f"{operation.__name__} answered {status}")

    def put(self) -> int:
        return self.dav.request("PUT", self.path(), self.fresh()).status

    def mkcol(self) -> int:
        return self.dav.request("MKCOL", self.path()).status

    def _transfer(self, verb: str) -> int:
        headers = {"Destination": self.dav.url(self.path()), "Overwrite": self.random.choice("TF")}
        answer = self.dav.request(verb, self.path(), None, headers)
        if answer.status == 207:
            self.wrong.append(f"{verb} was done in part: {answer.body[:300]!r}")
        return answer.status

    def move(self) -> int:
        return self._transfer("MOVE")

    def copy(self) -> int:
        return self._transfer("COPY")

    def delete(self) -> int:
        return self.dav.request("DELETE", self.path()).status

    def look(self) -> int:
        return self.dav.request("PROPFIND", self.path(3), None, {"Depth": "1"}).status

    def read(self) -> int:
        """A file that is read while others write in place may be anything; one answer must be of one
        length."""
        return self.dav.request("GET", self.path()).status
