"""Is this host fit? Each probe finds one thing out, and says what to do about it. Probes change nothing that lasts."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from fsd.core import hosts
from fsd.core.quota import held_back
from fsd.core.registry import Registry
from fsd.core.roots import takes_xattrs
from fsd.core.space import Space, SpaceRecord
from fsd.core.syscalls import file_handle, open_beneath
from fsd.service import permissions
from fsd.service.advice import Advice, ok, problem, warning
from fsd.service.capabilities import CAPABILITIES, has_capability
from fsd.service.config import Settings

_WATCHES_WISHED = 524_288
_QUEUE_WISHED = 131_072
_SKEW_S = 2.0


def host(settings: Settings) -> Iterator[Advice]:
    """All probes of the machine and the state directory."""
    probes: tuple[Callable[[Settings], Advice], ...] = (
        _versions,
        _resolution,
        _fanotify,
        _inotify_watches,
        _inotify_instances,
        _capabilities,
        _fuse,
        _state_place,
        _state_modes,
        _clock,
        _environment,
    )
    for probe in probes:
        yield probe(settings)
    for name, path in (("data root", settings.data), ("state directory", settings.state)):
        yield disk(f"disk of the {name}", os.fsencode(path), settings.disk_reserve)


def _versions(_: Settings) -> Advice:
    found = f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, Linux {os.uname().release}"
    if sqlite3.sqlite_version_info < (3, 35):
        return problem("versions", found, "install SQLite 3.35 or newer")
    return ok("versions", found)


def _resolution(settings: Settings) -> Advice:
    fd = os.open(_standing(settings.data), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(open_beneath(fd, b"", os.O_RDONLY | os.O_DIRECTORY))
        file_handle(fd, b"")
    except OSError as error:
        text = f"no file handles below {settings.data} ({os.strerror(error.errno or errno.EIO)})"
        return warning("file handles", text, "use ext4, xfs, btrfs or tmpfs; ids rest on inode numbers here")
    finally:
        os.close(fd)
    return ok("file handles", "available")


def _standing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.is_dir())


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text("ascii"))
    except (OSError, ValueError):
        return None


def _fanotify(_: Settings) -> Advice:
    """Which of the things fanotify needs is missing; whether a space's filesystem can be heard is told by the space."""
    missing = [name for name in ("CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH") if not has_capability(name)]
    if missing:
        todo = f"grant {' and '.join(missing)} (AmbientCapabilities= in systemd; not possible in a rootless container)"
        return warning("fanotify", f"no {', '.join(missing)}: a watch for each directory instead", todo)
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if release < (5, 17) or not Path("/proc/sys/fs/fanotify").is_dir():
        return warning("fanotify", "the kernel is older than 5.17 or has none", "use a newer kernel")
    limit = _number("/proc/sys/fs/fanotify/max_queued_events") or 0
    if limit < _QUEUE_WISHED and not os.access("/proc/sys/fs/fanotify/max_queued_events", os.W_OK):
        todo = f"sysctl fs.fanotify.max_queued_events={_QUEUE_WISHED}"
        return warning("fanotify", f"usable, with a queue of only {limit} events", todo)
    return ok("fanotify", "usable: one mark for each filesystem")


def _inotify_watches(_: Settings) -> Advice:
    limit = _number("/proc/sys/fs/inotify/max_user_watches")
    if limit is None:
        return problem("inotify watches", "inotify is missing", "use a kernel with inotify")
    todo = f"sysctl fs.inotify.max_user_watches={_WATCHES_WISHED} (beyond the limit, directories are only polled)"
    found = f"at most {limit} directories are watched"
    return (
        ok("inotify watches", found) if limit >= _WATCHES_WISHED else warning("inotify watches", found, todo)
    )


def _inotify_instances(_: Settings) -> Advice:
    limit = _number("/proc/sys/fs/inotify/max_user_instances") or 0
    found = f"at most {limit} instances for this user"
    if limit < 64:
        return warning("inotify instances", found, "sysctl fs.inotify.max_user_instances=128")
    return ok("inotify instances", found)


def _capabilities(_: Settings) -> Advice:
    missing = [name for name in CAPABILITIES if not has_capability(name)]
    if not missing:
        return ok("capabilities", "all that are used")
    lost = {
        "CAP_DAC_READ_SEARCH": "files of others can't be read",
        "CAP_DAC_OVERRIDE": "directories of others can't be written",
        "CAP_CHOWN": "new files can't be given to a space's uid",
        "CAP_FOWNER": "files of others can't be labelled",
        "CAP_LEASE": "who has files of others open isn't seen: they are ready after 35 s",
        "CAP_SYS_ADMIN": "no fanotify, only inotify",
    }
    found = "; ".join(f"no {name}: {lost[name]}" for name in missing)
    return warning("capabilities", found, "run as root, or grant them (AmbientCapabilities= in systemd)")


def _fuse(_: Settings) -> Advice:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return warning("FUSE", "/dev/fuse is not usable", "modprobe fuse (only 'fsd mount' needs it)")
    if shutil.which("fusermount3") is None:
        return warning("FUSE", "fusermount3 is missing", "install fuse3 (only 'fsd mount' needs it)")
    return ok("FUSE", "/dev/fuse and fusermount3")


def _state_place(settings: Settings) -> Advice:
    place = hosts.place(os.fsencode(_standing(settings.state)))
    if place.fstype in hosts.NETWORK:
        text = f"{settings.state} is on {place.fstype}"
        return problem("state directory", text, "name a directory on a local disk with --state")
    return ok("state directory", f"{settings.state} ({place.fstype or 'unknown filesystem'})")


def _state_modes(settings: Settings) -> Advice:
    loose = []
    for path in (settings.state, settings.state / "service.key", settings.state / "fsd.db"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid():
            loose.append(str(path))
    if loose:
        return problem(
            "secrets", f"others may read {', '.join(loose)}", f"chown and chmod go= {' '.join(loose)}"
        )
    return ok("secrets", "only the service may read them")


def _clock(_: Settings) -> Advice:
    if time.time() < 1_700_000_000:
        return problem("clock", time.strftime("it says %Y-%m-%d"), "set the clock; times of files are wrong")
    return ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %z"))


def _environment(settings: Settings) -> Advice:
    if settings.unknown_environment:
        names = ", ".join(settings.unknown_environment)
        return warning("environment", f"{names} mean nothing here", "'fsd config show' has the right names")
    return ok("environment", "no unknown FSD_ variables")


def disk(probe: str, path: bytes, reserve: int) -> Advice:
    """Free bytes and inodes at a path."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return warning(probe, os.strerror(error.errno or errno.EIO), "'fsd init' makes it")
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    text = f"{free >> 20} of {total >> 20} MiB free"
    if free <= held_back(found, reserve):
        return problem(probe, text, "free some space: uploads are refused")
    if found.f_files and found.f_favail * 50 < found.f_files:
        return warning(probe, f"{found.f_favail} of {found.f_files} inodes free", "delete small files")
    if free * 20 < total:
        return warning(probe, text, "less than 5 % is free")
    return ok(probe, text)


def space(
    registry: Registry, record: SpaceRecord, reserve: int, polled: Collection[str] = ()
) -> Iterator[Advice]:
    """All probes of one space. `polled`: the filesystems that tell nothing (the setting watch.polled)."""
    name = f"space '{record.name}'"
    opened = Space(record, registry.state_dir)
    try:
        opened.root_fd()
        secret = opened.secret
    except OSError as error:
        yield problem(
            name, str(error.strerror or error), "mount its storage, or adopt it again with --replace"
        )
        opened.close()
        return
    assert len(secret) == 32
    try:
        found = registry.grants.verify(record)
        if found is not None:
            yield problem(f"{name}, grants", found, "'fsd check --repair' writes the good ones again")
        if not record.read_only:
            yield from _writing(name, os.fsencode(opened.internal_path))
        yield from permissions.probe(opened)
    finally:
        opened.close()
    yield _hearing(name, record, polled)
    yield disk(f"{name}, disk", record.path, reserve)


def _writing(name: str, internals: bytes) -> Iterator[Advice]:
    if not takes_xattrs(internals):
        yield warning(
            f"{name}, attributes", "no user.* attributes", "use ext4, xfs, btrfs: ids survive moves then"
        )
    yield _skew(name, internals)


def _hearing(name: str, record: SpaceRecord, polled: Collection[str]) -> Advice:
    mount = hosts.mount_of(record.path)
    fstype = mount.fstype if mount is not None else "an unknown filesystem"
    if record.source != "auto":
        return ok(f"{name}, source", f"{record.source}, as the space says ({fstype})")
    if fstype in polled or fstype.partition(".")[0] in polled:
        todo = "'fsd space set --source inotify' if only this host writes there"
        return warning(f"{name}, source", f"{fstype} tells nothing of what others change: it is polled", todo)
    return ok(f"{name}, source", f"changes on {fstype} can be heard; 'fsd status' says by what")


def _skew(name: str, internals: bytes) -> Advice:
    try:
        fd = os.open(internals, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        text = f"no unnamed temporary files ({os.strerror(error.errno or errno.EIO)})"
        return warning(f"{name}, writing", text, "uploads are written under a name first")
    try:
        before = time.time()
        os.write(fd, b"x")
        skew = os.fstat(fd).st_mtime - before
    finally:
        os.close(fd)
    if abs(skew) > _SKEW_S:
        return problem(f"{name}, clock", f"its storage is {skew:+.1f} s off", "synchronise both clocks (NTP)")
    return ok(f"{name}, writing", "permissions, attributes and clock agree")
