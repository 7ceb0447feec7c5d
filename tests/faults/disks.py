"""Small filesystems of their own, for tests that fill them. Needs the right to mount (root)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def may_mount() -> bool:
    """Whether this process may mount filesystems."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> 21 & 1)  # CAP_SYS_ADMIN


@contextmanager
def small_disk(at: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size, mounted while the block runs."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "fsd-test", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@contextmanager
def loop_disk(image: Path, at: Path, megabytes: int) -> Iterator[Path]:
    """A small ext4 in a file, mounted through a loop device while the block runs."""
    with open(image, "wb") as file:
        os.truncate(file.fileno(), megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill_up(directory: Path) -> Path:
    """Take the last byte of a filesystem; returns the file that holds it."""
    hog = directory / "hog"
    fd = os.open(hog, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for block in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    os.write(fd, b"\0" * block)
            except OSError as error:
                if error.errno != 28:
                    raise
    finally:
        os.close(fd)
    return hog
