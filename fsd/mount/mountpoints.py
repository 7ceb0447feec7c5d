"""Mountpoints as the system sees them: what is mounted where, what of it is dead, and how it goes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import Literal, NamedTuple

from fsd.core.hosts import Mount, mounts

TYPE = "fuse.fsd"
_PLAIN = {**os.environ, "LC_ALL": "C"}
_PATIENCE = 2.0
"""Seconds after which a mount that does not answer counts as hung, not dead."""
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
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
    top = _top(wanted)
    while top is not None and top.fstype.startswith("fuse"):
        dead = _dead(wanted)
        asked, top = top, _top(wanted)
        if asked == top:  # else it was another one, or none, that answered
            return Mounted("dead" if dead else "ours" if top.fstype == TYPE else "other", top.dev)
    return Mounted("none", "") if top is None else Mounted("other", top.dev)


def _top(point: bytes) -> Mount | None:
    return next((mount for mount in reversed(mounts()) if mount.point == point), None)


def _dead(path: bytes) -> bool:
    """Whether nobody serves the mount: then statfs(2), which is never answered from a cache, fails at once. Another
    process asks, as a daemon that hangs would hang us too."""
    asking = subprocess.Popen(
        ["stat", "-f", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_PLAIN
    )
    try:
        _, said = asking.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        asking.kill()  # it may not die before the daemon answers; nobody waits for it
        return False
    return asking.returncode != 0 and any(os.strerror(code).encode() in said for code in _DEAD)


def clear_dead(path: str) -> int:
    """Unmount dead mounts that lie at a path, all layers; how many there were."""
    count = 0
    while at(path).state == "dead" and count < 100:
        unmount(path, lazily=True)
        count += 1
    return count


def unmount(path: str, *, lazily: bool = False, forcibly: bool = False) -> None:
    """Unmount the topmost mount at a path: umount(8) for root, else fusermount3. OSError(EBUSY) while it is in use.

    `lazily`: at once, also while it is in use. `forcibly`: whoever waits for its daemon gets errors (root only).
    """
    root = os.geteuid() == 0
    option = ["-l" if root else "-z"] if lazily else []
    if root:
        option += ["-f"] if forcibly else []
        command = ["umount", "-i", *option, real(path)]
    else:
        helper = shutil.which("fusermount3") or shutil.which("fusermount")
        if helper is None:
            raise FileNotFoundError(errno.ENOENT, "The program fusermount3 (package fuse3) is missing")
        command = [helper, "-u", *option, real(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=_PLAIN)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [""]
        busy = "busy" in said[0]
        raise OSError(errno.EBUSY if busy else errno.EPERM, said[0] or "umount failed")
