"""Trees that nobody made for us: what the system has installed, copied up to a number of files."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def documentation(*, big: bool = False) -> Path:
    """The operating system's own documentation (`big`: with all that lies beside it); the Python library where
    an image was stripped of it."""
    docs = Path("/usr/share" if big else "/usr/share/doc")
    return docs if docs.is_dir() and any(docs.iterdir()) else python_library()


def python_library() -> Path:
    """The standard library of the running interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def copy_bounded(source: Path, target: Path, files: int, *, big: bool = False) -> int:
    """Copy `source` in name order, links as links, until `files` files are there; how many there are. Installed
    packages of a Python library only if `big`."""
    copied = 0
    for directory, names, leaves in os.walk(source):
        names.sort()
        names[:] = [name for name in names if big or name != "site-packages"]
        here = target / Path(directory).relative_to(source)
        here.mkdir(parents=True)
        for name in list(names):
            if os.path.islink(os.path.join(directory, name)):
                os.symlink(os.readlink(os.path.join(directory, name)), here / name)
                names.remove(name)
        for leaf in sorted(leaves):
            shutil.copy2(os.path.join(directory, leaf), here / leaf, follow_symlinks=False)
            copied += 1
            if copied >= files:
                return copied
    return copied
