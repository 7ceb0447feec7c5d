"""Spaces without attributes, on filesystems that can't be written, have no handles, or number their nodes anew at each
mount: the ids stay."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounts import PATH, disk
from tests.support.oracle import settled
from tests.support.serving import Server
from tests.support.waiting import agree

pytestmark = pytest.mark.root


class Storage:
    """A mounted filesystem; `mount` brings it back."""

    def __init__(self, place: Path, command: list[str]) -> None:
        self.place, self._command = place, command
        place.mkdir(exist_ok=True)

    def mount(self) -> None:
        run(*self._command, str(self.place))

    def unmount(self) -> None:
        run("umount", str(self.place))


def run(*command: str) -> None:
    if shutil.which(command[0], path=PATH) is None:
        pytest.skip(f"needs {command[0]}")
    subprocess.run(command, check=True, env={**os.environ, "PATH": PATH}, capture_output=True)


def fill(tree: Path) -> None:
    for name in ("a/b/c", "a/moving", "d"):
        (tree / name).mkdir(parents=True)
        for number in range(3):
            (tree / name / f"f{number}").write_bytes(b"x" * (number + len(name)))


@contextmanager
def storage(kind: str, base: Path) -> Iterator[Storage]:
    """With a filled directory `tree` in it."""
    source, image = base / "source", base / "image"
    source.mkdir()
    if kind == "squashfs":
        fill(source / "tree")
        run("mksquashfs", str(source), str(image), "-quiet", "-no-progress")
        made = Storage(base / "there", ["mount", "-o", "loop,ro", str(image)])
    elif kind == "ext4, read-only":
        with disk(base, "writable") as writable:
            fill(writable.place / "tree")
        made = Storage(base / "there", ["mount", "-o", "loop,ro", str(base / "writable.img")])
    elif kind == "overlay":
        fill(source / "tree")
        for name in ("upper", "work"):
            (base / name).mkdir()
        layers = f"lowerdir={source},upperdir={base}/upper,workdir={base}/work,redirect_dir=on"
        made = Storage(base / "there", ["mount", "-t", "overlay", "overlay", "-o", layers])
    elif kind == "fuse":
        fill(source / "tree")
        made = Storage(base / "there", ["bindfs", str(source)])
    elif kind == "mergerfs":
        fill(source / "tree")
        made = Storage(base / "there", ["mergerfs", str(source)])
    elif kind == "sshfs":
        fill(source / "tree")
        script = base / "ssh"
        script.write_text("#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n")
        script.chmod(0o755)
        made = Storage(base / "there", ["sshfs", "-o", f"ssh_command={script}", f"nobody@nowhere:{source}"])
    elif kind == "gocryptfs":
        run("gocryptfs", "-q", "-init", "-scryptn", "10", "-extpass", "echo secret", str(source))
        made = Storage(base / "there", ["gocryptfs", "-q", "-extpass", "echo secret", str(source)])
    else:
        with open(image, "wb") as file:
            file.truncate(16 << 20)
        run(*_MAKE[kind], str(image))
        made = Storage(base / "there", [*_MOUNT[kind], str(image)])
    made.mount()
    try:
        if not (source / "tree").exists() and "read-only" not in kind:
            fill(made.place / "tree")
        yield made
    finally:
        while os.path.ismount(made.place):
            subprocess.run(["umount", "-l", str(made.place)], check=True)


_MAKE = {"fat": ["mkfs.vfat"], "exfat": ["mkfs.exfat"], "ntfs": ["mkfs.ntfs", "-F", "-Q", "-q"]}
_MOUNT = {
    "fat": ["fusefat", "-o", "rw+"],
    "exfat": ["mount", "-t", "exfat-fuse", "-o", "loop"],
    "ntfs": ["ntfs-3g"],
}
TOLD_BY = {
    "squashfs": "handles",
    "ext4, read-only": "handles",
    "overlay": "inode numbers",
    "fuse": "inode numbers",
    "mergerfs": "inode numbers",
    "sshfs": "inode numbers",
    "gocryptfs": "inode numbers",
    "ntfs": "inode numbers",
    "exfat": "inode numbers",
    "fat": "inode numbers",
}


WITH_ATTRIBUTES = ("fuse", "mergerfs", "gocryptfs", "ntfs")


@pytest.mark.parametrize(
    ("kind", "label"), [*((kind, "none") for kind in TOLD_BY), *((kind, "now") for kind in WITH_ATTRIBUTES)]
)
def test_ids_on_other_storages(
    kind: str, label: str, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Changes are found by looking, and ids stay over remounts and the loss of the index."""
    server = make_server()
    server.allow_log(
        "storage|not available|unavailable|cannot be watched|polled|root of the space|registered"
    )
    writable = kind not in ("squashfs", "ext4, read-only")
    with storage(kind, tmp_path) as there:
        tree = there.place / "tree"
        server.fsd("space", "adopt", str(tree), "--name", "plain", "--label" if writable else "--read-only",
                   *([label] if writable else []))  # fmt: skip
        record = server.space("plain")
        dav = server.space_dav(record)
        assert (record["label"], record["ids"]) == (label, TOLD_BY[kind])
        assert ("no attributes are written" in server.fsd("space", "list")) == (label == "none")

        def ids() -> dict[bytes, str]:
            return {
                p: r.id for p, r in settled(os.fsencode(tree), dav, wait=agree, timeout=40).served.items()
            }

        before = ids()
        if writable:
            (tree / "d/f0").rename(tree / "d/renamed")
            (tree / "a/moving").rename(tree / "d/moved")
            (tree / "a/b/c/f1").unlink()
            (tree / "a/b/c/f1 again").write_bytes(b"somebody else")
            after = ids()
            if (
                kind != "fat"
            ):  # whose driver here sets the mtime of what is renamed: it can't be told from a new file
                assert after[b"d/renamed"] == before[b"d/f0"]
                assert after[b"d/moved"] == before[b"a/moving"]
                assert after[b"d/moved/f2"] == before[b"a/moving/f2"]
            assert after[b"a/b/c/f1 again"] not in before.values()
            before = after
        server.stop()
        there.unmount()
        there.mount()
        server.start()
        assert ids() == before, "after a mount"
        server.stop()
        (server.state / f"{record['id'].rpartition('$')[2]}.index.db").unlink()
        server.start()
        assert ids() == before, "without the index"
