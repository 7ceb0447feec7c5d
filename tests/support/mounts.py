"""Small filesystems of a test's own: an image with ext4, xfs or btrfs, or a tmpfs, mounted below a temporary directory.
Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class Disk:
    """One filesystem that can be taken away and brought back."""

    def __init__(self, image: Path | None, place: Path, megabytes: int, kind: str = "ext4") -> None:
        self.image, self.place, self._megabytes = image, place, megabytes
        self._device: str | None = None
        place.mkdir(parents=True, exist_ok=True)
        if image is not None:
            with open(image, "wb") as file:
                file.truncate(megabytes << 20)
            subprocess.run([*MAKE[kind], str(image)], check=True, env={**os.environ, "PATH": PATH})

    def mount(self) -> None:
        """Bring it (back)."""
        if self.image is None:
            command = ["mount", "-t", "tmpfs", "-o", f"size={self._megabytes}m", "none", str(self.place)]
        else:
            command = [
                "mount",
                *(["-o", "loop", str(self.image)] if self._device is None else [self._device]),
            ]
            command.append(str(self.place))
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        if self._device is not None:
            # Detached by the kernel when it is unmounted.
            subprocess.run(["losetup", "-d", self._device], check=True, env={**os.environ, "PATH": PATH})
            self._device = None

    def plug_elsewhere(self) -> None:
        """While it is mounted: let the next mount have another device number, as a disk in another slot has."""
        self._device = subprocess.run(
            ["losetup", "-f", "--show", str(self.image)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": PATH},
        ).stdout.strip()

    def unmount(self, *, lazy: bool = True) -> None:
        """Take it away; lazily, as processes hold descriptors in it."""
        subprocess.run(["umount", *(["-l"] if lazy else []), str(self.place)], check=True)

    def fill(self, leave: int = 0) -> Path:
        """Write until it is full (but for `leave` bytes); the file that does it."""
        filler = self.place / "filler"
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
        try:
            for size in (1 << 20, 1 << 16, 1 << 12, 512):
                try:
                    while True:
                        os.write(fd, b"\0" * size)
                except OSError:
                    continue
            os.ftruncate(fd, max(0, os.fstat(fd).st_size - leave))
            with suppress(OSError):
                os.fsync(fd)  # btrfs, so full, has no room for what it would write of the file itself
        finally:
            os.close(fd)
        return filler


MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
KINDS = tuple(MAKE)
LEAST = {"xfs": 300, "btrfs": 120}
"""MiB; the file is sparse."""
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def disk(base: Path, name: str, *, megabytes: int = 32, kind: str = "ext4") -> Iterator[Disk]:
    """A mounted filesystem; unmounted at the end, whatever happened."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    image = base / f"{name}.img" if kind in MAKE else None
    made = Disk(image, base / name, max(megabytes, LEAST.get(kind, 0)), kind)
    made.mount()
    try:
        yield made
    finally:
        while os.path.ismount(made.place):
            made.unmount()
