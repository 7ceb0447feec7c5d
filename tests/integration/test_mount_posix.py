"""What ext4 does, a mount of it does: each promise of POSIX that programs rely on, through the mount, and the same
seen on disk."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fsd.core.syscalls import rename_exchange, rename_noreplace
from tests.support.mounting import Mount, below, fails
from tests.support.waiting import wait_for

pytestmark = pytest.mark.root
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def test_write_read_append_truncate(mount: Mount, here: Path) -> None:
    file = here / "f"
    file.write_bytes(b"hello")
    with open(file, "ab") as one, open(file, "ab") as two:
        for number in range(50):
            (one if number % 2 else two).write(b"%02d" % number)
            one.flush()
            two.flush()
    assert file.read_bytes() == b"hello" + b"".join(b"%02d" % number for number in range(50))
    os.truncate(file, 3)
    assert file.read_bytes() == below(mount, file).read_bytes() == b"hel"
    os.truncate(file, 10)
    assert file.read_bytes() == b"hel" + bytes(7)
    fd = os.open(file, os.O_RDWR | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0 == below(mount, file).stat().st_size
    os.pwrite(fd, b"x", 1 << 20)
    assert os.fstat(fd).st_size == (1 << 20) + 1 and os.pread(fd, 4, 100) == bytes(4)
    os.close(fd)


def test_large_content_goes_through_whole(mount: Mount, here: Path) -> None:
    data = os.urandom(1 << 16) * 80 + b"end"
    (here / "f").write_bytes(data)
    assert below(mount, here / "f").read_bytes() == data
    below(mount, here / "g").write_bytes(data)
    assert (here / "g").read_bytes() == data


def test_create_exclusively_and_not_over_a_directory(here: Path) -> None:
    os.close(os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with fails(errno.EEXIST):
        os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (here / "d").mkdir()
    with fails(errno.EISDIR):
        os.open(here / "d", os.O_WRONLY)
    with fails(errno.ENOTDIR):
        os.open(here / "f/below", os.O_RDONLY)
    with fails(errno.ENOENT):
        os.open(here / "no/where", os.O_CREAT | os.O_WRONLY)


def test_rename(mount: Mount, here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    with open(here / "b", "rb") as old:
        os.rename(here / "a", here / "b")
        assert old.read() == b"b" and (here / "b").read_bytes() == b"a"
    (here / "d/e").mkdir(parents=True)
    (here / "d/e/f").write_bytes(b"deep")
    with open(here / "d/e/f", "rb+") as file:
        os.rename(here / "d", here / "moved")
        file.write(b"D")
    assert (here / "moved/e/f").read_bytes() == b"Deep" and not (here / "d").exists()
    with fails(errno.EINVAL):
        os.rename(here / "moved", here / "moved/e/inside")
    (here / "full").mkdir()
    (here / "full/x").touch()
    with fails(errno.ENOTEMPTY):
        os.rename(here / "moved", here / "full")
    with fails(errno.EISDIR):
        os.rename(here / "b", here / "full")
    with fails(errno.ENOTDIR):
        os.rename(here / "full", here / "b")
    (here / "empty").mkdir()
    os.rename(here / "moved", here / "empty")
    assert sorted(os.listdir(below(mount, here))) == ["b", "empty", "full"]


def test_renameat2(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    fd = os.open(here, os.O_RDONLY)
    with fails(errno.EEXIST):
        rename_noreplace(fd, b"a", fd, b"b")
    rename_noreplace(fd, b"a", fd, b"c")
    rename_exchange(fd, b"b", fd, b"c")
    assert (here / "b").read_bytes() == b"a" and (here / "c").read_bytes() == b"b"
    (here / "d").mkdir()
    (here / "d/in").write_bytes(b"in")
    rename_exchange(fd, b"d", fd, b"b")
    assert (here / "b/in").read_bytes() == b"in" and (here / "d").read_bytes() == b"a"
    with fails(errno.ENOENT):
        rename_exchange(fd, b"d", fd, b"none")
    os.close(fd)


def test_hard_links(mount: Mount, here: Path) -> None:
    (here / "a").write_bytes(b"1")
    os.link(here / "a", here / "b")
    assert (here / "a").stat().st_nlink == 2 and os.path.samefile(here / "a", here / "b")
    (here / "b").write_bytes(b"22")
    assert (here / "a").read_bytes() == b"22" and (here / "a").stat().st_size == 2
    os.unlink(here / "a")
    assert (here / "b").stat().st_nlink == 1 and (here / "b").read_bytes() == b"22"
    with fails(errno.EPERM):
        os.link(here, here / "directory")
    os.symlink("nowhere", here / "s")
    os.link(here / "s", here / "t", follow_symlinks=False)
    assert os.readlink(below(mount, here / "t")) == "nowhere"


def test_symbolic_links(mount: Mount, here: Path, tmp_path: Path) -> None:
    os.symlink("target", here / "s")
    assert os.readlink(here / "s") == "target" and here.joinpath("s").is_symlink()
    with fails(errno.ENOENT):
        (here / "s").read_bytes()
    (here / "target").write_bytes(b"t")
    assert (here / "s").read_bytes() == b"t" and (here / "s").lstat().st_size == 6
    os.symlink("s", here / "loop")
    os.unlink(here / "s")
    os.symlink("loop", here / "s")
    with fails(errno.ELOOP):
        (here / "s").read_bytes()
    assert os.lstat(here / "s").st_uid == 0
    os.chown(here / "s", 7, 8, follow_symlinks=False)
    os.utime(here / "s", ns=(1, 2), follow_symlinks=False)
    seen = os.lstat(below(mount, here / "s"))
    assert (seen.st_uid, seen.st_gid, seen.st_mtime_ns) == (7, 8, 2)
    os.symlink("x" * 4000, here / "long")
    assert os.readlink(here / "long") == "x" * 4000


def test_a_file_in_use_outlives_its_name(mount: Mount, here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"12345")
    os.unlink(here / "f")
    assert os.fstat(fd).st_nlink == 0 and os.pread(fd, 9, 0) == b"12345"
    os.pwrite(fd, b"6", 5)
    os.fchmod(fd, 0o600)
    os.ftruncate(fd, 2)
    os.fchown(fd, 3, 4)
    os.utime(fd, ns=(10, 20))
    seen = os.fstat(fd)
    assert (seen.st_size, stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_mtime_ns) == (2, 0o600, 3, 20)
    (here / "f").write_bytes(b"new")
    assert os.pread(fd, 9, 0) == b"12" and (here / "f").read_bytes() == b"new"
    os.close(fd)
    below(mount, here / "f").unlink()
    assert not (here / "f").exists()


def test_a_file_whose_name_goes_beneath_the_mount(mount: Mount, here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"12345")
    below(mount, here / "f").unlink()
    os.pwrite(fd, b"6", 5)
    os.fchmod(fd, 0o640)
    assert os.pread(fd, 9, 0) == b"123456" and os.fstat(fd).st_size == 6
    os.close(fd)


def test_a_removed_directory_that_is_in_use(here: Path) -> None:
    (here / "d").mkdir()
    fd = os.open(here / "d", os.O_RDONLY)
    os.rmdir(here / "d")
    assert os.listdir(fd) == [] and os.fstat(fd).st_nlink == 0
    with fails(errno.ENOENT):
        os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)
    (here / "full/x").mkdir(parents=True)
    with fails(errno.ENOTEMPTY):
        os.rmdir(here / "full")
    with fails(errno.EBUSY):
        os.rmdir(here.parent)


def test_modes_owners_and_setgid(mount: Mount, here: Path) -> None:
    old = os.umask(0o027)
    try:
        (here / "d").mkdir(0o777)
        os.close(os.open(here / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(old)
    assert stat.S_IMODE((here / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((here / "f").stat().st_mode) == 0o640
    os.chmod(here / "f", 0o4711)
    os.chown(here / "f", 12, 34)
    seen = below(mount, here / "f").stat()
    assert (seen.st_uid, seen.st_gid) == (12, 34) and stat.S_IMODE(seen.st_mode) == 0o711, (
        "chown takes suid away"
    )
    os.chown(here / "d", -1, 55)
    os.chmod(here / "d", 0o2775)
    (here / "d/f").touch()
    (here / "d/sub").mkdir()
    assert (here / "d/f").stat().st_gid == 55 == (here / "d/sub").stat().st_gid
    assert (here / "d/sub").stat().st_mode & stat.S_ISGID


def test_times(mount: Mount, here: Path) -> None:
    (here / "f").write_bytes(b"1")
    os.utime(here / "f", ns=(1_000_000_001, 2_123_456_789))
    seen = (here / "f").stat()
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (1_000_000_001, 2_123_456_789)
    os.utime(here / "f", ns=(-5_000_000_000, -7_500_000_000))
    assert below(mount, here / "f").stat().st_mtime_ns == -7_500_000_000 == (here / "f").stat().st_mtime_ns
    before = here.stat().st_mtime_ns
    (here / "g").touch()
    assert here.stat().st_mtime_ns > before


def test_extended_attributes(mount: Mount, here: Path) -> None:
    file = here / "f"
    file.touch()
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(file, "user.a", b"2", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(file, "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr(file, "user.a", b"2" * 2000, os.XATTR_REPLACE)
    assert os.getxattr(file, "user.a") == b"2" * 2000 and os.listxattr(file) == ["user.a"]
    os.removexattr(file, "user.a")
    assert os.listxattr(file) == []
    with fails(errno.ENODATA):
        os.getxattr(file, "user.a")
    os.setxattr(here, "user.dir", b"")
    os.setxattr(here, "trusted.t", b"t")
    assert os.getxattr(below(mount, here), "trusted.t") == b"t"


def test_access_lists(mount: Mount, here: Path) -> None:
    subprocess.run(["setfacl", "-m", "u:1234:rw,d:u:1234:rwx", here], check=True)
    (here / "f").touch()
    shown = subprocess.run(["getfacl", "-cn", here / "f"], capture_output=True, text=True, check=True).stdout
    direct = subprocess.run(
        ["getfacl", "-cn", below(mount, here / "f")], capture_output=True, text=True, check=True
    ).stdout
    assert shown == direct and "user:1234:rwx" in shown


def test_ours_can_neither_be_seen_nor_touched(mount: Mount, here: Path) -> None:
    file = here / "f"
    file.write_bytes(b"123")
    os.setxattr(below(mount, file), "user.fsd.p.x", b"dead property")
    assert os.listxattr(file) == []
    for name in ("user.fsd.id", "user.fsd.tree", "user.fsd.p.x", "user.fsd.new"):
        with fails(errno.EPERM):
            os.setxattr(file, name, b"1")
        with fails(errno.EPERM):
            os.removexattr(file, name)
    for name in ("user.fsd.tree", "user.fsd.p.x"):
        with fails(errno.ENODATA):
            os.getxattr(file, name)
    record = mount.server.space("posix")
    assert os.getxattr(file, "user.fsd.space").decode() == record["id"]
    assert os.getxattr(file, "user.fsd.id").decode().startswith(record["id"] + "!")
    assert len(os.getxattr(file, "user.fsd.etag")) == 32 and os.getxattr(file, "user.fsd.treesize") == b"3"
    top = mount.path
    assert ".fsd" not in os.listdir(top) and not os.path.lexists(top / ".fsd")
    for change in (
        lambda: os.mkdir(top / ".fsd"),
        lambda: os.symlink("x", top / ".fsd"),
        lambda: os.rename(file, top / ".fsd"),
        lambda: os.link(file, top / ".fsd"),
        lambda: os.close(os.open(top / ".fsd", os.O_CREAT | os.O_WRONLY)),
    ):
        with fails(errno.EPERM):
            change()
    for change in (lambda: os.rename(top / ".fsd", here / "x"), lambda: os.rmdir(top / ".fsd")):
        with fails(errno.ENOENT):
            change()
    assert top.stat().st_nlink == 2 + sum(entry.is_dir() for entry in os.scandir(top))


def test_special_files(mount: Mount, here: Path) -> None:
    os.mkfifo(here / "fifo")
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(here / "s"))
    kinds = {name: stat.S_IFMT(os.lstat(here / name).st_mode) for name in os.listdir(here)}
    assert kinds == {"fifo": stat.S_IFIFO, "null": stat.S_IFCHR, "s": stat.S_IFSOCK}
    assert below(mount, here / "null").lstat().st_rdev == os.makedev(1, 3) == (here / "null").lstat().st_rdev
    reader = os.open(here / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    (here / "fifo").write_bytes(b"through")
    assert os.read(reader, 10) == b"through"
    os.close(reader)


def test_shared_mappings(mount: Mount, here: Path) -> None:
    file = here / "f"
    file.write_bytes(bytes(3 * mmap.PAGESIZE))
    with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), 0) as one:
        with open(file, "rb") as again, mmap.mmap(again.fileno(), 0, prot=mmap.PROT_READ) as two:
            one[5000:5005] = b"hello"
            assert two[5000:5005] == b"hello"
            one.flush()
    assert below(mount, file).read_bytes()[5000:5005] == b"hello" == file.read_bytes()[5000:5005]


def test_direct_io(here: Path) -> None:
    with mmap.mmap(-1, 8192) as buffer:
        buffer[:] = b"d" * 8192
        fd = os.open(here / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        assert os.pwrite(fd, buffer, 0) == 8192
        buffer[:] = bytes(8192)
        assert os.preadv(fd, [buffer], 0) == 8192 and buffer[:] == b"d" * 8192
        os.close(fd)


def test_locks_between_processes(here: Path) -> None:
    (here / "f").write_bytes(b"0123456789")
    other = (
        "import fcntl,sys\nf=open(sys.argv[1],'r+')\n"
        "try: fcntl.flock(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: print('flock',end=' ')\n"
        "try: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,0)\nexcept OSError: print('fcntl',end=' ')\n"
        "fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,5)\n"
    )

    def ask() -> list[str]:
        command = [sys.executable, "-c", other, str(here / "f")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    with open(here / "f", "r+") as file:
        assert ask() == []
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX, 5, 0)
        assert ask() == ["flock", "fcntl"]


def test_names(mount: Mount, here: Path) -> None:
    for name in (b"x" * 255, b"bad\xff", b"new\nline", "ü漢".encode(), b" ", b"-", b"..."):
        path = os.fsencode(here) + b"/" + name
        os.mkdir(path)
        assert name in os.listdir(os.fsencode(below(mount, here)))
        os.rename(path, path[:-1] + b"!")
        os.rmdir(path[:-1] + b"!")
    with fails(errno.ENAMETOOLONG):
        os.mkdir(here / ("x" * 256))
    assert os.listdir(here) == []


def test_deep_trees(here: Path) -> None:
    """Nearly as deep as a path can say."""
    fd = os.open(here, os.O_RDONLY)
    for _ in range(35):
        os.mkdir("n" * 100, dir_fd=fd)
        fd, old = os.open("n" * 100, os.O_RDONLY, dir_fd=fd), fd
        os.close(old)
    made = os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(made, b"deep")
    os.close(made)
    assert os.stat("bottom", dir_fd=fd).st_size == 4
    os.close(fd)
    subprocess.run(["rm", "-rf", here], check=True)
    assert not here.exists()


def test_large_directories(mount: Mount, here: Path, request: pytest.FixtureRequest) -> None:
    count = 100_000 if request.config.getoption("--big") else 4000
    direct = below(mount, here)
    for number in range(count):
        os.close(os.open(direct / f"f{number}", os.O_CREAT | os.O_WRONLY))
    assert len(os.listdir(here)) == count
    with os.scandir(here) as entries:
        for index, entry in enumerate(entries):
            os.unlink(entry.path)
            if index % 1000 == 0:
                (here / f"new{index}").touch()
    left = os.listdir(here)
    assert all(name.startswith("new") for name in left) and sorted(left) == sorted(os.listdir(direct))
    names = subprocess.run(["ls", "-a", here], capture_output=True, text=True, check=True).stdout.split()
    assert {".", ".."} < set(names)


def test_many_open_files(here: Path) -> None:
    fds = [os.open(here / f"f{number}", os.O_CREAT | os.O_RDWR) for number in range(900)]
    for number, fd in enumerate(fds):
        os.write(fd, b"%d" % number)
    assert all(os.pread(fd, 9, 0) == b"%d" % number for number, fd in enumerate(fds))
    for fd in fds:
        os.close(fd)


def test_a_number_used_again(mount: Mount, here: Path) -> None:
    """The next file gets the number of the last one that went; file, directory and link in turn."""
    for number in range(150):
        (here / "f").write_bytes(b"%d" % number)
        assert (here / "f").read_bytes() == b"%d" % number
        os.unlink(here / "f")
        (here / "f").mkdir()
        assert os.listdir(here / "f") == []
        os.rmdir(here / "f")
        os.symlink(f"{number}", here / "f")
        assert os.readlink(here / "f") == f"{number}"
        os.unlink(below(mount, here / "f"))
        wait_for(lambda: not os.path.lexists(here / "f"), every=0.001)
        below(mount, here / "g").write_bytes(b"beneath%d" % number)
        assert (here / "g").read_bytes() == b"beneath%d" % number
        os.unlink(here / "g")


def test_another_filesystem_below(mount: Mount, here: Path) -> None:
    """Numbers of two filesystems meet; a rename across them is refused like a real one."""
    direct = below(mount, here) / "inner"
    direct.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", direct], check=True)
    try:
        for number in range(20):
            (here / f"outer{number}").write_bytes(b"outer")
            (here / f"inner/f{number}").write_bytes(b"%d" % number)
        found = [path.stat().st_ino for path in here.rglob("*")]
        assert len(set(found)) == len(found)
        assert all((here / f"inner/f{number}").read_bytes() == b"%d" % number for number in range(20))
        with fails(errno.EXDEV):
            os.rename(here / "inner/f0", here / "out")
        with fails(errno.EBUSY):
            os.rmdir(here / "inner")
    finally:
        subprocess.run(["umount", "-l", direct], check=True)


def test_what_disks_keep(mount: Mount, here: Path) -> None:
    (here / "f").write_bytes(b"durable")
    for path, flags in ((here / "f", os.O_RDWR), (here, os.O_RDONLY)):
        fd = os.open(path, flags)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)
    shown, direct = os.statvfs(here), os.statvfs(below(mount, here))
    assert shown.f_namemax == 255 and shown.f_blocks * shown.f_frsize == direct.f_blocks * direct.f_frsize
    os.posix_fallocate(os.open(here / "f", os.O_RDWR), 0, 100_000)
    assert (here / "f").stat().st_size == 100_000 == below(mount, here / "f").stat().st_size


def test_programs_run_from_it(here: Path) -> None:
    shutil.copy("/bin/echo", here / "echo")
    os.symlink("echo", here / "link")
    done = subprocess.run([here / "link", "runs"], capture_output=True, text=True, check=True)
    assert done.stdout == "runs\n"
    with open(here / "echo", "r+b") as file:
        with fails(errno.ETXTBSY):
            os.execv(here / "echo", ["echo"])
        assert file.read(4) == b"\x7fELF"
