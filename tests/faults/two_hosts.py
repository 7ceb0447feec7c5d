"""Two hosts over one tree, or over two, with a clock that both share: what tests of fencing stop, kill and compare."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from fsd.core import intents, lease
from fsd.core.lease import Host, Lease
from fsd.core.operations import replay
from fsd.core.space import Space
from tests.support import killpoints
from tests.support.killpoints import CHANGING
from tests.support.worlds import make_space

TTL = 4.0
SEEN = {number for number, name in CHANGING.items() if name.rstrip("2").removesuffix("at") in {
    "rename", "link", "unlink", "mkdir", "rmdir", "symlink", "mknod", "chmod", "fchmod", "chown", "fchown", "lchown",
    "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "utimens", "ftruncate",
}}  # fmt: skip
"""What others see of calls. Bytes are written into files that have no name, or in databases that are the host's own."""
Snapshot = dict[bytes, tuple[object, ...]]


class Clock:
    """One for both hosts, also across fork(2)."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 8)
        self.set(1000.0)

    def __call__(self) -> float:
        return float(struct.unpack("d", self._page[:8])[0])

    def set(self, now: float) -> None:
        self._page[:8] = struct.pack("d", now)


class World:
    """Two hosts over one tree; the first has the lease."""

    def __init__(self, base: Path, clock: Clock) -> None:
        self.base, self.clock = base, clock
        base.mkdir()
        clock.set(1000.0)
        self.one = make_space(base / "one")
        self.two = self._open("two")
        self._leases = [
            Lease(space, Host(name, "", TTL), lambda _old: None, clock=clock)
            for name, space in (("one", self.one), ("two", self.two))
        ]
        for held, space in zip(self._leases, (self.one, self.two), strict=True):
            lease.use(space.state_dir, held.host)
        assert self._leases[0].step() and not self._leases[1].step()

    def _open(self, name: str) -> Space:
        state = self.base / name
        state.mkdir()
        return Space(self.one.record, state)

    def take_over(self) -> None:
        """The second host, while the first stands still."""
        self.clock.set(self.clock() + 2 * TTL)
        assert self._leases[1].step() and not lease.may_write(self.one)

    def seen(self) -> Snapshot:
        """All that another host can see of the tree and its trash, versions and properties."""
        root = self.one.root
        # What is being built in staging is in nobody's sight, and its builder's, also where it was taken over.
        apart = {b".fsd/lease", b".fsd/trash/info", b".fsd/staging"}
        found: Snapshot = {}
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            here = os.path.join(root, path)
            st = os.lstat(here)
            attributes = {
                name: os.getxattr(here, name, follow_symlinks=False)
                for name in os.listxattr(here, follow_symlinks=False)
            }
            if os.path.isdir(here):
                found[path] = (st.st_mode, attributes)
                below = [os.path.join(path, name) if path else name for name in os.listdir(here)]
                waiting += [each for each in below if each not in apart and not each.endswith(b".json.new")]
            else:
                content = Path(os.fsdecode(here)).read_bytes()
                found[path] = (st.st_mode, st.st_nlink, st.st_mtime_ns, content, attributes)
        return found

    def close(self) -> None:
        for space in (self.one, self.two):
            space.close()
            lease.use(space.state_dir, None)
        shutil.rmtree(self.base)


class Stopped:
    """Takes over in front of the call number `index` of the traced host, and looks before, after it, and at the end."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.call = world, ""
        self.looks: list[Snapshot] = []
        self._left = index

    def __call__(self, regs: object) -> bool:
        number = regs[killpoints._ORIG_RAX]  # type: ignore[index]
        if number not in SEEN:
            return False
        if self._left == 0:
            self.call = CHANGING[number]
            self.world.take_over()
        if self._left <= 0 and len(self.looks) < 2:
            self.looks.append(self.world.seen())
        self._left -= 1
        return False


def changed(before: Snapshot, after: Snapshot) -> list[bytes]:
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


class Pair:
    """Two hosts that share two trees; the first has both leases, in the end the second one has those that it took."""

    def __init__(
        self, base: Path, clock: Clock, grow: Callable[[bytes], object] = lambda _root: None
    ) -> None:
        self.base, self.clock = base, clock
        base.mkdir()
        clock.set(1000.0)
        made = [make_space(base / name) for name in ("a", "b")]
        for each in made:
            grow(each.root)
        self.hosts: list[list[Space]] = []
        self.leases: list[list[Lease]] = []
        for name in ("one", "two"):
            state = base / name
            state.mkdir()
            host = Host(name, "", TTL)
            lease.use(state, host)
            spaces = [Space(each.record, state) for each in made]
            self.hosts.append(spaces)
            self.leases.append([Lease(space, host, lambda _old: None, clock=clock) for space in spaces])
        for each in made:
            each.close()
        assert all(each.step() for each in self.leases[0]) and not any(each.step() for each in self.leases[1])

    def hand_over(self, to: int, which: Iterable[int] = (0, 1)) -> None:
        """A host takes the leases of these spaces, of which the other is not heard; what that one keeps, it renews."""
        wanted = set(which)
        for _ in range(8):
            self.clock.set(self.clock() + TTL / 4)
            for number, (ours, theirs) in enumerate(zip(self.leases[to], self.leases[1 - to], strict=True)):
                if number in wanted or ours.held:
                    ours.step()
                elif theirs.held:
                    theirs.step()
        for number, ours in enumerate(self.leases[to]):
            assert ours.held == (number in wanted or ours.held)
            if number in wanted:
                assert ours.held and not lease.may_write(self.hosts[1 - to][number])

    def replay(self, host: int) -> None:
        """What a host does first with the leases that it has."""
        by_id = {space.record.id: space for space in self.hosts[host]}
        for space in self.hosts[host]:
            replay(space, by_id.get)

    def rest(self) -> None:
        """Nothing is open, as before a fork."""
        for spaces in self.hosts:
            for space in spaces:
                space.close()
                intents.forget(space)

    def close(self) -> None:
        self.rest()
        for spaces in self.hosts:
            lease.use(spaces[0].state_dir, None)
        shutil.rmtree(self.base)
