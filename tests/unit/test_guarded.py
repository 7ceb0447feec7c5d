"""Asking in a child: answers, errors, and no answer at all."""

import errno
import os
import signal

import pytest

from fsd.core.errors import StorageUnavailable
from fsd.service.guarded import Hung, within
from tests.support.hung import hung_mount


def test_an_answer_of_any_size():
    assert within(30, lambda: b"x" * 1_000_000) == b"x" * 1_000_000


def test_errors_come_back():
    def fail(error):
        raise error

    with pytest.raises(OSError, match="is away") as caught:
        within(30, lambda: fail(StorageUnavailable("It is away.")))
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(RuntimeError, match="ZeroDivision"):
        within(30, lambda: 1 // 0)


def test_a_child_that_dies_has_not_answered():
    with pytest.raises(Hung, match="without an answer"):
        within(30, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.root
def test_storage_that_never_answers(tmp_path):
    with hung_mount(tmp_path), pytest.raises(Hung, match="no answer"):
        within(0.2, lambda: os.stat(tmp_path))
