"""A random exerciser of one file, after fsx: reads, writes, appends, truncates, maps, punches, copies ranges, through
two descriptors; each read is compared with a model in memory, and the file on disk with it at the end of each round."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from pathlib import Path

MOST = 300_000
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


class Exerciser:
    """Plays steps on `file`; `direct` is the same file on disk. AssertionError tells the seed and the last steps."""

    def __init__(self, file: Path, direct: Path, seed: int) -> None:
        self.file, self.direct, self.seed = file, direct, seed
        self.random = random.Random(seed)
        self.model = bytearray()
        self.done: list[str] = []
        self.fds = [os.open(file, os.O_RDWR | os.O_CREAT), os.open(file, os.O_RDWR)]
        self.unsupported: set[str] = set()

    def run(self, steps: int) -> None:
        """Play, compare, close."""
        try:
            for number in range(steps):
                self.step()
                if number % 100 == 99:
                    self.compare()
            self.compare()
        except AssertionError as error:
            raise AssertionError(f"seed {self.seed}: {error}\n" + "\n".join(self.done[-15:])) from None
        finally:
            for fd in self.fds:
                os.close(fd)

    def step(self) -> None:
        """One random operation."""
        names = [
            "read",
            "read",
            "write",
            "write",
            "append",
            "truncate",
            "map_write",
            "map_read",
            "punch",
            "copy",
        ]
        names += ["allocate", "reopen", "seek", "sync"]
        name = self.random.choice(names)
        offset = self.random.randrange(MOST)
        length = self.random.choice((1, 100, 4096, self.random.randrange(1, 70_000)))
        self.done.append(f"{name} {offset} {length} of {len(self.model)}")
        getattr(self, "_" + name)(self.random.choice(self.fds), offset, length)
        assert os.fstat(self.fds[0]).st_size == len(self.model), "size"

    def compare(self) -> None:
        """The file through the mount and on disk against the model."""
        assert os.pread(self.fds[0], MOST * 2, 0) == self.model, "through the mount"
        assert self.direct.read_bytes() == self.model, "on disk"

    def _put(self, offset: int, data: bytes) -> None:
        if len(self.model) < offset:
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def _read(self, fd: int, offset: int, length: int) -> None:
        assert os.pread(fd, length, offset) == self.model[offset : offset + length], "read"

    def _write(self, fd: int, offset: int, length: int) -> None:
        data = self.random.randbytes(length)
        assert os.pwrite(fd, data, offset) == length
        self._put(offset, data)

    def _append(self, fd: int, offset: int, length: int) -> None:
        if len(self.model) > MOST:
            return
        data = self.random.randbytes(length)
        with open(self.file, "ab", buffering=0) as file:
            assert file.write(data) == length
        self.model.extend(data)

    def _truncate(self, fd: int, offset: int, length: int) -> None:
        if self.random.random() < 0.5:
            os.ftruncate(fd, offset)
        else:
            os.truncate(self.file, offset)
        self.model[offset:] = bytes(max(0, offset - len(self.model)))

    def _map_write(self, fd: int, offset: int, length: int) -> None:
        if not self.model:
            return
        offset %= len(self.model)
        data = self.random.randbytes(min(length, len(self.model) - offset))
        with mmap.mmap(fd, len(self.model)) as mapped:
            mapped[offset : offset + len(data)] = data
            mapped.flush()
        self._put(offset, data)

    def _map_read(self, fd: int, offset: int, length: int) -> None:
        if self.model:
            with mmap.mmap(fd, len(self.model), prot=mmap.PROT_READ) as mapped:
                assert mapped[offset : offset + length] == self.model[offset : offset + length], "mapped"

    def _fallocate(self, fd: int, mode: int, offset: int, length: int) -> bool:
        if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            assert ctypes.get_errno() == errno.EOPNOTSUPP, os.strerror(ctypes.get_errno())
            self.unsupported.add("fallocate")
            return False
        return True

    def _punch(self, fd: int, offset: int, length: int) -> None:
        if self._fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
            gone = len(self.model[offset : offset + length])
            self.model[offset : offset + gone] = bytes(gone)

    def _allocate(self, fd: int, offset: int, length: int) -> None:
        if self._fallocate(fd, 0, offset, length):
            self.model.extend(bytes(max(0, offset + length - len(self.model))))

    def _copy(self, fd: int, offset: int, length: int) -> None:
        target = self.random.randrange(MOST)
        data = bytes(self.model[offset : offset + length])
        if target < offset + length and offset < target + length:
            return  # overlapping ranges are refused (copy_file_range(2))
        done = os.copy_file_range(self.fds[0], self.fds[1], length, offset, target)
        assert done <= len(data)
        if done:
            self._put(target, data[:done])

    def _seek(self, fd: int, offset: int, length: int) -> None:
        if offset < len(self.model):
            hole = os.lseek(fd, offset, os.SEEK_HOLE)
            assert offset <= hole <= len(self.model), "hole"
            try:
                data = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                data = len(self.model)
            assert not any(self.model[offset:data]), "data in a hole"

    def _sync(self, fd: int, offset: int, length: int) -> None:
        os.fsync(fd)

    def _reopen(self, fd: int, offset: int, length: int) -> None:
        place = self.fds.index(fd)
        os.close(fd)
        self.fds[place] = os.open(self.file, os.O_RDWR)
