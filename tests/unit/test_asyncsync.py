"""fsync in the background: done when it says so, also where the kernel has to be asked in the usual way."""

import errno
import os

import pytest

from fsd.core import asyncsync
from fsd.core.asyncsync import Syncing


@pytest.fixture(params=["kernel", "plain"])
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(asyncsync, "_CALLS", None)
        monkeypatch.setattr(asyncsync, "_context", asyncsync._Context())
    elif not asyncsync._context.free:
        pytest.skip("this kernel does no fsync in the background")
    free = asyncsync._context.free
    yield request.param
    assert asyncsync._context.free == free
    assert asyncsync._context.results == {}


def test_several_end_in_any_order(way, tmp_path):
    fds = [os.open(tmp_path / str(n), os.O_CREAT | os.O_WRONLY) for n in range(40)]
    for fd in fds:
        os.write(fd, b"x")
    running = [Syncing(fd) for fd in fds]  # more than a context holds
    for each in (*running[::2], *reversed(running[1::2])):
        each.end()
    for fd in fds:
        os.close(fd)


@pytest.mark.usefixtures("way")
def test_what_cannot_be_synced_is_an_error():
    read, write = os.pipe()
    with pytest.raises(OSError) as caught:
        Syncing(read).end()
    assert caught.value.errno == errno.EINVAL
    os.close(read)
    os.close(write)


def test_a_failure_of_the_disk_is_an_error(monkeypatch, tmp_path):
    if not asyncsync._context.free:
        pytest.skip("this kernel does no fsync in the background")
    fd = os.open(tmp_path, os.O_RDONLY)
    each = Syncing(fd)
    each.end()
    each._pending = 1
    asyncsync._context.results[1] = -errno.EIO
    with pytest.raises(OSError) as caught:
        each.end()
    assert caught.value.errno == errno.EIO
    os.close(fd)


def test_a_child_has_a_context_of_its_own(way, tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    under_way = Syncing(fd)
    pid = os.fork()
    if pid == 0:
        try:
            Syncing(fd).end()
            os._exit(0 if asyncsync._context.results == {} else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    under_way.end()
    os.close(fd)
