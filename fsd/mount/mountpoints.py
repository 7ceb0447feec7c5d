"""Mountpoints as the system sees them: what is mounted where, what of it is dead, and how it goes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple

from fsd.core.hosts import mounts

TYPE = "fuse.fsd"
State = Literal["none", "ours", "dead", "other"]


class Mounted(NamedTuple):
    """The topmost mount at a path. `device` is what the kernel numbers it by."""

    state: State
    device: str


def real(path: str) -> str:
    """The absolute path without links above the last name. The last one itself is not touched: a dead or hung mount
    there would answer with an error or not at all."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def at(path: str) -> Mounted:
    """What is mounted at a path; a dead mount is one whose daemon is gone."""
    wanted = os.fsencode(real(path))
    found = [mount for mount in mounts() if mount.point == wanted]
    if not found:
        return Mounted("none", "")
    top = found[-1]
    if not top.fstype.startswith("fuse"):
        return Mounted("other", top.dev)
    if _dead(top.dev, wanted):
        return Mounted("dead", top.dev)
    return Mounted("ours" if top.fstype == TYPE else "other", top.dev)


def _dead(device: str, path: bytes) -> bool:
    """Whether nobody serves the mount. Its connection is gone from /sys, or every call says so."""
    connections = "/sys/fs/fuse/connections"
    if os.path.exists(f"{connections}/{device.partition(':')[2]}"):
        return False
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def clear_dead(path: str) -> int:
    """Unmount dead mounts that lie at a path, all layers; how many there were."""
    count = 0
    while at(path).state == "dead" and count < 100:
        unmount(path, lazily=True)
        count += 1
    return count


def unmount(path: str, *, lazily: bool = False) -> None:
    """Unmount the topmost mount at a path: umount(8) for root, else fusermount3. OSError(EBUSY) while it is in use."""
    option = (["-l"] if os.geteuid() == 0 else ["-z"]) if lazily else []
    if os.geteuid() == 0:
        command = ["umount", "-i", *option, real(path)]
    else:
        helper = shutil.which("fusermount3") or shutil.which("fusermount")
        if helper is None:
            raise FileNotFoundError(errno.ENOENT, "The program fusermount3 (package fuse3) is missing")
        command = [helper, "-u", *option, real(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [""]
        busy = "busy" in said[0]
        raise OSError(errno.EBUSY if busy else errno.EPERM, said[0] or "umount failed")


def waiting(device: str) -> int:
    """Requests that the daemon of a mount has not answered; 0 where that can't be read."""
    try:
        return int(Path(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/waiting").read_text())
    except (OSError, ValueError):
        return 0


def abort(device: str) -> bool:
    """Cut a hung daemon's mount off: whoever waits in it gets ENOTCONN. False where that is not allowed."""
    try:
        Path(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/abort").write_text("1")
    except OSError:
        return False
    return True
