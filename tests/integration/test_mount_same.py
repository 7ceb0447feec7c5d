"""A mount answers and changes what the filesystem below it does: each call, on each kind of object, by root, an owner
and a stranger; and what it shows afterwards is what is on disk."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import posixly
from tests.support.mounting import WAYS, Mount, below, fails, mounted, open_space, open_way
from tests.support.seeds import seed_of

pytestmark = pytest.mark.root
_PORTION = 500
_SHARE = 50
"""One of so many cases is played, unless `--big` asks for all of them."""


@pytest.fixture(scope="module", params=WAYS)
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One space, mounted as it is, that everybody may reach on disk."""
    base = open_way(tmp_path_factory.mktemp("same"))
    with mounted(open_space(base), base / "mnt", "posix", way=request.param) as made:
        yield made


def _table(request: pytest.FixtureRequest, without_shim: bool) -> list[posixly.Case]:
    odd = {**posixly.KNOWN, **(posixly.KNOWN_WITHOUT_SHIM if without_shim else posixly.KNOWN_WITH_SHIM)}
    table = [case for case in posixly.cases() if not any(known(case) for known in odd.values())]
    if without_shim:
        table = [case for case in table if case.call != "open unnamed"]
    if request.config.getoption("--big"):
        return table
    seed = seed_of(request.config)
    print(f"seed {seed}")
    return random.Random(seed).sample(table, len(table) // _SHARE)


@pytest.mark.timeout(3600)
def test_same_as_the_disk(mount: Mount, here: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    open_way(tmp_path)
    table = _table(request, request.node.callspec.params["mount"] == "none")
    for start in range(0, len(table), _PORTION):
        portion = table[start : start + _PORTION]
        on_disk = posixly.play(tmp_path / "plain", portion)
        mounted = posixly.play(here / "same", portion, lambda place: below(mount, place))
        for title, outcome in on_disk.items():
            assert mounted[title] == outcome, title


def test_a_default_list_stands_for_the_umask(
    mount: Mount, here: Path, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["mount"] == "none":
        return  # the kernel applies both
    subprocess.run(["setfacl", "-m", "d:u:1234:rwx", here], check=True)
    script = 'umask 027; touch "$1/f"; mkdir "$1/d"; mkfifo "$1/p"'
    for place in (here, below(mount, here)):
        subprocess.run(["sh", "-c", script, "-", place], check=True)
        modes = [oct((place / name).lstat().st_mode & 0o777) for name in "fdp"]
        assert modes == ["0o664", "0o775", "0o664"], place
        for name in "fp":
            (place / name).unlink()
        (place / "d").rmdir()


def test_a_file_that_is_made_without_a_name(mount: Mount, here: Path, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["mount"] == "none":
        with fails(errno.EOPNOTSUPP):
            os.open(here, os.O_TMPFILE | os.O_RDWR)
        return
    fd = os.open(here, os.O_TMPFILE | os.O_RDWR, 0o640)
    assert os.write(fd, b"hello") == 5 and os.fstat(fd).st_nlink == 0 and os.listdir(here) == []
    assert os.pread(fd, 9, 0) == b"hello" and os.fstat(fd).st_size == 5
    os.fchmod(fd, 0o600)
    os.setxattr(fd, "user.a", b"1")
    with fails(errno.ENODATA):
        os.getxattr(fd, "user.fsd.id")
    where = os.open(here, os.O_PATH)  # with a descriptor os.link really follows
    os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=where, follow_symlinks=True)
    os.write(fd, b" world")
    os.close(fd)
    for place in (here, below(mount, here)):
        assert (place / "named").read_bytes() == b"hello world"
        assert (place / "named").stat().st_mode & 0o777 == 0o600 and (place / "named").stat().st_nlink == 1
    assert os.getxattr(here / "named", "user.fsd.id").startswith(os.getxattr(here, "user.fsd.space"))
    assert os.getxattr(here, "user.fsd.treesize") == b"11"
    os.rename(here / "named", here / "other")
    assert (here / "other").read_bytes() == b"hello world"
    fd = os.open(here, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL)
    with fails(errno.ENOENT):
        os.link(f"/proc/self/fd/{fd}", "never", dst_dir_fd=where, follow_symlinks=True)
    os.close(fd)
    os.close(where)


def test_trusted_attributes_are_told_to_root_alone(mount: Mount, here: Path) -> None:
    open_way(here)
    (here / "f").write_bytes(b"")
    (here / "f").chmod(0o644)
    os.setxattr(here / "f", "trusted.a", b"1")
    os.setxattr(here / "f", "user.a", b"1")
    for user in (0, 65534):
        told = [
            subprocess.run(
                ["getfattr", "-m", r"\.a$", "--absolute-names", place / "f"],
                user=user, group=user, extra_groups=[], capture_output=True, text=True, check=True,
            ).stdout.split()[3:]
            for place in (here, below(mount, here))
        ]  # fmt: skip
        assert told[0] == told[1] == ["trusted.a", "user.a"][user != 0 :]


def test_nobody_is_let_in_whom_the_disk_keeps_out(tmp_path: Path) -> None:
    """The mountpoint may be anywhere: who can't get to the space on disk can't get to it there."""
    server = open_space(tmp_path / "closed")
    (tmp_path / "closed").chmod(0o700)
    with mounted(server, open_way(tmp_path) / "mnt", "posix") as made:
        (made.path / "f").write_bytes(b"1")
        assert _as_nobody(made.path / "f") == _as_nobody(server.data / "projects/posix/f") != 0
        made.stop()
        (tmp_path / "closed").chmod(0o711)
        made.start()
        assert _as_nobody(made.path / "f") == _as_nobody(server.data / "projects/posix/f") == 0
        (made.path / "f").chmod(0o600)
        assert _as_nobody(made.path / "f") != 0


def _as_nobody(path: Path) -> int:
    return subprocess.run(
        ["cat", path], user=65534, group=65534, extra_groups=[], capture_output=True
    ).returncode
