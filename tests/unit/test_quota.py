"""Quota: what may still be added, from whatever source limits come."""

import errno
import os

import pytest

from fsd.core import quota
from fsd.core.content import Upload
from fsd.core.errors import QuotaExceeded
from tests.support.worlds import make_space
from tests.unit.core_space import put


@pytest.fixture
def space(tmp_path):
    made = make_space(tmp_path)
    put(made, b"a", b"12345")
    yield made
    made.close()


def test_without_a_quota_the_disk_is_the_limit(space):
    assert quota.available(space) is None
    quota.check(space, 1000)
    with pytest.raises(OSError) as caught:
        quota.check(space, 1 << 62)
    assert caught.value.errno == errno.ENOSPC
    quota.check_limit(space, 1 << 62)


def test_a_quota(space):
    limits = []
    try:
        quota.use(space.state_dir, lambda asked: limits.append(asked) or 8)
        assert quota.available(space) == 3
        quota.check(space, 3)
        with pytest.raises(QuotaExceeded, match="3 more bytes, not 4"):
            quota.check(space, 4)
        quota.check(space, 0)
        quota.check(space, -10)
        assert quota.available(space, lambda _space: 2) == 0
        assert quota.available(space, lambda _space: 1 << 62) == quota.free_on_disk(space)
        assert set(limits) == {space}
    finally:
        quota.use(space.state_dir, lambda _space: None)


def test_what_is_over_its_quota_may_shrink_but_not_grow(space):
    try:
        quota.use(space.state_dir, lambda _space: 2)
        put(space, b"a", b"1234")
        with pytest.raises(QuotaExceeded):
            put(space, b"a", b"12345")
    finally:
        quota.use(space.state_dir, lambda _space: None)


def test_a_small_disk_can_be_written_to(space):
    """The default reserve, and filesystems smaller than that."""
    found = os.fstatvfs(space.root_fd())

    def disk_of(size):
        values = list(found)
        values[1:3] = 4096, size // 4096  # f_frsize, f_blocks
        return os.statvfs_result(values)

    assert [quota.held_back(disk_of(size), 64 << 20) for size in (16 << 20, 1 << 30, 2 << 30, 1 << 40)] == [
        512 << 10, 32 << 20, 64 << 20, 64 << 20,
    ]  # fmt: skip
    assert quota.held_back(disk_of(1 << 30), 0) == 0


def test_the_reserve_of_the_disk_is_left(space, monkeypatch):
    monkeypatch.setattr(quota, "_SMALL", 1)
    free = quota.free_on_disk(space)
    try:
        quota.use(space.state_dir, lambda _space: None, reserve=free + (1 << 30))
        assert quota.free_on_disk(space) == 0
        with pytest.raises(OSError) as caught:
            put(space, b"b", b"12345")
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError) as caught, Upload(space, b"b", length=None) as upload:
            upload.write(b"12345")
        assert caught.value.errno == errno.ENOSPC
        put(space, b"a", b"123")
    finally:
        quota.use(space.state_dir, lambda _space: None)
