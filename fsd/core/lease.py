"""Who works on a space that several hosts reach: one at a time, by a lease with a fencing token in the tree.

`.fsd/lease/` holds one file for each token that was ever taken and not yet cleared away; the highest one is the lease.
A token is taken by creating its file (O_EXCL: one of all hosts succeeds) and kept by rewriting it. No lock is held,
so a holder that is stopped blocks nobody, and no clock is compared with another host's:

* a holder believes in its lease until `ttl` seconds after it *began* to write its last renewal, by its own clock, and
  counts a renewal only if that, and the look for a higher token after it, were through before the old time was over
* another host takes the next token after it has seen the same record for a quarter longer than `ttl`, by its own clock

So the first has ended before the second begins, however long either was stopped in between. A lease that has run out
is never renewed: its holder takes a new token, like anybody else. Clocks are CLOCK_BOOTTIME, which goes on in sleep.

On the host the lease stands in `<space>.lease` of the state directory: until when it holds, and who else has it. All
processes of the host ask that file before each change (`require`); what they do in the instant after it, stopped in
exactly that instant, is what any program with access to the tree may do: see docs/decisions/0025.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fsd.core import bequest, handover, ownfiles
from fsd.core.errors import Elsewhere
from fsd.core.index import boot_id
from fsd.core.installation import write_file

if TYPE_CHECKING:
    from fsd.core.space import Space

DIRECTORY = "lease"
PATIENCE = 1.25
"""How many times the lease's length a record has to stand still before another host takes over."""
RECENT = 60.0
"""Seconds: what was written since was written by somebody who lives."""
_LOCAL = struct.Struct("<QdI")
_BOOT = boot_id()
_MOST = 4096


def boottime() -> float:
    """Seconds, the same for all processes of this host; goes on while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Host:
    """This host among those that share spaces. `address`: the URL by which the other hosts reach its HTTP workers,
    empty if they don't; `ttl`: how long a lease lasts, in seconds."""

    name: str
    address: str
    ttl: float


class Record(NamedTuple):
    """What a token's file says. `turn` rises with each renewal; `released`: it was given back."""

    token: int
    host: str
    name: str
    address: str
    turn: int
    released: bool
    client: str = ""
    """By which the filesystem knows the holder's mount (`ceph.client_id`), for whoever has to shut it out."""
    boot: str = ""
    """The holder's boot (`/proc/sys/kernel/random/boot_id`)."""
    mark: str = ""
    """Random, another one in each renewal: what only its writer can know."""
    registry: str = ""
    """A digest of the holder's users, groups, tokens and spaces (likeness.py)."""


_hosts: dict[Path, Host] = {}


def use(state_dir: Path, host: Host | None) -> None:
    """Tell this process that the spaces of an installation are shared with other hosts; None: they are not."""
    if host is None:
        _hosts.pop(state_dir, None)
    else:
        _hosts[state_dir] = host


def host_of(state_dir: Path) -> Host | None:
    """This host, if the installation shares its spaces."""
    return _hosts.get(state_dir)


def host_id(state_dir: Path) -> str:
    """The id of this state directory among all hosts: made once, never copied with the registry."""
    path = state_dir / "host.id"
    with suppress(FileNotFoundError):
        return path.read_text("ascii").strip()
    write_file(state_dir, path.name, secrets.token_hex(8).encode() + b"\n")
    return path.read_text("ascii").strip()


def is_ours(space: Space, found: Record, boot: str = _BOOT) -> bool:
    """Whether a record is of an earlier life of this very host, so that nobody else changed the space since.

    The same id is not enough: a state directory that was copied, or a machine that was cloned, has it too. The token
    has to be the one that was told here last, and the machine the same since it booted, if it was not given back.
    """
    ours = _local(space)
    if ours is None or (found.host, found.token) != (host_id(space.state_dir), ours[0]):
        return False
    return found.released or found.boot == boot


# -- what every process of the host asks


def require(space: Space, since: int | None = None) -> None:
    """Raise Elsewhere unless this host may change the space now; `since`: by the same token (see `token`)."""
    if not may_write(space, since):
        raise Elsewhere(_sentence(holder(space)))


def may_write(space: Space, since: int | None = None) -> bool:
    """Whether this host may change the space now; always, where spaces are not shared. `since`: and by this token.

    A change that began under an earlier one has seen what another host may have changed meanwhile.

    To be asked before each system call that others see: between any two of them the host may have stood still, and
    another one may have taken over.
    """
    if not _hosts or space.state_dir not in _hosts or space.record.read_only:
        return True
    found = _local(space)
    return found is not None and boottime() < found[1] and since in (None, found[0])


def token(space: Space) -> int:
    """The token this host holds or held last; 0 if none, or where spaces are not shared."""
    if not _hosts or space.state_dir not in _hosts:
        return 0
    found = _local(space)
    return 0 if found is None else found[0]


def holder(space: Space) -> Record | None:
    """Who has the lease, as this host saw it last; None if nobody has been seen."""
    try:
        raw = json.loads(space.state_dir.joinpath(f"{space.record.hex}.holder").read_text("utf-8"))
        return Record(*raw)
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _sentence(found: Record | None) -> str:
    if found is None or found.released:
        return "No host works on this space just now; ask again in a moment."
    return f"The space is changed through the host {found.name}; ask again in a moment."


def _local(space: Space) -> tuple[int, float] | None:
    try:
        fd = os.open(space.state_dir / f"{space.record.hex}.lease", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        raw = os.pread(fd, _LOCAL.size, 0)
    finally:
        os.close(fd)
    if len(raw) != _LOCAL.size:
        return None
    number, until, check = _LOCAL.unpack(raw)
    return (number, until) if check == zlib.crc32(raw[:-4]) else None


def kept_by_others(space: Space) -> str | None:
    """The name of a host that keeps a lease on a space which this one does not share: both would work on it. None if
    nobody does, as far as the last minute tells."""
    if space.state_dir in _hosts or space.record.read_only:
        return None
    internals = space.open_internal(".")
    try:
        fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=internals)
    except FileNotFoundError:
        return None
    finally:
        os.close(internals)
    directory = _Directory(space, fd)
    try:
        number = max(directory.tokens(), default=0)
        if not number or time.time() - os.stat(_name(number), dir_fd=fd).st_mtime > RECENT:
            return None
        found = directory.read(number)
        return None if found.released else found.name
    except FileNotFoundError:
        return None
    finally:
        directory.close()


# -- what the watcher does


class Lease:
    """One space's lease, as one host takes, keeps and gives it back. One thread at a time.

    `taken(old)` is called when a token was taken and before anybody on this host may use it; `old` is the record it
    followed, None if there was none. If it raises, the token is left to run out.
    """

    def __init__(
        self,
        space: Space,
        host: Host,
        taken: Callable[[Record | None], None],
        *,
        clock: Callable[[], float] = boottime,
        boot: str = _BOOT,
        registry: Callable[[], str] = lambda: "",
    ) -> None:
        self.space = space
        self.host = host
        self.id = host_id(space.state_dir)
        self.until = 0.0
        """Until when this host has it, by its clock."""
        self.seen: Record | None = None
        """The highest record, as of the last step."""
        self.trouble = ""
        """What somebody has to do something about."""
        self._boot = boot
        self._registry = registry
        self._mark = ""
        self._marks: tuple[str, ...] = ()
        """Which of its marks may stand in the record: a write that failed may have reached it."""
        self._looked = False
        self._taken = taken
        self._clock = clock
        self._token = 0
        self._turn = 0
        self._since = 0.0
        self._told: Record | None = None
        self._handed = b""

    @property
    def held(self) -> bool:
        """Whether this host has it now."""
        return self._clock() < self.until

    @property
    def age(self) -> float:
        """Seconds since the record was seen to change."""
        return max(0.0, self._clock() - self._since)

    def step(self) -> bool:
        """Renew it, take it, or look who has it; whether this host has it then. OSError: nothing is known to have
        changed, and what is held runs out by itself."""
        began = self._clock()
        if self._token and began < self.until and not self._renew(began):
            self._give_up()
        if not self.held:
            self._look_or_take(began)
        self._tell_holder()
        if self.held:
            self._hand_down()
        return self.held

    def release(self) -> None:
        """Give it back, so that another host need not wait. First this host stops."""
        held, self.until = self.held, 0.0
        self._publish()
        if held:
            self._hand_down()  # nobody on this host changes anything any more
            self._write(self._record()._replace(released=True))

    def _renew(self, began: float) -> bool:
        """False if another host has a higher token, or if it took too long to be sure of anything."""
        if self._read(self._token).mark not in self._marks:
            # The record is damaged, or a machine that was cloned with all that runs on it renews it as well.
            self.trouble = (
                "Its lease's record was changed by somebody else; no two hosts may be copies of each other."
            )
            return False
        self._turn += 1
        self._remark()
        self._write(self._record())
        self._marks = (self._mark,)
        highest = self._highest()
        if highest != self._token or self._clock() >= self.until:
            return False
        self.seen, self._since = self._record(), began
        self.until, self.trouble = began + self.host.ttl, ""
        self._publish()
        return True

    def _look_or_take(self, began: float) -> None:
        highest = self._highest()
        found = self._read(highest) if highest else None
        if found != self.seen or not self._looked:
            # As of after the look: the record may have been written while this host stood still in the middle of it.
            self.seen, self._since, self._looked = found, self._clock(), True
        known = self._known()
        if found is None:
            # A space that never had one; or its files are lost, and who had it may believe in it still.
            free = not known
        else:
            # An earlier life of this host's is over: the supervisor lets only one run.
            free = found.released or is_ours(self.space, found, self._boot) or found.mark in self._marks
            if found.host == self.id and not free:
                self.trouble = (
                    "Another host has this one's id: stop it, and remove 'host.id' from its state directory."
                )
        if free or began - self._since > self.host.ttl * PATIENCE:
            self._take(max(highest, known) + 1, found)

    def _take(self, number: int, old: Record | None) -> None:
        began = self._clock()
        with closing(_Directory(self.space)) as directory:
            try:
                fd = os.open(
                    _name(number),
                    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                    0o600,
                    dir_fd=directory.fd,
                )
            except FileExistsError:
                return  # another host was faster
            os.close(fd)
        self._token, self._turn, self._marks = number, 0, ()
        self._remark()
        self._write(self._record())
        if self._highest() != number:
            return
        if old is not None and not is_ours(self.space, old, self._boot):
            with closing(_Directory(self.space)) as directory:
                handover.take_in(self.space, directory.fd, old.token)
        # Whoever had it, and whichever host began something long ago: what lies there is this host's to end.
        bequest.take_in(self.space, self.id)
        self._handed = b""
        self._taken(old)
        self.seen, self._since = self._record(), began
        self.until, self.trouble = began + self.host.ttl, ""
        self._publish()
        self._clear(number)

    def _remark(self) -> None:
        self._mark = secrets.token_hex(8)
        self._marks = (*self._marks[-8:], self._mark)

    def _known(self) -> int:
        """The highest token that this host ever heard of: they only rise, also if their files are lost."""
        seen = holder(self.space)
        return max(token(self.space), seen.token if seen is not None else 0)

    def _hand_down(self) -> None:
        """Keep beside the lease what the next host needs. Of nobody's interest while it is as it was."""
        data = handover.collected(self.space)
        if data != self._handed:
            with closing(_Directory(self.space)) as directory:
                handover.write(directory.fd, self._token, data)
            self._handed = data

    def _give_up(self) -> None:
        self.until, self._token = 0.0, 0
        self._publish()

    # -- files

    def _record(self) -> Record:
        host = self.host
        return Record(
            self._token, self.id, host.name, host.address, self._turn, False, self._client(), self._boot, self._mark,
            self._registry(),
        )  # fmt: skip

    def _client(self) -> str:
        try:
            return os.getxattr(self.space.root_fd(), "ceph.client_id").decode()
        except OSError:
            return ""

    def _highest(self) -> int:
        with closing(_Directory(self.space)) as directory:
            return max(directory.tokens(), default=0)

    def _read(self, number: int) -> Record:
        with closing(_Directory(self.space)) as directory:
            return directory.read(number)

    def _write(self, record: Record) -> None:
        """In place and durable: the record has always the same length, so it is never seen half."""
        data = json.dumps(record).encode().ljust(1024)
        with closing(_Directory(self.space)) as directory:
            fd = os.open(_name(record.token), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory.fd)
            try:
                os.pwrite(fd, data, 0)
                os.fsync(fd)
            finally:
                os.close(fd)

    def _clear(self, number: int) -> None:
        with closing(_Directory(self.space)) as directory:
            for other in directory.tokens():
                if other < number:
                    with suppress(FileNotFoundError):
                        os.unlink(_name(other), dir_fd=directory.fd)
            handover.clear(directory.fd, number)

    def _publish(self) -> None:
        """Tell the processes of this host."""
        raw = struct.pack("<Qd", self._token, self.until)
        path = self.space.state_dir / f"{self.space.record.hex}.lease"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, raw + struct.pack("<I", zlib.crc32(raw)), 0)
        finally:
            os.close(fd)

    def _tell_holder(self) -> None:
        seen = self.seen._replace(turn=0, mark="") if self.seen is not None else None
        if seen is not None and seen != self._told:
            write_file(
                self.space.state_dir, f"{self.space.record.hex}.holder", json.dumps(seen).encode() + b"\n"
            )
            self._told = seen


def replace_token(record: Record, number: int) -> Record:
    """The record as that of the token its file is named by; TypeError, ValueError if it is none."""
    if (
        not isinstance(record.host, str)
        or not isinstance(record.registry, str)
        or not isinstance(record.turn, int)
        or not isinstance(record.mark, str)
    ):
        raise ValueError("no record")
    return record._replace(token=number)


def _name(number: int) -> bytes:
    return b"%016x" % number


class _Directory:
    """`.fsd/lease`, open."""

    def __init__(self, space: Space, fd: int | None = None) -> None:
        self.fd = space.open_internal(DIRECTORY) if fd is None else fd

    def read(self, number: int) -> Record:
        """A token's record. A file that says nothing yet is somebody's who has just taken it."""
        try:
            raw = ownfiles.read(self.fd, _name(number), _MOST)
            return replace_token(Record(*json.loads(raw)), number)
        except (FileNotFoundError, ownfiles.Unusable, ValueError, TypeError, RecursionError):
            return Record(number, "", "unknown", "", 0, False)

    def tokens(self) -> list[int]:
        names = os.listdir(b"/proc/self/fd/%d" % self.fd)
        return [
            int(name, 16) for name in names if len(name) == 16 and not set(name) - set(b"0123456789abcdef")
        ]

    def close(self) -> None:
        os.close(self.fd)
